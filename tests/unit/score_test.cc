#include "worker/distill/score.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace dd2 {
namespace {

constexpr double kImpossible = -std::numeric_limits<double>::infinity();

struct Case {
  std::int64_t rows, codes, channels;
  std::vector<double> codebook, logp, t, x, u;

  template <class T>
  static std::vector<T> As(const std::vector<double>& values) {
    return {values.begin(), values.end()};
  }
};

// x_t around a random code at each row's time; every third code of odd rows is impossible and row
// logits are shifted by up to 30. All values are exactly representable in fp32, so that both
// precisions solve the same problem.
Case RandomCase(std::int64_t rows, std::int64_t codes, std::int64_t channels, double t_min) {
  Case c{.rows = rows,
         .codes = codes,
         .channels = channels,
         .codebook = {},
         .logp = {},
         .t = {},
         .x = {},
         .u = {}};
  std::mt19937_64 engine(static_cast<std::uint64_t>(codes * 131 + channels));
  std::normal_distribution<double> normal;
  const auto draw = [&] { return static_cast<double>(static_cast<float>(normal(engine))); };
  for (std::int64_t i = 0; i < codes * channels; ++i) c.codebook.push_back(draw());
  for (std::int64_t i = 0; i < rows; ++i) {
    const auto fraction =
        static_cast<double>(i) / static_cast<double>(std::max<std::int64_t>(rows - 1, 1));
    c.t.push_back(static_cast<float>(t_min + (1 - t_min) * fraction));
    const std::int64_t code =
        static_cast<std::int64_t>(engine() % static_cast<std::uint64_t>(codes));
    for (std::int64_t j = 0; j < codes; ++j) {
      const bool removed = i % 2 == 1 && j % 3 == 0;
      c.logp.push_back(removed ? kImpossible : static_cast<float>(2 * draw() + (i % 4) * 10));
    }
    for (std::int64_t k = 0; k < channels; ++k) {
      c.x.push_back(
          static_cast<float>((1 - c.t[i]) * c.codebook[code * channels + k] + c.t[i] * draw()));
      c.u.push_back(draw());
    }
  }
  return c;
}

struct Outputs {
  std::vector<double> mu, jtu;
};

// Eq. 1 as written in method 1.3, 1.4: the expanded square, a whole softmax, in double.
Outputs Naive(const Case& c) {
  Outputs out;
  for (std::int64_t i = 0; i < c.rows; ++i) {
    const double t = c.t[i];
    std::vector<double> a;
    double highest = kImpossible;
    for (std::int64_t j = 0; j < c.codes; ++j) {
      double dot = 0, square = 0;
      for (std::int64_t k = 0; k < c.channels; ++k) {
        const double code = c.codebook[j * c.channels + k];
        dot += c.x[i * c.channels + k] * code;
        square += code * code;
      }
      a.push_back(c.logp[i * c.codes + j] + (1 - t) / (t * t) * dot -
                  (1 - t) * (1 - t) / (2 * t * t) * square);
      highest = std::max(highest, a.back());
    }
    double sum = 0;
    for (double& value : a) sum += value = std::exp(value - highest);
    std::vector<double> mu(c.channels, 0), along(c.channels, 0);
    for (std::int64_t j = 0; j < c.codes; ++j) {
      double projection = 0;
      for (std::int64_t k = 0; k < c.channels; ++k) {
        projection += c.codebook[j * c.channels + k] * c.u[i * c.channels + k];
      }
      for (std::int64_t k = 0; k < c.channels; ++k) {
        const double code = c.codebook[j * c.channels + k];
        mu[k] += a[j] / sum * code;
        along[k] += a[j] / sum * projection * code;
      }
    }
    double mu_u = 0;
    for (std::int64_t k = 0; k < c.channels; ++k) mu_u += mu[k] * c.u[i * c.channels + k];
    for (std::int64_t k = 0; k < c.channels; ++k) {
      out.mu.push_back(mu[k]);
      out.jtu.push_back((1 - t) / (t * t) * (along[k] - mu[k] * mu_u));
    }
  }
  return out;
}

template <class T>
Outputs Solve(const Case& c) {
  const auto codebook = Case::As<T>(c.codebook), logp = Case::As<T>(c.logp), t = Case::As<T>(c.t),
             x = Case::As<T>(c.x), u = Case::As<T>(c.u);
  const ScoreProblem<T> problem{.rows = c.rows,
                                .codes = c.codes,
                                .channels = c.channels,
                                .codebook = codebook.data(),
                                .logp = logp.data(),
                                .logp_rows = c.rows,
                                .t = t.data(),
                                .x = x.data()};
  std::vector<T> mu(x.size()), jtu(x.size()), mu_alone(x.size());
  PosteriorMeanAndVjp(problem, u.data(), mu.data(), jtu.data());
  PosteriorMean(problem, mu_alone.data());
  EXPECT_EQ(mu, mu_alone);
  return {.mu = {mu.begin(), mu.end()}, .jtu = {jtu.begin(), jtu.end()}};
}

// Largest |difference| per row over 1 + the row's largest magnitude.
double LargestError(const std::vector<double>& a, const std::vector<double>& b,
                    std::int64_t channels) {
  double worst = 0;
  for (std::size_t row = 0; row < a.size(); row += static_cast<std::size_t>(channels)) {
    double scale = 1, error = 0;
    for (std::size_t k = row; k < row + static_cast<std::size_t>(channels); ++k) {
      scale = std::max(scale, std::abs(b[k]));
      error = std::max(error, std::isfinite(a[k]) ? std::abs(a[k] - b[k]) : 1e300);
    }
    worst = std::max(worst, error / scale);
  }
  return worst;
}

struct Shape {
  std::int64_t codes, channels;
};
class ScoreTest : public ::testing::TestWithParam<Shape> {};

TEST_P(ScoreTest, DoubleFollowsTheFormulas) {
  const Case c = RandomCase(40, GetParam().codes, GetParam().channels, 0.03);
  const Outputs naive = Naive(c);
  const Outputs ours = Solve<double>(c);
  EXPECT_LT(LargestError(ours.mu, naive.mu, c.channels), 1e-11);
  EXPECT_LT(LargestError(ours.jtu, naive.jtu, c.channels), 1e-9);
}

TEST_P(ScoreTest, FloatFollowsDouble) {
  const Case c = RandomCase(200, GetParam().codes, GetParam().channels, 0.03);
  const Outputs exact = Solve<double>(c);
  const Outputs ours = Solve<float>(c);
  EXPECT_LT(LargestError(ours.mu, exact.mu, c.channels), 3e-5);
  EXPECT_LT(LargestError(ours.jtu, exact.jtu, c.channels), 3e-4);
}

TEST_P(ScoreTest, ProductIsTheDerivativeOfTheMean) {
  Case c = RandomCase(30, GetParam().codes, GetParam().channels, 0.1);
  const std::vector<double> jtu = Solve<double>(c).jtu;
  std::vector<double> estimate(jtu.size(), 0);
  constexpr double kStep = 1e-5;
  for (std::int64_t k = 0; k < c.channels; ++k) {
    Case up = c, down = c;
    for (std::int64_t i = 0; i < c.rows; ++i) {
      up.x[i * c.channels + k] += kStep;
      down.x[i * c.channels + k] -= kStep;
    }
    const std::vector<double> above = Solve<double>(up).mu, below = Solve<double>(down).mu;
    for (std::int64_t i = 0; i < c.rows; ++i) {
      for (std::int64_t d = 0; d < c.channels; ++d) {
        const std::int64_t at = i * c.channels + d;
        estimate[i * c.channels + k] += c.u[at] * (above[at] - below[at]) / (2 * kStep);
      }
    }
  }
  EXPECT_LT(LargestError(jtu, estimate, c.channels), 1e-5);
}

// Tails of a vector, whole tiles, several tiles.
INSTANTIATE_TEST_SUITE_P(Shapes, ScoreTest,
                         ::testing::Values(Shape{128, 4}, Shape{37, 3}, Shape{5, 1}, Shape{300, 8},
                                           Shape{1000, 32}));

// So many codes are removed that the others are computed by themselves, in rows of their own among
// rows with all codes; tiles of them with a tail, channels that are padded.
TEST(ScoreEdgeTest, FilteredRowsFollowTheFormulas) {
  Case c = RandomCase(12, 700, 5, 0.03);
  for (std::int64_t row = 0; row < c.rows; row += 3) {
    for (std::int64_t j = 0; j < c.codes; ++j) {
      if (j % 4 != 1) c.logp[row * c.codes + j] = kImpossible;
    }
  }
  const Outputs naive = Naive(c), exact = Solve<double>(c), ours = Solve<float>(c);
  EXPECT_LT(LargestError(exact.mu, naive.mu, c.channels), 1e-11);
  EXPECT_LT(LargestError(exact.jtu, naive.jtu, c.channels), 1e-9);
  EXPECT_LT(LargestError(ours.mu, exact.mu, c.channels), 3e-5);
  EXPECT_LT(LargestError(ours.jtu, exact.jtu, c.channels), 3e-4);
}

TEST(ScoreEdgeTest, RowWithoutAPossibleCodeAmongMany) {
  Case c = RandomCase(2, 700, 4, 0.5);
  std::fill_n(c.logp.begin(), 700, kImpossible);
  std::vector<double> mu(c.x.size());
  PosteriorMean(ScoreProblem<double>{.rows = 2,
                                     .codes = 700,
                                     .channels = 4,
                                     .codebook = c.codebook.data(),
                                     .logp = c.logp.data(),
                                     .logp_rows = 2,
                                     .t = c.t.data(),
                                     .x = c.x.data()},
                mu.data());
  for (int k = 0; k < 4; ++k) {
    EXPECT_TRUE(std::isnan(mu[k]));
    EXPECT_TRUE(std::isfinite(mu[4 + k]));
  }
}

TEST(ScoreEdgeTest, AtTimeOneTheMeanIsThePrior) {
  Case c = RandomCase(4, 128, 4, 1.0);
  const Outputs ours = Solve<float>(c);
  for (std::int64_t i = 0; i < c.rows; ++i) {
    double sum = 0;
    std::vector<double> mean(4, 0);
    for (std::int64_t j = 0; j < 128; ++j) {
      const double p = std::exp(c.logp[i * 128 + j] - (i % 4) * 10);
      sum += p;
      for (int k = 0; k < 4; ++k) mean[k] += p * c.codebook[j * 4 + k];
    }
    for (int k = 0; k < 4; ++k) {
      EXPECT_NEAR(ours.mu[i * 4 + k], mean[k] / sum, 3e-6);
      EXPECT_EQ(ours.jtu[i * 4 + k], 0);
    }
  }
}

TEST(ScoreEdgeTest, OnlyPossibleCodeIsTheMean) {
  Case c = RandomCase(1, 300, 4, 0.03);
  std::fill(c.logp.begin(), c.logp.end(), kImpossible);
  c.logp[131] = -1e4;  // in the second tile
  const Outputs ours = Solve<float>(c);
  for (int k = 0; k < 4; ++k) {
    EXPECT_EQ(ours.mu[k], c.codebook[131 * 4 + k]);
    EXPECT_EQ(ours.jtu[k], 0);
  }
}

TEST(ScoreEdgeTest, NaNAndImpossibleRowsShow) {
  Case c = RandomCase(4, 300, 4, 0.5);
  std::fill_n(c.logp.begin(), 300, kImpossible);                 // row 0
  c.logp[300 + 299] = std::numeric_limits<double>::quiet_NaN();  // row 1: in the tail
  c.x[2 * 4 + 1] = std::numeric_limits<double>::quiet_NaN();     // row 2
  const auto x = Case::As<float>(c.x), logp = Case::As<float>(c.logp), t = Case::As<float>(c.t),
             codebook = Case::As<float>(c.codebook);
  std::vector<float> mu(x.size());
  PosteriorMean(ScoreProblem<float>{.rows = 4,
                                    .codes = 300,
                                    .channels = 4,
                                    .codebook = codebook.data(),
                                    .logp = logp.data(),
                                    .logp_rows = 4,
                                    .t = t.data(),
                                    .x = x.data()},
                mu.data());
  for (int k = 0; k < 12; ++k) EXPECT_TRUE(std::isnan(mu[k])) << k;
  for (int k = 12; k < 16; ++k) EXPECT_TRUE(std::isfinite(mu[k])) << k;
}

TEST(ScoreEdgeTest, BitsOfARowDoNotDependOnTheOthers) {
  const Case all = RandomCase(7, 300, 4, 0.03);
  const Outputs together = Solve<float>(all);
  for (std::int64_t i = 0; i < all.rows; ++i) {
    Case one = all;
    one.rows = 1;
    one.logp.assign(all.logp.begin() + i * 300, all.logp.begin() + (i + 1) * 300);
    one.t = {all.t[i]};
    one.x.assign(all.x.begin() + i * 4, all.x.begin() + (i + 1) * 4);
    one.u.assign(all.u.begin() + i * 4, all.u.begin() + (i + 1) * 4);
    const Outputs alone = Solve<float>(one);
    for (int k = 0; k < 4; ++k) {
      EXPECT_EQ(alone.mu[k], together.mu[i * 4 + k]);
      EXPECT_EQ(alone.jtu[k], together.jtu[i * 4 + k]);
    }
  }
}

// Two draws share logp [B, n, V]; autograd reaches x only.
TEST(TeacherPosteriorMeanTest, GradientEqualsAutogradThroughTheSoftmax) {
  at::manual_seed(5);
  const at::Tensor codebook = at::randn({37, 4});
  const at::Tensor logp = at::randn({3, 5, 37}) * 2;
  logp.select(2, 7).fill_(-std::numeric_limits<float>::infinity());
  const at::Tensor t = at::rand({2, 3, 5, 1}) * 0.9 + 0.1;
  const at::Tensor x = at::randn({2, 3, 5, 4}).requires_grad_(true);
  const at::Tensor weights = at::randn({2, 3, 5, 4});
  const at::Tensor mu = TeacherPosteriorMean(x, t, logp, codebook);
  (mu * weights).sum().backward();
  const at::Tensor gradient = x.grad().to(at::kDouble);

  const at::Tensor x64 = x.detach().to(at::kDouble).requires_grad_(true);
  const at::Tensor c64 = codebook.to(at::kDouble), t64 = t.to(at::kDouble);
  const at::Tensor a = logp.to(at::kDouble) + (1 - t64) / t64.square() * x64.matmul(c64.t()) -
                       ((1 - t64) / t64).square() / 2 * c64.square().sum(1);
  const at::Tensor mu64 = a.softmax(-1).matmul(c64);
  (mu64 * weights.to(at::kDouble)).sum().backward();
  EXPECT_LT((mu.to(at::kDouble) - mu64).abs().max().item<double>(), 1e-5);
  EXPECT_LT((gradient - x64.grad()).abs().max().item<double>(),
            1e-5 * (1 + x64.grad().abs().max().item<double>()));
}

}  // namespace
}  // namespace dd2
