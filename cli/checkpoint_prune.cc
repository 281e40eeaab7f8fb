#include "cli/checkpoint_prune.h"

#include <unistd.h>

#include <algorithm>
#include <map>
#include <memory>
#include <system_error>
#include <utility>

#include "cli/checkpoint_files.h"
#include "common/clock.h"
#include "common/config.h"
#include "proto/records.pb.h"
#include "proto/retention.h"
#include "storage/checkpoint_store.h"
#include "storage/journal.h"
#include "storage/kv_store.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;

tl::unexpected<StartFailure> FailWith(const Error& error) {
  return tl::unexpected(StartFailure{ExitCodeFor(error.code()), error.message()});
}

// What `dd2 run` and the coordinator hold while they work on the run.
struct RunLocks {
  FileLock command;
  FileLock coordinator;
};

tl::expected<RunLocks, StartFailure> LockRun(const fs::path& run) {
  const std::string owner = "dd2 checkpoint prune, process " + std::to_string(::getpid());
  const auto lock = [&](const char* name) -> tl::expected<FileLock, StartFailure> {
    auto taken = FileLock::Acquire(run / name, owner);
    if (taken) return std::move(*taken);
    if (taken.error().code() != Code::kUnavailable) return FailWith(taken.error());
    return tl::unexpected(StartFailure{
        kExitAlreadyStarted,
        run.string() + " is in use: " + taken.error().message() +
            ". A live run deletes by itself what checkpoint.keep_last, keep_every and keep_best do "
            "not keep; to prune now, stop it first: dd2 cancel " +
            run.string()});
  };
  auto command = lock("dd2.lock");
  if (!command) return tl::unexpected(command.error());
  auto coordinator = lock("lock");
  if (!coordinator) return tl::unexpected(coordinator.error());
  return RunLocks{std::move(*command), std::move(*coordinator)};
}

class Pruning {
 public:
  Pruning(FileSystem& files, const PruneRequest& request, CheckpointConfig rule)
      : files_(files),
        request_(request),
        checkpoints_(CheckpointsOf(request.run)),
        rule_(std::move(rule)) {}

  Result<PruneOutcome> Run() {
    outcome_.rule = RetentionText(rule_);
    DD2_TRY_ASSIGN(const auto ids, CheckpointIds(request_.run));
    for (const std::string& id : ids) DD2_TRY(Look(id));
    DD2_TRY(DropDamagedNewest());
    const std::vector<std::string> expired = ExpiredCheckpoints(rule_, candidates_);
    for (const RetentionCandidate& candidate : candidates_) {
      if (std::find(expired.begin(), expired.end(), candidate.id) == expired.end()) {
        outcome_.kept.push_back(candidate.id);
      }
    }
    if (!request_.dry_run) DD2_TRY(Delete(expired));
    for (const std::string& id : expired) outcome_.freed_bytes += bytes_[id];
    outcome_.deleted = expired;
    return std::move(outcome_);
  }

 private:
  Status Look(const std::string& id) {
    auto manifest = ReadManifest(files_, checkpoints_, id);
    if (!manifest) return SetAside(id, manifest.error());
    for (const proto::CheckpointPart& part : manifest->parts()) bytes_[id] += part.size_bytes();
    candidates_.push_back(CandidateOf(*manifest));
    return {};
  }

  // Only what its bytes say makes it damaged; anything else is the disk's trouble.
  Status SetAside(const std::string& id, const Error& error) {
    if (error.code() != Code::kCorruption) return error;
    outcome_.damaged.push_back(id + ": " + error.message());
    return {};
  }

  // What the run would go on from must be good before anything older is given up.
  Status DropDamagedNewest() {
    while (!candidates_.empty()) {
      const std::string id = candidates_.back().id;
      const Status verified = VerifyCheckpoint(files_, checkpoints_, id);
      if (verified) return {};
      DD2_TRY(SetAside(id, verified.error()));
      candidates_.pop_back();
    }
    if (outcome_.damaged.empty()) return {};
    return Error(Code::kCorruption, "no checkpoint of " + request_.run.string() +
                                        " verifies, so none is deleted; " +
                                        outcome_.damaged.front());
  }

  Status Delete(const std::vector<std::string>& expired) {
    if (expired.empty()) return {};
    DD2_TRY(WriteJournal(expired));
    for (const std::string& id : expired) DD2_TRY(DeleteCheckpoint(files_, checkpoints_, id));
    return {};
  }

  // A checkpoint that the journal counts and the disk has not would be taken for damaged.
  Status WriteJournal(const std::vector<std::string>& expired) {
    std::error_code ignored;
    const fs::path folder = request_.run / "journal";
    if (!fs::exists(folder / "CURRENT", ignored)) return {};
    RocksOptions options;
    options.create = false;
    DD2_TRY_ASSIGN(auto store, OpenRocksStore(folder, options));
    DD2_TRY_ASSIGN(const auto journal, Journal::Open(std::move(store)));
    std::vector<proto::JournalRecord> records;
    for (const std::string& id : expired) {
      proto::JournalRecord record;
      record.mutable_checkpoint_dropped()->set_checkpoint_id(id);
      record.mutable_checkpoint_dropped()->set_reason("dd2 checkpoint prune: " + outcome_.rule);
      records.push_back(std::move(record));
    }
    return journal->Append(std::move(records), SystemClock().UnixMs());
  }

  FileSystem& files_;
  const PruneRequest& request_;
  const fs::path checkpoints_;
  const CheckpointConfig rule_;
  std::vector<RetentionCandidate> candidates_;  // oldest first
  std::map<std::string, std::int64_t> bytes_;
  PruneOutcome outcome_;
};

}  // namespace

tl::expected<PruneOutcome, StartFailure> PruneRun(FileSystem& files, const PruneRequest& request) {
  std::error_code ignored;
  if (!fs::exists(request.run / "config.yaml", ignored)) {
    return FailWith(
        Error(Code::kNotFound, request.run.string() + " holds no run (it has no config.yaml)"));
  }
  auto config = LoadRunConfig(request.run / "config.yaml");
  if (!config) return FailWith(config.error());
  if (request.keep) config->checkpoint.keep_last = *request.keep;
  auto locks = LockRun(request.run);
  if (!locks) return tl::unexpected(locks.error());
  auto outcome = Pruning(files, request, config->checkpoint).Run();
  if (!outcome) return FailWith(outcome.error());
  return std::move(*outcome);
}

}  // namespace dd2
