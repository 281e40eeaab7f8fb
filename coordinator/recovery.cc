#include "coordinator/recovery.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

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
    start_.resumed = view_.started;
    start_.generation = Generation(view_.last_generation.value() + 1);
    FillStart();
    if (!view_.checkpoints.empty()) Restore(view_.checkpoints.back());
    return std::move(start_);
  }

  Result<CoreStart> TakeOver(RunPosition recorded) {
    DD2_TRY(files_.MakeDirectories(checkpoints_));
    DD2_TRY(ClearUnwanted());
    DD2_TRY(PublishMissing());
    DD2_TRY(ChooseRestorePoint());
    FillStart();
    start_.recovered = true;
    start_.desired = view_.desired;
    if (!view_.checkpoints.empty()) {
      start_.restore_checkpoint = view_.checkpoints.back().checkpoint_id();
    }
    // The end of a phase is journalled right after its last step was recorded.
    RunPosition position = std::max(recorded, RunPosition());
    for (const FinishedPhase& finished : view_.finished) {
      position = std::max(position, RunPosition{finished.phase + 1, 0});
    }
    start_.position = position;
    start_.generation = Generation(view_.last_generation.value() + (view_.formed.empty() ? 1 : 0));
    if (view_.phase_begin.phase == position.phase) {
      const double since = static_cast<double>(unix_ms_ - view_.phase_begin.unix_ms) / 1000.0;
      start_.seconds_before = view_.phase_begin.seconds_before + std::max(since, 0.0);
    }
    if (view_.formed.empty()) return std::move(start_);
    OrphanGeneration orphan;
    orphan.generation = start_.generation;
    orphan.members = view_.formed;
    if (view_.granted.phase == position.phase) orphan.granted_end = view_.granted.step;
    start_.orphan = std::move(orphan);
    return std::move(start_);
  }

 private:
  void FillStart() {
    start_.finished = view_.finished;
    start_.checkpoints = view_.checkpoints;
    start_.checkpoint_seconds = view_.seconds_at;
    start_.checkpoint_totals = view_.checkpoint_totals;
    start_.command = view_.command;
    start_.desired_version = view_.desired.version();
  }

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
    return Status();
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

  void Restore(const proto::CheckpointManifest& manifest) {
    const proto::CheckpointHeader& header = manifest.header();
    start_.restore_checkpoint = manifest.checkpoint_id();
    start_.position.phase = header.phase();
    start_.position.step = header.step();
    start_.seconds_before = view_.seconds_at[manifest.checkpoint_id()];
    start_.counters.outer_cycles = header.counters().outer_cycles();
    start_.counters.generator_updates = header.counters().generator_updates();
    start_.counters.guidance_updates = header.counters().guidance_updates();
    start_.counters.skipped_updates = header.counters().skipped_updates();
    start_.counters.phase_generator_updates = header.counters().phase_generator_updates();
    start_.counters.phase_guidance_updates = header.counters().phase_guidance_updates();
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
                              RunPosition recorded, std::int64_t unix_ms) {
  return Recovery(files, run_folder, journal, unix_ms).TakeOver(recorded);
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
