#include <gmock/gmock.h>

#include <cmath>

#include "worker/models/networks.h"

namespace dd2 {
namespace {

constexpr std::int64_t kBatch = 3;

NetworkSpec SmallSpec() {
  NetworkSpec spec;
  spec.backbone = {.channels = 4, .width = 32, .layers = 2, .heads = 4, .tokens = 9, .classes = 5};
  spec.head = {.channels = 4, .condition = 32, .width = 24, .depth = 2, .time_features = 8};
  return spec;
}

ParamBuffer RandomParams(const NetworkSpec& spec, bool requires_grad = false) {
  ParamBuffer params(Network::Layout(spec), requires_grad);
  // Not InitNetwork: a head whose last layer is zero would hide mistakes.
  const at::NoGradGuard no_grad;
  InitUniformFanIn(params, "", 7, 0);
  return params;
}

at::Tensor RandomTokens(const NetworkSpec& spec) {
  at::manual_seed(3);
  return at::randn({kBatch, spec.backbone.tokens, spec.backbone.channels});
}

at::Tensor Labels() { return at::tensor({0, 5, 2}, at::kLong); }

double LargestDifference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

TEST(Backbone, CachedStepsEqualTheFullPass) {
  const NetworkSpec spec = SmallSpec();
  const Network network(spec, RandomParams(spec));
  const at::Tensor q = RandomTokens(spec);
  const at::Tensor full = network.Features(q, Labels());
  KvCache cache;
  for (std::int64_t i = 0; i < spec.backbone.tokens; ++i) {
    const at::Tensor previous = i == 0 ? at::Tensor() : q.narrow(1, i - 1, 1);
    const at::Tensor step = network.backbone().Step(previous, i, Labels(), cache);
    // Same sums in another blocking: a few units in the last place of values near 1.
    EXPECT_LT(LargestDifference(step, full.narrow(1, i, 1)), 1e-5) << "position " << i;
  }
}

TEST(Backbone, FeatureSeesOnlyThePast) {
  const NetworkSpec spec = SmallSpec();
  const Network network(spec, RandomParams(spec));
  const at::Tensor q = RandomTokens(spec);
  const at::Tensor before = network.Features(q, Labels());
  for (const std::int64_t changed : {std::int64_t{0}, std::int64_t{4}, std::int64_t{8}}) {
    at::Tensor other = q.clone();
    other.select(1, changed).add_(1.0);
    const at::Tensor after = network.Features(other, Labels());
    EXPECT_EQ(LargestDifference(after.narrow(1, 0, changed + 1), before.narrow(1, 0, changed + 1)),
              0.0);
    if (changed + 1 < spec.backbone.tokens) {
      EXPECT_GT(LargestDifference(after.select(1, changed + 1), before.select(1, changed + 1)),
                1e-3);
    }
  }
}

TEST(Backbone, ClassChangesEveryFeature) {
  const NetworkSpec spec = SmallSpec();
  const Network network(spec, RandomParams(spec));
  const at::Tensor q = RandomTokens(spec);
  const at::Tensor a = network.Features(q, at::zeros({kBatch}, at::kLong));
  const at::Tensor b = network.Features(q, at::ones({kBatch}, at::kLong));
  EXPECT_GT((a - b).abs().amax({0, 2}).min().item<double>(), 1e-4);
}

TEST(Network, FreshGeneratorReturnsItsNoise) {
  const NetworkSpec spec = SmallSpec();
  const ParamBuffer params(Network::Layout(spec), false);
  InitNetwork(params, 1, 0);
  const Network network(spec, params);
  const at::Tensor noise = RandomTokens(spec);
  EXPECT_TRUE(at::equal(network.Generate(noise, Labels()), noise));
}

TEST(Network, GeneratorIsOneStepOfTheVelocity) {
  const NetworkSpec spec = SmallSpec();
  const Network network(spec, RandomParams(spec));
  const at::Tensor noise = RandomTokens(spec);
  const at::Tensor f = network.Features(noise, Labels());
  const at::Tensor t = at::ones({1, kBatch, spec.backbone.tokens, 1});
  const at::Tensor expected = noise - network.Velocity(noise.unsqueeze(0), t, f)[0];
  EXPECT_LT(LargestDifference(network.Generate(noise, Labels()), expected), 1e-5);
}

TEST(MlpHead, RowsAreIndependentAndSeeTime) {
  const NetworkSpec spec = SmallSpec();
  const Network network(spec, RandomParams(spec));
  const at::Tensor f = network.Features(RandomTokens(spec), Labels());
  const at::Tensor x = RandomTokens(spec).unsqueeze(0).repeat({2, 1, 1, 1});
  at::Tensor t = at::full({2, kBatch, spec.backbone.tokens, 1}, 0.25);
  t.select(0, 1).fill_(0.75);
  const at::Tensor v = network.Velocity(x, t, f);
  const at::Tensor alone = network.Velocity(x.narrow(0, 1, 1), t.narrow(0, 1, 1), f);
  EXPECT_LT(LargestDifference(v[1], alone[0]), 1e-6);
  EXPECT_GT(LargestDifference(v[0], v[1]), 1e-3);
}

// The head written out once more for one token in double precision, from MAR's description.
TEST(MlpHead, AgreesWithTheFormulaOfOneToken) {
  const NetworkSpec spec = SmallSpec();
  const ParamBuffer params = RandomParams(spec);
  const Network network(spec, params);
  const auto p = [&](const std::string& name) { return params["head." + name].to(at::kDouble); };
  const auto linear = [&](const std::string& name, const at::Tensor& in) {
    return at::mv(p(name + ".weight"), in) + p(name + ".bias");
  };
  const auto silu = [](const at::Tensor& in) { return in / (1 + (-in).exp()); };
  const auto normalise = [](const at::Tensor& in) {
    const at::Tensor centred = in - in.mean();
    return centred / (centred.square().mean() + 1e-6).sqrt();
  };
  const at::Tensor x = at::tensor({0.3, -1.2, 0.7, 2.0}, at::kDouble);
  const at::Tensor f = at::linspace(-1, 1, 32, at::kDouble);
  const double t = 0.625;
  std::vector<double> sinusoids;
  for (int i = 0; i < 4; ++i) sinusoids.push_back(std::cos(1000 * t * std::pow(1e4, -i / 4.0)));
  for (int i = 0; i < 4; ++i) sinusoids.push_back(std::sin(1000 * t * std::pow(1e4, -i / 4.0)));
  const at::Tensor time = linear(
      "time_embed.mlp.2", silu(linear("time_embed.mlp.0", at::tensor(sinusoids, at::kDouble))));
  const at::Tensor y = silu(time + linear("cond_embed", f));
  at::Tensor h = linear("input_proj", x);
  for (const std::string block : {"res_blocks.0.", "res_blocks.1."}) {
    const auto m = linear(block + "adaLN_modulation.1", y).chunk(3);
    const at::Tensor normed = normalise(h) * p(block + "in_ln.weight") + p(block + "in_ln.bias");
    const at::Tensor inner = silu(linear(block + "mlp.0", normed * (1 + m[1]) + m[0]));
    h = h + m[2] * linear(block + "mlp.2", inner);
  }
  const auto m = linear("final_layer.adaLN_modulation.1", y).chunk(2);
  const at::Tensor expected = linear("final_layer.linear", normalise(h) * (1 + m[1]) + m[0]);
  const at::Tensor got =
      network.Velocity(x.to(at::kFloat).view({1, 1, 1, 4}), at::full({1, 1, 1, 1}, t),
                       f.to(at::kFloat).view({1, 1, 32}));
  // fp32 sinusoids of arguments up to 625 are good to about 3e-5.
  EXPECT_LT(LargestDifference(got.view({4}), expected), 1e-4);
}

TEST(ParamBuffer, GradientsAccumulateInTheFlatBuffer) {
  const NetworkSpec spec = SmallSpec();
  ParamBuffer params = RandomParams(spec, /*requires_grad=*/true);
  const at::Tensor gradient = at::zeros({params.layout().size()});
  params.BindGradient(gradient);
  const Network network(spec, params);
  const auto backward = [&] {
    network.Generate(RandomTokens(spec), Labels()).square().mean().backward();
  };
  backward();
  const at::Tensor once = gradient.clone();
  const ParamSpec& qkv = params.layout().Find("backbone.blocks.1.qkv.weight");
  EXPECT_GT(once.narrow(0, qkv.offset, qkv.numel).abs().max().item<double>(), 0);
  EXPECT_EQ(params[qkv.name].grad().data_ptr<float>(), gradient.data_ptr<float>() + qkv.offset);
  backward();
  EXPECT_LT(LargestDifference(gradient, once * 2), 1e-6 * once.abs().max().item<double>());
  EXPECT_TRUE(at::isfinite(gradient).all().item<bool>());
}

TEST(ParamBuffer, GradientAgreesWithFiniteDifference) {
  const NetworkSpec spec = SmallSpec();
  ParamBuffer params = RandomParams(spec, /*requires_grad=*/true);
  const at::Tensor gradient = at::zeros({params.layout().size()});
  params.BindGradient(gradient);
  const Network network(spec, params);
  const auto loss = [&] { return network.Generate(RandomTokens(spec), Labels()).square().sum(); };
  loss().backward();
  // Along the gradient itself: the directional derivative is its norm.
  const at::NoGradGuard no_grad;
  const at::Tensor direction = gradient / gradient.norm();
  const double step = 1e-3;
  params.flat().add_(direction, step);
  const double up = loss().item<double>();
  params.flat().sub_(direction, 2 * step);
  const double down = loss().item<double>();
  const double norm = gradient.norm().item<double>();
  EXPECT_NEAR((up - down) / (2 * step), norm, 0.01 * norm);
}

TEST(ParamBuffer, AliasSharesValuesButNotGradients) {
  const NetworkSpec spec = SmallSpec();
  ParamBuffer params = RandomParams(spec, /*requires_grad=*/true);
  ParamBuffer alias = params.Alias(/*requires_grad=*/true);
  const at::Tensor gradient = at::zeros({params.layout().size()});
  alias.BindGradient(gradient);
  Network(spec, alias).Generate(RandomTokens(spec), Labels()).mean().backward();
  EXPECT_GT(gradient.abs().max().item<double>(), 0);
  EXPECT_FALSE(params["backbone.start"].grad().defined());
  params.flat().fill_(2.0);
  EXPECT_EQ(alias["backbone.start"].min().item<double>(), 2.0);
}

TEST(ParamLayout, PlacesParametersOn64Bytes) {
  ParamLayout layout;
  layout.Add("a", {3});
  layout.Add("b", {17, 2});
  layout.Add("c", {1});
  EXPECT_EQ(layout.Find("a").offset, 0);
  EXPECT_EQ(layout.Find("b").offset, 16);
  EXPECT_EQ(layout.Find("c").offset, 64);
  EXPECT_EQ(layout.size(), kParamChunk);
  EXPECT_DEATH(layout.Add("b", {1}), "b");
  EXPECT_DEATH(layout.Find("absent"), "absent");
}

TEST(ParamBuffer, CapacityTailStaysZero) {
  ParamLayout layout;
  layout.Add("a.weight", {2, 2});
  const ParamBuffer params(layout, false, 3 * kParamChunk);
  InitUniformFanIn(params, "", 1, 0);
  EXPECT_EQ(params.flat().numel(), 3 * kParamChunk);
  EXPECT_GT(params["a.weight"].abs().min().item<double>(), 0);
  EXPECT_EQ(params.flat().narrow(0, 4, 3 * kParamChunk - 4).abs().max().item<double>(), 0);
}

TEST(Init, DependsOnSeedAndPositionOnly) {
  const NetworkSpec spec = SmallSpec();
  const ParamBuffer a(Network::Layout(spec), false), b(Network::Layout(spec), false),
      c(Network::Layout(spec), false);
  at::manual_seed(1);
  InitNetwork(a, 5, 2);
  at::manual_seed(2);
  InitNetwork(b, 5, 2);
  InitNetwork(c, 6, 2);
  EXPECT_TRUE(at::equal(a.flat(), b.flat()));
  EXPECT_FALSE(at::equal(a.flat(), c.flat()));
}

TEST(Init, HasTheDocumentedScales) {
  NetworkSpec spec;  // full size: moments mean something
  const ParamBuffer params(Network::Layout(spec), false);
  InitNetwork(params, 1, 0);
  const at::Tensor qkv = params["backbone.blocks.0.qkv.weight"];
  EXPECT_NEAR(qkv.std().item<double>(), 1 / std::sqrt(3.0 * 128), 1e-3);
  EXPECT_LE(qkv.abs().max().item<double>(), 1 / std::sqrt(128.0));
  EXPECT_NEAR(params["backbone.positions"].std().item<double>(), 0.02, 1e-3);
  EXPECT_EQ(params["backbone.norm.weight"].min().item<double>(), 1);
  EXPECT_NEAR(params["head.res_blocks.0.mlp.0.weight"].std().item<double>(), std::sqrt(2.0 / 256),
              2e-3);
  EXPECT_EQ(params["head.res_blocks.2.adaLN_modulation.1.weight"].abs().max().item<double>(), 0);
  EXPECT_EQ(params["head.final_layer.linear.weight"].abs().max().item<double>(), 0);
}

// The released recipe's sizes: a changed layout would silently be another network.
TEST(Network, HasTheRecipesParameterCount) {
  std::int64_t backbone = 0, head = 0;
  const ParamLayout layout = Network::Layout({});
  for (const ParamSpec& spec : layout.specs()) {
    (spec.name.starts_with("head.") ? head : backbone) += spec.numel;
  }
  EXPECT_EQ(head, 323972);
  EXPECT_EQ(backbone + head, 1142276);
}

}  // namespace
}  // namespace dd2
