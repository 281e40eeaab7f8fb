#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "worker/models/param_buffer.h"
#include "worker/torch.h"

namespace dd2 {

// How a released file names the layers of the same network.
enum class VqganNames : std::uint8_t {
  kVar,       // encoder.down.L, decoder.up.L with L = 0 at full resolution both ways; joint qkv
  kLlamaGen,  // {encoder,decoder}.conv_blocks.I by order of execution; separate q, k, v
};

// Sizes of the convolutional network around both image tokenizers (models.md 1.5, 2.1).
struct VqganSpec {
  VqganNames names = VqganNames::kVar;
  std::int64_t width = 160;                              // channels at full resolution (ch)
  std::vector<std::int64_t> multipliers{1, 1, 2, 2, 4};  // of width, from high resolution to low
  std::int64_t latent = 32;                              // z, channels of the latent
  // Pixels per latent along a side.
  std::int64_t Factor() const { return std::int64_t{1} << (multipliers.size() - 1); }
};

// The VQGAN encoder and decoder (Esser et al. 2021) as VAR and LlamaGen use them: residual blocks
// with GroupNorm(32, eps 1e-6) and SiLU, single-head attention at the lowest resolution, strided
// convolutions down, nearest-neighbour doubling up. Widths are multiples of 32. Parameters carry
// the official names, "encoder.*" and "decoder.*".
class Vqgan {
 public:
  static void Declare(const VqganSpec& spec, ParamLayout& layout);
  Vqgan(const VqganSpec& spec, const ParamBuffer& params);

  // [B, 3, H, W] in [-1, 1] -> [B, z, H / factor, W / factor]; H and W are multiples of the factor.
  at::Tensor Encode(const at::Tensor& images) const;
  // [B, z, h, w] -> [B, 3, factor h, factor w], unclamped.
  at::Tensor Decode(const at::Tensor& latents) const;

 private:
  enum class Kind : std::uint8_t { kConv, kResidual, kAttention, kDown, kUp, kOut };
  // One step of the network; `name` ends before ".weight".
  struct Step {
    Kind kind;
    std::string name;
    std::int64_t in, out;  // channels
  };
  class Planner;
  static std::vector<Step> EncoderSteps(const VqganSpec& spec);
  static std::vector<Step> DecoderSteps(const VqganSpec& spec);
  static void DeclareStep(const VqganSpec& spec, const Step& step, ParamLayout& layout);
  at::Tensor Run(const std::vector<Step>& steps, at::Tensor x) const;
  at::Tensor Conv(const std::string& name, const at::Tensor& x) const;
  at::Tensor NormSilu(const std::string& name, const at::Tensor& x) const;
  at::Tensor Norm(const std::string& name, const at::Tensor& x) const;
  at::Tensor Residual(const Step& step, const at::Tensor& x) const;
  at::Tensor Attention(const std::string& name, const at::Tensor& x) const;

  VqganSpec spec_;
  ParamBuffer params_;
  std::vector<Step> encoder_, decoder_;
};

// Nearest code of every row in squared L2, computed as |z|^2 + |c|^2 - 2 z.c in that order as both
// repositories do, so that near ties fall alike: rows [N, C], codebook [V, C] -> [N] int64.
at::Tensor NearestCodes(const at::Tensor& rows, const at::Tensor& codebook);
// A map in raster order as rows, and back: [B, C, h, w] <-> [B, h w, C].
at::Tensor MapToRows(const at::Tensor& map);
at::Tensor RowsToMap(const at::Tensor& rows, std::int64_t height, std::int64_t width);

}  // namespace dd2
