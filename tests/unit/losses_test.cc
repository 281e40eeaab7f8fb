#include "worker/distill/losses.h"

#include <ATen/Parallel.h>
#include <gmock/gmock.h>

#include <cmath>

#include "worker/distill/score.h"

namespace dd2 {
namespace {

constexpr std::int64_t kDraws = 2, kBatch = 3, kTokens = 5, kChannels = 4, kCodes = 23;

NetworkSpec SmallSpec() {
  NetworkSpec spec;
  spec.backbone = {
      .channels = kChannels, .width = 16, .layers = 1, .heads = 2, .tokens = kTokens, .classes = 3};
  spec.head = {.channels = kChannels, .condition = 16, .width = 16, .depth = 1, .time_features = 8};
  return spec;
}

// A shard's inputs and a network whose head is not zero.
struct Shard {
  Shard() : params(Network::Layout(SmallSpec()), /*requires_grad=*/true) {
    {
      const at::NoGradGuard no_grad;
      InitUniformFanIn(params, "", 7, 0);
    }
    gradient = at::zeros_like(params.flat());
    params.BindGradient(gradient);
    at::set_num_threads(1);
    at::manual_seed(11);
    codebook = at::randn({kCodes, kChannels});
    q = at::randn({kBatch, kTokens, kChannels});
    labels = at::tensor({0, 3, 2}, at::kLong);
    logp = at::randn({kBatch, kTokens, kCodes}) * 2 + 5;
    logp.select(2, 3).fill_(-INFINITY);
    t = at::rand({kDraws, kBatch, kTokens, 1}) * 0.7 + 0.25;
    noise = at::randn({kDraws, kBatch, kTokens, kChannels});
  }
  Network network() const { return Network(SmallSpec(), params); }
  at::Tensor x() const { return (1 - t) * q + t * noise; }

  ParamBuffer params;
  at::Tensor gradient, codebook, q, labels, logp, t, noise;
};

// Method 1.3 by autograd through a whole softmax.
at::Tensor PlainPosteriorMean(const at::Tensor& x, const at::Tensor& t, const at::Tensor& logp,
                              const at::Tensor& codebook) {
  const at::Tensor a = logp + (1 - t) / t.square() * x.matmul(codebook.t()) -
                       ((1 - t) / t).square() / 2 * codebook.square().sum(1);
  return a.softmax(-1).matmul(codebook);
}

double LargestDifference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

TEST(GtsLossTest, IsTheVelocityRegressionOnTheTeacher) {
  const Shard shard;
  const Network network = shard.network();
  const at::Tensor loss =
      GtsLoss(network, shard.q, shard.labels, shard.logp, shard.codebook, shard.t, shard.noise);
  const at::Tensor x = shard.x();
  const at::Tensor target =
      (x - PlainPosteriorMean(x, shard.t, shard.logp, shard.codebook)) / shard.t;
  const at::Tensor v = network.Velocity(x, shard.t, network.Features(shard.q, shard.labels));
  EXPECT_NEAR(loss.item<double>(), (v - target).square().mean().item<double>(), 1e-5);
  loss.backward();
  EXPECT_GT(shard.gradient.abs().max().item<double>(), 1e-4);
}

TEST(FcsLossTest, IsTheVelocityRegressionOnTheSampleAndLeavesItAlone) {
  const Shard shard;
  const Network network = shard.network();
  const at::Tensor q = shard.q.clone().requires_grad_(true);
  const at::Tensor loss = FcsLoss(network, q, shard.labels, shard.t, shard.noise);
  const at::Tensor v =
      network.Velocity(shard.x(), shard.t, network.Features(shard.q, shard.labels));
  EXPECT_NEAR(loss.item<double>(), (v - (shard.noise - shard.q)).square().mean().item<double>(),
              1e-5);
  loss.backward();
  EXPECT_GT(shard.gradient.abs().max().item<double>(), 1e-4);
  EXPECT_FALSE(q.grad().defined()) << "the sample must be detached";
}

class CsdLossTest : public ::testing::TestWithParam<double> {
 protected:
  CsdLossTest() : network_(shard_.network()) {
    shard_.params.SetRequiresGrad(false);
    const at::NoGradGuard no_grad;
    features_ = network_.Features(shard_.q, shard_.labels);
    const at::Tensor mu = PlainPosteriorMean(shard_.x(), shard_.t, shard_.logp, shard_.codebook);
    weight_ = 1 / (shard_.q - mu).abs().mean({2, 3}, true).clamp_min(1e-3);
  }

