// The VQ tokenizer (small_tokenizer.h): two strided convolutions and two residual blocks each way.

#include "worker/models/small_tokenizer.h"

#include <string>

#include "common/check.h"
#include "worker/models/vqgan.h"

namespace dd2 {
namespace {

constexpr std::int64_t kStem = 32;
constexpr std::int64_t kWidth = 64;
constexpr std::int64_t kSide = SmallTokenizer::kSide;
constexpr std::int64_t kLatents = kSide * kSide;
constexpr const char* kQuantizer = "quantize.";
constexpr std::int64_t kImageSide = 4 * kSide;

// Transposed convolutions keep the input channels first.
void AddTransposedConv(ParamLayout& layout, const std::string& name, std::int64_t in,
                       std::int64_t out) {
  layout.Add(name + ".weight", {in, out, 4, 4});
  layout.Add(name + ".bias", {out});
}

void AddResidual(ParamLayout& layout, const std::string& name) {
  layout.AddConv(name + ".a", kWidth, kWidth, 3);
  layout.AddConv(name + ".b", kWidth, kWidth, 1);
}

at::Tensor Conv(const ParamBuffer& params, const std::string& name, const at::Tensor& x,
                std::int64_t stride, std::int64_t padding) {
  return at::conv2d(x, params[name + ".weight"], params[name + ".bias"], stride, padding);
}

at::Tensor Double(const ParamBuffer& params, const std::string& name, const at::Tensor& x) {
  return at::conv_transpose2d(x, params[name + ".weight"], params[name + ".bias"], /*stride=*/2,
                              /*padding=*/1);
}

at::Tensor Residual(const ParamBuffer& params, const std::string& name, const at::Tensor& x) {
  const at::Tensor inner = Conv(params, name + ".a", at::relu(x), 1, 1);
  return x + Conv(params, name + ".b", at::relu(inner), 1, 0);
}

}  // namespace

ParamLayout SmallTokenizer::Layout(const TokenizerSpec& spec) {
  const std::int64_t channels = spec.channels;
  ParamLayout layout;
  layout.AddConv("encoder.conv1", 1, kStem, 4);
  layout.AddConv("encoder.conv2", kStem, kWidth, 4);
  AddResidual(layout, "encoder.residual1");
  AddResidual(layout, "encoder.residual2");
  layout.AddConv("encoder.out", kWidth, channels, 1);
  layout.AddConv("decoder.in", channels, kWidth, 3);
  AddResidual(layout, "decoder.residual1");
  AddResidual(layout, "decoder.residual2");
  AddTransposedConv(layout, "decoder.up1", kWidth, kStem);
  AddTransposedConv(layout, "decoder.up2", kStem, 1);
  if (spec.scales.sides.empty()) {
    layout.Add("codebook", {spec.codes, channels});
  } else {
    VarQuantizer::Declare(spec.scales, spec.codes, channels, kQuantizer, layout);
  }
  layout.Add("mean", {channels});
  layout.Add("std", {channels});
  return layout;
}

SmallTokenizer::SmallTokenizer(const TokenizerSpec& spec, const ParamBuffer& params)
    : Tokenizer(spec, params) {
  const at::NoGradGuard no_grad;
  codebook_ = (raw_codebook() - params["mean"]) / params["std"];
  if (spec.scales.sides.empty()) return;
  DD2_CHECK(spec.scales.sides.back() == kSide);
  path_ = std::make_shared<const CodePath>(VarQuantizer(spec.scales, params, kQuantizer),
                                           params["mean"], params["std"]);
}

const at::Tensor& SmallTokenizer::raw_codebook() const {
  return params_[spec_.scales.sides.empty() ? "codebook" : "quantize.embedding.weight"];
}

at::Tensor SmallTokenizer::EncodeLatents(const at::Tensor& images) const {
  DD2_CHECK(images.dim() == 4 && images.size(2) == kImageSide && images.size(3) == kImageSide);
  at::Tensor h = at::relu(Conv(params_, "encoder.conv1", images, 2, 1));
  h = Conv(params_, "encoder.conv2", h, 2, 1);
  h = Residual(params_, "encoder.residual1", h);
  h = Residual(params_, "encoder.residual2", h);
  h = Conv(params_, "encoder.out", at::relu(h), 1, 0);
  return MapToRows(h).contiguous();
}

at::Tensor SmallTokenizer::DecodeLatents(const at::Tensor& latents) const {
  DD2_CHECK(latents.dim() == 3 && latents.size(1) == kLatents && latents.size(2) == spec_.channels);
  at::Tensor h = Conv(params_, "decoder.in", RowsToMap(latents, kSide, kSide).contiguous(), 1, 1);
  h = Residual(params_, "decoder.residual1", h);
  h = Residual(params_, "decoder.residual2", h);
  h = at::relu(Double(params_, "decoder.up1", at::relu(h)));
  return Double(params_, "decoder.up2", h);
}

at::Tensor SmallTokenizer::Nearest(const at::Tensor& latents, const at::Tensor& codebook) {
  // |z - c|^2 without |z|^2, which does not change the order.
  const at::Tensor squares = codebook.square().sum(1);
  return at::addmm(squares, latents, codebook.t(), 1.0, -2.0).argmin(1);
}

at::Tensor SmallTokenizer::Encode(const at::Tensor& images) const {
  const at::NoGradGuard no_grad;
  const at::Tensor latents = EncodeLatents(images);
  if (path_) return path_->quantizer().Encode(RowsToMap(latents, kSide, kSide));
  return Nearest(latents.view({-1, spec_.channels}), raw_codebook())
      .view({images.size(0), kLatents});
}

at::Tensor SmallTokenizer::Decode(const at::Tensor& codes) const {
  const at::NoGradGuard no_grad;
  if (path_) return DecodeLatents(MapToRows(path_->Features(codes)).contiguous()).clamp_(-1.0, 1.0);
  const at::Tensor latents = codes.contiguous() * params_["std"] + params_["mean"];
  return DecodeLatents(latents).clamp_(-1.0, 1.0);
}

}  // namespace dd2
