#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace dd2 {

// Where one phase of a run stands, as a person watches it.
struct PhaseProgress {
  int index = 0;                  // in the run's list of phases, from 0
  int phases = 0;                 // how many there are
  std::string kind;               // its name: "sample", "gts", "csd-2", ...
  std::int64_t step = 0;          // steps finished
  std::int64_t steps = 0;         // steps in all
  double step_seconds = 0;        // recent wall time of a step; 0: not known yet
  double remaining_seconds = -1;  // negative: not known
  double seconds = 0;             // spent in this phase
  std::vector<std::pair<std::string, double>> metrics;  // newest values: {"loss", 0.21}
};

// The live line, at most `columns` characters (0: no limit):
//   [3/8] gts     [=====>     ]  120/300  loss 0.214  9.3 step/s  0:19 left
std::string FormatProgressLine(const PhaseProgress& phase, int columns);
// The line that stays when the phase is over:
//   [3/8] gts      300 steps in 1:12  loss 0.143
std::string FormatFinishedLine(const PhaseProgress& phase);
// The line of a phase that has not begun: "[5/8] align    120 steps to come".
std::string FormatPendingLine(const PhaseProgress& phase);

}  // namespace dd2
