#include "worker/parallel/exact_update.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <mutex>
#include <numeric>
#include <vector>

#include "common/rng.h"
#include "tests/support/thread_collectives.h"
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

// One parameter spans several chunks and ends inside one, so that slices of 1..4 ranks cut it.
ParamLayout Layout() {
  ParamLayout layout;
  layout.Add("a", {37, 211});
  layout.Add("b", {19});
  layout.Add("c", {5, 2999});
  return layout;
}

std::vector<float> ShardGradient(const ParamLayout& layout, int update, int shard) {
  std::vector<float> all(static_cast<std::size_t>(layout.size()), 0.0F);
  for (const ParamSpec& spec : layout.specs()) {
    FillNormal({.seed = 3,
                .use = RngUse::kInputNoise,
                .update = static_cast<std::uint64_t>(update),
                .sample = static_cast<std::uint64_t>(shard * 100 + spec.offset)},
               std::span(all).subspan(static_cast<std::size_t>(spec.offset),
                                      static_cast<std::size_t>(spec.numel)));
  }
  // Magnitudes that make the order of additions visible in fp32.
  for (float& value : all) value *= std::exp2(static_cast<float>((shard * 5) % 7));
  return all;
}

struct Outcome {
  std::vector<float> params, m, v, ema;
  std::vector<double> norms, means;
  std::vector<bool> applied;
  std::int64_t adam_steps = 0;
  bool operator==(const Outcome&) const = default;
};

std::vector<float> Prefix(const at::Tensor& full, std::int64_t count) {
  const float* data = full.const_data_ptr<float>();
  return {data, data + count};
}

struct Scenario {
  int shards = 4;
  int updates = 5;
  int poisoned_update = -1;  // its last shard has a NaN
  AdamStep step = {};
  int local_size = 0;          // ranks of a domain; 0: one domain
  std::int64_t untrained = 0;  // elements in front that have a gradient of zero
};

// The gradients of the shards of rank `rank`, and their scalars. What lies in front of the chunk of
// `step.first` is not to be looked at.
UpdateScalars FillShards(ExactUpdater& updater, const Scenario& scenario, int update, int rank) {
  UpdateScalars scalars;
  scalars.width = 2;
  const std::vector<int>& first = updater.plan().first;
  for (int shard = first[rank]; shard < first[rank + 1]; ++shard) {
    std::vector<float> values = ShardGradient(Layout(), update, shard);
    if (update == scenario.poisoned_update && shard == scenario.shards - 1) {
      values[5] = std::numeric_limits<float>::quiet_NaN();
    }
    std::fill_n(values.begin(), scenario.untrained, 0.0F);
    std::fill_n(values.begin(), scenario.step.first / kParamChunk * kParamChunk,
                std::numeric_limits<float>::quiet_NaN());
    const at::Tensor gradient = updater.GradientOfShard(shard - first[rank], scenario.step.first);
    std::ranges::copy(values, gradient.data_ptr<float>());
    scalars.per_shard.push_back(1.0 / (3 + shard));
    scalars.per_shard.push_back(shard);
  }
  return scalars;
}

Outcome RunRank(Collectives& collectives, const Scenario& scenario) {
  const ParamLayout layout = Layout();
  const int rank = collectives.rank();
  RankLayout ranks = OneDomain(rank, collectives.world_size());
  if (scenario.local_size > 0) {
    ranks.local_size = scenario.local_size;
    ranks.local_rank = rank % scenario.local_size;
  }
  NetworkState state = MakeNetworkState(layout, ranks.local_rank, ranks.local_size, false);
  const std::vector<float> initial = ShardGradient(layout, 1000, 0);
  std::ranges::copy(initial, state.params.flat().data_ptr<float>());
  const at::Tensor own = state.params.flat().narrow(0, state.begin, state.slice);
  state.ema.copy_(own);
  ExactUpdater updater(collectives, ranks, scenario.shards, state.params.flat().numel());
  Outcome outcome;
  for (int update = 0; update < scenario.updates; ++update) {
    const UpdateScalars scalars = FillShards(updater, scenario, update, rank);
    const Result<UpdateResult> result = updater.Apply(state, scenario.step, scalars);
    EXPECT_TRUE(result) << result.error().message();
    EXPECT_FALSE(updater.has_pending());
    EXPECT_TRUE(updater.Spread(state, scenario.step.first));
    outcome.norms.push_back(std::isfinite(result->gradient_norm) ? result->gradient_norm : -1);
    outcome.applied.push_back(result->applied);
    outcome.means.insert(outcome.means.end(), result->mean.begin(), result->mean.end());
  }
  outcome.params = Prefix(state.params.flat(), layout.size());
  outcome.m = Prefix(*updater.Gather(state.adam_m), layout.size());
  outcome.v = Prefix(*updater.Gather(state.adam_v), layout.size());
  outcome.ema = Prefix(*updater.Gather(state.ema), layout.size());
  outcome.adam_steps = state.adam_steps;
  return outcome;
}

