#include "common/rng.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace dd2 {
namespace {

// Known answers of Random123's kat_vectors for philox4x32-10.
TEST(Philox, KnownAnswers) {
  using Words = std::array<std::uint32_t, 4>;
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (Words{0x6627e8d5U, 0xe169c58dU, 0xbc57ac4cU, 0x9b00dbd8U}));
  EXPECT_EQ(
      Philox4x32({0xffffffffU, 0xffffffffU, 0xffffffffU, 0xffffffffU}, {0xffffffffU, 0xffffffffU}),
      (Words{0x408f276dU, 0x41c83b0eU, 0xa20bc7c6U, 0x6d5451fdU}));
  EXPECT_EQ(
      Philox4x32({0x243f6a88U, 0x85a308d3U, 0x13198a2eU, 0x03707344U}, {0xa4093822U, 0x299f31d0U}),
      (Words{0xd16cfe09U, 0x94fdccebU, 0x5001e420U, 0x24126ea1U}));
}

TEST(Rng, ValuesDependOnPositionOnly) {
  const RngKey key{.seed = 7, .phase = 2, .use = RngUse::kForwardNoise, .update = 11, .sample = 3};
  std::vector<float> whole(37);
  std::vector<float> part(10);
  FillNormal(key, whole);
  FillNormal(key, part);
  for (std::size_t i = 0; i < part.size(); ++i) EXPECT_EQ(whole[i], part[i]);
  RngKey other = key;
  other.sample = 4;
  std::vector<float> different(37);
  FillNormal(other, different);
  EXPECT_NE(whole, different);
}

TEST(Rng, NormalMomentsAndUniformRange) {
  const RngKey key{.seed = 1, .phase = 0, .use = RngUse::kGeneratorNoise, .update = 0, .sample = 0};
  std::vector<float> normals(200000);
  FillNormal(key, normals);
  double mean = 0;
  double square = 0;
  for (const float x : normals) {
    mean += static_cast<double>(x);
    square += static_cast<double>(x) * static_cast<double>(x);
  }
  mean /= static_cast<double>(normals.size());
  square /= static_cast<double>(normals.size());
  EXPECT_NEAR(mean, 0.0, 0.01);
  EXPECT_NEAR(square, 1.0, 0.015);
  std::vector<float> uniforms(100000);
  FillUniform(key, uniforms);
  for (const float u : uniforms) {
    ASSERT_GE(u, 0.0F);
    ASSERT_LT(u, 1.0F);
  }
  for (std::uint64_t i = 0; i < 100; ++i) {
    RngKey at = key;
    at.sample = i;
    EXPECT_LT(UniformInt(at, 7), 7U);
  }
}

}  // namespace
}  // namespace dd2
