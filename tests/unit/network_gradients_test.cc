#include <gmock/gmock.h>

#include "tests/support/plain_network.h"
#include "worker/models/networks.h"

// The hand-written forward and backward passes against autograd in double precision.
namespace dd2 {
namespace {

struct Case {
  std::string name;
  NetworkSpec spec;
  std::int64_t batch = 0;
  std::int64_t draws = 0;
};

// Sizes of the shipped model, and odd ones: no width, head or sequence is a whole vector.
std::vector<Case> Cases() {
  Case shipped{.name = "shipped", .spec = {}, .batch = 3, .draws = 2};
  Case odd{.name = "odd", .spec = {}, .batch = 2, .draws = 3};
  odd.spec.backbone = {
      .channels = 3, .width = 20, .layers = 2, .heads = 2, .tokens = 7, .classes = 4};
  odd.spec.head = {.channels = 3, .condition = 20, .width = 22, .depth = 2, .time_features = 6};
  Case long_rows{.name = "long", .spec = {}, .batch = 1, .draws = 1};
  long_rows.spec.backbone = {
      .channels = 4, .width = 48, .layers = 1, .heads = 1, .tokens = 70, .classes = 2};
  long_rows.spec.head = {
      .channels = 4, .condition = 48, .width = 16, .depth = 1, .time_features = 8};
  return {shipped, odd, long_rows};
}

class NetworkGradients : public ::testing::TestWithParam<Case> {
 protected:
  NetworkGradients() : spec_(GetParam().spec), params_(Network::Layout(spec_), true) {
    const at::NoGradGuard no_grad;
    InitUniformFanIn(params_, "", 11, 0);
    at::manual_seed(5);
    const std::int64_t batch = GetParam().batch, n = spec_.backbone.tokens;
    const std::int64_t channels = spec_.backbone.channels;
    q_ = at::randn({batch, n, channels});
    labels_ = at::randint(0, spec_.backbone.classes + 1, {batch}, at::kLong);
    x_ = at::randn({GetParam().draws, batch, n, channels});
    t_ = at::rand({GetParam().draws, batch, n, 1});
    wanted_ = at::randn_like(x_);
  }

  // Relative to the largest element of the expected tensor.
  static double Error(const at::Tensor& got, const at::Tensor& expected) {
    const double largest = expected.abs().max().item<double>();
    return (got.to(at::kDouble) - expected).abs().max().item<double>() / (largest + 1e-9);
  }

  const NetworkSpec spec_;
  ParamBuffer params_;
  at::Tensor q_, labels_, x_, t_, wanted_;
};

// fp32 sinusoids of arguments up to 1000 are good to about 6e-5, which dominates.
constexpr double kTolerance = 2e-4;

TEST_P(NetworkGradients, ParametersAndInputs) {
  const Network network(spec_, params_);
  const testing::PlainNetwork plain(spec_, params_);
  at::Tensor q = q_.clone().requires_grad_(true), x = x_.clone().requires_grad_(true);
  at::Tensor q64 = q_.to(at::kDouble).requires_grad_(true);
  at::Tensor x64 = x_.to(at::kDouble).requires_grad_(true);
  const at::Tensor flat = at::zeros_like(params_.flat());
  params_.BindGradient(flat);

  const at::Tensor v = network.Velocity(x, t_, network.Features(q, labels_));
  const at::Tensor v64 = plain.Velocity(x64, t_.to(at::kDouble), plain.Features(q64, labels_));
  EXPECT_LT(Error(v.detach(), v64.detach()), kTolerance);
  (v * wanted_).sum().backward();
  (v64 * wanted_.to(at::kDouble)).sum().backward();
  EXPECT_LT(Error(x.grad(), x64.grad()), kTolerance);
  EXPECT_LT(Error(q.grad(), q64.grad()), kTolerance);
  for (const ParamSpec& param : params_.layout().specs()) {
    EXPECT_LT(Error(params_[param.name].grad(), plain[param.name].grad()), 5 * kTolerance)
        << param.name;
  }
}

TEST_P(NetworkGradients, OneTimeForAllRows) {
  const Network network(spec_, params_);
  const testing::PlainNetwork plain(spec_, params_);
  const at::Tensor flat = at::zeros_like(params_.flat());
  params_.BindGradient(flat);
  const at::Tensor made = network.Generate(q_, labels_);
  const at::Tensor noise = q_.to(at::kDouble);
  const at::Tensor made64 = noise - plain.Velocity(noise, at::ones({1, 1, 1}, at::kDouble),
                                                   plain.Features(noise, labels_));
  EXPECT_LT(Error(made.detach(), made64.detach()), kTolerance);
  made.backward(wanted_[0]);
  made64.backward(wanted_[0].to(at::kDouble));
  for (const ParamSpec& param : params_.layout().specs()) {
    EXPECT_LT(Error(params_[param.name].grad(), plain[param.name].grad()), 5 * kTolerance)
        << param.name;
  }
}

// A frozen network passes gradients through and collects none; a second pass adds to the first.
TEST_P(NetworkGradients, FrozenAndAccumulated) {
  const Network network(spec_, params_);
  const at::Tensor flat = at::zeros_like(params_.flat());
  params_.BindGradient(flat);
  const at::Tensor f = network.Features(q_, labels_).detach();
  params_.SetRequiresGrad(false);
  at::Tensor x = x_.clone().requires_grad_(true);
  network.Velocity(x, t_, f).backward(wanted_);
  EXPECT_GT(x.grad().abs().max().item<double>(), 0);
  EXPECT_EQ(flat.abs().max().item<double>(), 0);
  EXPECT_FALSE(network.Velocity(x_, t_, f).requires_grad());

  params_.SetRequiresGrad(true);
  params_.BindGradient(flat);
  network.Velocity(x_, t_, network.Features(q_, labels_)).backward(wanted_);
  const at::Tensor once = flat.clone();
  network.Velocity(x_, t_, network.Features(q_, labels_)).backward(wanted_);
  EXPECT_LT((flat - 2 * once).abs().max().item<double>() / once.abs().max().item<double>(), 1e-6);
}

// Products rounded to 8 bits: near, and not the same.
TEST_P(NetworkGradients, HeadInBf16) {
  NetworkSpec rounded_spec = spec_;
  rounded_spec.head.bf16 = true;
  const Network network(spec_, params_), rounded(rounded_spec, params_);
  const auto pass = [&](const Network& one, at::Tensor& v, at::Tensor& d_x) {
    const at::Tensor flat = at::zeros_like(params_.flat());
    params_.BindGradient(flat);
    const at::Tensor x = x_.clone().requires_grad_(true);
    v = one.Velocity(x, t_, one.Features(q_, labels_));
    v.backward(wanted_);
    d_x = x.grad();
    return flat;
  };
  at::Tensor exact_v, exact_x, v, d_x;
  const at::Tensor exact = pass(network, exact_v, exact_x), flat = pass(rounded, v, d_x);
  EXPECT_EQ(v.scalar_type(), at::kFloat);
  EXPECT_FALSE(v.equal(exact_v));
  const auto near = [](const at::Tensor& got, const at::Tensor& expected) {
    return ((got - expected).norm() / expected.norm()).item<double>();
  };
  EXPECT_LT(near(v.detach(), exact_v.detach()), 0.02);
  EXPECT_LT(near(d_x, exact_x), 0.02);
  EXPECT_LT(near(flat, exact), 0.02);
}

INSTANTIATE_TEST_SUITE_P(Sizes, NetworkGradients, ::testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace dd2
