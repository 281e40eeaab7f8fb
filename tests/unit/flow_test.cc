#include "worker/distill/flow.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "common/rng.h"

namespace dd2 {
namespace {

constexpr std::int64_t kCodes = 6;

at::Tensor Noise(std::int64_t rows, std::int64_t channels) {
  at::Tensor noise = at::empty({rows, channels}, at::kFloat);
  FillNormal({.seed = 5, .use = RngUse::kTrajectoryNoise},
             {noise.data_ptr<float>(), static_cast<std::size_t>(noise.numel())});
  return noise;
}

at::Tensor Codebook() {
  return at::tensor({1.2F, 0.3F, -0.9F, 1.1F, -1.4F, -0.6F, 0.2F, -1.3F, 1.6F, -1.0F, 0.1F, 0.2F})
      .view({kCodes, 2});
}

class FlowTest : public testing::Test {
 protected:
  FlowTest() { at::set_num_threads(1); }
};

TEST_F(FlowTest, TokensFollowTheDistribution) {
  const std::vector<float> law{0.4F, 0.25F, 0.15F, 0.1F, 0.07F, 0.03F};
  const std::int64_t rows = 20000;
  const at::Tensor logits = at::tensor(law).log().expand({rows, kCodes}).contiguous();
  const at::Tensor tokens = FlowTokens(Noise(rows, 2), logits, Codebook(), 60);
  const at::Tensor counts = at::bincount(tokens, {}, kCodes);
  for (std::size_t j = 0; j < law.size(); ++j) {
    const double share = counts[static_cast<std::int64_t>(j)].item<double>() / rows;
    // Three standard errors of the count, and the solver's own error.
    EXPECT_NEAR(share, law[j], 3 * std::sqrt(law[j] / rows) + 0.003) << j;
  }
}

TEST_F(FlowTest, IsDeterministicAndDependsOnTheNoise) {
  const at::Tensor logits = at::zeros({200, kCodes});
  const at::Tensor noise = Noise(200, 2);
  const at::Tensor tokens = FlowTokens(noise, logits, Codebook(), 8);
  EXPECT_TRUE(tokens.equal(FlowTokens(noise.clone(), logits, Codebook(), 8)));
  EXPECT_FALSE(tokens.equal(FlowTokens(-noise, logits, Codebook(), 8)));
}

TEST_F(FlowTest, ACertainTokenIsReachedFromAnywhere) {
  at::Tensor logits = at::full({50, kCodes}, -std::numeric_limits<float>::infinity());
  logits.select(1, 4).fill_(0);
  EXPECT_TRUE(FlowTokens(Noise(50, 2), logits, Codebook(), 3).eq(4).all().item<bool>());
}

TEST_F(FlowTest, AnImpossibleTokenIsNeverTaken) {
  at::Tensor codebook = Codebook();
  codebook[0].copy_(codebook[1]);  // as near as code 1 wherever the flow ends
  at::Tensor logits = at::zeros({500, kCodes});
  logits.select(1, 0).fill_(-std::numeric_limits<float>::infinity());
  const at::Tensor tokens = FlowTokens(Noise(500, 2), logits, codebook, 6);
  EXPECT_FALSE(tokens.eq(0).any().item<bool>());
  EXPECT_TRUE(tokens.eq(1).any().item<bool>());
}

}  // namespace
}  // namespace dd2
