#pragma once

#include <cstdint>

#include "common/rng.h"
#include "worker/torch.h"

namespace dd2 {

// Samples [first, first + count) of a global batch: what a shard draws, whoever computes it. Every
// value comes from (key, global sample index) alone; key.sample is overwritten. Tensors on
// ComputeDevice(), which draws all but labels itself.
struct ShardRange {
  std::int64_t first = 0;
  std::int64_t count = 0;
};

// Class labels, uniform: [count] int64.
at::Tensor RandomLabels(RngKey key, ShardRange range, std::int64_t classes);
// N(0, 1): [count, n, C].
at::Tensor RandomNoise(RngKey key, ShardRange range, std::int64_t tokens, std::int64_t channels);
// N(0, 1), m draws per sample: [m, count, n, C].
at::Tensor RandomDraws(RngKey key, ShardRange range, std::int64_t draws, std::int64_t tokens,
                       std::int64_t channels);
// t ~ U(low, high) per draw and token: [m, count, n, 1].
at::Tensor RandomTimes(RngKey key, ShardRange range, std::int64_t draws, std::int64_t tokens,
                       double low, double high);

}  // namespace dd2
