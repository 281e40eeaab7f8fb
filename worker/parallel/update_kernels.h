#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "worker/parallel/shard_plan.h"

namespace dd2 {

// The arithmetic of an exact update on plain arrays. update_kernels.cc is compiled without
// contraction (no fused multiply-add), so an element's bits do not depend on where a slice starts
// or on whether the compiler's vector body or its scalar tail handled it. Single-threaded.

// A known partial sum: `values` holds the sum over the shards of `node`.
struct TreeLeaf {
  TreeNode node;
  const float* values = nullptr;
};

// Sums leaves along the binary tree over shards, a block of elements at a time: every inner node is
// left + right in fp32, whatever leaves the sum starts from. The leaves below the wanted node must
// cover it. `levels`: log2 of the number of shards.
class TreeSummer {
 public:
  TreeSummer(int levels, std::int64_t block);
  // The sum of `node` over elements [offset, offset + count), count <= block. Valid until the next
  // call; may point into a leaf.
  const float* Sum(const TreeNode& node, std::span<const TreeLeaf> leaves, std::int64_t offset,
                   std::int64_t count);

 private:
  const float* Evaluate(const TreeNode& node, std::span<const TreeLeaf> leaves, std::int64_t offset,
                        std::int64_t count, float* slot, float* free);
  std::int64_t block_;
  std::vector<float> scratch_;
};

// out = factor * in; returns the sum of squares of out in double (16 interleaved partial sums added
// in a fixed tree).
double ScaleAndSquareSum(const float* in, float factor, std::int64_t count, float* out);

// The numbers of one Adam step that are equal for all elements of a range.
struct AdamFactors {
  float gradient_scale = 1;  // clipping
  float beta1 = 0;
  float beta2 = 0;
  float one_minus_beta1 = 1;
  float one_minus_beta2 = 1;
  float step_size = 0;              // learning rate / (1 - beta1^k)
  float root_bias_correction2 = 1;  // sqrt(1 - beta2^k)
  float epsilon = 0;
  float ema_decay = 1;
  float one_minus_ema_decay = 0;
};

// m, v <- moments; updated = parameter - step_size * m / (sqrt(v) / root_bias_correction2 +
// epsilon); ema <- decay * ema + (1 - decay) * updated unless `ema` is null. One pass.
void AdamAndEma(const AdamFactors& factors, std::int64_t count, const float* gradient,
                const float* parameter, float* m, float* v, float* ema, float* updated);

}  // namespace dd2
