#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace dd2::simulation {

// What became of one history.
struct Report {
  std::string violation;  // empty: everything held
  std::vector<std::string> trace;
  std::map<std::string, std::int64_t> faults;  // by kind
  std::int64_t steps_lost = 0;
  std::int64_t given_up = 0;  // 1: ended after the same failure again and again, as it should
  double virtual_seconds = 0;
};

// Plays the history of `seed`: a run of a few phases on 1 to 4 domains, with faults in its first
// minutes; then they stop, and it must end with the state of an undisturbed run. Deterministic.
Report Play(std::uint64_t seed);

}  // namespace dd2::simulation
