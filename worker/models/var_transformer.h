#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "worker/models/backbone.h"
#include "worker/models/fused_blocks.h"
#include "worker/models/param_buffer.h"
#include "worker/models/recompute.h"
#include "worker/torch.h"

namespace dd2 {

// Sizes of VAR's transformer (models.md 1.3); as they stand, those of the released d16.
struct VarSpec {
  std::int64_t depth = 16;
  std::int64_t width = 1024;  // d
  std::int64_t heads = 16;
  std::int64_t channels = 32;      // C of a code
  std::int64_t classes = 1000;     // label `classes` is the null class
  std::int64_t vocabulary = 4096;  // V
  std::vector<std::int64_t> sides = {1, 2, 3, 4, 5, 6, 8, 10, 13, 16};  // of the K scales
  bool attn_l2_norm = true;  // queries and keys of length 1 and a learned temperature per head

  std::int64_t scales() const { return static_cast<std::int64_t>(sides.size()); }  // K
  std::int64_t ScaleTokens(std::int64_t scale) const;                              // side^2
  std::int64_t TokensBefore(std::int64_t scale) const;            // of all earlier scales
  std::int64_t tokens() const { return TokensBefore(scales()); }  // L
};

// VAR's scale-by-scale transformer: AdaLN blocks conditioned on the class, full attention inside a
// scale and to earlier ones. Library operators with ordinary autograd, on a device with kernels of
// ours between the matrix products (fused_blocks.h): a frozen teacher, or the trainable backbone of
// generator and guidance network. Labels are never dropped (VAR's own forward
// drops a tenth of them even in evaluation, models.md 0.2), nor are paths. B sequences below.
//
// Parameters carry the names of the released files (tensors/var_d16.tsv) less their buffers
// lvl_1L, attn_bias_for_masking and zero_k_bias, which follow from the spec.
class VarTransformer {
 public:
  // Everything up to Hidden; the head_nm and head of the vocabulary. DD2's networks declare the
  // first alone and put an MLP head on Hidden.
  static void DeclareBackbone(const VarSpec& spec, const std::string& prefix, ParamLayout& layout);
  static void DeclareHead(const VarSpec& spec, const std::string& prefix, ParamLayout& layout);
  // Takes the tensors named prefix + "..." of `params` (shared storage), the head if it is there.
  VarTransformer(const VarSpec& spec, const ParamBuffer& params, const std::string& prefix);

  // rows [B, L - ScaleTokens(0), C]: what enters at scales 1.. (the running reconstruction resized
  // to each, models.md 1.2), labels [B] -> [B, L, d], features in front of the head's AdaLN. Those
  // of a scale depend on the rows of this and earlier scales.
  at::Tensor Hidden(const at::Tensor& rows, const at::Tensor& labels, PassMode mode = {}) const;
  // What enters the output layer: hidden [B, l, d] of any l tokens -> [B, l, d]. Guidance and the
  // output layer are linear, so that it may be guided instead of the logits (method 7.3).
  at::Tensor HeadInput(const at::Tensor& hidden, const at::Tensor& labels) const;
  at::Tensor Logits(const at::Tensor& head_input) const;  // [..., d] -> [..., V]

  // One scale of sampling, without autograd: rows [B, ScaleTokens(scale), C] (ignored for scale 0)
  // -> Hidden of these tokens. Scale 0 empties the cache, which holds keys as attention reads them
  // (of length 1).
  at::Tensor Step(std::int64_t scale, const at::Tensor& rows, const at::Tensor& labels,
                  KvCache& cache) const;
  const VarSpec& spec() const { return spec_; }

 private:
  struct Block {
    at::Tensor ada_weight, ada_bias, scale_mul, q_bias, v_bias, qkv_weight, proj_weight, proj_bias;
    at::Tensor fc1_weight, fc1_bias, fc2_weight, fc2_bias;
  };
  // -> the mixed values, [B, heads, l, d / heads].
  using Attend = std::function<at::Tensor(const QueriesKeysValues&)>;
  static QueriesKeysValues Project(const VarSpec& spec, const Block& block, const at::Tensor& x);
  // condition [B, d]: SiLU of the class embedding.
  static at::Tensor Forward(const VarSpec& spec, const Block& block, const at::Tensor& x,
                            const at::Tensor& condition, const Attend& attend);
  at::Tensor Embed(std::int64_t first_scale, std::int64_t scale_count, const at::Tensor& rows,
                   const at::Tensor& of_class) const;

  VarSpec spec_;
  at::Tensor pos_start_, positions_, levels_, classes_, word_weight_, word_bias_;
  std::vector<Block> blocks_;
  at::Tensor head_ada_weight_, head_ada_bias_, head_weight_, head_bias_;  // or undefined
  at::Tensor level_of_token_;                                             // [L] int64
  at::Tensor mask_;  // [L, L]: 0, or -inf where the key is of a later scale
};

// Strength of guidance of the tokens of a scale s, w = 1 + cfg s / (K - 1). VAR's cfg; its last
// scale has the w = 1 + cfg of LlamaGen (models.md 0.3).
double ScaleGuidance(const VarSpec& spec, std::int64_t scale, double cfg);
// The same by token: [L].
at::Tensor GuidanceRamp(const VarSpec& spec, double cfg);

}  // namespace dd2
