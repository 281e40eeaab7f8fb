#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "worker/kernels/device_api.h"

// Input of checks and measurements of the device's kernels.
namespace dd2 {

inline constexpr float kRemoved = -std::numeric_limits<float>::infinity();

inline std::vector<float> Normal(std::mt19937_64& source, std::int64_t count, float deviation = 1) {
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> numbers(static_cast<std::size_t>(count));
  for (float& number : numbers) number = normal(source);
  return numbers;
}

// The nearest bf16, ties to even, as its bits; finite numbers and infinities only.
inline std::uint16_t ToBf16(float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}
inline float FromBf16(std::uint16_t half) {
  const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
  float value = 0;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Tokens of a teacher with a filter: `kept` of 1000 codes are possible. x is around a random code
// at the row's time.
struct ScoreInput {
  std::int64_t draws = 0, logp_rows = 0, codes = 0, channels = 0;
  std::vector<float> codebook, logp, t, x, u;
  std::int64_t rows() const { return draws * logp_rows; }
};

inline ScoreInput RandomScore(std::int64_t draws, std::int64_t logp_rows, std::int64_t codes,
                              std::int64_t channels, int kept, float t_min) {
  ScoreInput in{.draws = draws,
                .logp_rows = logp_rows,
                .codes = codes,
                .channels = channels,
                .codebook = {},
                .logp = {},
                .t = {},
                .x = {},
                .u = {}};
  std::mt19937_64 source(static_cast<std::uint64_t>(codes * 131 + channels));
  std::uniform_real_distribution<float> time(t_min, 1);
  // The size of code vectors of LlamaGen (unit length), and about that of VAR.
  const float deviation = channels <= 8 ? 1 / std::sqrt(static_cast<float>(channels)) : 0.6F;
  in.codebook = Normal(source, codes * channels, deviation);
  in.logp = Normal(source, logp_rows * codes, 2);
  for (float& value : in.logp) {
    if (static_cast<int>(source() % 1000) >= kept) value = kRemoved;
  }
  in.u = Normal(source, in.rows() * channels);
  in.x = Normal(source, in.rows() * channels);
  for (std::int64_t i = 0; i < in.rows(); ++i) {
    in.t.push_back(time(source));
    const auto code = static_cast<std::int64_t>(source() % static_cast<std::uint64_t>(codes));
    for (std::int64_t c = 0; c < channels; ++c) {
      float& x = in.x[static_cast<std::size_t>(i * channels + c)];
      x = (1 - in.t.back()) * in.codebook[static_cast<std::size_t>(code * channels + c)] +
          in.t.back() * x;
    }
  }
  return in;
}

}  // namespace dd2
