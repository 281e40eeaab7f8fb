#include "common/rng.h"

#include <cmath>
#include <numbers>

#include "common/check.h"

namespace dd2 {
namespace {

__extension__ using Uint128 = unsigned __int128;

constexpr std::uint32_t kMultiplier0 = 0xD2511F53U;
constexpr std::uint32_t kMultiplier1 = 0xCD9E8D57U;
constexpr std::uint32_t kWeyl0 = 0x9E3779B9U;
constexpr std::uint32_t kWeyl1 = 0xBB67AE85U;

// The 128 bits of block `block` at a position. phase and use share a word: phases are few.
std::array<std::uint32_t, 4> Block(const RngKey& key, std::uint32_t block) {
  DD2_CHECK(key.phase < (1U << 16));
  DD2_CHECK(key.update < (1ULL << 32) && key.sample < (1ULL << 32));
  const std::array<std::uint32_t, 4> counter{
      block, static_cast<std::uint32_t>(key.sample), static_cast<std::uint32_t>(key.update),
      (key.phase << 16) | static_cast<std::uint32_t>(key.use)};
  const std::array<std::uint32_t, 2> words{static_cast<std::uint32_t>(key.seed),
                                           static_cast<std::uint32_t>(key.seed >> 32)};
  return Philox4x32(counter, words);
}

}  // namespace

std::array<std::uint32_t, 4> Philox4x32(std::array<std::uint32_t, 4> counter,
                                        std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{kMultiplier0} * counter[0];
    const std::uint64_t product1 = std::uint64_t{kMultiplier1} * counter[2];
    counter = {static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
               static_cast<std::uint32_t>(product1),
               static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
               static_cast<std::uint32_t>(product0)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

void FillUniform(const RngKey& key, std::span<float> out) {
  for (std::size_t i = 0; i < out.size(); i += 4) {
    const auto words = Block(key, static_cast<std::uint32_t>(i / 4));
    for (std::size_t j = 0; j < 4 && i + j < out.size(); ++j) {
      out[i + j] = static_cast<float>(words[j] >> 8) * 0x1p-24F;
    }
  }
}

void FillNormal(const RngKey& key, std::span<float> out) {
  for (std::size_t i = 0; i < out.size(); i += 4) {
    const auto words = Block(key, static_cast<std::uint32_t>(i / 4));
    std::array<float, 4> normals{};
    for (std::size_t pair = 0; pair < 2; ++pair) {
      // (0, 1]: the logarithm is finite.
      const double u = (static_cast<double>(words[2 * pair]) + 1.0) * 0x1p-32;
      const double angle =
          2.0 * std::numbers::pi * static_cast<double>(words[2 * pair + 1]) * 0x1p-32;
      const double radius = std::sqrt(-2.0 * std::log(u));
      normals[2 * pair] = static_cast<float>(radius * std::cos(angle));
      normals[2 * pair + 1] = static_cast<float>(radius * std::sin(angle));
    }
    for (std::size_t j = 0; j < 4 && i + j < out.size(); ++j) out[i + j] = normals[j];
  }
}

std::uint64_t UniformInt(const RngKey& key, std::uint64_t bound) {
  DD2_CHECK(bound >= 1);
  const auto words = Block(key, 0);
  const std::uint64_t random = (std::uint64_t{words[0]} << 32) | words[1];
  return static_cast<std::uint64_t>((static_cast<Uint128>(random) * bound) >> 64);
}

}  // namespace dd2
