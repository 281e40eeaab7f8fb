#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "worker/models/code_path.h"
#include "worker/models/param_buffer.h"
#include "worker/torch.h"

namespace dd2 {

struct TokenizerSpec {
  std::int64_t codes = 128;      // V
  std::int64_t channels = 4;     // C
  VarScales scales;              // of a multi-scale residual one; none: raster order
  std::int64_t raster_side = 7;  // tokens per side in raster order
  std::int64_t tokens() const {  // n of an image
    return scales.sides.empty() ? raster_side * raster_side : scales.tokens();
  }
};

// Between images and codes of C channels. Networks see codes as `codebook` has them. Frozen.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  Tokenizer(const Tokenizer&) = default;
  Tokenizer& operator=(const Tokenizer&) = default;

  // images [B, channels, H, H] in [-1, 1] -> ids [B, n] int64.
  virtual at::Tensor Encode(const at::Tensor& images) const = 0;
  // codes [B, n, C], of the codebook or continuous -> images in [-1, 1]; LlamaGen's decoder is not
  // clamped, as published.
  virtual at::Tensor Decode(const at::Tensor& codes) const = 0;
  const at::Tensor& codebook() const { return codebook_; }  // [V, C]
  // What the transformer of a multi-scale teacher sees of codes; null in raster order.
  const std::shared_ptr<const CodePath>& path() const { return path_; }
  // Small enough to lie in every exported model; otherwise an export names the teacher's folder.
  virtual bool travels() const = 0;
  virtual std::int64_t image_side() const = 0;  // H
  const TokenizerSpec& spec() const { return spec_; }
  const ParamBuffer& params() const { return params_; }

 protected:
  Tokenizer(TokenizerSpec spec, ParamBuffer params)
      : spec_(std::move(spec)), params_(std::move(params)) {}
  TokenizerSpec spec_;
  ParamBuffer params_;
  at::Tensor codebook_;
  std::shared_ptr<const CodePath> path_;
};

// Codebook vectors of tokens: codebook [V, C], tokens [B, n] int64 -> [B, n, C].
inline at::Tensor CodesOf(const at::Tensor& codebook, const at::Tensor& tokens) {
  return codebook.index_select(0, tokens.flatten()).view({tokens.size(0), tokens.size(1), -1});
}

}  // namespace dd2
