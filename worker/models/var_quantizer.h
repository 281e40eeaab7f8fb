#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "worker/models/param_buffer.h"
#include "worker/torch.h"

namespace dd2 {

// The token maps of a VAR model, from coarse to fine, and which of the quantiser's convolutions
// (phi) smooths each of them. Tokens are counted scale by scale, in raster order inside a scale.
struct VarScales {
  std::vector<std::int64_t> sides;  // growing; the last is the side of the latent
  std::vector<std::int64_t> phi_of_scale;

  // 256 px of the released files: 10 scales, 680 tokens, 4 phi. The official table stands here as
  // numbers: numpy decides the ties at scales 2 and 7 by the last bit (models.md 0.1).
  static VarScales Released();
  // Other maps by the official rule in whole numbers: phi j sits at (3 + 10 j) / 36 for four phi,
  // at (1 + 2 j) / (2 phis) otherwise; scale k at k / (scales - 1) takes the nearest, of two
  // equally near the later. Equals every known table (4, 5, 10 and 14 scales with four phi).
  static VarScales WithPhis(std::vector<std::int64_t> sides, std::int64_t phis);

  // What comes from a file: two or more sides that grow, each with a phi, which are counted from 0
  // on without a gap. True of no scales at all.
  bool fits() const;

  std::int64_t count() const { return static_cast<std::int64_t>(sides.size()); }
  std::int64_t tokens() const { return First(count()); }  // L
  std::int64_t phis() const;
  std::int64_t Area(std::int64_t scale) const;   // tokens of that scale
  std::int64_t First(std::int64_t scale) const;  // tokens before it
};

// VAR's multi-scale residual quantiser (Tian et al. 2024; models.md 1.2). Shapes: B images, C
// channels of a code, V codes, L tokens, S = the last side. It turns token maps into what the
// transformer reads - the running reconstruction f_hat resized to the next side, never the codes
// themselves - and into f_hat [B, C, S, S] for the decoder. Codes may be continuous: everything but
// Encode is differentiable in them, and runs in their dtype (official: fp32).
class VarQuantizer {
 public:
  // Parameters prefix + {quant_resi.qresi_ls.I.{weight,bias}, embedding.weight [V, C]}.
  static void Declare(const VarScales& scales, std::int64_t codes, std::int64_t channels,
                      const std::string& prefix, ParamLayout& layout);
  VarQuantizer(VarScales scales, const ParamBuffer& params, const std::string& prefix);

  // Features [B, C, S, S] -> ids [B, L] int64: scale by scale the nearest codes of what is left.
  at::Tensor Encode(const at::Tensor& features) const;
  // Ids [...] -> codes [..., C].
  at::Tensor Codes(const at::Tensor& ids) const;
  // Codes [B, L, C] (those of the last scale do not matter and may be missing) -> the transformer's
  // rows for all scales but the first, [B, L - first scale, C].
  at::Tensor TransformerInput(const at::Tensor& codes) const;
  // Codes [B, L, C] -> f_hat [B, C, S, S].
  at::Tensor FHat(const at::Tensor& codes) const;
  // One scale of sampling: adds codes [B, side^2, C] of `scale` to f_hat (undefined before the
  // first scale; replaced, not written to) and returns the rows of the next scale [B, next side^2,
  // C], undefined after the last. The same bits as TransformerInput and FHat.
  at::Tensor Step(const at::Tensor& codes, std::int64_t scale, at::Tensor& f_hat) const;
  const VarScales& scales() const { return scales_; }
  // What the codes [B, side^2, C] of a scale add to f_hat: [B, C, S, S].
  at::Tensor Contribution(const at::Tensor& codes, std::int64_t scale) const;
  const at::Tensor& codebook() const { return codebook_; }  // [V, C], raw

 private:
  struct Phi {
    at::Tensor weight, bias;
  };
  VarScales scales_;
  std::vector<Phi> phis_;
  at::Tensor codebook_;
};

}  // namespace dd2
