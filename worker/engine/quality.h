#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace dd2 {

// Figures of a set of images by their names, the one to watch first: "fdr", "fd", "accuracy" by the
// teacher's evaluation network (evaluator.h), or "fid", "sfid", "inception_score", "precision",
// "recall" by Inception (adm_evaluation.h). A distance is not finite where a network diverged.
struct Quality {
  std::vector<std::pair<std::string, double>> figures;
  std::int64_t samples = 0;  // distances fall with it: always quote it
};

}  // namespace dd2
