#pragma once

#include "common/config_settings.h"

namespace dd2 {

// Inside common/config*: the rules between settings of a run. `config.phases` is as the file lists
// them (no teacher check added yet), `positions` says which item of the list each one was, and
// `complete` whether all items could be read: the order of phases is only judged then. The reader
// tells where each setting was given.
void CheckRunRules(const RunConfig& config, const std::vector<std::size_t>& positions,
                   bool complete, const SettingsReader& reader, ConfigProblems& problems);

}  // namespace dd2