  // The loss as a function of q with weight and prefix held; q in double, the head in fp32.
  at::Tensor LossOf(const at::Tensor& q) const {
    const at::Tensor t = shard_.t.to(at::kDouble);
    const at::Tensor x = (1 - t) * q + t * shard_.noise.to(at::kDouble);
    const at::Tensor mu_teacher =
        PlainPosteriorMean(x, t, shard_.logp.to(at::kDouble), shard_.codebook.to(at::kDouble));
    const at::Tensor v = network_.Velocity(x.to(at::kFloat), shard_.t, features_).to(at::kDouble);
    const at::Tensor delta = mu_teacher - (x - t * v);
    return (weight_ * delta * ((mu_teacher - q) - GetParam() * delta)).sum(-1).mean();
  }

  CsdLossResult Ours() const {
    return CsdLoss(network_, shard_.q, features_, shard_.logp, shard_.codebook, shard_.t,
                   shard_.noise, GetParam());
  }

  Shard shard_;
  const Network network_;
  at::Tensor features_, weight_;
};

TEST_P(CsdLossTest, GradientEqualsAutogradOfTheFormula) {
  const at::Tensor q = shard_.q.to(at::kDouble).requires_grad_(true);
  const at::Tensor loss = LossOf(q);
  const at::Tensor expected = torch::autograd::grad({loss}, {q}).at(0);
  const CsdLossResult ours = Ours();
  EXPECT_NEAR(ours.loss, loss.item<double>(), 1e-5 * (1 + std::abs(ours.loss)));
  EXPECT_LT(LargestDifference(ours.gradient, expected),
            2e-5 * (expected.abs().max().item<double>()));
}

TEST_P(CsdLossTest, GradientEqualsFiniteDifferences) {
  const at::NoGradGuard no_grad;
  const at::Tensor q = shard_.q.to(at::kDouble);
  const CsdLossResult ours = Ours();
  constexpr double kStep = 2e-3;
  for (int i = 0; i < 6; ++i) {
    const at::Tensor direction = at::randn_like(q);
    const double estimate =
        (LossOf(q + kStep * direction) - LossOf(q - kStep * direction)).item<double>() /
        (2 * kStep);
    const double slope = (ours.gradient.to(at::kDouble) * direction).sum().item<double>();
    const double scale = ours.gradient.norm().item<double>();
    EXPECT_NEAR(slope, estimate, 5e-3 * scale);
  }
}

TEST_P(CsdLossTest, TouchesNoParameterAndNoPrefix) {
  const at::Tensor q = shard_.q.clone().requires_grad_(true);
  const at::Tensor features = network_.Features(q, shard_.labels);  // attached, on purpose
  const CsdLossResult ours = CsdLoss(network_, q, features, shard_.logp, shard_.codebook, shard_.t,
                                     shard_.noise, GetParam());
  EXPECT_FALSE(ours.gradient.requires_grad());
  EXPECT_FALSE(q.grad().defined());
  EXPECT_EQ(shard_.gradient.abs().max().item<double>(), 0);
  EXPECT_TRUE(at::equal(ours.gradient, Ours().gradient)) << "the prefix must not matter";
}

TEST_P(CsdLossTest, WantsAFrozenGuidanceNetwork) {
  shard_.params.SetRequiresGrad(true);
  EXPECT_DEATH(Ours(), "requires_grad");
}

TEST_P(CsdLossTest, ReportsTheDistanceOfTheMeans) {
  const at::NoGradGuard no_grad;
  const at::Tensor x = shard_.x();
  const at::Tensor mu_teacher = PlainPosteriorMean(x, shard_.t, shard_.logp, shard_.codebook);
  const at::Tensor mu_guidance = x - shard_.t * network_.Velocity(x, shard_.t, features_);
  EXPECT_NEAR(Ours().mean_difference, (mu_teacher - mu_guidance).square().mean().item<double>(),
              1e-5);
}

INSTANTIATE_TEST_SUITE_P(Alpha, CsdLossTest, ::testing::Values(1.0, 1.2, 0.5));

}  // namespace
}  // namespace dd2
