#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/json.h"
#include "common/result.h"
#include "common/run_config.h"

namespace dd2 {

// What a run folder says about a run whose coordinator is not there (finished, stopped, killed), in
// the words of the API's run document plus "phases", so that both are read by the same code.

// Names of the phases as the coordinator gives them: the kind, with "-2", "-3" when it comes again.
std::vector<std::string> PhaseNames(const std::vector<PhaseConfig>& phases);

// Where a rank of the newest generation works, or worked.
struct MemberPlace {
  std::string domain;
  int local_rank = 0;
};

// The parts of a run folder. Pure input of FilesDocument, so that a test can make it up.
struct RunFiles {
  RunConfig config;
  std::string run_id;
  std::string outcome;  // finished, stopped, failed; empty: the coordinator never said goodbye
  std::string message;
  std::int64_t started_unix_ms = 0;  // of the newest life
  std::uint64_t generation = 0;
  std::vector<MemberPlace> members;             // of it, by rank
  std::vector<std::optional<double>> finished;  // seconds of each finished phase
  std::string metrics_jsonl;
  std::vector<std::string> checkpoints;  // ids, oldest first
};

boost::json::object FilesDocument(const RunFiles& files);

// Reads config.yaml, the journal, metrics.jsonl and the list of checkpoints of `folder`. kNotFound:
// no such folder, or no run in it. A damaged journal is told in the message, the rest is used.
Result<RunFiles> ReadRunFiles(const std::filesystem::path& folder);

}  // namespace dd2
