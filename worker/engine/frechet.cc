#include "worker/engine/frechet.h"

#include <ATen/ops/linalg_eigh.h>
#include <ATen/ops/linalg_eigvalsh.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/check.h"

namespace dd2 {
namespace {

at::Tensor SymmetricRoot(const at::Tensor& matrix) {
  const auto [values, vectors] = at::linalg_eigh(matrix, "L");
  return (vectors * values.clamp_min(0).sqrt()).matmul(vectors.t());
}

// F [r, D] with F^T F = matrix, where r <= most < D: Cholesky's rows, the largest diagonal element
// first, until what is left is rounding. For few rows far cheaper than eigenvectors.
at::Tensor FactorOfFewRows(const at::Tensor& matrix, std::int64_t most) {
  const std::int64_t width = matrix.size(0);
  at::Tensor factor = at::empty({most, width}, matrix.options());
  at::Tensor left = matrix.diagonal().clone();
  const double rounding = static_cast<double>(width) * std::numeric_limits<double>::epsilon() *
                          left.max().item<double>();
  for (std::int64_t row = 0; row < most; ++row) {
    const auto pivot = left.argmax().item<std::int64_t>();
    const auto size = left[pivot].item<double>();
    if (size <= rounding) return factor.narrow(0, 0, row);
    const at::Tensor above = factor.narrow(0, 0, row);
    factor[row].copy_((matrix[pivot] - above.t().mv(above.select(1, pivot))) / std::sqrt(size));
    left -= factor[row].square();
  }
  return factor;
}

std::int64_t MostRank(const FeatureStats& stats) {
  const std::int64_t width = stats.mean.size(0);
  return stats.count > 0 ? std::min(stats.count - 1, width) : width;
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
  // The distance is symmetric: the root, or any other factor, is that of the lower rank.
  const bool b_is_lower = MostRank(b) < MostRank(a);
  const FeatureStats& lower = b_is_lower ? b : a;
  const FeatureStats& other = b_is_lower ? a : b;
  const std::int64_t rank = MostRank(lower);
  const at::Tensor factor = rank < lower.mean.size(0) ? FactorOfFewRows(lower.covariance, rank)
                                                      : SymmetricRoot(lower.covariance);
  const at::Tensor product = factor.matmul(other.covariance).matmul(factor.t());
  // Symmetric only up to rounding; eigh would read one triangle.
  const at::Tensor eigenvalues = at::linalg_eigvalsh((product + product.t()) / 2, "L");
  const double cross = eigenvalues.clamp_min(0).sqrt().sum().item<double>();
  const double means = (a.mean - b.mean).square().sum().item<double>();
  const double traces = a.covariance.trace().item<double>() + b.covariance.trace().item<double>();
  return means + traces - 2 * cross;
}

}  // namespace dd2
