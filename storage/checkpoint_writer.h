#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "common/file.h"
#include "common/result.h"
#include "storage/checkpoint_store.h"
#include "storage/copy_bytes.h"

namespace dd2 {

// Memory whose pages are there: the first copy into it costs no more than any later one.
class StagingMemory {
 public:
  // kResourceExhausted: the system does not give that much.
  static Result<StagingMemory> Allocate(std::size_t bytes);
  // Memory of the host that somebody else gives (pinned: what a device's copies are fast with), and
  // how it goes back.
  StagingMemory(std::span<std::byte> memory, std::function<void()> release);
  StagingMemory(StagingMemory&& other) noexcept;
  StagingMemory& operator=(StagingMemory&& other) noexcept;
  ~StagingMemory();
  std::span<std::byte> bytes() const { return bytes_; }

 private:
  std::span<std::byte> bytes_;
  std::function<void()> release_;  // none: moved from, or no memory
};

// Whose part of which checkpoint. The generation is part of the file's name: who still writes for
// an older one cannot touch the parts of the newer.
struct PartName {
  std::string id;
  std::int32_t rank = 0;
  std::int32_t world_size = 1;
  std::uint64_t generation = 0;  // 0: not in the name
  bool operator==(const PartName&) const = default;
};

// What a save cost the thread that trains.
struct SaveStall {
  double waited_seconds = 0;  // until the save before it was on the disk, or a staging at its end
  double copied_seconds = 0;  // until its copy was made, where it could not train before
  std::int64_t copied_bytes = 0;
  std::int64_t ahead_bytes = 0;  // staged ahead, so not copied again
};

// Writes a rank's part of a checkpoint beside the training: a thread of its own copies the values
// into memory, while the training computes its next gradients, and does the rest. The training
// waits when it is about to change them before the copy is made. The file is the one
// WriteCheckpointPart writes, byte for byte.
//
// The values may lie where the host cannot touch them: they are read by `copy` alone. A device's
// copies cost some microseconds each, so pieces of one group (the part of a tensor's name before
// '/', which lies in one memory) that lie one behind the other there and in the file are copied
// together; those are nearly all, as both begin a tensor at a multiple of 64 bytes.
//
// There is room for one save: the memory holds the file as it will lie on the disk, so nothing is
// copied a second time. Thread-safe; `done` is called on the writer's thread, in the order of the
// saves, and must not call any function of this class. FileSystem is used from that thread only.
class AsyncCheckpointWriter {
 public:
  using Done = std::function<void(Result<proto::CheckpointPart>)>;

  // What such a part needs of the memory: the size of its file.
  static Result<std::size_t> BytesFor(const PartName& name, std::span<const PieceToWrite> pieces);

  // `files` must outlive it. `copy` is called on the writer's thread.
  AsyncCheckpointWriter(FileSystem& files, std::filesystem::path checkpoints, StagingMemory memory,
                        CopyBytes copy = CopyOnHost);
  // Finishes the save that is in flight first.
  ~AsyncCheckpointWriter();
  AsyncCheckpointWriter(const AsyncCheckpointWriter&) = delete;
  AsyncCheckpointWriter& operator=(const AsyncCheckpointWriter&) = delete;

  // Copies, on the writer's thread, pieces [first, first + count) of the save that will Begin with
  // this name and these pieces (names and ranges; only the data of the range is read). The values
  // must not change until then, or until DropStaged() has returned. False: a save is in flight and
  // has the memory; Begin will copy them. kInvalidArgument: pieces that do not fit their tensors, a
  // range outside them, too many bytes.
  Result<bool> StageAhead(const PartName& name, std::span<const PieceToWrite> pieces,
                          std::size_t first, std::size_t count);
  // What was staged ahead is about to change after all. Waits for what is being copied.
  void DropStaged();

  // Waits until the save before is finished, and hands over; the pieces may change once WaitCopied
  // has returned. After an error (as StageAhead's) `done` is not called; else it is, once, with the
  // part or with kResourceExhausted, kUnavailable, kFailedPrecondition (committed already) and what
  // to do, or with the error of a copy. A failed save leaves earlier checkpoints alone and may be
  // begun again.
  Status Begin(const PartName& name, std::span<const PieceToWrite> pieces, Done done);
  // Until what was begun last is copied; what it cost so far.
  SaveStall WaitCopied();

  // Until no save is in flight and its `done` has returned.
  void Wait();

 private:
  struct Plan;
  enum class State : std::uint8_t { kIdle, kStaging, kCopying, kWriting };

  Result<std::unique_ptr<Plan>> MakePlan(const PartName& name,
                                         std::span<const PieceToWrite> pieces) const;
  std::size_t RunFrom(const Plan& plan, std::size_t first, std::size_t end) const;
  Status CopyRun(Plan& plan, std::size_t first, std::size_t end);
  void SetState(State state);
  // On the writer's thread: it waits for kStaging or kCopying.
  void Work();
  void Stage();
  void Save();
  Status CopyAll(Plan& plan);
  Result<proto::CheckpointPart> Write(Plan& plan);

  FileSystem& files_;
  const std::filesystem::path checkpoints_;
  const StagingMemory memory_;
  const CopyBytes copy_;
  std::mutex mutex_;
  std::condition_variable changed_;
  State state_ = State::kIdle;
  bool ending_ = false;
  bool drop_ = false;  // what is being staged
  // Belong to the mutex in kIdle, else to the writer's thread.
  std::unique_ptr<Plan> plan_;
  std::vector<PieceToWrite> pieces_;  // of plan_
  std::size_t stage_first_ = 0, stage_count_ = 0;
  Done done_;
  SaveStall stall_;     // of what was begun last; to the mutex once it is copied
  std::thread thread_;  // last: it uses the others
};

}  // namespace dd2
