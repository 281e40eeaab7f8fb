#include "worker/models/llamagen_tokenizer.h"

#include <cmath>

#include "common/check.h"

namespace dd2 {
namespace {

VqganSpec NetworkOf(const LlamaGenTokenizerSpec& spec) {
  return {.names = VqganNames::kLlamaGen,
          .width = spec.width,
          .multipliers = spec.multipliers,
          .latent = spec.latent};
}

// Rows [N, C] of length 1; the floor is the official one.
at::Tensor Normalised(const at::Tensor& rows) {
  return rows / rows.norm(2, 1, /*keepdim=*/true).clamp_min(1e-12);
}

}  // namespace

ParamLayout LlamaGenTokenizer::Layout(const LlamaGenTokenizerSpec& spec) {
  ParamLayout layout;
  Vqgan::Declare(NetworkOf(spec), layout);
  layout.Add("quantize.embedding.weight", {spec.codes, spec.channels});
  layout.AddConv("quant_conv", spec.latent, spec.channels, 1);
  layout.AddConv("post_quant_conv", spec.channels, spec.latent, 1);
  return layout;
}

LlamaGenTokenizer::LlamaGenTokenizer(const LlamaGenTokenizerSpec& spec, const ParamBuffer& params)
    : params_(params), network_(NetworkOf(spec), params) {
  const at::NoGradGuard no_grad;
  codebook_ = Normalised(params["quantize.embedding.weight"]);
}

at::Tensor LlamaGenTokenizer::Features(const at::Tensor& images) const {
  return at::conv2d(network_.Encode(images), params_["quant_conv.weight"],
                    params_["quant_conv.bias"]);
}

at::Tensor LlamaGenTokenizer::Encode(const at::Tensor& images) const {
  const at::NoGradGuard no_grad;
  const at::Tensor rows = MapToRows(Features(images));  // [B, n, C]
  const at::Tensor flat = rows.reshape({-1, rows.size(2)});
  return NearestCodes(Normalised(flat), codebook_).view({rows.size(0), rows.size(1)});
}

at::Tensor LlamaGenTokenizer::Decode(const at::Tensor& codes) const {
  DD2_CHECK(codes.dim() == 3);
  const auto side = static_cast<std::int64_t>(std::lround(std::sqrt(codes.size(1))));
  DD2_CHECK(side * side == codes.size(1));
  return network_.Decode(at::conv2d(RowsToMap(codes, side, side), params_["post_quant_conv.weight"],
                                    params_["post_quant_conv.bias"]));
}

at::Tensor LlamaGenTokenizer::DecodeIds(const at::Tensor& ids) const {
  return Decode(codebook_.index({ids}));
}

}  // namespace dd2
