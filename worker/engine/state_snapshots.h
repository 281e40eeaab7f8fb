#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "common/result.h"
#include "proto/control.pb.h"
#include "storage/memory_snapshot.h"
#include "worker/engine/training_state.h"

namespace dd2 {

// Snapshots of this rank's slice and small state in the memory of its machine, for the process that
// comes after it (design 6: the first tier). Without memory for them it does nothing, and the log
// says so once. Compute thread only.
class StateSnapshots {
 public:
  // `folder`: in shared memory; empty: none. Snapshots of another run, configuration, teacher,
  // numeric mode, version or place in the domain are not taken up. `state` must outlive it.
  StateSnapshots(const std::filesystem::path& folder, const std::string& run_id, int local_rank,
                 int local_size, const CheckpointIdentity& identity, TrainingState& state);

  // Those that were verified when this process began, or taken by it; newest first.
  std::vector<proto::MemorySnapshot> held() const;
  bool works() const { return memory_.has_value(); }
  // Of the state as it stands; `small` says where, and the progress that is not in the record.
  void Take(std::uint64_t generation, proto::RankState small);
  // Loads the snapshot at `position` into the networks, which are not whole until SyncState has
  // given them their position. The small state that belongs to it. kCorruption, kInternal (none),
  // and what fails on the device.
  Result<proto::RankState> Recall(const proto::Position& position);

 private:
  struct Held {
    int place = 0;
    proto::SnapshotNote note;
  };

  TrainingState& state_;
  std::optional<MemorySnapshots> memory_;
  std::vector<Held> held_;  // newest first
};

}  // namespace dd2
