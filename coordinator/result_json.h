#pragma once

#include <string>

#include "coordinator/run_state.h"

namespace dd2 {

// RUN/result.json of a finished run (docs/CLI.md): name, run_id, outcome, seed, ranks, command;
// seconds {phase: s}, seconds_total; cache {hits, misses}; checkpoints {count, bytes,
// stall_seconds}; counters; versions; then every member of the phases' own results, later phases
// winning, so that eval's fdr_start, fdr_end, fdr_teacher, accuracy, speedup_batch1 and
// speedup_batch64 stand at the top. A result that is not a JSON object is kept as text under its
// phase's name. Pure.
std::string BuildResultJson(const RunState& state);

}  // namespace dd2
