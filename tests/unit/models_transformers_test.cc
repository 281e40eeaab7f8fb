#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <gmock/gmock.h>

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "tests/support/layout_shapes.h"
#include "worker/models/llamagen_gpt.h"
#include "worker/models/var_transformer.h"

namespace dd2 {
namespace {

double RelativeError(const at::Tensor& got, const at::Tensor& expected) {
  const double largest = expected.abs().max().item<double>();
  return (got - expected).abs().max().item<double>() / largest;
}

// One small network of each kind under the same calls. Input: [B, kInputRows, kInputWidth].
template <bool l2_norm>
struct VarKind {
  static VarSpec Spec() {
    return {.depth = 3,
            .width = 24,
            .heads = 3,
            .channels = 5,
            .classes = 6,
            .vocabulary = 11,
            .sides = {1, 2, 3, 5},
            .attn_l2_norm = l2_norm};
  }
  static constexpr std::int64_t kInputRows = 38, kInputWidth = 5, kTokens = 39;
  // Tokens of the first two scales; input rows that do not reach them.
  static constexpr std::int64_t kPrefix = 5, kPrefixRows = 4;

  static ParamLayout Layout() {
    ParamLayout layout;
    VarTransformer::DeclareBackbone(Spec(), "net.", layout);
    VarTransformer::DeclareHead(Spec(), "net.", layout);
    return layout;
  }
  explicit VarKind(const ParamBuffer& params) : network(Spec(), params, "net.") {}
  at::Tensor Hidden(const at::Tensor& input, const at::Tensor& labels, PassMode mode = {}) const {
    return network.Hidden(input, labels, mode);
  }
  at::Tensor Cached(const at::Tensor& input, const at::Tensor& labels) const {
    KvCache cache;
    std::vector<at::Tensor> parts;
    for (std::int64_t scale = 0; scale < network.spec().scales(); ++scale) {
      const std::int64_t first = network.spec().TokensBefore(scale) - 1;
      parts.push_back(network.Step(
          scale, scale == 0 ? at::Tensor() : input.narrow(1, first, Spec().ScaleTokens(scale)),
          labels, cache));
    }
    return at::cat(parts, 1);
  }
  at::Tensor Logits(const at::Tensor& hidden, const at::Tensor& labels) const {
    return network.Logits(network.HeadInput(hidden, labels));
  }

  VarTransformer network;
};

using Var = VarKind<true>;
using VarPlainAttention = VarKind<false>;

struct LlamaGen {
  static LlamaGenSpec Spec() {
    return {.layers = 3,
            .heads = 2,
            .width = 24,
            .ffn_hidden = 40,
            .classes = 6,
            .vocabulary = 11,
            .grid = 4};
  }
  static constexpr std::int64_t kInputRows = 15, kInputWidth = 24, kTokens = 16;
  static constexpr std::int64_t kPrefix = 6, kPrefixRows = 5;

  static ParamLayout Layout() {
    ParamLayout layout;
    LlamaGenGpt::DeclareBackbone(Spec(), "net.", layout);
    LlamaGenGpt::DeclareEmbedding(Spec(), "net.", layout);
    LlamaGenGpt::DeclareHead(Spec(), "net.", layout);
    return layout;
  }
  explicit LlamaGen(const ParamBuffer& params) : network(Spec(), params, "net.") {}
  at::Tensor Hidden(const at::Tensor& input, const at::Tensor& labels, PassMode mode = {}) const {
    return network.Hidden(input, labels, mode);
  }
  at::Tensor Cached(const at::Tensor& input, const at::Tensor& labels) const {
    KvCache cache;
    std::vector<at::Tensor> parts;
    for (std::int64_t i = 0; i < kTokens; ++i) {
      parts.push_back(
          network.Step(i == 0 ? at::Tensor() : input.select(1, i - 1), i, labels, cache));
    }
    return at::stack(parts, 1);
  }
  at::Tensor Logits(const at::Tensor& hidden, const at::Tensor& /*labels*/) const {
    return network.Logits(hidden);
  }

  LlamaGenGpt network;
};

template <class Kind>
class Transformer : public ::testing::Test {
 protected:
  Transformer() : params_(Kind::Layout(), /*requires_grad=*/true) {
    // Small layers on a busy machine: a second thread would mostly spin.
    at::set_num_threads(1);
    const at::NoGradGuard no_grad;
    at::manual_seed(3);
    for (const ParamSpec& spec : params_.layout().specs()) {
      at::Tensor(params_[spec.name]).copy_(at::randn(spec.shape) * 0.2);
    }
    input_ = at::randn({2, Kind::kInputRows, Kind::kInputWidth});
    wanted_ = at::randn({2, Kind::kTokens, 24});
    gradient_ = at::zeros_like(params_.flat());
    params_.BindGradient(gradient_);
  }

