#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "common/result.h"
#include "worker/models/param_buffer.h"
#include "worker/parallel/collectives.h"
#include "worker/parallel/shard_plan.h"

namespace dd2 {

// The trained state of one network on one rank: the full parameters (what forward passes read) and
// this rank's slice of Adam's moments and of the EMA. Slices are equal runs of whole chunks:
// rank r owns [r * slice, (r + 1) * slice) of the padded flat buffer.
struct NetworkState {
  ParamBuffer params;  // full, capacity = slice * world_size
  at::Tensor adam_m;   // [slice]
  at::Tensor adam_v;   // [slice]
  at::Tensor ema;      // [slice]
  std::int64_t slice = 0;
  std::int64_t begin = 0;       // rank * slice
  std::int64_t adam_steps = 0;  // for bias correction
};
NetworkState MakeNetworkState(const ParamLayout& layout, int rank, int world_size,
                              bool requires_grad);

// Settings of one Adam step (decoupled weight decay 0; DD2 uses none).
struct AdamStep {
  double learning_rate = 0;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double clip_norm = 0;            // 0: no clipping
  double ema_decay = -1;           // < 0: leave the EMA alone
  std::int64_t boosted_begin = 0;  // elements [boosted_begin, boosted_end) of the flat buffer use
  std::int64_t boosted_end = 0;    // learning_rate * boost (gts, regress: the head)
  double boost = 1.0;
};

// A small record that every rank contributes to an update: per-shard scalars (loss sums), and the
// newest wish of the coordinator it knows (proto Desired).
struct UpdateScalars {
  std::vector<double> per_shard;  // [shards of this rank, k] row-major; k equal on all ranks
  int width = 0;                  // k
  std::uint64_t desired_version = 0;
  std::uint64_t checkpoint_requests = 0;
  bool paused = false;
  bool stop = false;
};

struct UpdateResult {
  double gradient_norm = 0;  // before clipping; the same bits on every rank
  bool applied = false;      // false: the norm was not finite, nothing changed
  std::vector<double> mean;  // [k] per-shard scalars averaged over all G shards in tree order
  std::uint64_t desired_version = 0;  // the newest known to any rank, with its content:
  std::uint64_t checkpoint_requests = 0;
  bool paused = false;
  bool stop = false;
};

// Computes updates whose bits do not depend on the world size (design 4, rule 3):
// sub-tree sums of shard gradients -> all-to-all -> the owner of a slice finishes the tree, divides
// by G -> squared norms per chunk all-gathered and added in chunk order -> Adam and EMA on the
// slice in one fused pass -> all-gather of the parameters. Owns its buffers (allocated and touched
// once).
class ExactUpdater {
 public:
  ExactUpdater(Collectives& collectives, const ShardPlan& plan, std::int64_t capacity);
  ~ExactUpdater();

  // The gradient buffer of local shard i ([capacity], zeroed here): bind it, run backward.
  at::Tensor GradientOfShard(int local_shard);
  // Ends the update: uses the gradients of all local shards.
  Result<UpdateResult> Apply(NetworkState& network, const AdamStep& step,
                             const UpdateScalars& scalars);
  // The exchange of scalars alone, for steps without a gradient (sampling, evaluation).
  Result<UpdateResult> ExchangeScalars(const UpdateScalars& scalars);
  // Full [capacity] vector of a slice held by each rank (EMA, moments).
  Result<at::Tensor> Gather(const at::Tensor& slice);

 private:
  struct Buffers;
  Collectives& collectives_;
  const ShardPlan plan_;
  std::unique_ptr<Buffers> buffers_;
};

}  // namespace dd2
