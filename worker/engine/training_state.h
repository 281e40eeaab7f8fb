#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "common/file.h"
#include "common/result.h"
#include "common/run_config.h"
#include "proto/control.pb.h"
#include "worker/engine/evaluator.h"
#include "worker/models/networks.h"
#include "worker/parallel/exact_update.h"

namespace dd2 {

// Everything that training changes, on one rank: both networks (full parameters, own slices of Adam
// and EMA), the counters, and the position: `step` steps of phase `phase` are finished. A phase is
// entered (networks copied, optimisers reset) when its step 0 begins, so a checkpoint taken at the
// end of a phase and one taken at the start of the next are the same. Compute thread only.
struct TrainingState {
  NetworkState guidance;   // psi; during gts the AR-diffusion network
  NetworkState generator;  // theta
  proto::Counters counters;
  std::int32_t phase = 0;
  std::int64_t step = 0;
  // Of the one-step generator before any csd update; nothing until it was evaluated.
  std::optional<EvalPoint> start;
};

TrainingState MakeTrainingState(const ParamLayout& layout, int rank, int world_size);

// What a checkpoint says about the run besides tensors; equal on every rank.
struct CheckpointIdentity {
  std::string config_digest;
  std::string teacher_digest;
  std::string numeric_mode;
  std::string code_version;
  std::uint64_t seed = 0;
};

// Writes this rank's part of the state (its slice of every tensor) into the checkpoint's folder and
// returns the report for the coordinator. Tensor names:
// "<network>.<param|adam_m|adam_v|ema>/<parameter>".
Result<proto::PartReport> SaveState(FileSystem& files, const std::filesystem::path& checkpoints,
                                    const TrainingState& state, const CheckpointIdentity& identity,
                                    int rank, int world_size);

// Loads a committed checkpoint, verified byte for byte, into a state of any world size.
// kFailedPrecondition: it belongs to another configuration, teacher or numeric mode.
Status RestoreState(FileSystem& files, const std::filesystem::path& checkpoints,
                    const std::string& id, const CheckpointIdentity& identity,
                    TrainingState& state);

}  // namespace dd2
