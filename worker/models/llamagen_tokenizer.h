#pragma once

#include <cstdint>
#include <vector>

#include "worker/models/param_buffer.h"
#include "worker/models/vqgan.h"
#include "worker/torch.h"

namespace dd2 {

// Sizes of a LlamaGen tokenizer; the defaults are those of vq_ds16_c2i.pt.
struct LlamaGenTokenizerSpec {
  std::int64_t width = 128;                              // ch
  std::vector<std::int64_t> multipliers{1, 1, 2, 2, 4};  // ch_mult
  std::int64_t latent = 256;                             // z, channels around the quantiser
  std::int64_t channels = 8;                             // C, of a code
  std::int64_t codes = 16384;                            // V
};

// LlamaGen's image tokenizer: VQGAN with one code of unit length per latent position (models.md
// 2.1). Images [B, 3, H, H] in about [-1, 1], n = (H / factor)^2 tokens in raster order (256 at 256
// px). Parameters by their official names: encoder.*, decoder.*, quantize.embedding.weight (raw),
// quant_conv.*, post_quant_conv.*.
class LlamaGenTokenizer {
 public:
  static ParamLayout Layout(const LlamaGenTokenizerSpec& spec);
  // Normalises the codebook as it is now: load the parameters first.
  LlamaGenTokenizer(const LlamaGenTokenizerSpec& spec, const ParamBuffer& params);

  at::Tensor Features(const at::Tensor& images) const;  // [B, C, h, h], before normalisation
  at::Tensor Encode(const at::Tensor& images) const;    // ids [B, n] int64
  // Codes [B, n, C] -> images [B, 3, H, H], unclamped; n is a square.
  at::Tensor Decode(const at::Tensor& codes) const;
  at::Tensor DecodeIds(const at::Tensor& ids) const;        // ids [B, n] -> the same
  const at::Tensor& codebook() const { return codebook_; }  // [V, C], rows of length 1
  const Vqgan& network() const { return network_; }

 private:
  ParamBuffer params_;
  Vqgan network_;
  at::Tensor codebook_;
};

}  // namespace dd2
