#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "common/json.h"
#include "common/result.h"
#include "worker/engine/adm_evaluation.h"
#include "worker/engine/evaluator.h"
#include "worker/engine/quality.h"
#include "worker/models/networks.h"
#include "worker/models/teacher.h"
#include "worker/parallel/collectives.h"
#include "worker/torch.h"

namespace dd2 {

// What the eval phase looks at. Everything is borrowed and the same on every rank.
struct EvalInputs {
  const Network* generator = nullptr;  // EMA weights: what the run exports
  TeacherConfig teacher;               // guidance and filters of the teacher's samples
  // Stored teacher sequences [N, n] int64 with their classes [N], on the CPU; the first `samples`
  // of them are used. Undefined: there are none.
  at::Tensor teacher_tokens;
  at::Tensor teacher_labels;
  std::int64_t samples = 5000;
  std::uint64_t seed = 1;
  std::filesystem::path samples_folder;  // RUN/samples; empty: no pictures
  int latency_repeats_batch1 = 15;       // 0: latency is not measured
  int latency_repeats_batch64 = 5;
};

// By the teacher's evaluation network. Measures everything and returns one JSON object:
//   fdr_end fd_end accuracy samples · fdr_teacher fd_teacher accuracy_teacher teacher_samples ·
//   fdr_reconstruction fd_reconstruction accuracy_reconstruction accuracy_real test_images ·
//   speedup_batch1 speedup_batch64 latency{batch1{teacher_ms one_step_ms decode_ms
//   speedup_with_decode} batch64{...}} · classes [names] · fdr_by_class_end fdr_by_class_teacher
//   [a number a class], where all are finite and every class has 2 images
// The teacher is sampled where no sequences of it are stored. Rank 0 also writes the picture grids
// and measures latency while the others wait. Collective. Errors: of the collectives, of writing
// pictures.
Result<std::string> RunEvaluation(const EvalInputs& inputs, const EvalContext& context,
                                  Collectives& collectives);

// By Inception, of a teacher of any kind:
//   fid_end sfid_end inception_score_end precision_end recall_end samples, the same with _teacher
//   and teacher_samples · speedup_batch1 latency{batch1{...}}
// The teacher has figures where at least `samples` sequences of it are stored: drawing them is the
// work of the sample phase. A batch of 64 is not timed: the keys and values of a large teacher
// would not fit beside the training. Pictures of 10 classes. Collective.
Result<std::string> RunAdmEvaluation(const EvalInputs& inputs, const AdmContext& context,
                                     const TeacherBundle& bundle, Collectives& collectives);

// "fdr", "fd", "accuracy".
Quality QualityOf(const EvalPoint& point);
// One-step quality of a network (its EMA weights) by Inception. Collective.
Result<Quality> MeasureGenerator(const Network& network, const AdmContext& context,
                                 const Tokenizer& tokenizer, std::int64_t samples,
                                 std::uint64_t seed, Collectives& collectives);

// Adds each figure under "<name><suffix>", but the accuracy "_end" as "accuracy". JSON has no word
// for what is not finite (the distance of a diverged generator): left out.
void AddQuality(const Quality& quality, const std::string& suffix, boost::json::object& out);
// Adds "fdr_by_class<suffix>" where all are finite.
void AddClasses(const EvalPoint& point, const std::string& suffix, boost::json::object& out);

inline constexpr int kGridRows = 10;  // classes, spread over all of them where there are more
inline constexpr int kGridColumns = 10;

// One-step samples of `network`, rows = classes, columns = samples -> PNG. The same seed gives
// every network the same noise, so that pictures can be compared cell by cell. Not collective.
Status WriteGeneratorGrid(const Network& network, const Tokenizer& tokenizer, std::uint64_t seed,
                          const std::filesystem::path& path);

}  // namespace dd2
