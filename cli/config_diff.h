#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace dd2 {

// One setting that two configurations do not agree on.
struct ConfigDifference {
  std::string key;     // "phases.2.steps"
  std::string before;  // as YAML; "(absent)" when that one does not have it
  std::string after;
};

// Compares two YAML documents leaf by leaf, in the order of the first. kInvalidArgument: one of
// them is no YAML.
Result<std::vector<ConfigDifference>> DiffConfigs(std::string_view before, std::string_view after);

// "batch.shards: 4 in the run, 8 now", one a line, each after `indent`.
std::string DescribeDifferences(const std::vector<ConfigDifference>& differences,
                                std::string_view indent);

}  // namespace dd2
