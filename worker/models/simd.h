#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

// What the vectorised kernels share. Include it from kernel sources only, which are compiled
// without contraction (CMake), so that a clone for a wider machine gives the same bits as the plain
// one.

// Compiles a function once per instruction set; the loader picks. The sanitizers run before the
// loader's choice is safe, so they get the plain form.
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && \
    !defined(__clang__)
#define DD2_SIMD_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DD2_SIMD_CLONES
#endif

namespace dd2 {

inline constexpr std::int64_t kLanes = 16;

// exp(x), x clamped to [-87.3, 88]: error < 2 ulp (reduction by ln 2 in two parts, then Cephes'
// polynomial). NaN stays NaN. Without branches, so that loops over it vectorise.
[[gnu::always_inline]] inline float ExpClamped(float x) {
  constexpr float kLowest = -87.3F;
  constexpr float kHighest = 88.0F;
  constexpr float kLog2E = 1.44269504088896341F;
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  x = x < kLowest ? kLowest : x;
  x = x > kHighest ? kHighest : x;
  const float n = (x * kLog2E + kRound) - kRound;
  const float r = (x - n * 0.693359375F) - n * -2.12194440e-4F;
  float p = r * 1.9875691500e-4F + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * (r * r) + r + 1.0F;
  return p * std::bit_cast<float>((static_cast<std::int32_t>(n) + 127) << 23);
}

[[gnu::always_inline]] inline float Sigmoid(float x) { return 1.0F / (1.0F + ExpClamped(-x)); }

typedef float FloatVector __attribute__((vector_size(kLanes * sizeof(float))));

// Elements [from, from + count), zeros behind them when count < kLanes.
[[gnu::always_inline]] inline FloatVector LoadLanes(const float* from, std::int64_t count) {
  FloatVector value = {};
  if (count >= kLanes) {
    std::memcpy(&value, from, sizeof(value));
  } else {
    std::memcpy(&value, from, static_cast<std::size_t>(count) * sizeof(float));
  }
  return value;
}

// The lanes' sum, added in a fixed tree.
[[gnu::always_inline]] inline float SumLanes(const FloatVector& vector) {
  const auto eight = __builtin_shufflevector(vector, vector, 0, 1, 2, 3, 4, 5, 6, 7) +
                     __builtin_shufflevector(vector, vector, 8, 9, 10, 11, 12, 13, 14, 15);
  const auto four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) +
                    __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// sum_i values[i] over kLanes interleaved partial sums: value(i, count) gives the lanes of elements
// [i, i + count), count <= kLanes, with zeros behind them.
template <class Value>
[[gnu::always_inline]] inline float LaneSum(std::int64_t count, Value value) {
  FloatVector sum = {};
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sum += value(i, kLanes);
  if (i < count) sum += value(i, count - i);
  return SumLanes(sum);
}

}  // namespace dd2
