#pragma once

#include "worker/models/tokenizer.h"

namespace dd2 {

// The VQ tokenizer: 28x28x1 images in [-1, 1] <-> 7x7 latents of C channels (recipe 2), quantised
// one by one, or as a sum over scales (var_quantizer.h; recipe 7). Codes outside this class are
// standardised (zero mean, unit variance per channel); it undoes that itself. Parameters:
// encoder.*, decoder.* (convolutions), codebook [V, C] (raw) or, by scales, quantize.* as
// VarQuantizer names it, mean [C], std [C] of the raw codes that the training images use.
class SmallTokenizer : public Tokenizer {
 public:
  static constexpr std::int64_t kSide = 7;  // of the latent, and of the last scale
  static ParamLayout Layout(const TokenizerSpec& spec);
  SmallTokenizer(const TokenizerSpec& spec, const ParamBuffer& params);
  at::Tensor Encode(const at::Tensor& images) const override;  // [B, 1, 28, 28]
  at::Tensor Decode(const at::Tensor& codes) const override;   // -> [B, 1, 28, 28]
  bool travels() const override { return true; }
  std::int64_t image_side() const override { return 4 * kSide; }
  const at::Tensor& raw_codebook() const;  // the parameter [V, C]
  // The raw halves, for training: images -> latents [B, 49, C] and back, both with autograd.
  at::Tensor EncodeLatents(const at::Tensor& images) const;
  at::Tensor DecodeLatents(const at::Tensor& latents) const;
  // Nearest raw code of every row: latents [N, C], codebook [V, C] -> [N] int64.
  static at::Tensor Nearest(const at::Tensor& latents, const at::Tensor& codebook);
};

}  // namespace dd2
