#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "common/result.h"
#include "common/run_config.h"
#include "storage/score_cache.h"
#include "worker/engine/evaluation.h"
#include "worker/engine/judge.h"
#include "worker/engine/teacher_data.h"
#include "worker/engine/trainer.h"
#include "worker/engine/worker_loop.h"

namespace dd2 {

struct PhaseStepResult {
  StepOutcome outcome;
  std::int64_t steps_done = 1;
  std::string result_json;  // of phases that end in one
};

// The steps of every kind of phase. Collective: every rank makes the same calls. Compute thread
// only. Keeps references to its arguments; lives as long as the process, through all generations.
// What a step gives (metrics, result) is the same on every rank.
class PhaseSteps {
 public:
  PhaseSteps(const WorkerOptions& options, const RunConfig& config, const TeacherBundle& teacher,
             Collectives& collectives, TrainingState& state, std::string teacher_mode,
             std::optional<AdmContext> adm = {});
  ~PhaseSteps();

  // The collectives are of another generation now. Collective.
  Status Regroup(const RankLayout& ranks);
  Trainer& trainer() { return trainer_; }

  // Can be done again while no update of the phase is done.
  Status EnterPhase(std::int32_t phase);
  // Runs the step at state.step; a sample phase takes all steps up to `lease_end` at once, since
  // its blocks are spread over the ranks.
  Result<PhaseStepResult> Run(std::int64_t lease_end, const Wish& wish);
  Result<StepOutcome> Agree(const Wish& wish) { return trainer_.Agree(wish); }
  CacheStats cache_stats() const;

 private:
  const PhaseConfig& phase() const;
  Result<PhaseStepResult> TeacherCheck(const Wish& wish);
  Result<PhaseStepResult> ImportedTeacherCheck(const Wish& wish);
  Result<PhaseStepResult> Sample(std::int64_t lease_end, const Wish& wish);
  Result<PhaseStepResult> Gts(const Wish& wish);
  Result<PhaseStepResult> Regress(const Wish& wish);
  Result<PhaseStepResult> Csd(const Wish& wish);
  Result<PhaseStepResult> Evaluate(const Wish& wish);
  Result<PhaseStepResult> Export(const Wish& wish);
  // The data of the last sample phase at or before the current one.
  Result<TeacherData*> Data();
  Result<TeacherData*> LoadedData();       // with every sequence known
  Status AddCurvePoint(Metrics& metrics);  // of the generator's EMA, under eval/
  Status AddTeacherSequences(EvalInputs& inputs);
  Status EvaluateStart();
  Status ShowStart();  // rank 0: a picture of what distillation starts from

  const WorkerOptions& options_;
  const RunConfig& config_;
  const TeacherBundle& teacher_;
  Collectives& collectives_;
  TrainingState& state_;
  const std::string teacher_mode_;  // numeric mode of the teacher, whose scores are kept
  Trainer trainer_;
  std::unique_ptr<ScoreCache> cache_;
  std::unique_ptr<TeacherData> data_;
  bool sequences_loaded_ = false;
  Judge judge_;
};

// Intra-op threads of this process: part of the numeric mode.
void SetComputeThreads(int threads);
// Version of LibTorch and the CPU path it takes: part of the numeric mode.
std::string TorchBuild();

}  // namespace dd2
