#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "common/result.h"
#include "common/run_config.h"
#include "worker/engine/adm_evaluation.h"
#include "worker/engine/evaluation.h"
#include "worker/engine/evaluator.h"
#include "worker/models/networks.h"
#include "worker/models/teacher.h"
#include "worker/parallel/collectives.h"

namespace dd2 {

// What the generator of a run is judged by: Inception where eval.inception is set, else the
// teacher's own evaluation network, which an imported teacher lacks. What it compares with is made
// by all ranks together when it is first needed. Compute thread only; borrows its arguments.
// "Collective" means that every rank makes the same calls.
class Judge {
 public:
  // `adm`: of eval.inception; there when it is set.
  Judge(const RunConfig& config, const TeacherBundle& teacher, Collectives& collectives,
        std::optional<AdmContext> adm)
      : config_(config), teacher_(teacher), collectives_(collectives), adm_(std::move(adm)) {}

  // There is something to judge by.
  bool able() const { return adm_ || teacher_.classifier; }
  // The ranks are others now: what one of them lacks is made again by all. Collective.
  Status Regroup();

  // Computes what Inception compares with, unless that is done; nothing to do for the other judge.
  // Collective.
  Status Prepare();
  // The test images, for judging by the teacher's network. kFailedPrecondition: it has none.
  // Collective.
  Result<const EvalContext*> TestImages();
  // Of eval.curve_samples images of a network's EMA weights. Collective.
  Result<Quality> CurvePoint(const Network& generator);
  // RunEvaluation or RunAdmEvaluation. Collective.
  Result<std::string> Final(const EvalInputs& inputs);

 private:
  const RunConfig& config_;
  const TeacherBundle& teacher_;
  Collectives& collectives_;
  std::optional<EvalContext> tests_;
  std::optional<AdmContext> adm_;
};

}  // namespace dd2
