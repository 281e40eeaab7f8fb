#pragma once

#include <cstdint>
#include <vector>

#include "worker/models/param_buffer.h"
#include "worker/models/var_quantizer.h"
#include "worker/models/vqgan.h"
#include "worker/torch.h"

namespace dd2 {

// Sizes of a VAR tokenizer; the defaults are those of vae_ch160v4096z32.pth.
struct VarTokenizerSpec {
  std::int64_t width = 160;                              // ch
  std::vector<std::int64_t> multipliers{1, 1, 2, 2, 4};  // ch_mult
  std::int64_t channels = 32;                            // C, of a code and of the latent
  std::int64_t codes = 4096;                             // V
  VarScales scales = VarScales::Released();
};

// VAR's image tokenizer: VQGAN with 3x3 convolutions around a multi-scale residual quantiser
// (models.md 1.2, 1.5). Images [B, 3, H, H] in [-1, 1] with H = factor * S (256 = 16 * 16);
// otherwise the shapes of VarQuantizer. Parameters by their official names: encoder.*, decoder.*,
// quantize.*, quant_conv.*, post_quant_conv.*.
class VarTokenizer {
 public:
  static ParamLayout Layout(const VarTokenizerSpec& spec);
  VarTokenizer(const VarTokenizerSpec& spec, const ParamBuffer& params);

  at::Tensor Features(const at::Tensor& images) const;  // what is quantised: [B, C, S, S]
  at::Tensor Encode(const at::Tensor& images) const;    // ids [B, L] int64
  at::Tensor FHat(const at::Tensor& ids) const;         // [B, L] -> [B, C, S, S]
  // f_hat [B, C, S, S] -> images [B, 3, H, H], clamped to [-1, 1].
  at::Tensor Decode(const at::Tensor& f_hat) const;
  at::Tensor DecodeUnclamped(const at::Tensor& f_hat) const;
  const Vqgan& network() const { return network_; }
  const VarQuantizer& quantizer() const { return quantizer_; }

 private:
  ParamBuffer params_;
  Vqgan network_;
  VarQuantizer quantizer_;
};

}  // namespace dd2
