#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/file.h"
#include "common/result.h"
#include "common/run_config.h"
#include "proto/control.pb.h"
#include "storage/checkpoint_store.h"
#include "worker/engine/quality.h"
#include "worker/models/networks.h"
#include "worker/parallel/exact_update.h"
#include "worker/parallel/rank_layout.h"

namespace dd2 {

// What a rank knows of the coordinator's wish (proto Desired), carried by the collectives of a
// step.
struct Wish {
  std::uint64_t version = 0;
  std::uint64_t checkpoint_requests = 0;
  bool paused = false;
  bool stop = false;
};

enum class NetworkRole : std::uint8_t { kGenerator, kGuidance };

using Metrics = std::vector<std::pair<std::string, double>>;

// Everything that training changes, on one rank: both networks (full parameters, own slices of Adam
// and EMA), the counters, and the position: `step` steps of phase `phase` are finished, and
// `updates` updates of the step after them. A phase is entered (networks copied, optimisers reset)
// when its step 0 begins, so a checkpoint taken at the end of a phase and one taken at the start of
// the next are the same. The tensors lie on ComputeDevice(): pointers into them are no memory of
// the host's where that is a GPU (CopyMemory). Compute thread only.
struct TrainingState {
  NetworkState guidance;   // psi; during gts the AR-diffusion network
  NetworkState generator;  // theta
  proto::Counters counters;
  std::int32_t phase = 0;
  std::int64_t step = 0;
  std::int32_t updates = 0;
  // Of the step in progress: the sums and norms of its finished updates, and the newest wish that
  // they agreed on. Empty when `updates` is 0.
  Metrics step_metrics;
  Wish step_wish;
  // Of the one-step generator before any csd update; nothing until it was evaluated.
  std::optional<Quality> start;
  // The networks are those of the position, but for parameters of other ranks of the domain that
  // have not been spread yet. False: a fresh process, or taking them over was interrupted.
  bool whole = false;
};

// `local_rank` of `local_size`: the place in the failure domain, over which the state is cut.
TrainingState MakeTrainingState(const ParamLayout& layout, int local_rank, int local_size);
// What a checkpoint of such a state takes on the disk, all parts together, but for a little more.
std::int64_t CheckpointBytes(const ParamLayout& layout);
// The step in progress is finished, or a number of steps that have no updates.
void AdvanceSteps(TrainingState& state, std::int64_t steps);

// This rank's slice of both networks: parameters, moments and averages, as they lie in the state.
// The slices of the ranks of a domain are the whole.
std::vector<at::Tensor> SlicesOf(const TrainingState& state);
// The small state that other ranks take over, and taking it over; without the progress list and the
// number of checkpoint requests, which are the loop's.
proto::RankState SmallStateOf(const TrainingState& state);
void TakeOver(const proto::RankState& small, TrainingState& state);

// What a checkpoint says about the run besides tensors; equal on every rank.
struct CheckpointIdentity {
  std::string config_digest;
  std::string teacher_digest;
  std::string numeric_mode;
  std::string code_version;
  std::uint64_t seed = 0;
};

// The pieces of this rank's part, with the state's own memory (the device's) as their data: the
// generator's, then as many of the guidance network's. The domains share the slice that each of
// them has at this local rank: each writes about as many chunks of it. Tensor names:
// "<network>.<param|adam_m|adam_v|ema>/<parameter>".
std::vector<PieceToWrite> PiecesOf(const TrainingState& state, const RankLayout& ranks);
// What the manifest says besides the parts; the same on every rank.
proto::CheckpointHeader HeaderOf(const TrainingState& state, const CheckpointIdentity& identity,
                                 int world_size);

// Loads a committed checkpoint, verified byte for byte, into a state of any world size.
// kFailedPrecondition: it belongs to another configuration, teacher or numeric mode. Also errors of
// the device. The state is not whole after an error.
Status RestoreState(FileSystem& files, const std::filesystem::path& checkpoints,
                    const std::string& id, const CheckpointIdentity& identity,
                    TrainingState& state);

}  // namespace dd2
