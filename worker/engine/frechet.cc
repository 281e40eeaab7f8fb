#include "worker/engine/frechet.h"

#include <ATen/ops/linalg_eigh.h>
#include <ATen/ops/linalg_eigvalsh.h>

#include <limits>

#include "common/check.h"

namespace dd2 {
namespace {

at::Tensor SymmetricRoot(const at::Tensor& matrix) {
  const auto [values, vectors] = at::linalg_eigh(matrix, "L");
  return (vectors * values.clamp_min(0).sqrt()).matmul(vectors.t());
}

bool IsFinite(const FeatureStats& stats) {
  return stats.mean.isfinite().all().item<bool>() && stats.covariance.isfinite().all().item<bool>();
}

}  // namespace

FeatureStats ComputeFeatureStats(const at::Tensor& features) {
  DD2_CHECK(features.dim() == 2 && features.size(0) >= 2);
  const at::Tensor x = features.to(at::kDouble);
  FeatureStats stats;
  stats.count = x.size(0);
  stats.mean = x.mean(0);
  const at::Tensor centred = x - stats.mean;
  stats.covariance = centred.t().matmul(centred) / static_cast<double>(stats.count - 1);
  return stats;
}

double FrechetDistance(const FeatureStats& a, const FeatureStats& b) {
  DD2_CHECK(a.mean.sizes() == b.mean.sizes());
  // eigh throws on what is not finite.
  if (!IsFinite(a) || !IsFinite(b)) return std::numeric_limits<double>::quiet_NaN();
  const at::Tensor root = SymmetricRoot(a.covariance);
  const at::Tensor product = root.matmul(b.covariance).matmul(root);
  // Symmetric only up to rounding; eigh would read one triangle.
  const at::Tensor eigenvalues = at::linalg_eigvalsh((product + product.t()) / 2, "L");
  const double cross = eigenvalues.clamp_min(0).sqrt().sum().item<double>();
  const double means = (a.mean - b.mean).square().sum().item<double>();
  const double traces = a.covariance.trace().item<double>() + b.covariance.trace().item<double>();
  return means + traces - 2 * cross;
}

}  // namespace dd2
