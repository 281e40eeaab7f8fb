#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <future>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/result.h"
#include "proto/control.pb.h"
#include "storage/memory_snapshot.h"
#include "worker/engine/training_state.h"

namespace dd2 {

// Snapshots of this rank's slice and small state in the memory of its machine, for the process that
// comes after it (design 6: the first tier). Without memory for them it does nothing, and the log
// says so once. A thread of its own copies and hashes them while the training goes on, which waits
// where it would change what is being copied. Compute thread only.
class StateSnapshots {
 public:
  // `folder`: in shared memory; empty: none. Snapshots of another run, configuration, teacher,
  // numeric mode, version or place in the domain are not taken up. `state` must outlive it.
  StateSnapshots(const std::filesystem::path& folder, const std::string& run_id, int local_rank,
                 int local_size, const CheckpointIdentity& identity, TrainingState& state);
  ~StateSnapshots();
  StateSnapshots(const StateSnapshots&) = delete;
  StateSnapshots& operator=(const StateSnapshots&) = delete;

  // Those that were verified when this process began, or taken by it; newest first. One that is
  // under way is not among them.
  std::vector<proto::MemorySnapshot> held();
  bool works() const { return memory_.has_value(); }
  // Begins one of the state as it stands; `small` says where, and the progress that is not in the
  // record.
  void Take(std::uint64_t generation, proto::RankState small);
  // The state may change afterwards: waits until it is copied.
  void BeforeChange();
  // Waits until nothing is under way.
  void Finish();
  // Loads the snapshot at `position` into the networks, which are not whole until SyncState has
  // given them their position. The small state that belongs to it. kCorruption, kInternal (none),
  // and what fails on the device.
  Result<proto::RankState> Recall(const proto::Position& position);

 private:
  struct Held {
    int place = 0;
    proto::SnapshotNote note;
  };
  // What is under way, by `saved_`.
  struct Taking {
    Held held;
    std::string note;
    std::vector<std::span<const std::byte>> pieces;
    std::promise<void> copied;
  };

  void Pin();

  TrainingState& state_;
  std::optional<MemorySnapshots> memory_;
  bool pinned_ = false;
  std::vector<Held> held_;  // newest first
  std::unique_ptr<Taking> taking_;
  std::future<void> copied_;
  std::future<Result<int>> saved_;  // last: ends before what it uses
};

}  // namespace dd2
