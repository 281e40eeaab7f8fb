#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "common/result.h"

namespace dd2 {

// The checkpoints of a run folder, as the commands of `dd2 checkpoint` see them.

// RUN/checkpoints.
std::filesystem::path CheckpointsOf(const std::filesystem::path& run);

// Ids of the committed ones, oldest first. kNotFound: there is no such folder.
Result<std::vector<std::string>> CheckpointIds(const std::filesystem::path& run);

// `id`, or the newest when it is empty. kNotFound says what is missing: run or checkpoint.
Result<std::string> ChooseCheckpoint(const std::filesystem::path& run, const std::string& id);

// One that failed its check and was moved to RUN/quarantine.
struct QuarantinedCheckpoint {
  std::string id;
  std::int64_t unix_ms = 0;  // when it was moved
  std::string reason;
  std::filesystem::path folder;
};
// In the order of their folders' names. kUnavailable: the folder cannot be read.
Result<std::vector<QuarantinedCheckpoint>> QuarantinedCheckpoints(const std::filesystem::path& run);

}  // namespace dd2
