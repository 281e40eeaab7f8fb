#pragma once

#include <cstdint>
#include <cstring>

// Numbers of memory in arithmetic: always fp32.
namespace dd2 {

struct Bf16 {
  uint16_t bits;
};

__device__ inline float ToFloat(float value) { return value; }
__device__ inline float ToFloat(Bf16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  memcpy(&result, &bits, sizeof(result));
  return result;
}

__device__ inline void Store(float value, float* to) { *to = value; }
// Rounds to nearest, ties to even; a NaN stays one.
__device__ inline void Store(float value, Bf16* to) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = bits + 0x7FFFU + ((bits >> 16) & 1U);
  to->bits = static_cast<uint16_t>((value != value ? bits | 0x400000U : rounded) >> 16);
}

}  // namespace dd2
