// LlamaGen on continuous codes, behind the interfaces of the other teachers.

#include <gmock/gmock.h>

#include "tests/support/tiny_teacher.h"
#include "worker/models/llamagen_backbone.h"

namespace dd2 {
namespace {

constexpr std::int64_t kTokens = 49;

double LargestDifference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

class LlamaGenTest : public testing::Test {
 protected:
  const Teacher& teacher() const { return *bundle_.teacher; }
  const at::Tensor& codebook() const { return bundle_.tokenizer->codebook(); }
  at::Tensor Noise() const {
    at::manual_seed(7);
    return at::randn({4, kTokens, 4});
  }

  const TeacherBundle bundle_ = MakeTinyLlamaGen(4);
  const at::Tensor labels_ = at::tensor({0, 3, 10, 3}, at::kLong);
};

// The released network, given a table of what the MLP makes of each code.
TEST_F(LlamaGenTest, OnCodesItIsTheReleasedNetworkOnTokens) {
  LlamaGenSpec spec;
  spec.layers = 1;
  spec.heads = 2;
  spec.width = 16;
  spec.ffn_hidden = 24;
  spec.classes = 10;
  spec.vocabulary = 16;
  spec.grid = 7;
  ParamLayout layout;
  LlamaGenGpt::DeclareBackbone(spec, "backbone.", layout);
  LlamaGenGpt::DeclareHead(spec, "backbone.", layout);
  const ParamBuffer released(layout, false);
  CopyParams(teacher().params(), released, "backbone.");
  const LlamaGenGpt network(spec, released, "backbone.");
  const at::Tensor table = CodeMlp(teacher().params(), "backbone.input.").Forward(codebook());
  at::manual_seed(1);
  const at::Tensor tokens = at::randint(0, 16, {4, kTokens}, at::kLong);
  const at::Tensor past = at::embedding(table, tokens.narrow(1, 0, kTokens - 1));
  const at::Tensor expected = network.Logits(network.Hidden(past, labels_));
  const at::Tensor got = teacher().Logits(teacher().Hidden(CodesOf(codebook(), tokens), labels_));
  EXPECT_LT(LargestDifference(got, expected), 1e-5);
  EXPECT_GT(LargestDifference(expected[0][3], expected[1][3]), 0.01) << "nothing is compared";
}

TEST_F(LlamaGenTest, SampledHiddenIsTheGuidedTeacherForcedPass) {
  for (const double scale : {1.0, 2.5}) {
    TeacherConfig config;
    config.cfg_scale = scale;
    at::manual_seed(1);
    const SampledBlock block =
        SampleTeacher(teacher(), codebook(), labels_, at::rand({4, kTokens}), config);
    EXPECT_GT(std::get<0>(at::_unique(block.tokens)).numel(), 4) << "it draws one code only";
    const at::Tensor forced =
        teacher().GuidedHidden(CodesOf(codebook(), block.tokens), labels_, scale);
    EXPECT_LT(LargestDifference(forced, block.hidden), 1e-4) << "scale " << scale;
  }
}

TEST_F(LlamaGenTest, GuidanceIsConstant) {
  const at::Tensor q = Noise(), null = at::full({4}, 10, at::kLong);
  const at::Tensor with = teacher().Logits(teacher().Hidden(q, labels_));
  const at::Tensor without = teacher().Logits(teacher().Hidden(q, null));
  const at::Tensor got = teacher().Logits(teacher().GuidedHidden(q, labels_, 2.5));
  EXPECT_LT(LargestDifference(got, without + 2.5 * (with - without)), 1e-4);
  EXPECT_FALSE(teacher().IsGuided(1.0));
  EXPECT_TRUE(at::equal(teacher().Logits(teacher().GuidedHidden(q, labels_, 1.0)), with));
}

TEST_F(LlamaGenTest, AFeatureSeesEarlierTokensOnly) {
  const Backbone& backbone = teacher().backbone();
  const at::Tensor q = Noise();
  const at::Tensor before = backbone.Forward(q, labels_);
  at::Tensor other = q.clone();
  other.select(1, 9).add_(1.0);
  const at::Tensor after = backbone.Forward(other, labels_);
  EXPECT_EQ(LargestDifference(after.narrow(1, 0, 10), before.narrow(1, 0, 10)), 0.0);
  const at::Tensor later = (after - before).narrow(1, 10, kTokens - 10).abs();
  EXPECT_GT(later.amax({0, 2}).min().item<double>(), 1e-6);
}

TEST_F(LlamaGenTest, GradientsOfCodesAreDerivatives) {
  const Backbone& backbone = teacher().backbone();
  const at::Tensor wanted = at::randn({4, kTokens, 16}), along = at::randn({4, kTokens, 4});
  const auto value = [&](const at::Tensor& q) {
    return (backbone.Forward(q, labels_) * wanted).to(at::kDouble).sum();
  };
  const at::Tensor q = Noise().requires_grad_(true);
  value(q).backward();
  const double slope = (q.grad() * along).to(at::kDouble).sum().item<double>();
  constexpr double kStep = 1e-3;
  const double ahead = value(q.detach() + along * kStep).item<double>();
  const double behind = value(q.detach() - along * kStep).item<double>();
  EXPECT_NEAR((ahead - behind) / (2 * kStep), slope, 0.01 * std::abs(slope));
  EXPECT_EQ(q.grad().select(1, kTokens - 1).abs().max().item<double>(), 0.0) << "the last token";
}

TEST_F(LlamaGenTest, TheGeneratorsGradientReachesEveryParameter) {
  const NetworkSpec spec = TinyNetworkSpec(bundle_);
  ParamBuffer params(Network::Layout(spec), /*requires_grad=*/true);
  {
    const at::NoGradGuard no_grad;
    params.flat().copy_(MakeTinyGenerator(spec, 3).flat());
    CopyParams(teacher().params(), params, "backbone.");
  }
  const at::Tensor gradient = at::zeros_like(params.flat());
  params.BindGradient(gradient);
  const Network network(spec, params);
  network.Generate(Noise(), labels_).square().mean().backward();
  for (const ParamSpec& param : params.layout().specs()) {
    EXPECT_GT(params[param.name].grad().abs().max().item<double>(), 0.0) << param.name;
  }
  // Once more into the same buffer: twice the gradient, so it is added.
  const at::Tensor once = gradient.clone();
  network.Generate(Noise(), labels_).square().mean().backward();
  EXPECT_LT(LargestDifference(gradient, once * 2), 1e-6);
}

}  // namespace
}  // namespace dd2
