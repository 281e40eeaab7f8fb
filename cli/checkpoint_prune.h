#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cli/run_folder.h"
#include "common/file.h"

namespace dd2 {

struct PruneRequest {
  std::filesystem::path run;
  std::optional<int> keep;  // instead of checkpoint.keep_last of the run
  bool dry_run = false;
};

struct PruneOutcome {
  std::string rule;  // "keep_last = 3"
  std::vector<std::string> kept;
  std::vector<std::string> deleted;  // or to be deleted, in a dry run
  std::vector<std::string> damaged;  // "ID: reason"; left for the next start of the run to judge
  std::int64_t freed_bytes = 0;
};

// Deletes checkpoints of a run that nobody works on, by the rule that the coordinator uses: the
// journal first, then the manifest, then the parts. The newest one that verifies, every byte read,
// is always kept; when none does, nothing is deleted.
tl::expected<PruneOutcome, StartFailure> PruneRun(FileSystem& files, const PruneRequest& request);

}  // namespace dd2
