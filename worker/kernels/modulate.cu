#include <cstdint>

#include "worker/kernels/kernels.h"
#include "worker/kernels/launch.cuh"
#include "worker/kernels/numbers.cuh"
#include "worker/kernels/warp.cuh"

// Norm, modulation and gate between the matrix products (worker/models/row_kernels.h has the CPU's
// form). A warp owns a row: its lanes take every 32nd element, and sums go over the lanes in a
// fixed tree. Sums over rows: 32 threads a column take every 32nd row, then a fixed tree.
namespace dd2 {
namespace {

constexpr int kRows = 4;     // of a block, one a warp
constexpr int kColumns = 8;  // of a block that sums over rows: 32 bytes of fp32, a sector of memory
constexpr int kElements = 256;

__device__ inline float Or(const float* values, int64_t i, float otherwise) {
  return values == nullptr ? otherwise : values[i];
}

__device__ inline int64_t ModulationRow(const Dd2ModulationRows& modulation, int64_t row) {
  return modulation.repeats == 1 ? row : row / modulation.repeats;
}

template <class T>
__global__ void __launch_bounds__(kLanes* kRows) ModulatedNormKernel(const Dd2ModulatedNorm n) {
  const int64_t width = n.shape.width;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kLanes;
  const int lane = threadIdx.x % kLanes;
  if (row >= n.shape.rows) return;
  const float* x = n.d_x + row * width;
  const int64_t at = ModulationRow(n.modulation, row) * n.modulation.stride;
  const float *shift = n.d_shift + at, *scale = n.d_scale + at;
  T* y = static_cast<T*>(n.d_y) + row * width;
  const float inverse_width = 1.0F / static_cast<float>(width);

  float sum = 0;
  for (int64_t i = lane; i < width; i += kLanes) sum += x[i];
  const float mean = WarpSum(sum) * inverse_width;
  float squares = 0;
  for (int64_t i = lane; i < width; i += kLanes) {
    const float centred = x[i] - mean;
    squares = fmaf(centred, centred, squares);
  }
  const float inverse = 1.0F / sqrtf(fmaf(WarpSum(squares), inverse_width, n.epsilon));
  if (lane == 0) {
    n.d_stats[2 * row] = mean;
    n.d_stats[2 * row + 1] = inverse;
  }
  for (int64_t i = lane; i < width; i += kLanes) {
    const float normed =
        fmaf((x[i] - mean) * inverse, Or(n.d_weight, i, 1.0F), Or(n.d_bias, i, 0.0F));
    const float factor = 1.0F + (scale[i] + Or(n.d_scale_bias, i, 0.0F));
    Store(fmaf(normed, factor, shift[i] + Or(n.d_shift_bias, i, 0.0F)), y + i);
  }
}

// d x, and the modulation's gradient where each row has its own: dx = residual + inverse (g -
// mean(g) - xhat mean(g xhat)), g = dy (1 + scale) weight.
template <class T>
__global__ void __launch_bounds__(kLanes* kRows)
    ModulatedNormBackwardKernel(const Dd2ModulatedNorm n) {
  const int64_t width = n.shape.width;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kLanes;
  const int lane = threadIdx.x % kLanes;
  if (row >= n.shape.rows) return;
  const float* x = n.d_x + row * width;
  const T* dy = static_cast<const T*>(n.d_dy) + row * width;
  const float* scale = n.d_scale + ModulationRow(n.modulation, row) * n.modulation.stride;
  float* dx = n.d_dx + row * width;
  const bool own = n.modulation.repeats == 1 && n.d_dshift != nullptr;
  float* d_shift = own ? n.d_dshift + row * n.modulation.gradient_stride : nullptr;
  float* d_scale = own ? n.d_dscale + row * n.modulation.gradient_stride : nullptr;
  const float mean = n.d_stats[2 * row], inverse = n.d_stats[2 * row + 1];
  const float inverse_width = 1.0F / static_cast<float>(width);
  const auto slope = [&](int64_t i) {
    return (1.0F + (scale[i] + Or(n.d_scale_bias, i, 0.0F))) * Or(n.d_weight, i, 1.0F);
  };

  float g_sum = 0, g_along = 0;
  for (int64_t i = lane; i < width; i += kLanes) {
    const float g = ToFloat(dy[i]) * slope(i);
    g_sum += g;
    g_along = fmaf(g, (x[i] - mean) * inverse, g_along);
  }
  g_sum = WarpSum(g_sum) * inverse_width;
  g_along = WarpSum(g_along) * inverse_width;
  for (int64_t i = lane; i < width; i += kLanes) {
    const float d = ToFloat(dy[i]);
    const float normed = (x[i] - mean) * inverse;
    const float through = inverse * (fmaf(-normed, g_along, d * slope(i) - g_sum));
    const float beside = Or(n.d_residual, row * width + i, 0.0F);
    if (own) {
      d_shift[i] = d;
      d_scale[i] = d * fmaf(normed, Or(n.d_weight, i, 1.0F), Or(n.d_bias, i, 0.0F));
    }
    dx[i] = beside + through;
  }
}

// Two sums over the same rows.
struct Two {
  float first, second;
  __device__ Two& operator+=(const Two& other) {
    first += other.first;
    second += other.second;
    return *this;
  }
};

// Adds `value(row)` of all rows, kLanes threads a column; thread 0 of the column gets the sum.
template <class Sum, class Value>
__device__ inline Sum ColumnSum(int64_t rows, bool inside, Value value) {
  __shared__ Sum sums[kLanes][kColumns];
  const int column = threadIdx.x % kColumns, place = threadIdx.x / kColumns;
  Sum sum{};
  if (inside) {
    for (int64_t row = place; row < rows; row += kLanes) sum += value(row);
  }
  sums[place][column] = sum;
  __syncthreads();
  for (int step = kLanes / 2; step > 0; step /= 2) {
    if (place < step) sums[place][column] += sums[place + step][column];
    __syncthreads();
  }
  return sums[0][column];
}

template <class T>
__global__ void __launch_bounds__(kLanes* kColumns)
    AffineGradientsKernel(const Dd2ModulatedNorm n) {
  const int64_t width = n.shape.width;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x % kColumns;
  const bool inside = i < width;
  const T* dy = static_cast<const T*>(n.d_dy);
  const Two sums = ColumnSum<Two>(n.shape.rows, inside, [&](int64_t row) {
    const int64_t at = ModulationRow(n.modulation, row) * n.modulation.stride;
    const float factor = 1.0F + (n.d_scale[at + i] + Or(n.d_scale_bias, i, 0.0F));
    const float d_affine = ToFloat(dy[row * width + i]) * factor;
    const float centred = n.d_x[row * width + i] - n.d_stats[2 * row];
    return Two{d_affine * (centred * n.d_stats[2 * row + 1]), d_affine};
  });
  if (!inside || threadIdx.x >= kColumns) return;
  if (n.d_dweight != nullptr) n.d_dweight[i] += sums.first;
  if (n.d_dbias != nullptr) n.d_dbias[i] += sums.second;
}

// d shift and d scale of modulation row blockIdx.y, which `repeats` rows share.
template <class T>
__global__ void __launch_bounds__(kLanes* kColumns)
    SharedModulationGradientsKernel(const Dd2ModulatedNorm n) {
  const int64_t width = n.shape.width, repeats = n.modulation.repeats;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x % kColumns;
  const bool inside = i < width;
  const int64_t first = blockIdx.y * repeats;
  const float* x = n.d_x + first * width;
  const T* dy = static_cast<const T*>(n.d_dy) + first * width;
  const float* stats = n.d_stats + 2 * first;
  const Two sums = ColumnSum<Two>(repeats, inside, [&](int64_t row) {
    const float d = ToFloat(dy[row * width + i]);
    const float normed = (x[row * width + i] - stats[2 * row]) * stats[2 * row + 1];
    return Two{d, d * fmaf(normed, Or(n.d_weight, i, 1.0F), Or(n.d_bias, i, 0.0F))};
  });
  if (!inside || threadIdx.x >= kColumns) return;
  n.d_dshift[blockIdx.y * n.modulation.gradient_stride + i] = sums.first;
  n.d_dscale[blockIdx.y * n.modulation.gradient_stride + i] = sums.second;
}

template <class T>
__global__ void __launch_bounds__(kLanes* kColumns) ColumnSumsKernel(const Dd2ColumnSums s) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x % kColumns;
  const bool inside = i < s.shape.width;
  const T* x = static_cast<const T*>(s.d_x);
  const float sum = ColumnSum<float>(s.shape.rows, inside,
                                     [&](int64_t row) { return ToFloat(x[row * s.stride + i]); });
  if (inside && threadIdx.x < kColumns) s.d_out[i] += sum;
}

// A block owns a row.
template <class T>
__global__ void __launch_bounds__(kElements) GatedResidualKernel(const Dd2GatedResidual g) {
  const int64_t width = g.shape.width, row = blockIdx.x;
  const float* x = g.d_x + row * width;
  const T* branch = static_cast<const T*>(g.d_branch) + row * width;
  const float* gate = g.d_gate + ModulationRow(g.modulation, row) * g.modulation.stride;
  float* out = g.d_out + row * width;
  for (int64_t i = threadIdx.x; i < width; i += kElements) {
    const float with_bias = ToFloat(branch[i]) + Or(g.d_branch_bias, i, 0.0F);
    out[i] = fmaf(gate[i] + Or(g.d_gate_bias, i, 0.0F), with_bias, x[i]);
  }
}

// d branch, and d gate where each row has its own.
template <class T>
__global__ void __launch_bounds__(kElements) GatedResidualBackwardKernel(const Dd2GatedResidual g) {
  const int64_t width = g.shape.width, row = blockIdx.x;
  const T* branch = static_cast<const T*>(g.d_branch) + row * width;
  const float* gate = g.d_gate + ModulationRow(g.modulation, row) * g.modulation.stride;
  const float* d_out = g.d_dout + row * width;
  T* d_branch = static_cast<T*>(g.d_dbranch) + row * width;
  const bool own = g.modulation.repeats == 1 && g.d_dgate != nullptr;
  float* d_gate = own ? g.d_dgate + row * g.modulation.gradient_stride : nullptr;
  for (int64_t i = threadIdx.x; i < width; i += kElements) {
    const float d = d_out[i];
    if (own) d_gate[i] = d * (ToFloat(branch[i]) + Or(g.d_branch_bias, i, 0.0F));
    Store(d * (gate[i] + Or(g.d_gate_bias, i, 0.0F)), d_branch + i);
  }
}

// d gate of modulation row blockIdx.y, which `repeats` rows share.
template <class T>
__global__ void __launch_bounds__(kLanes* kColumns)
    SharedGateGradientKernel(const Dd2GatedResidual g) {
  const int64_t width = g.shape.width, repeats = g.modulation.repeats;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x % kColumns;
  const bool inside = i < width;
  const int64_t first = blockIdx.y * repeats;
  const T* branch = static_cast<const T*>(g.d_branch) + first * width;
  const float* d_out = g.d_dout + first * width;
  const float sum = ColumnSum<float>(repeats, inside, [&](int64_t row) {
    const int64_t at = row * width + i;
    return d_out[at] * (ToFloat(branch[at]) + Or(g.d_branch_bias, i, 0.0F));
  });
  if (inside && threadIdx.x < kColumns) {
    g.d_dgate[blockIdx.y * g.modulation.gradient_stride + i] = sum;
  }
}

dim3 BlocksFor(int64_t count, int64_t per_block) {
  return dim3(static_cast<unsigned>((count + per_block - 1) / per_block));
}

template <class Problem>
using Kernel = void (*)(Problem);

// The kernel for what matrix products give and take.
template <class Problem>
cudaError_t LaunchTyped(Kernel<Problem> fp32, Kernel<Problem> bf16, const Problem& problem,
                        dim3 grid, int threads, cudaStream_t stream) {
  return Launch(problem.shape.type == DD2_DEVICE_BF16 ? bf16 : fp32, grid, dim3(threads), stream,
                problem);
}

// Of a kernel that sums over the rows of each modulation row.
dim3 SharedBlocks(const Dd2RowShape& shape, const Dd2ModulationRows& modulation) {
  dim3 grid = BlocksFor(shape.width, kColumns);
  grid.y = static_cast<unsigned>(shape.rows / modulation.repeats);
  return grid;
}

}  // namespace

