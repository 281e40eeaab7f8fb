#pragma once

#include <cuda_runtime.h>

#include <type_traits>

// Starts kernels through the runtime's function instead of <<< >>>, so that the sources of kernels
// are plain C++ (tests/support/cuda_on_host/ runs them on the CPU, thread by thread).
namespace dd2 {

template <class... Parameters>
cudaError_t Launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream,
                   std::type_identity_t<Parameters>... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace dd2
