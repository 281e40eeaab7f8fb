#include <cstdint>

#include "worker/kernels/kernels.h"
#include "worker/kernels/launch.cuh"
#include "worker/kernels/numbers.cuh"
#include "worker/kernels/warp.cuh"

// Queries and keys of length 1 for VAR's attention. A warp owns one vector of a token's head: first
// come the queries of all heads, then the keys, as the linear layer has them.
namespace dd2 {
namespace {

constexpr int kVectors = 4;  // of a block, one a warp
constexpr float kShortest = 1e-12F;

// Where a warp's vector lies.
struct Place {
  int64_t row, head;
  bool inside, is_query;
  int64_t in;   // in d_qkv and d_dqkv
  int64_t out;  // in the queries or the keys
};

__device__ inline Place PlaceOf(const Dd2UnitLength& u) {
  const int64_t vector = static_cast<int64_t>(blockIdx.x) * kVectors + threadIdx.x / kLanes;
  const int64_t row = vector / (2 * u.heads), slot = vector % (2 * u.heads);
  const bool is_query = slot < u.heads;
  const int64_t head = is_query ? slot : slot - u.heads;
  return {row,
          head,
          row < u.shape.rows,
          is_query,
          (row * 3 * u.heads + slot) * u.shape.width,
          (row * u.heads + head) * u.shape.width};
}

template <class T>
__device__ inline float Length(const T* x, int64_t width) {
  float squares = 0;
  for (int64_t i = threadIdx.x % kLanes; i < width; i += kLanes) {
    const float value = ToFloat(x[i]);
    squares = fmaf(value, value, squares);
  }
  return sqrtf(WarpSum(squares));
}

template <class T>
__global__ void __launch_bounds__(kLanes* kVectors) UnitLengthKernel(const Dd2UnitLength u) {
  const Place place = PlaceOf(u);
  if (!place.inside) return;
  const T* x = static_cast<const T*>(u.d_qkv) + place.in;
  T* y = static_cast<T*>(place.is_query ? u.d_q : u.d_k) + place.out;
  const float length = Length(x, u.shape.width);
  const float factor = (place.is_query ? u.d_temperature[place.head] : 1.0F) /
                       (length < kShortest ? kShortest : length);
  for (int64_t i = threadIdx.x % kLanes; i < u.shape.width; i += kLanes) {
    Store(ToFloat(x[i]) * factor, y + i);
  }
}

// dx = factor (dy - unit (unit dy)), and of the temperature unit dy, which the host adds up. What
// is shorter than kShortest is only scaled.
template <class T>
__global__ void __launch_bounds__(kLanes* kVectors)
    UnitLengthBackwardKernel(const Dd2UnitLength u) {
  const Place place = PlaceOf(u);
  if (!place.inside) return;
  const T* x = static_cast<const T*>(u.d_qkv) + place.in;
  const T* dy = static_cast<const T*>(place.is_query ? u.d_dq : u.d_dk) + place.out;
  T* dx = static_cast<T*>(u.d_dqkv) + place.in;
  const int lane = threadIdx.x % kLanes;
  const float length = Length(x, u.shape.width);
  const bool is_short = length < kShortest;
  const float inverse = 1.0F / (is_short ? kShortest : length);
  float along = 0;
  for (int64_t i = lane; i < u.shape.width; i += kLanes) {
    along = fmaf(ToFloat(x[i]) * inverse, ToFloat(dy[i]), along);
  }
  along = WarpSum(along);
  if (place.is_query && lane == 0 && u.d_dtemperature != nullptr) {
    u.d_dtemperature[place.row * u.heads + place.head] = along;
  }
  const float factor = (place.is_query ? u.d_temperature[place.head] : 1.0F) * inverse;
  const float back = is_short ? 0.0F : along;
  for (int64_t i = lane; i < u.shape.width; i += kLanes) {
    Store(factor * fmaf(-(ToFloat(x[i]) * inverse), back, ToFloat(dy[i])), dx + i);
  }
}

cudaError_t LaunchVectors(void (*fp32)(Dd2UnitLength), void (*bf16)(Dd2UnitLength),
                          const Dd2UnitLength& unit, cudaStream_t stream) {
  const int64_t vectors = unit.shape.rows * unit.heads * 2;
  const dim3 grid(static_cast<unsigned>((vectors + kVectors - 1) / kVectors));
  return Launch(unit.shape.type == DD2_DEVICE_BF16 ? bf16 : fp32, grid, dim3(kLanes * kVectors),
                stream, unit);
}

}  // namespace

cudaError_t LaunchUnitLength(const Dd2UnitLength& unit, cudaStream_t stream) {
  return LaunchVectors(UnitLengthKernel<float>, UnitLengthKernel<Bf16>, unit, stream);
}

cudaError_t LaunchUnitLengthBackward(const Dd2UnitLength& unit, cudaStream_t stream) {
  return LaunchVectors(UnitLengthBackwardKernel<float>, UnitLengthBackwardKernel<Bf16>, unit,
                       stream);
}

}  // namespace dd2
