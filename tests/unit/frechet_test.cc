#include "worker/engine/frechet.h"

#include <gtest/gtest.h>

#include <cmath>

namespace dd2 {
namespace {

FeatureStats Gaussian(const at::Tensor& mean, const at::Tensor& covariance) {
  return {.mean = mean, .covariance = covariance, .count = 100};
}

at::Tensor Vector(std::vector<double> values) { return at::tensor(values, at::kDouble); }

TEST(Frechet, StatisticsOfThreePoints) {
  const FeatureStats stats =
      ComputeFeatureStats(at::tensor({0.0F, 1.0F, 2.0F, 3.0F, 4.0F, 11.0F}).reshape({3, 2}));
  EXPECT_EQ(stats.count, 3);
  EXPECT_TRUE(stats.mean.equal(Vector({2, 5})));
  // Deviations (-2,-4), (0,-2), (2,6), divided by 2.
  EXPECT_TRUE(stats.covariance.equal(Vector({4, 10, 10, 28}).reshape({2, 2})));
}

TEST(Frechet, EqualCovariancesLeaveTheDistanceOfTheMeans) {
  const at::Tensor covariance = Vector({2, 0.5, 0.5, 1}).reshape({2, 2});
  EXPECT_NEAR(
      FrechetDistance(Gaussian(Vector({1, 2}), covariance), Gaussian(Vector({4, -2}), covariance)),
      25, 1e-12);
  EXPECT_NEAR(
      FrechetDistance(Gaussian(Vector({1, 2}), covariance), Gaussian(Vector({1, 2}), covariance)),
      0, 1e-12);
}

TEST(Frechet, DiagonalCovariances) {
  const at::Tensor zero = at::zeros({3}, at::kDouble);
  // Sum of (sqrt a - sqrt b)^2; one direction has no spread at all.
  EXPECT_NEAR(FrechetDistance(Gaussian(zero, at::diag(Vector({4, 9, 0}))),
                              Gaussian(zero, at::diag(Vector({1, 16, 25})))),
              1 + 1 + 25, 1e-12);
}

TEST(Frechet, CovariancesThatDoNotCommute) {
  const at::Tensor a = Vector({3, 1, 1, 2}).reshape({2, 2});
  const at::Tensor b = Vector({1, -0.5, -0.5, 4}).reshape({2, 2});
  // For 2 x 2: tr (AB)^1/2 = sqrt(tr AB + 2 sqrt(det A det B)); here tr AB = 10, det A det B = 5
  // * 3.75.
  const double expected = 5 + 5 - 2 * std::sqrt(10 + 2 * std::sqrt(5 * 3.75));
  const at::Tensor zero = at::zeros({2}, at::kDouble);
  EXPECT_NEAR(FrechetDistance(Gaussian(zero, a), Gaussian(zero, b)), expected, 1e-12);
  EXPECT_NEAR(FrechetDistance(Gaussian(zero, b), Gaussian(zero, a)), expected, 1e-12);
}

TEST(Frechet, SingularCovarianceOfFewSamples) {
  // 10 points in 64 dimensions, most features constant: rank <= 9.
  const at::Tensor features = at::zeros({10, 64});
  features.select(1, 3).copy_(at::arange(10));
  const FeatureStats stats = ComputeFeatureStats(features);
  FeatureStats moved = stats;
  moved.mean = stats.mean + 0.5;
  EXPECT_NEAR(FrechetDistance(stats, moved), 64 * 0.25, 1e-9);
}

// The short way of few samples, whichever side has them, and that of any covariance.
TEST(Frechet, FewSamplesAsAnyCovariance) {
  at::manual_seed(5);
  at::Tensor many = at::randn({300, 64}).relu();
  at::Tensor few = at::randn({10, 64}).relu() * 2;
  many.select(1, 7).fill_(3);  // a dead feature
  few.slice(1, 20, 30).fill_(0);
  few[9].copy_(few[8]);  // the rank is lower than the count says
  const FeatureStats a = ComputeFeatureStats(many), b = ComputeFeatureStats(few);
  FeatureStats unknown = b;
  unknown.count = 0;  // of a file with statistics alone
  const double expected = FrechetDistance(a, unknown);
  EXPECT_GT(expected, 10);
  EXPECT_NEAR(FrechetDistance(a, b), expected, 1e-5);
  EXPECT_NEAR(FrechetDistance(b, a), expected, 1e-5);
  const FeatureStats equal = ComputeFeatureStats(at::ones({5, 64}));
  EXPECT_NEAR(FrechetDistance(a, equal),
              (a.mean - 1).square().sum().item<double>() + a.covariance.trace().item<double>(),
              1e-9);
}

}  // namespace
}  // namespace dd2
