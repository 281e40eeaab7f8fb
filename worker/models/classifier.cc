// The evaluation CNN (teacher.h), batch norm folded into its convolutions.

#include "common/check.h"
#include "worker/models/teacher.h"

namespace dd2 {
namespace {

constexpr std::int64_t kFeatures = 64;
constexpr std::int64_t kClasses = 10;
constexpr std::int64_t kPooledPixels = 7 * 7;

}  // namespace

ParamLayout Classifier::Layout() {
  ParamLayout layout;
  layout.Add("conv1.weight", {32, 1, 3, 3});
  layout.Add("conv1.bias", {32});
  layout.Add("conv2.weight", {64, 32, 3, 3});
  layout.Add("conv2.bias", {64});
  layout.Add("fc1.weight", {kFeatures, 64 * kPooledPixels});
  layout.Add("fc1.bias", {kFeatures});
  layout.Add("fc2.weight", {kClasses, kFeatures});
  layout.Add("fc2.bias", {kClasses});
  return layout;
}

Classifier::Classifier(const ParamBuffer& params) : params_(params) {}

at::Tensor Classifier::Features(const at::Tensor& images) const {
  DD2_CHECK(images.dim() == 4 && images.size(2) == 28 && images.size(3) == 28);
  at::Tensor h = at::conv2d(images, params_["conv1.weight"], params_["conv1.bias"], 1, 1);
  h = at::max_pool2d(at::relu(h), 2);
  h = at::conv2d(h, params_["conv2.weight"], params_["conv2.bias"], 1, 1);
  h = at::max_pool2d(at::relu(h), 2).flatten(1);
  return at::relu(at::linear(h, params_["fc1.weight"], params_["fc1.bias"]));
}

at::Tensor Classifier::Logits(const at::Tensor& features) const {
  return at::linear(features, params_["fc2.weight"], params_["fc2.bias"]);
}

}  // namespace dd2
