#include "worker/parallel/shard_plan.h"

#include <algorithm>
#include <bit>

#include "common/check.h"

namespace dd2 {
namespace {

// The largest aligned node that starts at `begin` and ends at or before `end`.
TreeNode LargestNode(int begin, int end, int shards) {
  const int aligned = begin == 0 ? shards : begin & -begin;
  const unsigned room = static_cast<unsigned>(end - begin);
  return {begin, std::min(aligned, static_cast<int>(std::bit_floor(room)))};
}

}  // namespace

ShardPlan MakeShardPlan(int shards, int world_size) {
  DD2_CHECK(shards >= 1 && std::has_single_bit(static_cast<unsigned>(shards)));
  DD2_CHECK(world_size >= 1);
  ShardPlan plan;
  plan.shards = shards;
  plan.world_size = world_size;
  plan.first.push_back(0);
  for (int rank = 0; rank < world_size; ++rank) {
    const int begin = plan.first.back();
    const int end = begin + shards / world_size + (rank < shards % world_size ? 1 : 0);
    plan.first.push_back(end);
    std::vector<TreeNode>& nodes = plan.nodes.emplace_back();
    for (int at = begin; at < end; at += nodes.back().size) {
      nodes.push_back(LargestNode(at, end, shards));
    }
  }
  DD2_CHECK(plan.first.back() == shards);
  return plan;
}

}  // namespace dd2
