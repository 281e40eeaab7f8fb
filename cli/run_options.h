#pragma once

#include <CLI/App.hpp>

#include "cli/run_folder.h"

namespace dd2 {

// Declares what `dd2 run` and `dd2 submit` have in common: CONFIG, --run, --ranks, --seed, --set
// and
// --resume. They are in `request`, which outlives the parsing, when the command's callback runs.
void AddRunOptions(CLI::App& command, RunRequest& request);

}  // namespace dd2
