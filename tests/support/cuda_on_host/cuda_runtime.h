#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

// As much of CUDA as the kernels of worker/kernels/*.cu use, on the CPU: every thread of a block is
// a fiber, blocks run one after the other, shared memory is static. What this shows is the
// arithmetic and the indices, and that barriers are reached by all who wait at them (else it
// aborts). It does not show races, and it is no GPU: the bits of expf are the C library's.
#define __global__
#define __device__
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_size = 1, unsigned y_size = 1, unsigned z_size = 1)
      : x(x_size), y(y_size), z(z_size) {}
};

enum cudaError_t { cudaSuccess = 0 };
using cudaStream_t = void*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_host {

// Runs `thread` for every thread of every block; x and y only.
void RunGrid(dim3 grid, dim3 block, const std::function<void()>& thread);
// The calling thread waits for all of its block, or of its warp, that have not returned.
void WaitForBlock();
float ShuffleXor(float value, int mask);

}  // namespace cuda_on_host

inline void __syncthreads() { cuda_on_host::WaitForBlock(); }
inline float __shfl_xor_sync(unsigned, float value, int mask) {
  return cuda_on_host::ShuffleXor(value, mask);
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  cuda_on_host::RunGrid(config->gridDim, config->blockDim, [&] { kernel(arguments...); });
  return cudaSuccess;
}
