#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "worker/parallel/shard_plan.h"
#include "worker/torch.h"

namespace dd2 {

// What an update sums and exchanges of a network's gradient: elements [first, first + slice * world
// size) of the flat buffer. It begins where a chunk does and is padded so that every rank of the
// world owns an equal run of whole chunks, whatever the state is padded to.
struct GradientCut {
  std::int64_t first = 0;
  std::int64_t slice = 0;
};
// Of a flat buffer of `capacity` elements whose first `untrained` ones have no gradient.
GradientCut CutGradient(std::int64_t untrained, std::int64_t capacity, int world_size);

// The gradients of one rank's shards, and what it adds up of them and of those of others, on
// ComputeDevice(): in host memory chunk by chunk (TreeSummer), on a device in place, a kernel for
// each inner node of the tree. The bits are the same: every inner node is left + right in fp32.
class GradientSums {
 public:
  // `capacity`: of the network's flat buffer.
  static std::unique_ptr<GradientSums> New(const ShardPlan& plan, int rank, std::int64_t capacity);
  virtual ~GradientSums() = default;
  GradientSums(const GradientSums&) = delete;
  GradientSums& operator=(const GradientSums&) = delete;

  // [capacity and the most that a cut is padded by] per local shard.
  const std::vector<at::Tensor>& shards() const { return shards_; }
  // The sums of this rank's nodes, [world, my nodes, slice]. Uses the shards' gradients up.
  virtual at::Tensor SumNodes(const GradientCut& cut) = 0;
  // Where the sums of all nodes over this rank's slice arrive: [all nodes in rank order, slice].
  at::Tensor Arrivals(const GradientCut& cut);
  // mean = the root of the tree / G, [slice]; the squared norm of each of its chunks. Uses the
  // arrivals up.
  virtual std::vector<double> Finish(const GradientCut& cut, const at::Tensor& arrivals,
                                     const at::Tensor& mean) = 0;

 protected:
  GradientSums(const ShardPlan& plan, int rank, std::int64_t capacity);
  std::int64_t my_nodes() const { return static_cast<std::int64_t>(plan_.nodes[rank_].size()); }
  // 1 / G: exact, G is a power of two.
  float factor() const { return 1.0F / static_cast<float>(plan_.shards); }
  // [count] on ComputeDevice() that is kept from update to update; the whole gradient needs most.
  static at::Tensor Kept(at::Tensor& memory, std::int64_t count);

  const ShardPlan plan_;
  const int rank_;
  std::vector<at::Tensor> shards_;

 private:
  at::Tensor arrivals_;
};

}  // namespace dd2