Outcome RunWorld(int world_size, const Scenario& scenario) {
  std::vector<Outcome> outcomes(world_size);
  ThreadWorld(world_size).Run([&](Collectives& collectives) {
    outcomes[collectives.rank()] = RunRank(collectives, scenario);
  });
  for (const Outcome& other : outcomes) EXPECT_TRUE(other == outcomes[0]) << "ranks disagree";
  return outcomes[0];
}

Scenario Usual(int shards) {
  Scenario scenario;
  scenario.shards = shards;
  scenario.step.learning_rate = 1e-2;
  scenario.step.clip_norm = 1.0;
  scenario.step.ema_decay = 0.9;
  scenario.step.boosted_begin = 7000;
  scenario.step.boosted_end = 20001;
  scenario.step.boost = 3.0;
  return scenario;
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

// Passes calls on until the call with number `fatal` (from 0), which fails without being made.
class FailingCollectives final : public Collectives {
 public:
  FailingCollectives(Collectives& inner, int fatal) : inner_(inner), fatal_(fatal) {}
  int rank() const override { return inner_.rank(); }
  int world_size() const override { return inner_.world_size(); }
  Status AllToAll(std::span<const float> send, std::span<const std::int64_t> send_counts,
                  std::span<float> receive, std::span<const std::int64_t> receive_counts) override {
    if (calls_++ == fatal_) return Error(Code::kAborted, "cut");
    return inner_.AllToAll(send, send_counts, receive, receive_counts);
  }
  Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    if (calls_++ == fatal_) return Error(Code::kAborted, "cut");
    return inner_.AllGather(mine, all);
  }
  void Abort() override { inner_.Abort(); }

 private:
  Collectives& inner_;
  const int fatal_;
  int calls_ = 0;
};

// One update of a world of one; cut before exchange number `fatal` and then ended as `end` says.
Outcome CutUpdate(int fatal, bool poisoned, const std::function<void(ExactUpdater&)>& end) {
  const ParamLayout layout = Layout();
  const auto local = NewLocalCollectives();
  FailingCollectives cut(*local, fatal);
  NetworkState state = MakeNetworkState(layout, 0, 1, false);
  std::ranges::copy(ShardGradient(layout, 1000, 0), state.params.flat().data_ptr<float>());
  ExactUpdater updater(cut, OneDomain(0, 1), 4, state.params.flat().numel());
  const auto update = [&] {
    for (int shard = 0; shard < 4; ++shard) {
      std::vector<float> values = ShardGradient(layout, 0, shard);
      if (poisoned) values[5] = std::numeric_limits<float>::infinity();
      std::ranges::copy(values, updater.GradientOfShard(shard).data_ptr<float>());
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
  Scenario part = Usual(4);
  part.step.first = part.untrained = 9001;
  const auto run = [&](Collectives& collectives, bool cut) {
    const int rank = collectives.rank();
    const auto alone = NewLocalCollectives();
    FailingCollectives failing(collectives, cut ? 2 : -1);
    RankLayout own_domain{.rank = rank, .world_size = collectives.world_size()};
    NetworkState state = MakeNetworkState(Layout(), 0, 1, false);
    std::ranges::copy(ShardGradient(Layout(), 1000, 0), state.params.flat().data_ptr<float>());
    ExactUpdater updater(failing, own_domain, 4, state.params.flat().numel());
    const bool whole =
        updater.Apply(state, part.step, FillShards(updater, part, 0, rank)).has_value();
    EXPECT_EQ(whole, !cut);
    EXPECT_EQ(updater.has_pending(), cut);
    updater.Regroup(*alone, OneDomain(0, 1));
    EXPECT_EQ(cut && updater.RollForward(), cut);
    const Scenario next = Usual(4);
    EXPECT_TRUE(updater.Apply(state, next.step, FillShards(updater, next, 1, 0)));
    EXPECT_EQ(state.adam_steps, 2);
    return Prefix(state.params.flat(), Layout().size());
  };
  const auto alone = NewLocalCollectives();
  const std::vector<float> calm = run(*alone, false);
  for (const int world_size : {1, 2, 3, 5}) {
    ThreadWorld(world_size).Run([&](Collectives& collectives) {
      EXPECT_TRUE(run(collectives, true) == calm) << world_size << " ranks";
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
