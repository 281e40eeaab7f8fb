#include "worker/parallel/gradient_sums.h"

#include <algorithm>
#include <bit>
#include <span>

#include "common/check.h"
#include "worker/kernels/torch_device.h"
#include "worker/models/param_buffer.h"
#include "worker/parallel/tensor_update.h"
#include "worker/parallel/update_kernels.h"

namespace dd2 {
namespace {

class HostSums final : public GradientSums {
 public:
  HostSums(const ShardPlan& plan, int rank, std::int64_t capacity)
      : GradientSums(plan, rank, capacity),
        summer_(std::countr_zero(static_cast<unsigned>(plan.shards)), kParamChunk) {}

  at::Tensor SumNodes(const GradientCut& cut) override {
    std::vector<TreeLeaf> leaves;
    for (int i = 0; i < static_cast<int>(shards_.size()); ++i) {
      leaves.push_back(
          {{plan_.first[rank_] + i, 1}, shards_[i].const_data_ptr<float>() + cut.first});
    }
    const at::Tensor send = Kept(send_, my_nodes() * cut.slice * plan_.world_size);
    float* out = send.data_ptr<float>();
    for (std::int64_t offset = 0; offset < cut.slice * plan_.world_size; offset += kParamChunk) {
      const std::int64_t destination = offset / cut.slice;
      for (std::int64_t n = 0; n < my_nodes(); ++n) {
        const float* sum = summer_.Sum(plan_.nodes[rank_][n], leaves, offset, kParamChunk);
        std::copy_n(sum, kParamChunk,
                    out + (destination * my_nodes() + n) * cut.slice + offset % cut.slice);
      }
    }
    return send;
  }

  std::vector<double> Finish(const GradientCut& cut, const at::Tensor& arrivals,
                             const at::Tensor& mean) override {
    std::vector<TreeLeaf> received;
    const float* values = arrivals.const_data_ptr<float>();
    for (const std::vector<TreeNode>& nodes : plan_.nodes) {
      for (const TreeNode& node : nodes) {
        received.push_back({node, values});
        values += cut.slice;
      }
    }
    std::vector<double> squares;
    float* out = mean.data_ptr<float>();
    for (std::int64_t offset = 0; offset < cut.slice; offset += kParamChunk) {
      const float* sum = summer_.Sum({0, plan_.shards}, received, offset, kParamChunk);
      squares.push_back(ScaleAndSquareSum(sum, factor(), kParamChunk, out + offset));
    }
    return squares;
  }

 private:
  TreeSummer summer_;
  at::Tensor send_;
};

struct DeviceLeaf {
  TreeNode node;
  at::Tensor values;
};

// The sum of `node`, left in the values of the first leaf below it.
at::Tensor SumInPlace(const TreeNode& node, std::span<const DeviceLeaf> leaves) {
  const auto leaf = std::ranges::find(leaves, node, &DeviceLeaf::node);
  if (leaf != leaves.end()) return leaf->values;
  DD2_CHECK(node.size > 1);
  const int half = node.size / 2;
  const at::Tensor left = SumInPlace({node.begin, half}, leaves);
  left.add_(SumInPlace({node.begin + half, half}, leaves));
  return left;
}

class DeviceSums final : public GradientSums {
 public:
  DeviceSums(const ShardPlan& plan, int rank, std::int64_t capacity)
      : GradientSums(plan, rank, capacity) {}

  at::Tensor SumNodes(const GradientCut& cut) override {
    const std::int64_t count = cut.slice * plan_.world_size;
    std::vector<DeviceLeaf> leaves;
    for (int i = 0; i < static_cast<int>(shards_.size()); ++i) {
      leaves.push_back({{plan_.first[rank_] + i, 1}, shards_[i].narrow(0, cut.first, count)});
    }
    // The sum of one node lies as it is sent: so it is wherever the world size divides G.
    if (my_nodes() == 1) return SumInPlace(plan_.nodes[rank_].front(), leaves);
    const at::Tensor send = Kept(send_, my_nodes() * count);
    const at::Tensor by_node = send.view({plan_.world_size, my_nodes(), cut.slice});
    for (std::int64_t n = 0; n < my_nodes(); ++n) {
      const at::Tensor sum = SumInPlace(plan_.nodes[rank_][n], leaves);
      by_node.select(1, n).copy_(sum.view({plan_.world_size, cut.slice}));
    }
    return send;
  }

  std::vector<double> Finish(const GradientCut& cut, const at::Tensor& arrivals,
                             const at::Tensor& mean) override {
    std::vector<DeviceLeaf> leaves;
    std::int64_t at = 0;
    for (const std::vector<TreeNode>& nodes : plan_.nodes) {
      for (const TreeNode& node : nodes) {
        leaves.push_back({node, arrivals.narrow(0, at, cut.slice)});
        at += cut.slice;
      }
    }
    return ScaleAndSquareChunks(SumInPlace({0, plan_.shards}, leaves), factor(), mean);
  }

 private:
  at::Tensor send_;
};

std::int64_t CeilDivide(std::int64_t value, std::int64_t by) { return (value + by - 1) / by; }

}  // namespace

GradientCut CutGradient(std::int64_t untrained, std::int64_t capacity, int world_size) {
  DD2_CHECK(untrained >= 0 && untrained < capacity);
  const std::int64_t first = untrained / kParamChunk;
  const std::int64_t slice = CeilDivide(capacity / kParamChunk - first, world_size);
  return {.first = first * kParamChunk, .slice = slice * kParamChunk};
}

GradientSums::GradientSums(const ShardPlan& plan, int rank, std::int64_t capacity)
    : plan_(plan), rank_(rank) {
  const std::int64_t padding = (plan.world_size - 1) * kParamChunk;  // whatever the cut
  for (int shard = plan.first[rank]; shard < plan.first[rank + 1]; ++shard) {
    shards_.push_back(at::zeros({capacity + padding}, OnDevice()));
  }
}

std::unique_ptr<GradientSums> GradientSums::New(const ShardPlan& plan, int rank,
                                                std::int64_t capacity) {
  if (!ComputeDevice().is_cpu()) return std::make_unique<DeviceSums>(plan, rank, capacity);
  return std::make_unique<HostSums>(plan, rank, capacity);
}

at::Tensor GradientSums::Arrivals(const GradientCut& cut) {
  std::int64_t nodes = 0;
  for (const std::vector<TreeNode>& of_rank : plan_.nodes) {
    nodes += static_cast<std::int64_t>(of_rank.size());
  }
  return Kept(arrivals_, nodes * cut.slice);
}

at::Tensor GradientSums::Kept(at::Tensor& memory, std::int64_t count) {
  if (!memory.defined() || memory.numel() < count) memory = at::empty({count}, OnDevice());
  return memory.narrow(0, 0, count);
}

}  // namespace dd2
