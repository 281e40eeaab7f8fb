#include "coordinator/recovery.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/core_start.h"
#include "storage/checkpoint_store.h"

namespace dd2 {

namespace {

namespace fs = std::filesystem;

// What a checkpoint's bytes say about it; anything else is the disk's trouble, not the
// checkpoint's.
bool IsBad(const Error& error) {
  return error.code() == Code::kCorruption || error.code() == Code::kNotFound ||
         error.code() == Code::kInvalidArgument;
}

class Recovery {
 public:
  Recovery(FileSystem& files, const fs::path& run_folder, Journal& journal, std::int64_t unix_ms)
      : files_(files),
        run_folder_(run_folder),
        checkpoints_(run_folder / "checkpoints"),
        journal_(journal),
        unix_ms_(unix_ms),
        view_(ReplayJournal(journal.records())) {}

  Result<CoreStart> Run() {
    DD2_TRY(files_.MakeDirectories(checkpoints_));
    DD2_TRY(ClearUnwanted());
    DD2_TRY(PublishMissing());
    DD2_TRY(ChooseRestorePoint());
    DD2_TRY(RemoveUncommitted(files_, checkpoints_, ""));
    StartFromCheckpoint(view_, start_);
    return std::move(start_);
  }

  Result<CoreStart> TakeOver(const std::vector<PhaseConfig>& phases, RunPosition recorded) {
    DD2_TRY(files_.MakeDirectories(checkpoints_));
    DD2_TRY(ClearUnwanted());
    DD2_TRY(PublishMissing());
    DD2_TRY(ChooseRestorePoint());
    StartTakingOver(view_, phases, recorded, unix_ms_, start_);
    return std::move(start_);
  }

 private:
  // Manifests on disk that the journal does not count.
  Status ClearUnwanted() {
    DD2_TRY_ASSIGN(const std::vector<std::string> ids, ListCheckpoints(files_, checkpoints_));
    for (const std::string& id : ids) {
      const bool counted =
          std::any_of(view_.checkpoints.begin(), view_.checkpoints.end(),
                      [&id](const auto& manifest) { return manifest.checkpoint_id() == id; });
      if (counted) continue;
      if (view_.dropped.contains(id)) {
        DD2_TRY(DeleteCheckpoint(files_, checkpoints_, id));
      } else {
        DD2_TRY(Quarantine(id, "the journal does not know it"));
      }
    }
    return Status();
  }

  Status PublishMissing() {
    DD2_TRY_ASSIGN(const std::vector<std::string> ids, ListCheckpoints(files_, checkpoints_));
    const std::vector<proto::CheckpointManifest> wanted = view_.checkpoints;
    for (const proto::CheckpointManifest& manifest : wanted) {
      if (std::find(ids.begin(), ids.end(), manifest.checkpoint_id()) != ids.end()) continue;
      const Status published = PublishManifest(files_, checkpoints_, manifest);
      if (published) continue;
      if (!IsBad(published.error())) return published;
      DD2_TRY(GiveUp(manifest, published.error().message()));
    }
    // A manifest that is visible already may have been renamed by a life that died before it synced
    // the folders above; a power loss would take the whole checkpoint.
    for (const std::string& id : ids) DD2_TRY(files_.SyncDirectory(checkpoints_ / id));
    DD2_TRY(files_.SyncDirectory(checkpoints_));
    return files_.SyncDirectory(checkpoints_.parent_path());
  }

  // Leaves the restore point as the last of view_.checkpoints.
  Status ChooseRestorePoint() {
    while (!view_.checkpoints.empty()) {
      const proto::CheckpointManifest newest = view_.checkpoints.back();
      const Status verified = VerifyCheckpoint(files_, checkpoints_, newest.checkpoint_id());
      if (verified) return Status();
      if (!IsBad(verified.error())) return verified;
      DD2_TRY(GiveUp(newest, verified.error().message()));
    }
    return Status();
  }

  // Journalled first: after a crash in between the folder is found again as dropped.
  Status GiveUp(const proto::CheckpointManifest& manifest, const std::string& reason) {
    const std::string& id = manifest.checkpoint_id();
    proto::JournalRecord record;
    record.mutable_checkpoint_dropped()->set_checkpoint_id(id);
    record.mutable_checkpoint_dropped()->set_reason("quarantined: " + reason);
    std::vector<proto::JournalRecord> records;
    records.push_back(std::move(record));
    DD2_TRY(journal_.Append(std::move(records), unix_ms_));
    CheckpointState bad;
    bad.id = id;
    bad.word = CheckpointWord::kQuarantined;
    bad.phase = manifest.header().phase();
    bad.step = manifest.header().step();
    bad.parts = manifest.parts_size();
    bad.reason = reason;
    start_.quarantined.push_back(std::move(bad));
    std::erase_if(view_.checkpoints,
                  [&id](const auto& other) { return other.checkpoint_id() == id; });
    return Quarantine(id, reason);
  }

  Status Quarantine(const std::string& id, const std::string& reason) {
    return QuarantineCheckpoint(files_, run_folder_, id, reason, unix_ms_);
  }

  FileSystem& files_;
  const fs::path run_folder_;
  const fs::path checkpoints_;
  Journal& journal_;
  const std::int64_t unix_ms_;
  JournalView view_;
  CoreStart start_;
};

}  // namespace

Result<CoreStart> RecoverRun(FileSystem& files, const fs::path& run_folder, Journal& journal,
                             std::int64_t unix_ms) {
  return Recovery(files, run_folder, journal, unix_ms).Run();
}

Result<CoreStart> TakeOverRun(FileSystem& files, const fs::path& run_folder, Journal& journal,
                              const std::vector<PhaseConfig>& phases, RunPosition recorded,
                              std::int64_t unix_ms) {
  return Recovery(files, run_folder, journal, unix_ms).TakeOver(phases, recorded);
}

Status QuarantineCheckpoint(FileSystem& files, const fs::path& run_folder, const std::string& id,
                            const std::string& reason, std::int64_t unix_ms) {
  const fs::path checkpoints = run_folder / "checkpoints";
  const fs::path quarantine = run_folder / "quarantine";
  DD2_TRY(files.MakeDirectories(quarantine));
  const fs::path away = quarantine / (id + "-" + std::to_string(unix_ms));
  const Status moved = files.Rename(checkpoints / id, away);
  if (!moved) {
    // Its folder is gone altogether: there is nothing to keep.
    if (moved.error().code() == Code::kNotFound) return Status();
    return moved;
  }
  DD2_TRY(files.SyncDirectory(checkpoints));
  return WriteFileAtomically(files, away / "reason.txt", reason + "\n");
}

}  // namespace dd2
