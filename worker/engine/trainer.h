#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/result.h"
#include "common/run_config.h"
#include "worker/engine/random_batch.h"
#include "worker/engine/teacher_data.h"
#include "worker/engine/training_state.h"
#include "worker/models/teacher.h"
#include "worker/parallel/collectives.h"
#include "worker/parallel/exact_update.h"

namespace dd2 {

// The outcome of one step, the same on every rank: scalars for the record, and the newest wish that
// any rank knew.
struct StepOutcome {
  Metrics metrics;
  Wish wish;
};

// Trains both networks: the steps of the phases gts, regress, csd and align (method 4, 5, 6.5).
// Knows no coordinator, checkpoint or clock. Every random number comes from (seed, phase, step,
// sample). Compute thread only; every rank calls the same steps in the same order.
//
// A step whose collective failed can be called again in the next generation, once the ranks have
// one state (SyncState): it goes on with its first update that is not done.
class Trainer {
 public:
  // Keeps references to all of them. `state` says the place in the domain. The collectives may be
  // of nobody yet: then Regroup comes before the first step.
  Trainer(const RunConfig& config, const TeacherBundle& teacher, Collectives& collectives,
          TrainingState& state);
  // The collectives are of another generation now.
  void Regroup(const RankLayout& ranks);
  // What this rank brings into the next generation.
  proto::HeldState Held() const;
  // Two names of one state.
  bool SameState(const proto::Position& a, const proto::Position& b) const;
  bool RollForward() { return updater_.RollForward(); }  // the pending update; local
  void DropPending() { updater_.DropPending(); }
  // Full parameters of both networks from the slices of the ranks of the domain.
  Status SpreadParameters();

  // Runs before step 0 of a phase: initial weights, copies between networks, fresh optimisers. Can
  // be done again, after an interruption or as a whole, as long as no update of the phase is done.
  Status EnterPhase(std::int32_t phase);
  // One step of the current phase (state.phase, state.step); advances the counters and
  // state.updates, not state.step. A step whose updates are all done exchanges the wish alone.
  Result<StepOutcome> GtsStep(TeacherData& data, const Wish& wish);
  // Mean (G(eps) - q)^2 over stored trajectories: eps is where the flow of sequence q began.
  Result<StepOutcome> RegressStep(TeacherData& data, const Wish& wish);
  // The GTS loss of the parameters on the sequences that the current phase keeps out of training
  // (at least one), always with the same t and noise. Changes nothing. Collective.
  Result<double> ValidationLoss(TeacherData& data);
  Result<StepOutcome> CsdCycle(const Wish& wish);
  Result<StepOutcome> AlignStep(const Wish& wish);
  // Exchanges wishes alone.
  Result<StepOutcome> Agree(const Wish& wish);
  // Called within a step, once nothing will change that network before the end of the step.
  void OnFrozen(std::function<void(NetworkRole)> frozen) { frozen_ = std::move(frozen); }
  // Called before each change of the tensors of the state by EnterPhase or a step.
  void OnChange(std::function<void()> change) { change_ = std::move(change); }

  // The generator's EMA as a network of its own (a copy; collective: every rank calls it).
  Result<ParamBuffer> GatherGeneratorEma();
  const NetworkSpec& spec() const { return spec_; }

 private:
  struct Shard;
  const PhaseConfig& phase() const;
  // The last phase before `before` that trained the generator; null: it has no weights yet.
  const PhaseConfig* LastGeneratorPhase(std::int32_t before) const;
  // The position in the random field: update `update` of the current phase.
  RngKey Key(RngUse use, std::int64_t update) const;
  std::vector<ShardRange> LocalShards(std::int64_t batch) const;
  // The stored sequences that the positions `range` of update `update` take.
  std::vector<std::uint64_t> StoredSamples(ShardRange range, std::int64_t update,
                                           const TeacherData& data) const;
  // Stored sequences, with t and noise of the positions `range` under `time` and `noise`.
  Result<at::Tensor> GtsLossOf(TeacherData& data, const std::vector<std::uint64_t>& samples,
                               ShardRange range, const RngKey& time, const RngKey& noise) const;
  Status CopyFromEma(const NetworkState& source, NetworkState& target);
  // Zero moments, EMA equal to the parameters.
  void ResetOptimiser(NetworkState& network);
  // One update each: gradients of the local shards, the exchange, the books, the spreading.
  Status GtsUpdate(TeacherData& data, const Wish& wish);
  Status RegressUpdate(TeacherData& data, const Wish& wish);
  Status CsdUpdate(std::int64_t k,
                   const Wish& wish);  // k: of the cycle, the last is the generator's
  Status AlignUpdate(const Wish& wish);
  // `book` is called when this rank's state has changed, before the parameters are spread.
  using Book = std::function<void(const UpdateResult&)>;
  Status GuidanceUpdate(std::int64_t update, std::int64_t schedule_step, const Wish& wish,
                        const Book& book);
  Status GeneratorUpdate(std::int64_t update, const Wish& wish, const Book& book);
  // Ends an update of `network`. Nothing lies between the change of the state and the books.
  Status Commit(NetworkState& network, const AdamStep& adam, const UpdateScalars& scalars,
                const Book& book);
  void BookMetric(const std::string& name, double value);  // adds to a metric of the step
  void BookLoss(const std::string& phase, const UpdateResult& result, double learning_rate);
  // Does those of the step's `count` updates that are not done: update(k).
  Result<StepOutcome> Step(std::int64_t count, const Wish& wish,
                           const std::function<Status(std::int64_t)>& update);
  void TellFrozen(NetworkRole network) const {
    if (frozen_) frozen_(network);
  }
  void TellChange() const {
    if (change_) change_();
  }
  AdamStep Adam(const ScheduleConfig& schedule, std::int64_t step) const;
  AdamStep GeneratorAdam() const;  // of the next generator update, with its EMA decay
  bool HeadOnly() const { return phase().trains == kTrainsHead; }
  // Whether a gts phase before `before` has tuned the guidance network.
  bool IsTuned(std::int32_t before) const;
  // The head learns `ratio` times as fast as the backbone.
  void BoostHead(double ratio, AdamStep& adam) const;

  const RunConfig& config_;
  const TeacherBundle& teacher_;
  Collectives& collectives_;
  TrainingState& state_;
  const NetworkSpec spec_;
  ExactUpdater updater_;
  Network guidance_;
  Network generator_;
  std::int64_t head_begin_ = 0;  // first element of the head in the flat buffer
  std::function<void(NetworkRole)> frozen_;
  std::function<void()> change_;
};

// Linear warm-up to the peak, then cosine to final_ratio of it at `total` (design 4).
double LearningRate(const ScheduleConfig& schedule, std::int64_t step, std::int64_t total);

}  // namespace dd2
