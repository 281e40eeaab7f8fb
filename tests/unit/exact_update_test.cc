#include "worker/parallel/exact_update.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "tests/support/update_scenario.h"
#include "worker/parallel/shard_plan.h"

namespace dd2 {
namespace {

using ::testing::ElementsAre;

TEST(ShardPlanTest, CoversAllShardsWithMaximalAlignedNodes) {
  const ShardPlan plan = MakeShardPlan(8, 3);
  EXPECT_THAT(plan.first, ElementsAre(0, 3, 6, 8));
  EXPECT_THAT(plan.nodes[0], ElementsAre(TreeNode{0, 2}, TreeNode{2, 1}));
  EXPECT_THAT(plan.nodes[1], ElementsAre(TreeNode{3, 1}, TreeNode{4, 2}));
  EXPECT_THAT(plan.nodes[2], ElementsAre(TreeNode{6, 2}));
  EXPECT_THAT(MakeShardPlan(8, 1).nodes[0], ElementsAre(TreeNode{0, 8}));
  EXPECT_TRUE(MakeShardPlan(2, 3).nodes[2].empty());
}

class ExactUpdaterTest : public ::testing::TestWithParam<int> {};

TEST_P(ExactUpdaterTest, BitsDoNotDependOnTheWorldSize) {
  const Scenario scenario = Usual(GetParam());
  const auto local = NewLocalCollectives();
  const Outcome alone = RunRank(*local, scenario);
  EXPECT_THAT(alone.applied, ::testing::Each(true));
  for (const int world_size : {1, 2, 3, 4, 5}) {
    EXPECT_TRUE(RunWorld(world_size, scenario) == alone) << world_size << " ranks";
  }
}

TEST_P(ExactUpdaterTest, BitsDoNotDependOnTheDomains) {
  Scenario scenario = Usual(GetParam());
  const auto local = NewLocalCollectives();
  const Outcome alone = RunRank(*local, scenario);
  for (const auto& [domains, local_size] :
       std::vector<std::pair<int, int>>{{2, 2}, {3, 1}, {1, 4}, {2, 1}, {3, 2}}) {
    scenario.local_size = local_size;
    EXPECT_TRUE(RunWorld(domains * local_size, scenario) == alone)
        << domains << " domains of " << local_size;
  }
}

TEST_P(ExactUpdaterTest, OrderOfAdditionsIsTheTreeAndMattersHere) {
  Scenario scenario = Usual(GetParam());
  scenario.updates = 1;
  const ParamLayout layout = Layout();
  std::vector<std::vector<float>> shards;
  for (int s = 0; s < scenario.shards; ++s) shards.push_back(ShardGradient(layout, 0, s));
  std::vector<float> chain = shards[0];
  for (int s = 1; s < scenario.shards; ++s) {
    for (std::size_t i = 0; i < chain.size(); ++i) chain[i] += shards[s][i];
  }
  for (int stride = 1; stride < scenario.shards; stride *= 2) {
    for (int s = 0; s < scenario.shards; s += 2 * stride) {
      for (std::size_t i = 0; i < chain.size(); ++i) shards[s][i] += shards[s + stride][i];
    }
  }
  EXPECT_EQ(shards[0] == chain, scenario.shards == 1)
      << "a test of order must be able to see order";
  scenario.step.clip_norm = 0;
  scenario.step.beta1 = 0.5;  // m = 0.5 * gradient exactly
  const Outcome outcome = RunWorld(3, scenario);
  for (std::size_t i = 0; i < chain.size(); ++i) {
    ASSERT_EQ(outcome.m[i], 0.5F * shards[0][i] / static_cast<float>(scenario.shards)) << i;
  }
}

TEST_P(ExactUpdaterTest, NonFiniteUpdateChangesNothing) {
  Scenario scenario = Usual(GetParam());
  scenario.updates = 3;
  const Outcome clean = RunWorld(2, scenario);
  scenario.updates = 4;
  scenario.poisoned_update = 3;
  for (const int world_size : {1, 2, 3}) {
    const Outcome poisoned = RunWorld(world_size, scenario);
    EXPECT_THAT(poisoned.applied, ElementsAre(true, true, true, false));
    EXPECT_EQ(poisoned.params, clean.params);
    EXPECT_EQ(poisoned.m, clean.m);
    EXPECT_EQ(poisoned.v, clean.v);
    EXPECT_EQ(poisoned.ema, clean.ema);
    EXPECT_EQ(poisoned.adam_steps, 3);
  }
}

// A range that begins inside a chunk and inside the boosted range is updated as ever; what lies in
// front of it stays.
TEST_P(ExactUpdaterTest, ElementsInFrontOfTheFirstStayAsTheyAre) {
  constexpr std::size_t kFirst = 9001;
  Scenario scenario = Usual(GetParam());
  scenario.untrained = kFirst;
  const Outcome whole = RunWorld(1, scenario);
  scenario.step.first = kFirst;
  const std::vector<float> initial = ShardGradient(Layout(), 1000, 0);
  for (const auto& [world_size, local_size] :
       std::vector<std::pair<int, int>>{{1, 0}, {2, 0}, {3, 0}, {5, 0}, {2, 1}, {4, 2}, {6, 3}}) {
    scenario.local_size = local_size;
    const Outcome part = RunWorld(world_size, scenario);
    EXPECT_EQ(part.norms, whole.norms);
    for (std::size_t i = 0; i < initial.size(); ++i) {
      const bool stays = i < kFirst;
      ASSERT_EQ(part.params[i], stays ? initial[i] : whole.params[i]) << i;
      ASSERT_EQ(part.ema[i], stays ? initial[i] : whole.ema[i]) << i;
      ASSERT_EQ(part.m[i], stays ? 0.0F : whole.m[i]) << i;
      ASSERT_EQ(part.v[i], stays ? 0.0F : whole.v[i]) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shards, ExactUpdaterTest, ::testing::Values(1, 4, 8));

// Two steps of PyTorch's Adam in double precision, with clipping, boost and EMA.
TEST(ExactUpdaterFormulaTest, FollowsAdamInDoublePrecision) {
  Scenario scenario = Usual(4);
  scenario.updates = 2;
  const ParamLayout layout = Layout();
  const Outcome outcome = RunWorld(2, scenario);
  const auto size = static_cast<std::size_t>(layout.size());
  const std::vector<float> initial = ShardGradient(layout, 1000, 0);
  std::vector<double> p(initial.begin(), initial.end()), m(size, 0), v(size, 0), ema = p;
  for (int update = 0; update < 2; ++update) {
    std::vector<double> g(size, 0);
    double squares = 0;
    for (int s = 0; s < 4; ++s) {
      const std::vector<float> shard = ShardGradient(layout, update, s);
      for (std::size_t i = 0; i < size; ++i) g[i] += shard[i] / 4.0;
    }
    for (const double value : g) squares += value * value;
    EXPECT_NEAR(outcome.norms[update], std::sqrt(squares), 1e-5 * std::sqrt(squares));
    const double scale = std::min(1.0, 1.0 / (std::sqrt(squares) + 1e-6));
    EXPECT_LT(scale, 1) << "clipping must be at work here";
    for (std::size_t i = 0; i < size; ++i) {
      const double gi = g[i] * scale;
      const bool boosted = i >= 7000 && i < 20001;
      m[i] = 0.9 * m[i] + 0.1 * gi;
      v[i] = 0.95 * v[i] + 0.05 * gi * gi;
      const double m_hat = m[i] / (1 - std::pow(0.9, update + 1));
      const double v_hat = v[i] / (1 - std::pow(0.95, update + 1));
      p[i] -= (boosted ? 3e-2 : 1e-2) * m_hat / (std::sqrt(v_hat) + 1e-8);
      ema[i] = 0.9 * ema[i] + 0.1 * p[i];
    }
  }
  for (std::size_t i = 0; i < size; ++i) {
    ASSERT_NEAR(outcome.m[i], m[i], 1e-6 * (1e-2 + std::abs(m[i]))) << i;
    ASSERT_NEAR(outcome.params[i], p[i], 3e-6 * (1 + std::abs(p[i]))) << i;
    ASSERT_NEAR(outcome.ema[i], ema[i], 3e-6 * (1 + std::abs(ema[i]))) << i;
  }
  EXPECT_DOUBLE_EQ(outcome.means[0], (1.0 / 3 + 1.0 / 4 + (1.0 / 5 + 1.0 / 6)) / 4);
  EXPECT_EQ(outcome.means[1], 1.5);
}

// One update of a world of one; cut before exchange number `fatal` and then ended as `end` says.
Outcome CutUpdate(int fatal, bool poisoned, const std::function<void(ExactUpdater&)>& end) {
  const ParamLayout layout = Layout();
  const auto local = NewLocalCollectives();
  FailingCollectives cut(*local, fatal);
  NetworkState state = MakeNetworkState(layout, 0, 1, false);
  Set(state.params.flat(), ShardGradient(layout, 1000, 0));
  ExactUpdater updater(cut, OneDomain(0, 1), 4, state.params.flat().numel());
  const auto update = [&] {
    for (int shard = 0; shard < 4; ++shard) {
      std::vector<float> values = ShardGradient(layout, 0, shard);
      if (poisoned) values[5] = std::numeric_limits<float>::infinity();
      Set(updater.GradientOfShard(shard), values);
    }
    return updater.Apply(state, Usual(4).step, {}).has_value();
  };
  const bool whole = update();
  EXPECT_EQ(whole, fatal < 0);
  if (!whole) {
    EXPECT_EQ(updater.has_pending(), fatal == 2) << "the exchange of scalars is the third";
    EXPECT_EQ(state.adam_steps, 0);
    updater.Regroup(*local, OneDomain(0, 1));
    if (end) {
      end(updater);
    } else {
      updater.DropPending();
      EXPECT_TRUE(update());
    }
  }
  EXPECT_FALSE(updater.has_pending());
  Outcome outcome;
  outcome.params = Prefix(state.params.flat(), layout.size());
  outcome.m = Prefix(state.adam_m, layout.size());
  outcome.v = Prefix(state.adam_v, layout.size());
  outcome.ema = Prefix(state.ema, layout.size());
  outcome.adam_steps = state.adam_steps;
  return outcome;
}

TEST(ExactUpdaterCutTest, RollForwardAndComputingAgainGiveTheSameBits) {
  for (const bool poisoned : {false, true}) {
    const Outcome applied = CutUpdate(-1, poisoned, nullptr);
    EXPECT_EQ(applied.adam_steps, poisoned ? 0 : 1);
    EXPECT_TRUE(CutUpdate(2, poisoned, [&](ExactUpdater& updater) {
                  EXPECT_EQ(updater.RollForward(), !poisoned);
                }) == applied);
    for (const int fatal : {0, 1, 2}) EXPECT_TRUE(CutUpdate(fatal, poisoned, nullptr) == applied);
  }
}

// The next world is another one, and its first update is one of the whole network.
TEST(ExactUpdaterCutTest, RollForwardOfAPartInAnotherWorld) {
  const auto alone = NewLocalCollectives();
  const std::vector<float> calm = RunPartThenWhole(*alone, false);
  for (const int world_size : {1, 2, 3, 5}) {
    ThreadWorld(world_size).Run([&](Collectives& collectives) {
      EXPECT_TRUE(RunPartThenWhole(collectives, true) == calm) << world_size << " ranks";
    });
  }
}

// Counts what this rank gives to others.
class CountingCollectives final : public Collectives {
 public:
  explicit CountingCollectives(Collectives& inner) : inner_(inner) {}
  std::int64_t floats() const { return floats_; }
  int rank() const override { return inner_.rank(); }
  int world_size() const override { return inner_.world_size(); }
  Status AllToAll(std::span<const float> send, std::span<const std::int64_t> send_counts,
                  std::span<float> receive, std::span<const std::int64_t> receive_counts) override {
    floats_ += static_cast<std::int64_t>(send.size());
    return inner_.AllToAll(send, send_counts, receive, receive_counts);
  }
  Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    floats_ += static_cast<std::int64_t>(all.size() / sizeof(float));
    return inner_.AllGather(mine, all);
  }
  void Abort() override { inner_.Abort(); }

 private:
  Collectives& inner_;
  std::int64_t floats_ = 0;
};

TEST(ExactUpdaterPartTest, ExchangesOnlyWhatIsTrained) {
  Scenario scenario = Usual(4);
  scenario.updates = 1;
  const auto floats = [&] {
    std::vector<std::int64_t> of_rank(2);
    ThreadWorld(2).Run([&](Collectives& collectives) {
      CountingCollectives counting(collectives);
      RunRank(counting, scenario);
      of_rank[collectives.rank()] = counting.floats();
    });
    return std::accumulate(of_rank.begin(), of_rank.end(), std::int64_t{0});
  };
  const std::int64_t whole = floats();
  scenario.step.first = scenario.untrained = 9001;
  const std::int64_t saved = whole - floats();
  // Two of six chunks of the sums and of the gradient, on each rank; the parameters in front of the
  // first, to both; the squared norms of those chunks, as doubles, from both to both.
  EXPECT_EQ(saved, 2 * (2 + 2) * kParamChunk + 2 * 9001 + 2 * 2 * 2);
}

// Slices so large that they travel in pieces.
TEST(ExactUpdaterGatherTest, LargeSlicesInPieces) {
  const std::int64_t slice = (std::int64_t{1} << 24) + 3 * kParamChunk;
  ThreadWorld(2).Run([&](Collectives& collectives) {
    const int rank = collectives.rank();
    ExactUpdater updater(collectives, OneDomain(rank, 2), 2, 2 * slice);
    const auto values = [&](int of) { return at::arange(slice, at::kFloat) + (of * 0.5); };
    const Result<at::Tensor> full = updater.Gather(values(rank));
    ASSERT_TRUE(full);
    for (const int of : {0, 1}) {
      EXPECT_TRUE(at::equal(full->narrow(0, of * slice, slice), values(of))) << of;
    }
  });
}

TEST(ExactUpdaterScalarsTest, NewestWishReachesEveryRank) {
  ThreadWorld(3).Run([&](Collectives& collectives) {
    ExactUpdater updater(collectives, OneDomain(collectives.rank(), 3), 2, 3 * kParamChunk);
    UpdateScalars scalars;
    scalars.width = 1;
    if (collectives.rank() < 2) scalars.per_shard = {collectives.rank() + 0.5};
    if (collectives.rank() == 1) {
      scalars.desired_version = 7;
      scalars.checkpoint_requests = 4;
      scalars.stop = true;
    } else {
      scalars.desired_version = 6;
      scalars.paused = true;
    }
    const Result<UpdateResult> result = updater.ExchangeScalars(scalars);
    ASSERT_TRUE(result);
    EXPECT_EQ(result->desired_version, 7U);
    EXPECT_EQ(result->checkpoint_requests, 4U);
    EXPECT_TRUE(result->stop);
    EXPECT_FALSE(result->paused);
    EXPECT_THAT(result->mean, ElementsAre(1.0));
  });
}

}  // namespace
}  // namespace dd2
