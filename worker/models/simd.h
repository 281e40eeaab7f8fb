#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

// What the vectorised kernels share. Include it from kernel sources only, which are compiled
// without contraction (CMake), so that a clone for a wider machine gives the same bits as the plain
// one.

// Compiles a function once per instruction set; the loader picks. The sanitizers run before the
// loader's choice is safe, so they get the plain form.
#if defined(DD2_SIMD_CLONES)  // the test of the bits builds each form alone
#elif defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && \
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

// kLanes numbers as two native vectors of AVX2. One vector of 16 would be better only where there
// is AVX-512, and compiles to a walk through memory where there is none.
struct Lanes {
  typedef float Half __attribute__((vector_size(kLanes / 2 * sizeof(float))));
  Half low = {};
  Half high = {};

  [[gnu::always_inline]] friend inline Lanes operator+(const Lanes& a, const Lanes& b) {
    return {a.low + b.low, a.high + b.high};
  }
  [[gnu::always_inline]] friend inline Lanes operator*(const Lanes& a, const Lanes& b) {
    return {a.low * b.low, a.high * b.high};
  }
  [[gnu::always_inline]] friend inline Lanes operator-(const Lanes& a, float b) {
    return {a.low - b, a.high - b};
  }
  [[gnu::always_inline]] friend inline Lanes operator*(const Lanes& a, float b) {
    return {a.low * b, a.high * b};
  }
};

// Elements [from, from + count), zeros behind them when count < kLanes.
[[gnu::always_inline]] inline Lanes LoadLanes(const float* from, std::int64_t count) {
  Lanes lanes;
  if (count >= kLanes) {
    std::memcpy(&lanes.low, from, sizeof(lanes.low));
    std::memcpy(&lanes.high, from + kLanes / 2, sizeof(lanes.high));
  } else {
    float padded[kLanes] = {};
    for (std::int64_t i = 0; i < count; ++i) padded[i] = from[i];
    std::memcpy(&lanes.low, padded, sizeof(lanes.low));
    std::memcpy(&lanes.high, padded + kLanes / 2, sizeof(lanes.high));
  }
  return lanes;
}

[[gnu::always_inline]] inline void StoreLanes(const Lanes& lanes, float* to) {
  std::memcpy(to, &lanes.low, sizeof(lanes.low));
  std::memcpy(to + kLanes / 2, &lanes.high, sizeof(lanes.high));
}

// The lanes' sum, added in a fixed tree.
[[gnu::always_inline]] inline float SumLanes(const Lanes& lanes) {
  const Lanes::Half eight = lanes.low + lanes.high;
  const auto four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) +
                    __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// sum_i values[i] over kLanes interleaved partial sums: value(i, count) gives the lanes of elements
// [i, i + count), count <= kLanes, with zeros behind them.
template <class Value>
[[gnu::always_inline]] inline float LaneSum(std::int64_t count, Value value) {
  Lanes sum;
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sum = sum + value(i, kLanes);
  if (i < count) sum = sum + value(i, count - i);
  return SumLanes(sum);
}

// Lane by lane the larger one; `a` wins only where it is larger.
[[gnu::always_inline]] inline Lanes Larger(const Lanes& a, const Lanes& b) {
  return {a.low > b.low ? a.low : b.low, a.high > b.high ? a.high : b.high};
}

[[gnu::always_inline]] inline float MaxOfLanes(const Lanes& lanes) {
  const Lanes::Half eight = lanes.low > lanes.high ? lanes.low : lanes.high;
  float highest = eight[0];
  for (std::int64_t lane = 1; lane < kLanes / 2; ++lane) {
    highest = eight[lane] > highest ? eight[lane] : highest;
  }
  return highest;
}

}  // namespace dd2
