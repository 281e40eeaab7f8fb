#include <ATen/Parallel.h>
#include <gmock/gmock.h>

#include <string>
#include <vector>

#include "tests/support/layout_shapes.h"
#include "worker/models/llamagen_tokenizer.h"
#include "worker/models/networks.h"
#include "worker/models/var_tokenizer.h"

namespace dd2 {
namespace {

using ::testing::ElementsAre;

double LargestDifference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

VarTokenizerSpec SmallVar() {
  return {.width = 32,
          .multipliers = {1, 2},
          .channels = 4,
          .codes = 16,
          .scales = VarScales::WithPhis({1, 2, 3, 4, 5, 7}, 3)};
}

LlamaGenTokenizerSpec SmallLlamaGen() {
  return {.width = 32, .multipliers = {1, 2}, .latent = 16, .channels = 4, .codes = 16};
}

ParamBuffer RandomParams(const ParamLayout& layout) {
  const ParamBuffer params(layout, /*requires_grad=*/false);
  InitUniformFanIn(params, "", 7, 0);
  // Larger than any layer's initial values, so that the codes differ. LibTorch's own seed is
  // another one in each process; with a few of them one code is the nearest of all.
  at::manual_seed(7);
  params["quantize.embedding.weight"].normal_();
  return params;
}

at::Tensor RandomImages(std::int64_t batch, std::int64_t side) {
  at::manual_seed(3);
  return at::rand({batch, 3, side, side}) * 2 - 1;
}

at::Tensor RandomCodes(std::int64_t batch, std::int64_t tokens) {
  at::manual_seed(5);
  return at::randn({batch, tokens, 4});
}

// Small layers on a busy machine: a second thread would mostly spin.
class OneThreadTest : public ::testing::Test {
 protected:
  OneThreadTest() { at::set_num_threads(1); }
};
class VarQuantizerTest : public OneThreadTest {};
class VarTokenizerTest : public OneThreadTest {};
class LlamaGenTokenizerTest : public OneThreadTest {};

TEST_F(VarTokenizerTest, HasTheTensorsOfTheReleasedFile) {
  const ParamLayout layout = VarTokenizer::Layout({});
  EXPECT_EQ(ShapesOf(layout), ListedShapes("vae_ch160v4096z32"));
  EXPECT_EQ(ElementCount(layout), 108948355);
}

TEST_F(LlamaGenTokenizerTest, HasTheTensorsOfTheReleasedFile) {
  const ParamLayout layout = LlamaGenTokenizer::Layout({});
  EXPECT_EQ(ShapesOf(layout), ListedShapes("llamagen_vq_ds16"));
  EXPECT_EQ(ElementCount(layout), 71883403);
}

// The official tables; 5 and 10 scales have exact ties, which go up.
TEST(VarScales, RuleEqualsTheKnownTables) {
  const VarScales released = VarScales::Released();
  EXPECT_THAT(released.phi_of_scale, ElementsAre(0, 0, 1, 1, 1, 2, 2, 3, 3, 3));
  EXPECT_EQ(VarScales::WithPhis(released.sides, 4).phi_of_scale, released.phi_of_scale);
  EXPECT_THAT(VarScales::WithPhis({1, 2, 4, 8}, 4).phi_of_scale, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(VarScales::WithPhis({1, 2, 3, 4, 6}, 4).phi_of_scale, ElementsAre(0, 1, 2, 2, 3));
  EXPECT_THAT(
      VarScales::WithPhis({1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64}, 4).phi_of_scale,
      ElementsAre(0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3));
  EXPECT_THAT(VarScales::WithPhis({1, 2, 3, 4, 5, 7}, 3).phi_of_scale,
              ElementsAre(0, 0, 1, 1, 2, 2));
}

TEST(VarScales, CountsTokensScaleByScale) {
  const VarScales scales = VarScales::Released();
  EXPECT_EQ(scales.tokens(), 680);
  EXPECT_EQ(scales.phis(), 4);
  EXPECT_EQ(scales.First(0), 0);
  EXPECT_EQ(scales.First(7), 155);
  EXPECT_EQ(scales.Area(8), 169);
}

TEST_F(VarQuantizerTest, StepsEqualTheWholePass) {
  const VarTokenizerSpec spec = SmallVar();
  const VarTokenizer tokenizer(spec, RandomParams(VarTokenizer::Layout(spec)));
  const VarQuantizer& quantizer = tokenizer.quantizer();
  const VarScales& scales = quantizer.scales();
  const at::Tensor codes = RandomCodes(2, scales.tokens());
  std::vector<at::Tensor> rows;
  at::Tensor f_hat;
  for (std::int64_t k = 0; k < scales.count(); ++k) {
    const at::Tensor next =
        quantizer.Step(codes.narrow(1, scales.First(k), scales.Area(k)), k, f_hat);
    if (next.defined()) rows.push_back(next);
  }
  EXPECT_TRUE(at::equal(at::cat(rows, 1), quantizer.TransformerInput(codes)));
  EXPECT_TRUE(at::equal(f_hat, quantizer.FHat(codes)));
  EXPECT_EQ(quantizer.TransformerInput(codes).size(1), scales.tokens() - 1);
}

TEST_F(VarQuantizerTest, RowsOfAScaleSeeEarlierScalesOnly) {
  const VarTokenizerSpec spec = SmallVar();
  const VarTokenizer tokenizer(spec, RandomParams(VarTokenizer::Layout(spec)));
  const VarQuantizer& quantizer = tokenizer.quantizer();
  const VarScales& scales = quantizer.scales();
  const at::Tensor codes = RandomCodes(2, scales.tokens());
  const at::Tensor before = quantizer.TransformerInput(codes);
  for (std::int64_t k = 0; k < scales.count(); ++k) {
    at::Tensor other = codes.clone();
    other.narrow(1, scales.First(k), 1).add_(1.0);
    const at::Tensor after = quantizer.TransformerInput(other);
    // Row r of the input is token r + 1.
    const std::int64_t seen = scales.First(k + 1) - 1;
    EXPECT_TRUE(at::equal(after.narrow(1, 0, seen), before.narrow(1, 0, seen))) << "scale " << k;
    if (k + 1 == scales.count()) continue;
    const std::int64_t next = scales.Area(k + 1);
    EXPECT_GT(LargestDifference(after.narrow(1, seen, next), before.narrow(1, seen, next)), 1e-3);
  }
}

TEST_F(VarQuantizerTest, GradientAgreesWithFiniteDifferences) {
  const VarScales scales = VarScales::WithPhis({1, 2, 3, 5}, 3);
  ParamLayout layout;
  VarQuantizer::Declare(scales, 8, 4, "", layout);
  const ParamBuffer params(layout, /*requires_grad=*/false);
  InitUniformFanIn(params, "", 7, 0);
  const VarQuantizer quantizer(scales, params, "");
  const at::Tensor codes = RandomCodes(1, scales.tokens()).to(at::kDouble).set_requires_grad(true);
  const auto loss = [&] { return quantizer.TransformerInput(codes).square().sum() / 2; };
  loss().backward();
  const at::Tensor gradient = codes.grad().flatten();
  const at::NoGradGuard no_grad;
  double* values = codes.data_ptr<double>();
  // The loss is a quadratic form: central differences are exact up to rounding.
  constexpr double kStep = 1e-3;
  for (std::int64_t i = 0; i < codes.numel(); ++i) {
    const double value = values[i];
    values[i] = value + kStep;
    const double up = loss().item<double>();
    values[i] = value - kStep;
    const double down = loss().item<double>();
    values[i] = value;
    EXPECT_NEAR((up - down) / (2 * kStep), gradient[i].item<double>(), 1e-9) << "element " << i;
  }
  EXPECT_GT(gradient.narrow(0, 0, 4).abs().min().item<double>(), 1e-3);
  // The last scale is no input of the transformer.
  EXPECT_EQ(gradient.narrow(0, 4 * scales.First(3), 4 * 25).abs().max().item<double>(), 0);
}

TEST_F(VarQuantizerTest, EncodeTakesTheNearestCodeOfWhatIsLeft) {
  const VarTokenizerSpec spec = SmallVar();
  const VarTokenizer tokenizer(spec, RandomParams(VarTokenizer::Layout(spec)));
  const VarQuantizer& quantizer = tokenizer.quantizer();
  const VarScales& scales = quantizer.scales();
  const at::Tensor features = at::randn({2, 4, 7, 7});
  const at::Tensor ids = quantizer.Encode(features);
  const at::Tensor codes = quantizer.Codes(ids);
  at::Tensor f_hat;
  for (std::int64_t k = 0; k < scales.count(); ++k) {
    const std::int64_t side = scales.sides[static_cast<std::size_t>(k)];
    const at::Tensor rest = f_hat.defined() ? features - f_hat : features;
    const at::Tensor rows = at::adaptive_avg_pool2d(rest, {side, side}).flatten(2).transpose(1, 2);
    const at::Tensor distance =
        (rows.unsqueeze(2) - quantizer.codebook()).to(at::kDouble).square().sum(-1);
    const at::Tensor chosen = ids.narrow(1, scales.First(k), scales.Area(k));
    EXPECT_TRUE(at::equal(distance.argmin(-1), chosen)) << "scale " << k;
    quantizer.Step(codes.narrow(1, scales.First(k), scales.Area(k)), k, f_hat);
  }
  EXPECT_GT(std::get<0>(at::_unique(ids)).numel(), 8);
}

TEST_F(VarTokenizerTest, ImagesOfABatchAreIndependent) {
  const VarTokenizerSpec spec = SmallVar();
  const VarTokenizer tokenizer(spec, RandomParams(VarTokenizer::Layout(spec)));
  const at::Tensor images = RandomImages(3, 14);
  at::Tensor other = images.clone();
  other.narrow(0, 1, 2).mul_(-0.5);
  const at::Tensor a = tokenizer.Encode(images), b = tokenizer.Encode(other);
  EXPECT_TRUE(at::equal(a[0], b[0]));
  EXPECT_FALSE(at::equal(a[1], b[1]));
  const at::Tensor x = tokenizer.Decode(tokenizer.FHat(a)), y = tokenizer.Decode(tokenizer.FHat(b));
  EXPECT_EQ(x.sizes(), images.sizes());
  EXPECT_TRUE(at::equal(x[0], y[0]));
  EXPECT_GT(LargestDifference(x[1], y[1]), 1e-3);
  const at::Tensor alone = tokenizer.Decode(tokenizer.FHat(a.narrow(0, 0, 1)));
  EXPECT_LT(LargestDifference(alone[0], x[0]), 1e-5);
}

TEST_F(VarTokenizerTest, DecodeClamps) {
  const VarTokenizerSpec spec = SmallVar();
  const VarTokenizer tokenizer(spec, RandomParams(VarTokenizer::Layout(spec)));
  const at::Tensor f_hat = at::randn({2, 4, 7, 7});
  const at::Tensor raw = tokenizer.DecodeUnclamped(f_hat);
  EXPECT_TRUE(at::equal(tokenizer.Decode(f_hat), raw.clamp(-1.0, 1.0)));
}

TEST_F(LlamaGenTokenizerTest, ImagesOfABatchAreIndependent) {
  const LlamaGenTokenizerSpec spec = SmallLlamaGen();
  const LlamaGenTokenizer tokenizer(spec, RandomParams(LlamaGenTokenizer::Layout(spec)));
  const at::Tensor images = RandomImages(3, 12);
  at::Tensor other = images.clone();
  other.narrow(0, 1, 2).mul_(-0.5);
  const at::Tensor a = tokenizer.Encode(images), b = tokenizer.Encode(other);
  EXPECT_EQ(a.size(1), 36);
  EXPECT_TRUE(at::equal(a[0], b[0]));
  EXPECT_FALSE(at::equal(a[1], b[1]));
  const at::Tensor x = tokenizer.DecodeIds(a), y = tokenizer.DecodeIds(b);
  EXPECT_EQ(x.sizes(), images.sizes());
  EXPECT_TRUE(at::equal(x[0], y[0]));
  EXPECT_GT(LargestDifference(x[1], y[1]), 1e-3);
  EXPECT_TRUE(at::equal(tokenizer.Decode(tokenizer.codebook().index({a})), x));
}

// Only the direction of a code counts, in the file and in the image.
TEST_F(LlamaGenTokenizerTest, CodesHaveLengthOne) {
  const LlamaGenTokenizerSpec spec = SmallLlamaGen();
  const ParamBuffer params = RandomParams(LlamaGenTokenizer::Layout(spec));
  const LlamaGenTokenizer tokenizer(spec, params);
  EXPECT_LT(LargestDifference(tokenizer.codebook().norm(2, 1), at::ones({16})), 1e-6);
  const at::Tensor ids = tokenizer.Encode(RandomImages(2, 12));
  params["quantize.embedding.weight"].mul_(at::arange(1, 17).unsqueeze(1));
  params["quant_conv.weight"].mul_(8);
  params["quant_conv.bias"].mul_(8);
  const LlamaGenTokenizer scaled(spec, params);
  EXPECT_TRUE(at::equal(scaled.Encode(RandomImages(2, 12)), ids));
  EXPECT_GT(std::get<0>(at::_unique(ids)).numel(), 3);
}

}  // namespace
}  // namespace dd2
