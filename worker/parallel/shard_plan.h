#pragma once

#include <cstdint>
#include <vector>

namespace dd2 {

// A node of the binary tree over shards 0 .. G-1 (G a power of two): the aligned run
// [begin, begin + size), size a power of two dividing begin.
struct TreeNode {
  int begin = 0;
  int size = 1;
  bool operator==(const TreeNode&) const = default;
};

// Which shards each rank computes, and which sub-tree sums it sends. Pure arithmetic of (G, world
// size): every rank derives the same plan. Ranks own contiguous runs; when the world size does not
// divide G the first ranks get one shard more. A rank may own none (world size > G).
struct ShardPlan {
  int shards = 1;
  int world_size = 1;
  std::vector<int> first;                    // [world_size + 1] rank r owns [first[r], first[r+1])
  std::vector<std::vector<TreeNode>> nodes;  // [world_size] maximal aligned nodes covering its run
};

ShardPlan MakeShardPlan(int shards, int world_size);

}  // namespace dd2
