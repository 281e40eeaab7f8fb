#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "common/rng.h"
#include "tests/support/thread_collectives.h"
#include "worker/parallel/exact_update.h"

// Updates of a small network on several ranks, for tests of ExactUpdater on the CPU and on a
// device.
namespace dd2 {

// One parameter spans several chunks and ends inside one, so that slices of 1..4 ranks cut it.
inline ParamLayout Layout() {
  ParamLayout layout;
  layout.Add("a", {37, 211});
  layout.Add("b", {19});
  layout.Add("c", {5, 2999});
  return layout;
}

inline std::vector<float> ShardGradient(const ParamLayout& layout, int update, int shard) {
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

// The first `count` values, wherever they lie.
inline std::vector<float> Prefix(const at::Tensor& full, std::int64_t count) {
  const at::Tensor host = full.detach().narrow(0, 0, count).cpu();
  const float* data = host.const_data_ptr<float>();
  return {data, data + count};
}

inline void Set(const at::Tensor& tensor, std::vector<float> values) {
  const auto count = static_cast<std::int64_t>(values.size());
  tensor.detach().narrow(0, 0, count).copy_(at::from_blob(values.data(), {count}));
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
inline UpdateScalars FillShards(ExactUpdater& updater, const Scenario& scenario, int update,
                                int rank) {
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
    Set(gradient, values);
    scalars.per_shard.push_back(1.0 / (3 + shard));
    scalars.per_shard.push_back(shard);
  }
  return scalars;
}

inline Outcome RunRank(Collectives& collectives, const Scenario& scenario) {
  const ParamLayout layout = Layout();
  const int rank = collectives.rank();
  RankLayout ranks = OneDomain(rank, collectives.world_size());
  if (scenario.local_size > 0) {
    ranks.local_size = scenario.local_size;
    ranks.local_rank = rank % scenario.local_size;
  }
  NetworkState state = MakeNetworkState(layout, ranks.local_rank, ranks.local_size, false);
  const std::vector<float> initial = ShardGradient(layout, 1000, 0);
  Set(state.params.flat(), initial);
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

// `run` does RunRank, on the thread of each rank.
inline Outcome RunWorld(
    int world_size, const Scenario& scenario,
    const std::function<Outcome(Collectives&, const Scenario&)>& run = RunRank) {
  std::vector<Outcome> outcomes(world_size);
  ThreadWorld(world_size).Run([&](Collectives& collectives) {
    outcomes[collectives.rank()] = run(collectives, scenario);
  });
  for (const Outcome& other : outcomes) EXPECT_TRUE(other == outcomes[0]) << "ranks disagree";
  return outcomes[0];
}

inline Scenario Usual(int shards) {
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

// An update of a part of a network, which is rolled forward in a world of one when it is `cut`
// before its last exchange, and there one of the whole network; the parameters.
inline std::vector<float> RunPartThenWhole(Collectives& collectives, bool cut) {
  Scenario part = Usual(4);
  part.step.first = part.untrained = 9001;
  const int rank = collectives.rank();
  const auto alone = NewLocalCollectives();
  FailingCollectives failing(collectives, cut ? 2 : -1);
  RankLayout own_domain{.rank = rank, .world_size = collectives.world_size()};
  NetworkState state = MakeNetworkState(Layout(), 0, 1, false);
  Set(state.params.flat(), ShardGradient(Layout(), 1000, 0));
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
}

}  // namespace dd2
