#pragma once

// A warp's 32 lanes as one.
namespace dd2 {

constexpr int kLanes = 32;

// Every lane gets the sum, in a fixed tree.
__device__ inline float WarpSum(float value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    value += __shfl_xor_sync(0xFFFFFFFFU, value, step);
  }
  return value;
}

}  // namespace dd2
