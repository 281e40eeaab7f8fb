#pragma once

#include <cstdint>

#include "worker/torch.h"

namespace dd2 {

// Mean and covariance of a set of feature vectors, in double precision.
struct FeatureStats {
  at::Tensor mean;         // [D]
  at::Tensor covariance;   // [D, D], divided by count - 1
  std::int64_t count = 0;  // 0: not known
};

// features [N, D] of any floating type, N >= 2.
FeatureStats ComputeFeatureStats(const at::Tensor& features);

// Squared Frechet (2-Wasserstein) distance of two Gaussians, what "FID" reports:
//   |m_a - m_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a^1/2 S_b S_a^1/2)^1/2)
// Through symmetric eigendecompositions, so that nearly singular covariances (dead ReLU features)
// neither fail nor turn complex. Negative eigenvalues are rounding and count as zero. NaN when a
// feature was not finite. A covariance of fewer samples than features, by its count, has a low rank
// and takes the short way: no eigenvectors, and eigenvalues of a matrix of that rank alone.
double FrechetDistance(const FeatureStats& a, const FeatureStats& b);

}  // namespace dd2
