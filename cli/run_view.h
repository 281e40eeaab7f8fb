#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cli/progress.h"
#include "common/json.h"
#include "common/result.h"

namespace dd2 {

// One phase of a run as the API's documents give it.
struct PhaseView {
  std::string name;   // unique in the run: "csd-2"
  std::string kind;   // "csd"
  std::string state;  // pending, running, done
  std::int64_t step = 0;
  std::int64_t steps = 0;
  double seconds = 0;
};

// A run as a person sees it, from the coordinator's run and phases documents (coordinator/api.h),
// or from the same documents made of the run folder's files (run_files.h). Plain data.
struct RunView {
  std::string name;
  // waiting, running, paused, stopping, finished, stopped, failed, interrupted; of a run in Slurm
  // that has no coordinator: queued, requeued, starting
  std::string state;
  std::string message;  // why it stopped or failed
  std::int64_t seed = 0;
  std::int64_t ranks = 0;
  std::int64_t generation = 0;
  std::size_t phase = 0;  // index of the current one; phase_count when all are done
  std::size_t phase_count = 0;
  std::vector<PhaseView> phases;                             // empty until ApplyPhases
  std::vector<std::pair<std::string, std::string>> domains;  // of a live run: name and state
  std::vector<std::pair<std::string, double>> metrics;       // newest value of each name
  double steps_per_second = 0;                               // of the current phase; 0: not known
  double remaining_seconds = -1;  // of the current phase; negative: not known
  // Between checkpoints that the phases do not set; negative: none, or not known.
  double interval_seconds = -1;
  std::string interval_setting;
  double stall_seconds = 0;    // what one costs
  double failure_seconds = 0;  // mean time to a failure
  std::string jobs;            // of Slurm, a line each, as FormatJobs makes them
};

// Takes what is in a document over into `view` and leaves the rest. kCorruption: it is not one.
Status ApplyRunDocument(std::string_view document, RunView& view);
Status ApplyPhasesDocument(std::string_view document, RunView& view);
// The same for a parsed document that may hold both ("phases" inside the run's).
Status ApplyDocument(const boost::json::object& document, RunView& view);

// Phase `index` for a progress line, with the metrics of its kind.
PhaseProgress ProgressOf(const RunView& view, std::size_t index);

// No more will come of it: finished, stopped, failed or interrupted.
bool IsOver(const RunView& view);

// What `dd2 status` prints: what the run is, then a line for each phase.
std::string FormatStatus(const RunView& view, std::string_view folder);

}  // namespace dd2
