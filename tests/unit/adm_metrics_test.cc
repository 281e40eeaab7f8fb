#include "worker/engine/adm_metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <sstream>

#include "common/json.h"
#include "tests/support/thread_collectives.h"

namespace dd2 {
namespace {

// The formulas of golden/make_adm_case.py.
constexpr std::int64_t kWidth = 64;

double Wave(std::int64_t k, std::int64_t j) {
  const auto x = static_cast<double>(k);
  return std::sin(0.013 * (x * x) + 0.7 * x + 1.3 * static_cast<double>(j) + 0.5);
}

at::Tensor Features(std::int64_t count, std::int64_t j, double shift) {
  at::Tensor features = at::empty({count, kWidth}, at::kFloat);
  auto* values = features.data_ptr<float>();
  for (std::int64_t i = 0; i < count; ++i) {
    for (std::int64_t d = 0; d < kWidth; ++d) {
      const double value =
          0.35 * Wave(kWidth * i + d, j) + Wave(i, j + 1 + d % 5) + (d < 16 ? shift : 0.0);
      values[i * kWidth + d] = static_cast<float>(std::max(value, 0.0));
    }
  }
  return features;
}

at::Tensor Reference(std::int64_t count) { return Features(count, 0, 0); }
at::Tensor Samples(std::int64_t count) { return Features(count, 10, 0.4); }

at::Tensor Weight() {
  at::Tensor weight = at::empty({20, kWidth}, at::kFloat);
  for (std::int64_t k = 0; k < weight.numel(); ++k) {
    weight.data_ptr<float>()[k] = static_cast<float>(Wave(k, 20));
  }
  return weight;
}

double Golden(const char* name) {
  std::ifstream file(DD2_SOURCE_DIR "/tests/golden/adm_metrics.json");
  std::stringstream text;
  text << file.rdbuf();
  return boost::json::parse(text.str()).at(name).to_number<double>();
}

// The set of these features: pool all of them, spatial the first 10.
Result<AdmSet> SetOf(const at::Tensor& features, Collectives& collectives) {
  const AdmSource source = [&](std::int64_t begin, std::int64_t end) -> Result<AdmFeatures> {
    const at::Tensor rows = features.narrow(0, begin, end - begin);
    return AdmFeatures{.pool = rows, .spatial = rows.narrow(1, 0, 10)};
  };
  return CollectAdmSet(features.size(0), kWidth, 10, source, collectives);
}

TEST(AdmMetrics, FidIsThatOfPytorchFid) {
  const auto alone = NewLocalCollectives();
  const auto reference = SetOf(Reference(500), *alone);
  const auto samples = SetOf(Samples(400), *alone);
  ASSERT_TRUE(reference && samples);
  const double expected = Golden("fid");
  const double fid = FrechetDistance(samples->pool_stats, reference->pool_stats);
  std::printf("FID: relative error %.1e\n", fid / expected - 1);
  EXPECT_NEAR(fid, expected, 1e-8 * expected);
}

TEST(AdmMetrics, FidOfFewerImagesThanFeatures) {
  const auto alone = NewLocalCollectives();
  const auto reference = SetOf(Reference(40), *alone);
  const auto samples = SetOf(Samples(30), *alone);
  ASSERT_TRUE(reference && samples);
  const double fid = FrechetDistance(samples->pool_stats, reference->pool_stats);
  std::printf("singular: error %.1e, of scipy's root %.1e\n", fid - Golden("few_fid"),
              Golden("few_fid_scipy") - Golden("few_fid"));
  EXPECT_NEAR(fid, Golden("few_fid"), 1e-5);
}

TEST(AdmMetrics, StreamedStatisticsAreThoseOfAllRows) {
  // 9 blocks: the tree is not full.
  const at::Tensor rows = Samples(2100) + 100;
  const auto alone = NewLocalCollectives();
  const auto set = SetOf(rows, *alone);
  ASSERT_TRUE(set);
  const FeatureStats whole = ComputeFeatureStats(rows);
  EXPECT_EQ(set->pool_stats.count, 2100);
  EXPECT_LT((set->pool_stats.mean - whole.mean).abs().max().item<double>(), 1e-12);
  EXPECT_LT((set->pool_stats.covariance - whole.covariance).abs().max().item<double>(), 1e-13);
  const at::Tensor corner = set->pool_stats.covariance.narrow(0, 0, 10).narrow(1, 0, 10);
  EXPECT_LT((set->spatial_stats.covariance - corner).abs().max().item<double>(), 1e-15);
  EXPECT_TRUE(set->pool.equal(rows));
}

TEST(AdmMetrics, ScoreIsThatOfTorchFidelity) {
  const InceptionScoreResult score = InceptionScore(Samples(400), Weight(), 40);
  std::printf("score: relative error %.1e\n", score.mean / Golden("score") - 1);
  EXPECT_NEAR(score.mean, Golden("score"), 1e-6);
  EXPECT_NEAR(score.deviation, Golden("score_std"), 1e-6);
}

TEST(AdmMetrics, ScoreOfImpossibleClassesAndAShortSplit) {
  // Two kinds of image that are sure of their class: 2 in the first split, 1 in the short one.
  const at::Tensor pool = at::zeros({6, 2});
  pool[0][0] = pool[1][0] = 1000;
  pool[2][1] = pool[3][1] = 1000;
  pool[4][1] = pool[5][1] = 1000;
  const InceptionScoreResult score = InceptionScore(pool, at::eye(2), 4);
  EXPECT_DOUBLE_EQ(score.mean, 1.5);
  EXPECT_DOUBLE_EQ(score.deviation, 0.5);
}

TEST(AdmMetrics, PrecisionAndRecallAreThoseOfThePublicPackages) {
  const auto alone = NewLocalCollectives();
  const auto result = PrecisionRecall(Reference(500), Samples(400), *alone);
  ASSERT_TRUE(result);
  EXPECT_NEAR(result->precision, Golden("precision"), 1e-6);
  EXPECT_NEAR(result->recall, Golden("recall"), 1e-6);
}

TEST(AdmMetrics, BallsReachToTheThirdNeighbour) {
  // On a line: the balls of 0, 1, 2, 3 reach 3, 2, 2 and 3 far, so to 6 at most.
  const at::Tensor reference = at::arange(4, at::kFloat).unsqueeze(1);
  const at::Tensor samples = at::tensor({6.0F, 6.5F, 20.0F, 40.0F}).unsqueeze(1);
  const auto alone = NewLocalCollectives();
  const auto result = PrecisionRecall(reference, samples, *alone);
  ASSERT_TRUE(result);
  EXPECT_DOUBLE_EQ(result->precision, 0.25);
  EXPECT_DOUBLE_EQ(result->recall, 1);
}

struct Everything {
  AdmSet set;
  PrecisionRecallResult precision_recall;
};

std::vector<Everything> MeasureOn(int ranks) {
  const at::Tensor reference = Reference(1000);
  const at::Tensor samples = Samples(2100);
  std::vector<Everything> results(static_cast<std::size_t>(ranks));
  ThreadWorld(ranks).Run([&](Collectives& collectives) {
    Everything& mine = results[static_cast<std::size_t>(collectives.rank())];
    auto set = SetOf(samples, collectives);
    auto measured = PrecisionRecall(reference, samples, collectives);
    ASSERT_TRUE(set && measured);
    mine = {.set = std::move(*set), .precision_recall = *measured};
  });
  return results;
}

TEST(AdmMetrics, AnyNumberOfRanksGivesTheSameBits) {
  const Everything alone = MeasureOn(1).front();
  EXPECT_GT(alone.precision_recall.precision, 0.1);
  EXPECT_LT(alone.precision_recall.precision, 0.9);
  for (const int ranks : {2, 3, 10}) {
    for (const Everything& other : MeasureOn(ranks)) {
      EXPECT_TRUE(other.set.pool.equal(alone.set.pool));
      EXPECT_TRUE(other.set.pool_stats.mean.equal(alone.set.pool_stats.mean));
      EXPECT_TRUE(other.set.pool_stats.covariance.equal(alone.set.pool_stats.covariance));
      EXPECT_TRUE(other.set.spatial_stats.covariance.equal(alone.set.spatial_stats.covariance));
      EXPECT_EQ(other.precision_recall.precision, alone.precision_recall.precision);
      EXPECT_EQ(other.precision_recall.recall, alone.precision_recall.recall);
    }
  }
}

TEST(AdmMetrics, AnUnreadableImageEndsItOnAllRanks) {
  ThreadWorld(3).Run([](Collectives& collectives) {
    const AdmSource source = [](std::int64_t begin, std::int64_t end) -> Result<AdmFeatures> {
      if (begin >= 500) return Error(Code::kCorruption, "damaged");
      return AdmFeatures{.pool = at::zeros({end - begin, 2}),
                         .spatial = at::zeros({end - begin, 1})};
    };
    const auto set = CollectAdmSet(700, 2, 1, source, collectives);
    ASSERT_FALSE(set);
    EXPECT_EQ(set.error().code(), collectives.rank() == 2 ? Code::kCorruption : Code::kUnavailable);
  });
}

}  // namespace
}  // namespace dd2
