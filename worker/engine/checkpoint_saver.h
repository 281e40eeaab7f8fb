#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "common/file.h"
#include "common/result.h"
#include "proto/control.pb.h"
#include "storage/checkpoint_writer.h"
#include "worker/engine/training_state.h"
#include "worker/parallel/rank_layout.h"

namespace dd2 {

// What a rank says to the coordinator about its checkpoints, and hears of them. Thread-safe.
class CommitChannel {
 public:
  virtual ~CommitChannel() = default;
  // A PartReport or PartFailed: sent again after the coordinator was away, as long as `generation`
  // lasts; not sent at all when it is over.
  virtual void SendPart(std::uint64_t generation, proto::Envelope envelope) = 0;
  virtual void Send(proto::CheckpointHeld held) = 0;
  // Training waits for the disk: who is behind the others for that reason does not hang.
  virtual void SetWaitsForDisk(bool waits) = 0;
  // Blocks until the coordinator has decided: true when the checkpoint is committed, false when
  // this try of it failed. kAborted: the generation is over; kDeadlineExceeded.
  virtual Result<bool> WaitForCheckpoint(const std::string& id, std::int32_t attempt,
                                         std::chrono::milliseconds timeout) = 0;
};

// The checkpoints of one rank, through all generations, made on the writer's thread
// (AsyncCheckpointWriter), which also tells the coordinator. A save that fails is reported and
// logged; it is no error here. Compute thread only; every rank makes the same calls at the same
// steps. The state lies on ComputeDevice(): what was begun there is waited for before a copy
// begins.
class CheckpointSaver {
 public:
  // How long a save holds the training: until the state may change soon, until the coordinator has
  // decided about it, or until it is committed, with new tries while it fails (a full disk).
  enum class Until : std::uint8_t { kBegun, kDecided, kCommitted };

  // Allocates and touches what the largest part of this rank needs, that of the whole slice; pinned
  // where ComputeDevice() is a GPU.
  static Result<StagingMemory> Allocate(const TrainingState& state);
  // All references must outlive it. `memory`: of Allocate. `patience`: how long to wait for a
  // decision of the coordinator.
  CheckpointSaver(FileSystem& files, std::filesystem::path checkpoints, StagingMemory memory,
                  const TrainingState& state, CheckpointIdentity identity, CommitChannel& channel,
                  std::chrono::milliseconds patience);

  // Drops what was staged, waits for what is being copied: the state may change now. `committed`:
  // the newest checkpoint there is.
  void StartGeneration(std::uint64_t generation, const RankLayout& ranks,
                       const std::string& committed);
  // The checkpoint of the state as it stands. One that was begun already is not begun again, unless
  // it is known to have failed. Waits until the save before is on the disk, and as `until` says.
  // kAborted, kUnavailable: of that wait. kResourceExhausted: kCommitted was tried for two minutes.
  // Any: what was begun on the device has failed.
  Status Save(Until until);
  // Before the state changes: until the save that was begun has its copy. Tells the coordinator
  // what that save cost.
  void BeforeChange();
  // One network stays as it is until the state has `step` steps of its phase and is saved: its half
  // of that save is copied beside the training. In vain while a save is in flight.
  void StageAhead(NetworkRole frozen, std::int64_t step);
  // Until no save is in flight.
  void Wait() { writer_.Wait(); }
  // The newest checkpoint that was begun in this generation, or the one that it started with.
  const std::string& begun() const { return begun_; }
  // What the newest save cost, once the state may change.
  const SaveStall& stall() const { return stall_; }

 private:
  PartName NameOf(const std::string& id) const;
  // One try; whether it was committed, as far as it was waited for.
  Result<bool> Try(const std::string& id, Until until);
  Status Begin(const std::string& id);
  // False: this try failed, or was not decided in time.
  Result<bool> WaitForDecision();

  const TrainingState& state_;
  const CheckpointIdentity identity_;
  CommitChannel& channel_;
  const std::chrono::milliseconds patience_;
  std::uint64_t generation_ = 0;
  RankLayout ranks_;
  std::string begun_;
  std::int32_t attempt_ = 0;  // of begun_
  std::optional<proto::CheckpointHeld> being_copied_;
  SaveStall stall_;
  AsyncCheckpointWriter writer_;
};

}  // namespace dd2
