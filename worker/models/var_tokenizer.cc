#include "worker/models/var_tokenizer.h"

namespace dd2 {
namespace {

VqganSpec NetworkOf(const VarTokenizerSpec& spec) {
  return {.names = VqganNames::kVar,
          .width = spec.width,
          .multipliers = spec.multipliers,
          .latent = spec.channels};
}

}  // namespace

ParamLayout VarTokenizer::Layout(const VarTokenizerSpec& spec) {
  ParamLayout layout;
  Vqgan::Declare(NetworkOf(spec), layout);
  VarQuantizer::Declare(spec.scales, spec.codes, spec.channels, "quantize.", layout);
  layout.AddConv("quant_conv", spec.channels, spec.channels, 3);
  layout.AddConv("post_quant_conv", spec.channels, spec.channels, 3);
  return layout;
}

VarTokenizer::VarTokenizer(const VarTokenizerSpec& spec, const ParamBuffer& params)
    : params_(params),
      network_(NetworkOf(spec), params),
      quantizer_(spec.scales, params, "quantize.") {}

at::Tensor VarTokenizer::Features(const at::Tensor& images) const {
  return at::conv2d(network_.Encode(images), params_["quant_conv.weight"],
                    params_["quant_conv.bias"], /*stride=*/1, /*padding=*/1);
}

at::Tensor VarTokenizer::Encode(const at::Tensor& images) const {
  const at::NoGradGuard no_grad;
  return quantizer_.Encode(Features(images));
}

at::Tensor VarTokenizer::FHat(const at::Tensor& ids) const {
  return quantizer_.FHat(quantizer_.Codes(ids));
}

at::Tensor VarTokenizer::DecodeUnclamped(const at::Tensor& f_hat) const {
  return network_.Decode(at::conv2d(f_hat, params_["post_quant_conv.weight"],
                                    params_["post_quant_conv.bias"], /*stride=*/1,
                                    /*padding=*/1));
}

at::Tensor VarTokenizer::Decode(const at::Tensor& f_hat) const {
  return DecodeUnclamped(f_hat).clamp(-1.0, 1.0);
}

}  // namespace dd2
