#include "worker/models/networks.h"

#include "common/check.h"

namespace dd2 {
namespace {

constexpr double kTimeScale = 1000.0;  // t in [0, 1] -> the range the sinusoids are made for

}  // namespace

ParamLayout Network::Layout(const NetworkSpec& spec) {
  ParamLayout layout;
  DeclareBackbone(spec.backbone, "backbone.", layout);
  MlpHead::Declare(spec.head, "head.", layout);
  return layout;
}

Network::Network(const NetworkSpec& spec, const ParamBuffer& params)
    : spec_(spec),
      params_(params),
      backbone_(MakeBackbone(spec.backbone, params, "backbone.")),
      head_(spec.head, params, "head.") {
  DD2_CHECK(spec.backbone.channels == spec.head.channels);
  DD2_CHECK(spec.backbone.width == spec.head.condition);
}

at::Tensor Network::Features(const at::Tensor& q, const at::Tensor& labels) const {
  return backbone_->Forward(q, labels);
}

at::Tensor Network::Velocity(const at::Tensor& x, const at::Tensor& t, const at::Tensor& f) const {
  return head_.Forward(x, t * kTimeScale, f);
}

at::Tensor Network::Generate(const at::Tensor& noise, const at::Tensor& labels) const {
  const at::Tensor one = at::ones({1, 1, 1}, noise.options());
  return noise - Velocity(noise, one, Features(noise, labels));
}

}  // namespace dd2
