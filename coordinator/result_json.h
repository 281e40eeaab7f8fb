#pragma once

#include <string>

#include "coordinator/run_state.h"

namespace dd2 {

// RUN/result.json of a finished run: name, run_id, seed, ranks, steps; seconds {phase: s}; cache
// {hits, misses}; versions; then every member of the phases' own results, later phases winning, so
// that eval's fdr_start, fdr_end, fdr_teacher, accuracy, speedup_batch1 and speedup_batch64 stand
// at the top. A result that is not a JSON object is kept as text under its phase's name. Pure.
std::string BuildResultJson(const RunState& state);

}  // namespace dd2
