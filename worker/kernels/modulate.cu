#include <cstdint>

#include "worker/kernels/kernels.h"
#include "worker/kernels/launch.cuh"
#include "worker/kernels/numbers.cuh"

// Norm, modulation and gate between the matrix products (worker/models/row_kernels.h has the CPU's
// form). A warp owns a row: its lanes take every 32nd element, and sums go over the lanes in a
// fixed tree. Sums over rows: 32 threads a column take every 32nd row, then a fixed tree.
namespace dd2 {
namespace {

constexpr int kLanes = 32;
constexpr int kRows = 4;     // of a block, one a warp
constexpr int kColumns = 8;  // of a block that sums over rows: 32 bytes of fp32, a sector of memory
constexpr int kElements = 256;

// Every lane gets the sum.
__device__ inline float WarpSum(float value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    value += __shfl_xor_sync(0xFFFFFFFFU, value, step);
  }
  return value;
}

__device__ inline float Or(const float* values, int64_t i, float otherwise) {
  return values == nullptr ? otherwise : values[i];
}

template <class T>
__global__ void __launch_bounds__(kLanes* kRows) ModulatedNormKernel(const Dd2ModulatedNorm n) {
  const int64_t width = n.shape.width;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kLanes;
  const int lane = threadIdx.x % kLanes;
  if (row >= n.shape.rows) return;
  const T* x = static_cast<const T*>(n.d_x) + row * width;
  const T* shift = static_cast<const T*>(n.d_modulation) + row * n.stride;
  const T* scale = shift + width;
  T* y = static_cast<T*>(n.d_y) + row * width;
  const float inverse_width = 1.0F / static_cast<float>(width);

  float sum = 0;
  for (int64_t i = lane; i < width; i += kLanes) sum += ToFloat(x[i]);
  const float mean = WarpSum(sum) * inverse_width;
  float squares = 0;
  for (int64_t i = lane; i < width; i += kLanes) {
    const float centred = ToFloat(x[i]) - mean;
    squares = fmaf(centred, centred, squares);
  }
  const float inverse = 1.0F / sqrtf(fmaf(WarpSum(squares), inverse_width, n.epsilon));
  if (lane == 0) {
    n.d_stats[2 * row] = mean;
    n.d_stats[2 * row + 1] = inverse;
  }
  for (int64_t i = lane; i < width; i += kLanes) {
    const float normed =
        fmaf((ToFloat(x[i]) - mean) * inverse, Or(n.d_weight, i, 1.0F), Or(n.d_bias, i, 0.0F));
    const float factor = 1.0F + (ToFloat(scale[i]) + n.d_modulation_bias[width + i]);
    Store(fmaf(normed, factor, ToFloat(shift[i]) + n.d_modulation_bias[i]), y + i);
  }
}

// d x and the modulation's gradient: dx = residual + inverse (g - mean(g) - xhat mean(g xhat)),
// g = dy (1 + scale) weight.
template <class T>
__global__ void __launch_bounds__(kLanes* kRows)
    ModulatedNormBackwardKernel(const Dd2ModulatedNorm n) {
  const int64_t width = n.shape.width;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kLanes;
  const int lane = threadIdx.x % kLanes;
  if (row >= n.shape.rows) return;
  const T* x = static_cast<const T*>(n.d_x) + row * width;
  const T* dy = static_cast<const T*>(n.d_dy) + row * width;
  const T* residual = static_cast<const T*>(n.d_residual);
  const T* scale = static_cast<const T*>(n.d_modulation) + row * n.stride + width;
  T* dx = static_cast<T*>(n.d_dx) + row * width;
  T* d_shift = static_cast<T*>(n.d_dmodulation) + row * n.stride;
  T* d_scale = d_shift + width;
  const float mean = n.d_stats[2 * row], inverse = n.d_stats[2 * row + 1];
  const float inverse_width = 1.0F / static_cast<float>(width);
  const auto slope = [&](int64_t i) {
    return (1.0F + (ToFloat(scale[i]) + n.d_modulation_bias[width + i])) * Or(n.d_weight, i, 1.0F);
  };

  float g_sum = 0, g_along = 0;
  for (int64_t i = lane; i < width; i += kLanes) {
    const float g = ToFloat(dy[i]) * slope(i);
    g_sum += g;
    g_along = fmaf(g, (ToFloat(x[i]) - mean) * inverse, g_along);
  }
  g_sum = WarpSum(g_sum) * inverse_width;
  g_along = WarpSum(g_along) * inverse_width;
  for (int64_t i = lane; i < width; i += kLanes) {
    const float d = ToFloat(dy[i]);
    const float normed = (ToFloat(x[i]) - mean) * inverse;
    const float through = inverse * (fmaf(-normed, g_along, d * slope(i) - g_sum));
    const float beside = residual == nullptr ? 0.0F : ToFloat(residual[row * width + i]);
    Store(d, d_shift + i);
    Store(d * fmaf(normed, Or(n.d_weight, i, 1.0F), Or(n.d_bias, i, 0.0F)), d_scale + i);
    Store(beside + through, dx + i);
  }
}

// Adds `value(row)` of all rows, kLanes threads a column; thread 0 of the column gets the sum.
template <class Value>
__device__ inline float ColumnSum(int64_t rows, bool inside, Value value) {
  __shared__ float sums[kLanes][kColumns];
  const int column = threadIdx.x % kColumns, place = threadIdx.x / kColumns;
  float sum = 0;
  if (inside) {
    for (int64_t row = place; row < rows; row += kLanes) sum += value(row);
  }
  sums[place][column] = sum;
  __syncthreads();
  for (int step = kLanes / 2; step > 0; step /= 2) {
    if (place < step) sums[place][column] += sums[place + step][column];
    __syncthreads();
  }
  sum = sums[0][column];
  __syncthreads();  // before the next call writes
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kLanes* kColumns)
    AffineGradientsKernel(const Dd2ModulatedNorm n) {
  const int64_t width = n.shape.width;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x % kColumns;
  const bool inside = i < width;
  const bool writes = inside && threadIdx.x < kColumns;
  const T* x = static_cast<const T*>(n.d_x);
  const T* dy = static_cast<const T*>(n.d_dy);
  const T* scale = static_cast<const T*>(n.d_modulation) + width;
  const auto d_affine = [&](int64_t row) {
    const float factor =
        1.0F + (ToFloat(scale[row * n.stride + i]) + n.d_modulation_bias[width + i]);
    return ToFloat(dy[row * width + i]) * factor;
  };
  const float d_weight =
      ColumnSum(n.shape.rows, inside && n.d_dweight != nullptr, [&](int64_t row) {
        const float centred = ToFloat(x[row * width + i]) - n.d_stats[2 * row];
        return d_affine(row) * (centred * n.d_stats[2 * row + 1]);
      });
  const float d_bias = ColumnSum(n.shape.rows, inside && n.d_dbias != nullptr, d_affine);
  if (writes && n.d_dweight != nullptr) n.d_dweight[i] += d_weight;
  if (writes && n.d_dbias != nullptr) n.d_dbias[i] += d_bias;
}

template <class T>
__global__ void __launch_bounds__(kLanes* kColumns) ColumnSumsKernel(const Dd2ColumnSums s) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x % kColumns;
  const bool inside = i < s.shape.width;
  const T* x = static_cast<const T*>(s.d_x);
  const float sum =
      ColumnSum(s.shape.rows, inside, [&](int64_t row) { return ToFloat(x[row * s.stride + i]); });
  if (inside && threadIdx.x < kColumns) s.d_out[i] += sum;
}

