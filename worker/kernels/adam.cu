#include "worker/kernels/kernels.h"
#include "worker/kernels/launch.cuh"

namespace dd2 {
namespace {

constexpr int kThreads = 256;
constexpr int kElementsPerThread = 4;

// The operations of AdamLoop in worker/parallel/update_kernels.cc, in its order. Without
// contraction, and with the rounding of IEEE 754 for root and quotient (nvcc's default), the bits
// are those of the CPU.
template <bool kWithEma>
__global__ void __launch_bounds__(kThreads) AdamKernel(const Dd2AdamStep step, const int number) {
  const Dd2AdamRange f = step.range[number];
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = f.begin + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < f.end;
       i += stride) {
    const float g = step.d_gradient[i] * f.gradient_scale;
    const float m = step.d_m[i];
    const float m_new = m + f.one_minus_beta1 * (g - m);
    const float v_new = f.beta2 * step.d_v[i] + f.one_minus_beta2 * (g * g);
    const float denominator = sqrtf(v_new) / f.root_bias_correction2 + f.epsilon;
    const float p = step.d_parameter[i] - f.step_size * (m_new / denominator);
    step.d_m[i] = m_new;
    step.d_v[i] = v_new;
    step.d_parameter[i] = p;
    if (kWithEma) step.d_ema[i] = f.ema_decay * step.d_ema[i] + f.one_minus_ema_decay * p;
  }
}

}  // namespace

cudaError_t LaunchAdam(const Dd2AdamStep& step, cudaStream_t stream) {
  for (int number = 0; number < step.ranges; ++number) {
    const int64_t count = step.range[number].end - step.range[number].begin;
    if (count == 0) continue;
    const int64_t per_block = kThreads * kElementsPerThread;
    const int64_t blocks = (count + per_block - 1) / per_block;
    const auto kernel = step.d_ema != nullptr ? AdamKernel<true> : AdamKernel<false>;
    const cudaError_t error =
        Launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), stream, step, number);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace dd2
