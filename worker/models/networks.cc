#include "worker/models/networks.h"

#include "common/check.h"

namespace dd2 {
namespace {

constexpr double kTimeScale = 1000.0;  // t in [0, 1] -> the range the sinusoids are made for

}  // namespace

void KvCache::Reset(std::int64_t layers, at::IntArrayRef shape, const at::TensorOptions& options) {
  keys.clear();
  values.clear();
  for (std::int64_t i = 0; i < layers; ++i) {
    keys.push_back(at::empty(shape, options));
    values.push_back(at::empty(shape, options));
  }
}

std::pair<at::Tensor, at::Tensor> KvCache::Append(std::int64_t layer, std::int64_t position,
                                                  const at::Tensor& new_keys,
                                                  const at::Tensor& new_values) {
  const std::int64_t length = new_keys.size(2);
  const auto store = [&](const at::Tensor& all, const at::Tensor& added) {
    all.narrow(2, position, length).copy_(added);
    return all.narrow(2, 0, position + length);
  };
  const auto index = static_cast<std::size_t>(layer);
  return {store(keys.at(index), new_keys), store(values.at(index), new_values)};
}

ParamLayout Network::Layout(const NetworkSpec& spec) {
  ParamLayout layout;
  Backbone::Declare(spec.backbone, "backbone.", layout);
  MlpHead::Declare(spec.head, "head.", layout);
  return layout;
}

Network::Network(const NetworkSpec& spec, const ParamBuffer& params)
    : spec_(spec),
      params_(params),
      backbone_(spec.backbone, params, "backbone."),
      head_(spec.head, params, "head.") {
  DD2_CHECK(spec.backbone.channels == spec.head.channels);
  DD2_CHECK(spec.backbone.width == spec.head.condition);
}

at::Tensor Network::Features(const at::Tensor& q, const at::Tensor& labels) const {
  return backbone_.Forward(q, labels);
}

at::Tensor Network::Velocity(const at::Tensor& x, const at::Tensor& t, const at::Tensor& f) const {
  return head_.Forward(x, t * kTimeScale, f);
}

at::Tensor Network::Generate(const at::Tensor& noise, const at::Tensor& labels) const {
  const at::Tensor one = at::ones({1, 1, 1}, at::kFloat);
  return noise - Velocity(noise, one, Features(noise, labels));
}

}  // namespace dd2