// A block owns a row.
template <class T>
__global__ void __launch_bounds__(kElements) GatedResidualKernel(const Dd2GatedResidual g) {
  const int64_t width = g.shape.width, row = blockIdx.x;
  const T* x = static_cast<const T*>(g.d_x) + row * width;
  const T* branch = static_cast<const T*>(g.d_branch) + row * width;
  const T* gate = static_cast<const T*>(g.d_modulation) + row * g.stride + 2 * width;
  const float* gate_bias = g.d_modulation_bias + 2 * width;
  T* out = static_cast<T*>(g.d_out) + row * width;
  for (int64_t i = threadIdx.x; i < width; i += kElements) {
    const float with_bias = ToFloat(branch[i]) + g.d_branch_bias[i];
    Store(fmaf(ToFloat(gate[i]) + gate_bias[i], with_bias, ToFloat(x[i])), out + i);
  }
}

template <class T>
__global__ void __launch_bounds__(kElements) GatedResidualBackwardKernel(const Dd2GatedResidual g) {
  const int64_t width = g.shape.width, row = blockIdx.x;
  const int64_t at = row * g.stride + 2 * width;
  const T* branch = static_cast<const T*>(g.d_branch) + row * width;
  const T* gate = static_cast<const T*>(g.d_modulation) + at;
  const T* d_out = static_cast<const T*>(g.d_dout) + row * width;
  const float* gate_bias = g.d_modulation_bias + 2 * width;
  T* d_branch = static_cast<T*>(g.d_dbranch) + row * width;
  T* d_gate = static_cast<T*>(g.d_dmodulation) + at;
  for (int64_t i = threadIdx.x; i < width; i += kElements) {
    const float d = ToFloat(d_out[i]);
    const float with_bias = ToFloat(branch[i]) + g.d_branch_bias[i];
    Store(d * with_bias, d_gate + i);
    Store(d * (ToFloat(gate[i]) + gate_bias[i]), d_branch + i);
  }
}