  struct Pass {
    at::Tensor value, d_input, d_params;
  };
  // Forward, and backward from wanted_, with gradients from zero.
  Pass Run(PassMode mode) {
    gradient_.zero_();
    at::Tensor input = input_.clone().requires_grad_(true);
    const at::Tensor value = Kind(params_).Hidden(input, labels_, mode);
    value.backward(wanted_);
    return {value.detach(), input.grad(), gradient_.clone()};
  }
  // sum(hidden * wanted_) summed in double.
  double Loss(const at::Tensor& input) {
    const at::NoGradGuard no_grad;
    const at::Tensor hidden = Kind(params_).Hidden(input, labels_);
    return (hidden.to(at::kDouble) * wanted_).sum().template item<double>();
  }

  ParamBuffer params_;
  const at::Tensor labels_ = at::tensor({2, 6}, at::kLong);  // a class and the null class
  at::Tensor input_, wanted_, gradient_;
};

using Kinds = ::testing::Types<Var, VarPlainAttention, LlamaGen>;
TYPED_TEST_SUITE(Transformer, Kinds);

TYPED_TEST(Transformer, TwoRunsGiveTheSameBits) {
  const auto first = this->Run({Activations::kKeep}), second = this->Run({Activations::kKeep});
  EXPECT_TRUE(at::equal(first.value, second.value));
  EXPECT_TRUE(at::equal(first.d_input, second.d_input));
  EXPECT_TRUE(at::equal(first.d_params, second.d_params));
}

TYPED_TEST(Transformer, RecomputationKeepsTheBits) {
  const auto kept = this->Run({Activations::kKeep}), again = this->Run({Activations::kRecompute});
  EXPECT_TRUE(at::equal(kept.value, again.value));
  EXPECT_TRUE(at::equal(kept.d_input, again.d_input));
  EXPECT_TRUE(at::equal(kept.d_params, again.d_params));
  EXPECT_GT(kept.d_input.abs().max().template item<double>(), 0);
}

// fp32 outside of the blocks, and the same bits whatever is kept and how often it is run.
TYPED_TEST(Transformer, Bf16IsNearFp32AndKeepsItsOwnBits) {
  const auto exact = this->Run({Activations::kKeep}), kept = this->Run({Activations::kKeep, true}),
             again = this->Run({Activations::kRecompute, true});
  EXPECT_FALSE(at::autocast::is_autocast_enabled(at::kCPU)) << "it ends with the block";
  const auto compare = [](const char* what, const at::Tensor& in_fp32, const at::Tensor& in_bf16,
                          const at::Tensor& recomputed) {
    EXPECT_EQ(in_bf16.scalar_type(), at::kFloat) << what;
    EXPECT_TRUE(at::equal(in_bf16, recomputed)) << what;
    const double error = ((in_bf16 - in_fp32).norm() / in_fp32.norm()).template item<double>();
    EXPECT_GT(error, 1e-4) << what << ": as exact as fp32";
    EXPECT_LT(error, 0.03) << what;
  };
  compare("value", exact.value, kept.value, again.value);
  compare("gradient of the input", exact.d_input, kept.d_input, again.d_input);
  compare("gradient of the parameters", exact.d_params, kept.d_params, again.d_params);
}

// Every parameter of the backbone has a part in the features: its gradient is not zero.
TYPED_TEST(Transformer, EveryParameterOfTheBackboneGetsAGradient) {
  this->Run({Activations::kRecompute});
  for (const ParamSpec& spec : this->params_.layout().specs()) {
    const bool of_head = spec.name.starts_with("net.head") || spec.name == "net.output.weight" ||
                         spec.name == "net.tok_embeddings.weight";
    EXPECT_EQ(this->params_[spec.name].grad().abs().max().template item<double>() == 0, of_head)
        << spec.name;
  }
}

TYPED_TEST(Transformer, GradientsAddUpInTheBoundBuffer) {
  const at::Tensor once = this->Run({Activations::kKeep}).d_params;
  for (const Activations activations : {Activations::kKeep, Activations::kRecompute}) {
    this->Run({activations});
    TypeParam(this->params_)
        .Hidden(this->input_, this->labels_, {activations})
        .backward(this->wanted_);
    EXPECT_TRUE(at::equal(this->gradient_, 2 * once));
  }
}

TYPED_TEST(Transformer, FrozenPassesGradientsThroughAndCollectsNone) {
  const auto trained = this->Run({Activations::kKeep});
  this->params_.SetRequiresGrad(false);
  for (const Activations activations : {Activations::kKeep, Activations::kRecompute}) {
    const auto frozen = this->Run({activations});
    EXPECT_TRUE(at::equal(frozen.d_input, trained.d_input));
    EXPECT_EQ(frozen.d_params.abs().max().template item<double>(), 0);
    EXPECT_FALSE(TypeParam(this->params_)
                     .Hidden(this->input_, this->labels_, {activations})
                     .requires_grad());
  }
}

// Along random directions, in parameters and input at once: fp32 leaves about four digits.
TYPED_TEST(Transformer, GradientsAreTheSlopes) {
  const auto pass = this->Run({Activations::kRecompute});
  const at::Tensor flat = this->params_.flat().clone();
  constexpr double kStep = 1e-3;
  for (int i = 0; i < 8; ++i) {
    const at::Tensor along = at::randn_like(flat), along_input = at::randn_like(this->input_);
    const auto loss_at = [&](double step) {
      this->params_.flat().copy_(flat + step * along);
      return this->Loss(this->input_ + step * along_input);
    };
    const double slope = (loss_at(kStep / 2) - loss_at(-kStep / 2)) / kStep;
    const double expected =
        (pass.d_params.to(at::kDouble) * along).sum().template item<double>() +
        (pass.d_input.to(at::kDouble) * along_input).sum().template item<double>();
    const double scale = pass.d_params.norm().template item<double>();
    EXPECT_NEAR(slope, expected, 3e-4 * scale);
  }
}

TYPED_TEST(Transformer, CachedStepsEqualTheTeacherForcedPass) {
  const TypeParam kind(this->params_);
  const at::Tensor forced = kind.Hidden(this->input_, this->labels_).detach();
  const at::Tensor cached = kind.Cached(this->input_, this->labels_);
  EXPECT_FALSE(cached.requires_grad());
  EXPECT_LT(RelativeError(cached, forced), 1e-5);
}

TYPED_TEST(Transformer, APrefixDoesNotSeeLaterInputs) {
  const TypeParam kind(this->params_);
  const at::Tensor before = kind.Hidden(this->input_, this->labels_);
  at::Tensor changed = this->input_.clone();
  changed.narrow(1, TypeParam::kPrefixRows, 1).add_(1);
  const at::Tensor after = kind.Hidden(changed, this->labels_);
  EXPECT_TRUE(
      at::equal(before.narrow(1, 0, TypeParam::kPrefix), after.narrow(1, 0, TypeParam::kPrefix)));
  // Every later token does: of VAR's next scale too, which reads the row as its own.
  const at::Tensor difference =
      (after - before).narrow(1, TypeParam::kPrefix, TypeParam::kTokens - TypeParam::kPrefix);
  EXPECT_GT(difference.abs().amax(-1).min().template item<double>(), 0);
}

TYPED_TEST(Transformer, EveryTokenSeesTheClass) {
  const TypeParam kind(this->params_);
  const at::Tensor one = kind.Hidden(this->input_, at::tensor({2, 2}, at::kLong));
  const at::Tensor other = kind.Hidden(this->input_, at::tensor({3, 3}, at::kLong));
  EXPECT_GT((one - other).abs().amax(-1).min().template item<double>(), 0);
  // The sequences of a batch do not see each other.
  const at::Tensor mixed = kind.Hidden(this->input_, at::tensor({2, 3}, at::kLong));
  EXPECT_LT(RelativeError(mixed[0], one[0]), 1e-5);
  EXPECT_LT(RelativeError(mixed[1], other[1]), 1e-5);
}

TEST(VarTransformer, GuidanceRampGrowsByScale) {
  const VarSpec spec = Var::Spec();
  const at::Tensor ramp = GuidanceRamp(spec, 1.5);
  ASSERT_EQ(ramp.sizes(), (std::vector<std::int64_t>{39}));
  for (const auto& [token, weight] :
       std::map<int, float>{{0, 1.0F}, {1, 1.5F}, {4, 1.5F}, {5, 2.0F}, {13, 2.0F}, {14, 2.5F}}) {
    EXPECT_FLOAT_EQ(ramp[token].item<float>(), weight) << token;
  }
  EXPECT_EQ(GuidanceRamp(spec, 0).sum().item<float>(), 39);
}

// The class token attends to itself alone, and every later token gives it the score 0.
TEST(LlamaGenGpt, TheClassTokensRotaryRowIsZero) {
  const at::Tensor table = LlamaGenGpt::RotaryTable(LlamaGen::Spec());
  ASSERT_EQ(table.sizes(), (std::vector<std::int64_t>{17, 6}));
  EXPECT_EQ(table[0].abs().max().item<float>(), 0);
  EXPECT_TRUE(at::allclose(table.narrow(0, 1, 16).abs(), at::ones({16, 6})));
  // Cell (1, 2): the first pair of each half turns by 1 and by 2 radians.
  EXPECT_FLOAT_EQ(at::real(table[7][0]).item<float>(), std::cos(1.0F));
  EXPECT_FLOAT_EQ(at::imag(table[7][3]).item<float>(), std::sin(2.0F));
}

TEST(VarTransformer, HasTheTensorsOfD16) {
  ParamLayout layout;
  VarTransformer::DeclareBackbone({}, "", layout);
  VarTransformer::DeclareHead({}, "", layout);
  EXPECT_EQ(ShapesOf(layout), ListedShapes("var_d16"));
  EXPECT_EQ(ElementCount(layout), 310283520);
}

TEST(LlamaGenGpt, HasTheTensorsOfB) {
  ParamLayout layout;
  LlamaGenGpt::DeclareBackbone({}, "", layout);
  LlamaGenGpt::DeclareEmbedding({}, "", layout);
  LlamaGenGpt::DeclareHead({}, "", layout);
  EXPECT_EQ(ShapesOf(layout), ListedShapes("llamagen_GPT-B"));
  EXPECT_EQ(ElementCount(layout), 110888448);
}

}  // namespace
}  // namespace dd2
