#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "common/result.h"

namespace dd2::load {

inline constexpr std::int32_t kRanksOfDomain = 8;

struct ScenarioOptions {
  std::chrono::milliseconds pace = std::chrono::seconds(1);     // of one training step
  std::chrono::milliseconds window = std::chrono::seconds(20);  // of the steady state, twice
  std::filesystem::path folder = std::filesystem::temp_directory_path();  // of the run's folder
  // Only whether it works: short windows, no silent domain, no checkpoint.
  bool check = false;
};

// One line of the table.
struct Measure {
  std::string name;  // with the unit
  double value = 0;
  std::string Text() const;
};
using Measures = std::vector<Measure>;

// One coordinator with that many agents through one story: everybody joins; steady state without
// and with watchers; a checkpoint; a domain is killed and comes back; another one falls silent and
// comes back. The lines are the same for every number of agents. An error: something did not come
// in time or the coordinator did what it should not. Blocks the thread.
Result<Measures> RunScenario(std::int32_t agents, const ScenarioOptions& options);

}  // namespace dd2::load