dim3 BlocksFor(int64_t count, int64_t per_block) {
  return dim3(static_cast<unsigned>((count + per_block - 1) / per_block));
}

template <class Problem>
using Kernel = void (*)(Problem);

// The kernel for the type of the activations.
template <class Problem>
cudaError_t LaunchTyped(Kernel<Problem> fp32, Kernel<Problem> bf16, const Problem& problem,
                        dim3 grid, int threads, cudaStream_t stream) {
  return Launch(problem.shape.type == DD2_DEVICE_BF16 ? bf16 : fp32, grid, dim3(threads), stream,
                problem);
}

}  // namespace

cudaError_t LaunchModulatedNorm(const Dd2ModulatedNorm& norm, cudaStream_t stream) {
  return LaunchTyped<Dd2ModulatedNorm>(ModulatedNormKernel<float>, ModulatedNormKernel<Bf16>, norm,
                                       BlocksFor(norm.shape.rows, kRows), kLanes * kRows, stream);
}

cudaError_t LaunchModulatedNormBackward(const Dd2ModulatedNorm& norm, cudaStream_t stream) {
  // First: d x may lie where d y is.
  if (norm.d_dweight != nullptr || norm.d_dbias != nullptr) {
    const cudaError_t error = LaunchTyped<Dd2ModulatedNorm>(
        AffineGradientsKernel<float>, AffineGradientsKernel<Bf16>, norm,
        BlocksFor(norm.shape.width, kColumns), kLanes * kColumns, stream);
    if (error != cudaSuccess) return error;
  }
  return LaunchTyped<Dd2ModulatedNorm>(ModulatedNormBackwardKernel<float>,
                                       ModulatedNormBackwardKernel<Bf16>, norm,
                                       BlocksFor(norm.shape.rows, kRows), kLanes * kRows, stream);
}

cudaError_t LaunchGatedResidual(const Dd2GatedResidual& gated, cudaStream_t stream) {
  return LaunchTyped<Dd2GatedResidual>(GatedResidualKernel<float>, GatedResidualKernel<Bf16>, gated,
                                       BlocksFor(gated.shape.rows, 1), kElements, stream);
}

cudaError_t LaunchGatedResidualBackward(const Dd2GatedResidual& gated, cudaStream_t stream) {
  return LaunchTyped<Dd2GatedResidual>(GatedResidualBackwardKernel<float>,
                                       GatedResidualBackwardKernel<Bf16>, gated,
                                       BlocksFor(gated.shape.rows, 1), kElements, stream);
}

cudaError_t LaunchColumnSums(const Dd2ColumnSums& sums, cudaStream_t stream) {
  return LaunchTyped<Dd2ColumnSums>(ColumnSumsKernel<float>, ColumnSumsKernel<Bf16>, sums,
                                    BlocksFor(sums.shape.width, kColumns), kLanes * kColumns,
                                    stream);
}

}  // namespace dd2
