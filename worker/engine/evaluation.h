#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "common/json.h"
#include "common/result.h"
#include "worker/engine/evaluator.h"
#include "worker/models/networks.h"
#include "worker/models/teacher.h"
#include "worker/parallel/collectives.h"
#include "worker/torch.h"

namespace dd2 {

// What the eval phase looks at. Everything is borrowed and the same on every rank.
struct EvalInputs {
  const EvalContext* context = nullptr;
  const Network* generator = nullptr;  // EMA weights: what the run exports
  const Network* start = nullptr;      // one-step network before distillation; null: leave it out
  TeacherConfig teacher;               // guidance and filters of the teacher's samples
  // Stored teacher sequences [N, n] int64 with their classes [N]; the first `samples` of them are
  // used. Undefined: the teacher is sampled here.
  at::Tensor teacher_tokens;
  at::Tensor teacher_labels;
  std::int64_t samples = 5000;
  std::uint64_t seed = 1;
  std::filesystem::path samples_folder;  // RUN/samples; empty: no pictures
  int latency_repeats_batch1 = 15;       // 0: latency is not measured
  int latency_repeats_batch64 = 5;
};

// Measures everything and returns one JSON object:
//   fdr_end fd_end accuracy samples · fdr_start fd_start accuracy_start (with `start`) ·
//   fdr_teacher fd_teacher accuracy_teacher teacher_samples · fdr_reconstruction fd_reconstruction
//   accuracy_reconstruction accuracy_real test_images ·
//   speedup_batch1 speedup_batch64 latency{batch1{teacher_ms one_step_ms decode_ms
//   speedup_with_decode} batch64{...}} · classes [names] · fdr_by_class_end fdr_by_class_teacher
//   fdr_by_class_start [a number a class], where all are finite and every class has 2 images
// Rank 0 also writes the picture grids (WriteSampleGrids) and measures latency while the others
// wait. Collective. Errors: of the collectives, of writing pictures.
Result<std::string> RunEvaluation(const EvalInputs& inputs, Collectives& collectives);

// Adds "fdr<suffix>", "fd<suffix>" and "fdr_by_class<suffix>". JSON has no word for what is not
// finite (the distance of a diverged generator): left out.
void AddDistances(const EvalPoint& point, const std::string& suffix, boost::json::object& out);

inline constexpr int kGridColumns = 10;

// One-step samples of `network`, rows = classes, columns = samples -> PNG. The same seed gives
// every network the same noise, so that pictures can be compared cell by cell. Not collective.
Status WriteGeneratorGrid(const Network& network, const Tokenizer& tokenizer, std::uint64_t seed,
                          const std::filesystem::path& path);

}  // namespace dd2
