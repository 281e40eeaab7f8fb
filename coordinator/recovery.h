#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "common/file.h"
#include "common/result.h"
#include "coordinator/journal_replay.h"
#include "coordinator/run_core.h"
#include "storage/journal.h"

namespace dd2 {

// Brings the checkpoints on disk and the journal to one story after whatever ended the last life,
// and says where the run goes on (design 6). Called once at start, before anything listens;
// idempotent: a crash in it is repaired by the next call.
//
// * A journalled checkpoint without manifest is published (the crash lay between the two).
// * The newest checkpoint whose every byte verifies is the restore point. A bad one is journalled
// as
//   dropped and moved to RUN/quarantine/<id>-<time>/ with reason.txt; the one before it is tried.
// * A checkpoint that the journal dropped is deleted, one it does not know is quarantined, parts
//   without manifest are removed.
//
// kUnavailable and kResourceExhausted: the disk failed; nothing was given up because of that.
Result<CoreStart> RecoverRun(FileSystem& files, const std::filesystem::path& run_folder,
                             Journal& journal, std::int64_t unix_ms);

// The coordinator died and its workers did not: nothing is rolled back. `recorded` is the last
// position in the record. Checkpoints are brought to one story as above, except that parts without
// manifest stay: workers may be writing them.
Result<CoreStart> TakeOverRun(FileSystem& files, const std::filesystem::path& run_folder,
                              Journal& journal, const std::vector<PhaseConfig>& phases,
                              RunPosition recorded, std::int64_t unix_ms);

// Moves a checkpoint's folder to RUN/quarantine/<id>-<time>/ with reason.txt; one that is gone is
// no error.
Status QuarantineCheckpoint(FileSystem& files, const std::filesystem::path& run_folder,
                            const std::string& id, const std::string& reason, std::int64_t unix_ms);

}  // namespace dd2
