#pragma once

#include <cstdint>

namespace dd2 {

// Causal self-attention of every head of every sequence, forward and backward, without LibTorch.
// Rows are tokens, sequence after sequence: qkv [batch * tokens, 3 * heads * head_width] is the
// product with the stacked q, k, v weights, whose bias comes apart ([3 * heads * head_width]). Bits
// do not depend on the batch.
struct AttentionShape {
  std::int64_t batch = 0;
  std::int64_t tokens = 0;
  std::int64_t heads = 0;
  std::int64_t head_width = 0;
};

// mixed [batch * tokens, heads * head_width] = softmax(q k^T / sqrt(head_width)) v.
void CausalAttention(const AttentionShape& shape, const float* qkv, const float* bias,
                     float* mixed);
// Weights are computed again. d_qkv has the shape of qkv.
void CausalAttentionBackward(const AttentionShape& shape, const float* qkv, const float* bias,
                             const float* d_mixed, float* d_qkv);

}  // namespace dd2
