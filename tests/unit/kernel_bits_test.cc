#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "worker/distill/score_kernel.h"
#include "worker/models/attention_kernel.h"
#include "worker/models/row_kernels.h"

// Built once against the library, which picks a form of each kernel for the CPU it runs on, and
// once for each form alone (kernel_bits_<form>_test): all of them have to give the recorded hash.

namespace dd2 {
namespace {

// Changes only with the arithmetic of the kernels, which breaks the resumption of older runs.
constexpr std::uint64_t kRecorded = 8049283043747731885U;
constexpr std::uint64_t kRecordedScore = 10357134353291326216U;
constexpr std::uint64_t kRecordedFilteredScore = 892939008953536305U;

std::vector<float> Numbers(std::mt19937& source, std::int64_t count) {
  std::vector<float> numbers(static_cast<std::size_t>(count));
  for (float& number : numbers) {
    number = static_cast<float>(static_cast<int>(source() % 20001U) - 10000) * 3e-4F;
  }
  return numbers;
}

// FNV-1a over the bits of the numbers it is given.
class Hash {
 public:
  void Add(const std::vector<float>& numbers) {
    for (const float number : numbers) {
      value_ = (value_ ^ std::bit_cast<std::uint32_t>(number)) * 1099511628211U;
    }
  }
  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 14695981039346656037U;
};

void AddRowKernels(std::mt19937& source, const RowShape& shape, Hash& hash) {
  const std::int64_t all = shape.rows * shape.width;
  const std::int64_t stride = 3 * shape.width;
  std::vector<float> x = Numbers(source, all);
  std::vector<float> bias = Numbers(source, stride);
  std::vector<float> y = Numbers(source, all);
  std::vector<float> dx(x.size());
  std::vector<float> d_weight = Numbers(source, shape.width);
  std::vector<float> d_bias = Numbers(source, shape.width);
  std::vector<float> d_modulation = Numbers(source, shape.rows * stride);
  const std::vector<float> branch = Numbers(source, all);
  const std::vector<float> weight = Numbers(source, shape.width);
  const std::vector<float> rows = Numbers(source, shape.rows * stride);
  const std::vector<float> dy = Numbers(source, all);
  std::vector<RowStats> stats(static_cast<std::size_t>(shape.rows));
  const NormAffine norm{.weight = weight.data(), .bias = bias.data(), .epsilon = 1e-5F};
  const Modulation modulation{.rows = rows.data(), .bias = bias.data(), .stride = stride};
  const NormGradients gradients{.weight = d_weight.data(), .bias = d_bias.data()};

  ResidualNorm(
      shape, {.x = x.data(), .branch = branch.data(), .branch_bias = bias.data(), .sum = x.data()},
      norm, y.data(), stats.data());
  hash.Add(x);
  hash.Add(y);
  NormBackward(shape, x.data(), stats.data(), norm, dy.data(), branch.data(), dx.data(), gradients);
  hash.Add(dx);
  ModulatedNorm(shape, x.data(), norm, modulation, y.data(), stats.data());
  hash.Add(y);
  ModulatedNormBackward(shape, x.data(), stats.data(), norm, modulation, dy.data(), branch.data(),
                        dx.data(), d_modulation.data(), gradients);
  hash.Add(dx);
  hash.Add(d_weight);
  hash.Add(d_bias);
  GatedResidual(shape, x.data(), branch.data(), bias.data(), modulation, y.data());
  hash.Add(y);
  GatedResidualBackward(shape, branch.data(), bias.data(), modulation, dy.data(), dx.data(),
                        d_modulation.data());
  hash.Add(dx);
  hash.Add(d_modulation);
  BiasGelu(shape, x.data(), bias.data(), y.data());
  hash.Add(y);
  GeluBackward(shape, x.data(), y.data(), d_bias.data());
  hash.Add(y);
  BiasSilu(shape, x.data(), bias.data(), y.data());
  hash.Add(y);
  SiluBackward(shape, x.data(), y.data(), d_bias.data());
  hash.Add(y);
  AddColumnSums(shape, x.data(), d_bias.data());
  hash.Add(d_bias);
}

void AddAttention(std::mt19937& source, const AttentionShape& shape, Hash& hash) {
  const std::int64_t width = shape.heads * shape.head_width;
  const std::int64_t rows = shape.batch * shape.tokens;
  const std::vector<float> qkv = Numbers(source, 3 * rows * width);
  const std::vector<float> bias = Numbers(source, 3 * width);
  const std::vector<float> d_mixed = Numbers(source, rows * width);
  std::vector<float> mixed(d_mixed.size());
  std::vector<float> d_qkv(qkv.size());
  CausalAttention(shape, qkv.data(), bias.data(), mixed.data());
  hash.Add(mixed);
  CausalAttentionBackward(shape, qkv.data(), bias.data(), d_mixed.data(), d_qkv.data());
  hash.Add(d_qkv);
}

// Two draws of each row of logits; `kept` of 100 codes are possible.
void AddScore(std::mt19937& source, std::int64_t codes, std::int64_t channels, unsigned kept,
              Hash& hash) {
  constexpr std::int64_t kRows = 6, kLogpRows = 3;
  const std::vector<float> codebook = Numbers(source, codes * channels);
  const std::vector<float> x = Numbers(source, kRows * channels);
  const std::vector<float> u = Numbers(source, kRows * channels);
  std::vector<float> logp = Numbers(source, kLogpRows * codes);
  for (float& value : logp) {
    if (source() % 100 >= kept) value = -std::numeric_limits<float>::infinity();
  }
  const std::vector<float> t{0.05F, 0.2F, 0.5F, 0.7F, 0.9F, 1.0F};
  std::vector<float> mu(x.size()), jtu(x.size());
  PosteriorMeanAndVjp(ScoreProblem<float>{.rows = kRows,
                                          .codes = codes,
                                          .channels = channels,
                                          .codebook = codebook.data(),
                                          .logp = logp.data(),
                                          .logp_rows = kLogpRows,
                                          .t = t.data(),
                                          .x = x.data()},
                      u.data(), mu.data(), jtu.data());
  hash.Add(mu);
  hash.Add(jtu);
}

class KernelBits : public ::testing::Test {
 protected:
  void SetUp() override {
#ifdef DD2_KERNEL_BITS_CPU
    if (!__builtin_cpu_supports(DD2_KERNEL_BITS_CPU)) {
      GTEST_SKIP() << "this CPU has no " DD2_KERNEL_BITS_CPU;
    }
#endif
  }
};

TEST_F(KernelBits, OfTheScoreAreTheRecordedOnes) {
  std::mt19937 source(2);
  Hash hash;
  AddScore(source, 128, 4, 100, hash);
  AddScore(source, 333, 5, 80, hash);
  EXPECT_EQ(hash.value(), kRecordedScore);
}

// Codes that are left out were first left out when this was recorded.
TEST_F(KernelBits, OfAFilteredScoreAreTheRecordedOnes) {
  std::mt19937 source(3);
  Hash hash;
  AddScore(source, 700, 8, 30, hash);
  EXPECT_EQ(hash.value(), kRecordedFilteredScore);
}

TEST_F(KernelBits, AreTheRecordedOnes) {
  std::mt19937 source(1);
  Hash hash;
  // Whole vectors, a rest, less than a vector, and the wide layer.
  for (const std::int64_t width : {128, 20, 7, 512}) {
    AddRowKernels(source, {.rows = 33, .width = width}, hash);
  }
  AddAttention(source, {.batch = 2, .tokens = 49, .heads = 4, .head_width = 32}, hash);
  AddAttention(source, {.batch = 2, .tokens = 7, .heads = 2, .head_width = 10}, hash);
  EXPECT_EQ(hash.value(), kRecorded);
}

}  // namespace
}  // namespace dd2