cudaError_t LaunchModulatedNorm(const Dd2ModulatedNorm& norm, cudaStream_t stream) {
  return LaunchTyped<Dd2ModulatedNorm>(ModulatedNormKernel<float>, ModulatedNormKernel<Bf16>, norm,
                                       BlocksFor(norm.shape.rows, kRows), kLanes * kRows, stream);
}

cudaError_t LaunchModulatedNormBackward(const Dd2ModulatedNorm& norm, cudaStream_t stream) {
  // Sums first: d x may lie where d y is.
  if (norm.d_dweight != nullptr || norm.d_dbias != nullptr) {
    const cudaError_t error = LaunchTyped<Dd2ModulatedNorm>(
        AffineGradientsKernel<float>, AffineGradientsKernel<Bf16>, norm,
        BlocksFor(norm.shape.width, kColumns), kLanes * kColumns, stream);
    if (error != cudaSuccess) return error;
  }
  if (norm.modulation.repeats > 1 && norm.d_dshift != nullptr) {
    const cudaError_t error = LaunchTyped<Dd2ModulatedNorm>(
        SharedModulationGradientsKernel<float>, SharedModulationGradientsKernel<Bf16>, norm,
        SharedBlocks(norm.shape, norm.modulation), kLanes * kColumns, stream);
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
  if (gated.modulation.repeats > 1 && gated.d_dgate != nullptr) {
    const cudaError_t error = LaunchTyped<Dd2GatedResidual>(
        SharedGateGradientKernel<float>, SharedGateGradientKernel<Bf16>, gated,
        SharedBlocks(gated.shape, gated.modulation), kLanes * kColumns, stream);
    if (error != cudaSuccess) return error;
  }
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
