#include "worker/engine/judge.h"

#include <algorithm>

#include "worker/engine/dataset.h"

namespace dd2 {

Status Judge::Regroup() {
  // A rank that came later, or was interrupted while it made them, lacks them.
  DD2_TRY_ASSIGN(const std::int64_t tests, Smallest(tests_ ? 1 : 0, collectives_));
  if (tests == 0) tests_.reset();
  if (!adm_) return {};
  DD2_TRY_ASSIGN(const std::int64_t complete, Smallest(adm_->complete() ? 1 : 0, collectives_));
  if (complete == 0) adm_->set_incomplete();
  return {};
}

Status Judge::Prepare() {
  return adm_ && !adm_->complete() ? adm_->Complete(collectives_) : Status();
}

Result<const EvalContext*> Judge::TestImages() {
  DD2_TRY(CheckMeasurable(teacher_));
  if (!tests_) {
    DD2_TRY_ASSIGN(const LabelledImages test, LoadFashionMnist(config_.dataset.path, Split::kTest));
    const std::int64_t count =
        std::min<std::int64_t>(config_.eval.reference_images, test.images.size(0));
    DD2_TRY_ASSIGN(tests_, EvalContext::FromImages(teacher_, test.images.narrow(0, 0, count),
                                                   test.labels.narrow(0, 0, count), collectives_));
  }
  return &*tests_;
}

Result<Quality> Judge::CurvePoint(const Network& generator) {
  const std::int64_t samples = config_.eval.curve_samples;
  if (adm_) {
    DD2_TRY(Prepare());
    return MeasureGenerator(generator, *adm_, *teacher_.tokenizer, samples, config_.seed,
                            collectives_);
  }
  DD2_TRY_ASSIGN(const EvalContext* tests, TestImages());
  DD2_TRY_ASSIGN(const EvalPoint point,
                 EvaluateGenerator(generator, *tests, samples, config_.seed, collectives_));
  return QualityOf(point);
}

Result<std::string> Judge::Final(const EvalInputs& inputs) {
  if (adm_) {
    DD2_TRY(Prepare());
    return RunAdmEvaluation(inputs, *adm_, teacher_, collectives_);
  }
  DD2_TRY_ASSIGN(const EvalContext* tests, TestImages());
  return RunEvaluation(inputs, *tests, collectives_);
}

}  // namespace dd2
