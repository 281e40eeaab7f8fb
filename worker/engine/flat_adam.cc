#include "worker/engine/flat_adam.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "worker/parallel/exact_update.h"
#include "worker/parallel/tensor_update.h"

namespace dd2 {
namespace {

// What the decoupled decay of a step leaves of a parameter.
double KeptBy(const AdamSettings& settings, const ParamSpec& spec, double learning_rate) {
  return spec.shape.size() > 1 ? 1.0 - learning_rate * settings.weight_decay : 1.0;
}

}  // namespace

FlatAdam::FlatAdam(const ShardedParams& params, const AdamSettings& settings)
    : params_(params),
      settings_(settings),
      m_(at::zeros_like(params.master().flat())),
      v_(at::zeros_like(params.master().flat())) {
  if (m_.is_cpu()) gradient_ = at::zeros_like(m_);
}

void FlatAdam::Step(std::int64_t step, double learning_rate) {
  if (m_.is_cpu()) return StepOnHost(step, learning_rate);
  StepOnDevice(step, learning_rate);
}

void FlatAdam::StepOnHost(std::int64_t step, double learning_rate) {
  SumGradients();
  const double scale = ClipScale();
  const double correction1 = 1.0 - std::pow(settings_.beta1, static_cast<double>(step + 1));
  const double correction2 = 1.0 - std::pow(settings_.beta2, static_cast<double>(step + 1));
  float* parameter = params_.master().flat().data_ptr<float>();
  float* m = m_.data_ptr<float>();
  float* v = v_.data_ptr<float>();
  const float* gradient = gradient_.data_ptr<float>();
  const float b1 = static_cast<float>(settings_.beta1),
              c1 = static_cast<float>(1 - settings_.beta1);
  const float b2 = static_cast<float>(settings_.beta2),
              c2 = static_cast<float>(1 - settings_.beta2);
  const float rate = static_cast<float>(learning_rate / correction1);
  const float root = static_cast<float>(1.0 / std::sqrt(correction2));
  const float epsilon = static_cast<float>(settings_.epsilon);
  const float factor = static_cast<float>(scale);
  for (const ParamSpec& spec : params_.master().layout().specs()) {
    const float keep = static_cast<float>(KeptBy(settings_, spec, learning_rate));
    for (std::int64_t i = spec.offset; i < spec.offset + spec.numel; ++i) {
      const float g = gradient[i] * factor;
      m[i] = b1 * m[i] + c1 * g;
      v[i] = b2 * v[i] + c2 * g * g;
      parameter[i] = keep * parameter[i] - rate * m[i] / (std::sqrt(v[i]) * root + epsilon);
    }
  }
}

// The kernels of a run's updates, behind the decay.
void FlatAdam::StepOnDevice(std::int64_t step, double learning_rate) {
  const at::NoGradGuard no_grad;
  const ParamBuffer& master = params_.master();
  const at::Tensor sum = params_.gradient(0);  // shards in their order
  for (int shard = 1; shard < params_.shards(); ++shard) sum.add_(params_.gradient(shard));
  const float share = 1.0F / static_cast<float>(params_.shards());
  const std::vector<double> squares = ScaleAndSquareChunks(sum, share, sum);
  const double norm = std::sqrt(std::accumulate(squares.begin(), squares.end(), 0.0));
  if (settings_.weight_decay > 0) {
    for (const ParamSpec& spec : master.layout().specs()) {
      const double keep = KeptBy(settings_, spec, learning_rate);
      if (keep != 1.0) master[spec.name].mul_(keep);
    }
  }
  const AdamStep adam{.learning_rate = learning_rate,
                      .beta1 = settings_.beta1,
                      .beta2 = settings_.beta2,
                      .epsilon = settings_.epsilon,
                      .clip_norm = settings_.clip_norm};
  const AdamRange whole{.begin = 0, .end = sum.numel(), .factors = FactorsOf(adam, step + 1, norm)};
  AdamAndEma({&whole, 1}, sum, master.flat(), m_, v_, /*ema=*/at::Tensor());
}

// Mean over the shards, always added in the order of the shards.
void FlatAdam::SumGradients() {
  float* sum = gradient_.data_ptr<float>();
  const std::int64_t n = params_.master().layout().size();
  const float share = 1.0F / static_cast<float>(params_.shards());
  std::fill(sum, sum + n, 0.0F);
  for (int shard = 0; shard < params_.shards(); ++shard) {
    const float* part = params_.gradient(shard).data_ptr<float>();
    for (std::int64_t i = 0; i < n; ++i) sum[i] += part[i];
  }
  for (std::int64_t i = 0; i < n; ++i) sum[i] *= share;
}

double FlatAdam::ClipScale() const {
  if (settings_.clip_norm <= 0) return 1.0;
  double squares = 0;
  const float* gradient = gradient_.data_ptr<float>();
  for (std::int64_t i = 0; i < gradient_.numel(); ++i) {
    squares += static_cast<double>(gradient[i]) * static_cast<double>(gradient[i]);
  }
  return std::min(1.0, settings_.clip_norm / (std::sqrt(squares) + 1e-6));
}

}  // namespace dd2
