#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "common/json.h"
#include "common/run_config.h"
#include "worker/models/teacher.h"

namespace dd2 {

// Networks of VAR's shape with random weights, and a configuration to train them: what
// dd2-gpu-steps measures and compares.

struct Size {
  std::int64_t layers, width, heads, codes, head_width, head_depth;
  int batch, draws;
  std::vector<std::int64_t> sides;
};
// models.md 1.6 and configs/var-d16.yaml, the batch that one of 64 shards has there.
inline const Size kD16{16, 1024, 16, 4096, 1024, 4, 8, 4, {1, 2, 3, 4, 5, 6, 8, 10, 13, 16}};
inline const Size kTiny{2, 32, 2, 64, 32, 1, 2, 2, {1, 2, 4}};
inline constexpr std::int64_t kChannels = 32, kClasses = 1000, kTimeFeatures = 256;

// No images can be made with it. `precision`: TeacherConfig's.
TeacherBundle RandomTeacher(const Size& size, std::string_view precision);
// gts only sets the networks; one guidance and one generator update a cycle. Phases gts, csd,
// align.
RunConfig ConfigOf(const Size& size, int shards, std::string_view precision);
// What PyTorch needs to build the same networks and losses (rival_steps.py).
boost::json::object Describe(const Size& size);

}  // namespace dd2
