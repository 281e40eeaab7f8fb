#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/result.h"
#include "worker/models/param_buffer.h"
#include "worker/parallel/collectives.h"
#include "worker/parallel/gradient_sums.h"
#include "worker/parallel/rank_layout.h"
#include "worker/parallel/shard_plan.h"
#include "worker/parallel/update_kernels.h"

namespace dd2 {

// The trained state of one network on one rank, on ComputeDevice(): the full parameters (what
// forward passes read) and this rank's slice of Adam's moments and of the EMA. State is cut over
// the ranks of a failure domain, so every domain holds all of it, and it stays where it is when
// domains come and go. Slices are equal runs of whole chunks: local rank i owns [i * slice, (i + 1)
// * slice) of the padded flat buffer.
struct NetworkState {
  ParamBuffer params;  // full, capacity = slice * local_size
  at::Tensor adam_m;   // [slice]
  at::Tensor adam_v;   // [slice]
  at::Tensor ema;      // [slice]
  std::int64_t slice = 0;
  std::int64_t begin = 0;       // local_rank * slice
  std::int64_t adam_steps = 0;  // for bias correction
};
NetworkState MakeNetworkState(const ParamLayout& layout, int local_rank, int local_size,
                              bool requires_grad);

// Settings of one Adam step (decoupled weight decay 0; DD2 uses none).
struct AdamStep {
  double learning_rate = 0;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double clip_norm = 0;            // 0: no clipping
  double ema_decay = -1;           // < 0: leave the EMA alone
  std::int64_t first = 0;          // elements in front of it stay as they are, EMA and moments
                                   // too; their gradients are zero, and nobody looks at them
  std::int64_t boosted_begin = 0;  // elements [boosted_begin, boosted_end) of the flat buffer use
  std::int64_t boosted_end = 0;    // learning_rate * boost (gts, regress: the head)
  double boost = 1.0;
};
// The numbers of step number `adam_steps`, counted from 1, for a gradient of that norm; without
// boost.
AdamFactors FactorsOf(const AdamStep& step, std::int64_t adam_steps, double norm);

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

// Computes updates whose bits do not depend on world size or domains (design 4, rule 3):
// sub-tree sums of shard gradients -> all-to-all -> the owner of a slice of the gradient finishes
// the tree and divides by G -> all-gather of the gradient: it is `pending` -> exchange of squared
// norms per chunk (added in chunk order) and scalars -> Adam and EMA on the own slice of the state
// in one fused pass -> Spread. Who finished the exchange knows that every rank holds the gradient,
// so a rank that did not can still do the update alone (RollForward), in the same bits. Owns its
// buffers (allocated at the first use, touched once). Compute thread only.
class ExactUpdater {
 public:
  // `capacity`: elements of the flat buffers of the states it will update. Keeps a reference to
  // `collectives`, which are used first by an update.
  ExactUpdater(Collectives& collectives, const RankLayout& layout, int shards,
               std::int64_t capacity);
  ~ExactUpdater();
  // Works for another generation from now on. A pending gradient stays.
  void Regroup(Collectives& collectives, const RankLayout& layout);
  const RankLayout& layout() const { return layout_; }
  const ShardPlan& plan() const { return plan_; }

  // The gradient buffer of local shard i (at least [capacity]): bind it, run backward. It is zeroed
  // from `first` on, which is no greater than that of the step (AdamStep::first).
  at::Tensor GradientOfShard(int local_shard, std::int64_t first = 0);
  // Does the update with the gradients of all local shards, on this rank's slices of the state.
  // After an error the update is pending when has_pending(), else nothing has happened.
  Result<UpdateResult> Apply(NetworkState& network, const AdamStep& step,
                             const UpdateScalars& scalars);
  // Takes the slices of the parameters, from element `first` on, from the other ranks of the
  // domain. Can be done again.
  Status Spread(NetworkState& network, std::int64_t first = 0);

  // This rank holds the whole gradient of an update that it has not done. `network` of its Apply
  // must be alive.
  bool has_pending() const { return pending_.network != nullptr; }
  // Does the pending update on this rank's slices. Local. False: not finite, nothing changed.
  bool RollForward();
  void DropPending() { pending_ = {}; }

  // The exchange of scalars alone, for steps without a gradient (sampling, evaluation).
  Result<UpdateResult> ExchangeScalars(const UpdateScalars& scalars);
  // Full [capacity] vector of a slice held by each rank of the domain (EMA, moments). With one rank
  // in the domain it is `slice` itself.
  Result<at::Tensor> Gather(const at::Tensor& slice);

 private:
  struct Buffers;
  struct Pending {
    NetworkState* network = nullptr;
    AdamStep step;
  };
  Buffers& buffers();
  // The sum over the world into whole_gradient_, on every rank; squared norms of the chunks of this
  // rank's slice of it.
  Result<std::vector<double>> SumGradients(const GradientCut& cut);
  // `slice` of every rank of the domain, one behind the other, into `full` (which may hold it),
  // from element `first` of `full` on.
  Status GatherInDomain(const at::Tensor& slice, std::int64_t first, const at::Tensor& full);
  bool Finish(double norm);  // the pending update; false: not finite

  Collectives* collectives_;
  RankLayout layout_;
  ShardPlan plan_;
  const std::int64_t capacity_;
  Pending pending_;
  // Mean over the shards, of the pending update: elements of its cut, which is of the world that
  // computed it and outlives that.
  at::Tensor whole_gradient_;
  std::unique_ptr<Buffers> buffers_;  // sized for this world; null: not yet used
};

}  // namespace dd2
