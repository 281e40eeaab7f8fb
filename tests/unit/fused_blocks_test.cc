// What VAR's blocks compute by kernels on a device (fused_blocks.h), against LibTorch's operators
// on the CPU: each case computes on the CPU first, then takes the far device.

#include "worker/models/fused_blocks.h"

#include <ATen/autocast_mode.h>
#include <gmock/gmock.h>

#include "worker/kernels/torch_device.h"
#include "worker/models/param_buffer.h"
#include "worker/models/var_transformer.h"

namespace dd2 {
namespace {

using testing::HasSubstr;

class FusedBlocks : public testing::Test {
 protected:
  // LibTorch counts the devices when it runs its first backward pass.
  FusedBlocks() : device_(LoadDevice(DD2_FAR_DEVICE)) {}
  void TakeFarDevice() {
    ASSERT_EQ(ComputeDevice(), at::Device(at::kCPU)) << "a case has a process of its own";
    ASSERT_TRUE(device_) << device_.error().message();
    ASSERT_TRUE(UseTorchDevice(*device_));
  }

 private:
  const Result<Device> device_;
};

double RelativeError(const at::Tensor& got, const at::Tensor& wanted) {
  const at::Tensor a = got.cpu().to(at::kDouble), b = wanted.to(at::kDouble);
  return ((a - b).norm() / b.norm()).item<double>();
}

bool SameBits(const at::Tensor& a, const at::Tensor& b) { return at::equal(a.cpu(), b.cpu()); }

// x + (norm(x) (1 + scale) + shift) weight gate, as a block has it, with modulation as one linear
// layer gives it: [B, 4, d], whose rows are those of `parts`.
struct Branch {
  at::Tensor input, out, dx, d_modulation;  // of sum(out wanted)
};
Branch RunBranch(const at::Tensor& x_values, const at::Tensor& modulation_values,
                 const at::Tensor& wanted) {
  const at::Tensor x = ToDevice(x_values).detach().requires_grad_(true);
  const at::Tensor modulation = ToDevice(modulation_values).detach().requires_grad_(true);
  const auto parts =
      modulation.view({x.size(0), 1, 4, x.size(2)}).unbind(2);  // gate, scale, shift, unused
  const Branched branched = AdaptiveNorm(x, parts[1], parts[2]);
  const at::Tensor out = AddGated(branched.stream, branched.input * 0.5, parts[0]);
  out.backward(ToDevice(wanted));
  return {branched.input.detach(), out.detach(), x.grad(), modulation.grad()};
}

struct BranchInput {
  explicit BranchInput(std::int64_t sequences, std::int64_t tokens = 37, std::int64_t width = 24) {
    at::manual_seed(5);
    x = at::randn({sequences, tokens, width});
    modulation = at::randn({sequences, 4 * width});
    wanted = at::randn({sequences, tokens, width});
  }
  Branch Run() const { return RunBranch(x, modulation, wanted); }
  at::Tensor x, modulation, wanted;
};

TEST_F(FusedBlocks, ABranchAndItsGradientsFollowTheOperators) {
  // Sequences of one token too: sampling begins with them.
  const BranchInput several(3), single(3, 1);
  const Branch cpu = several.Run(), cpu_single = single.Run();
  TakeFarDevice();
  const auto compare = [](const Branch& far, const Branch& near) {
    EXPECT_LT(RelativeError(far.input, near.input), 1e-6);
    EXPECT_LT(RelativeError(far.out, near.out), 1e-6);
    EXPECT_LT(RelativeError(far.dx, near.dx), 1e-6);
    EXPECT_LT(RelativeError(far.d_modulation, near.d_modulation), 1e-6);
  };
  compare(several.Run(), cpu);
  compare(single.Run(), cpu_single);
}

TEST_F(FusedBlocks, UnderAutocastProductsGetBf16AndTheStreamStaysFp32) {
  const BranchInput input(3);
  const Branch cpu = input.Run();
  TakeFarDevice();
  at::autocast::set_autocast_dtype(ComputeDevice().type(), at::kBFloat16);
  at::autocast::set_autocast_enabled(ComputeDevice().type(), true);
  const Branch far = input.Run();
  EXPECT_EQ(far.input.scalar_type(), at::kBFloat16);
  for (const at::Tensor& tensor : {far.out, far.dx, far.d_modulation}) {
    EXPECT_EQ(tensor.scalar_type(), at::kFloat);
  }
  const auto near = [](const at::Tensor& got, const at::Tensor& wanted) {
    const double error = RelativeError(got, wanted);
    EXPECT_GT(error, 1e-5) << "as exact as fp32";
    EXPECT_LT(error, 5e-3);
  };
  near(far.input, cpu.input);
  near(far.out, cpu.out);
  near(far.dx, cpu.dx);
  near(far.d_modulation, cpu.d_modulation);
}

TEST_F(FusedBlocks, BitsOfASequenceDoNotDependOnTheBatch) {
  TakeFarDevice();
  const BranchInput input(5);
  const Branch together = input.Run();
  const auto of = [](const at::Tensor& tensor) { return tensor.narrow(0, 3, 1); };
  const Branch alone = RunBranch(of(input.x), of(input.modulation), of(input.wanted));
  EXPECT_TRUE(SameBits(of(together.out), alone.out));
  EXPECT_TRUE(SameBits(of(together.dx), alone.dx));
  EXPECT_TRUE(SameBits(of(together.d_modulation), alone.d_modulation));
}

// Queries, keys and values, and gradients of their sum with weights.
struct Heads {
  at::Tensor q, k, v, d_qkv, d_temperature;
};
constexpr std::int64_t kHeads = 3;

Heads RunHeads(const at::Tensor& qkv_values, const at::Tensor& weights, at::ScalarType type) {
  const at::Tensor qkv = ToDevice(qkv_values).to(type).detach().requires_grad_(true);
  const at::Tensor temperature =
      ToDevice(at::tensor({0.5F, 2.F, 3.F}).view({1, kHeads, 1, 1})).detach().requires_grad_(true);
  const QueriesKeysValues parts = UnitLength(qkv, temperature);
  const at::Tensor all = at::cat({parts.q, parts.k, parts.v}, -1);
  all.backward(ToDevice(weights).to(type));
  return {parts.q.detach(), parts.k.detach(), parts.v.detach(), qkv.grad(), temperature.grad()};
}

TEST_F(FusedBlocks, QueriesAndKeysFollowTheOperators) {
  at::manual_seed(5);
  constexpr std::int64_t kWidth = 8;
  const at::Tensor qkv = at::randn({4, 9, 3, kHeads, kWidth}),
                   weights = at::randn({4, kHeads, 9, 3 * kWidth});
  const Heads cpu = RunHeads(qkv, weights, at::kFloat);
  TakeFarDevice();
  const auto compare = [](const Heads& far, const Heads& near, double limit) {
    EXPECT_LT(RelativeError(far.q, near.q), limit);
    EXPECT_LT(RelativeError(far.k, near.k), limit);
    EXPECT_LT(RelativeError(far.v, near.v), limit);
    EXPECT_LT(RelativeError(far.d_qkv, near.d_qkv), limit);
    EXPECT_LT(RelativeError(far.d_temperature, near.d_temperature), limit);
  };
  const Heads far = RunHeads(qkv, weights, at::kFloat);
  compare(far, cpu, 1e-6);
  const Heads rounded = RunHeads(qkv, weights, at::kBFloat16);
  EXPECT_EQ(rounded.q.scalar_type(), at::kBFloat16);
  EXPECT_EQ(rounded.d_temperature.scalar_type(), at::kFloat);
  compare(rounded, cpu, 1e-2);
  const Heads alone = RunHeads(qkv.narrow(0, 2, 1), weights.narrow(0, 2, 1), at::kFloat);
  EXPECT_TRUE(SameBits(far.q.narrow(0, 2, 1), alone.q));
  EXPECT_TRUE(SameBits(far.d_qkv.narrow(0, 2, 1), alone.d_qkv));
}

// A whole transformer, in every way in which it is used.
class Transformer {
 public:
  Transformer() : params_(Layout(), /*requires_grad=*/true) {
    const at::NoGradGuard no_grad;
    at::manual_seed(3);
    for (const ParamSpec& spec : params_.layout().specs()) {
      at::Tensor(params_[spec.name]).copy_(at::randn(spec.shape) * 0.2);
    }
    rows_ = ToDevice(at::randn({2, 13, 5}));
    wanted_ = ToDevice(at::randn({2, 14, 24}));
    labels_ = ToDevice(at::tensor({2, 6}, at::kLong));
    gradient_ = at::zeros_like(params_.flat());
    params_.BindGradient(gradient_);
  }
  struct Pass {
    at::Tensor hidden, input_of_head, d_rows, gradient;
    std::string node;  // of hidden
  };
  Pass Run(PassMode mode = {}) {
    gradient_.zero_();
    const at::Tensor rows = rows_.clone().requires_grad_(true);
    const VarTransformer network(Spec(), params_, "");
    const at::Tensor hidden = network.Hidden(rows, labels_, mode);
    const at::Tensor of_head = network.HeadInput(hidden, labels_);
    of_head.backward(wanted_);
    return {hidden.detach(), of_head.detach(), rows.grad(), gradient_.clone(),
            hidden.grad_fn()->name()};
  }
  at::Tensor WithoutAutograd() {
    const at::NoGradGuard no_grad;
    const VarTransformer network(Spec(), params_, "");
    return network.HeadInput(network.Hidden(rows_, labels_), labels_);
  }
  at::Tensor ByScales() {
    const VarTransformer network(Spec(), params_, "");
    KvCache cache;
    std::vector<at::Tensor> parts;
    for (std::int64_t scale = 0; scale < Spec().scales(); ++scale) {
      const std::int64_t first = Spec().TokensBefore(scale) - 1;
      parts.push_back(network.Step(
          scale, scale == 0 ? at::Tensor() : rows_.narrow(1, first, Spec().ScaleTokens(scale)),
          labels_, cache));
    }
    return at::cat(parts, 1);
  }
  ParamBuffer& params() { return params_; }

 private:
  static VarSpec Spec() {
    return {.depth = 2,
            .width = 24,
            .heads = 3,
            .channels = 5,
            .classes = 6,
            .vocabulary = 11,
            .sides = {1, 2, 3}};
  }
  static ParamLayout Layout() {
    ParamLayout layout;
    VarTransformer::DeclareBackbone(Spec(), "", layout);
    VarTransformer::DeclareHead(Spec(), "", layout);
    return layout;
  }
  ParamBuffer params_;
  at::Tensor rows_, wanted_, labels_, gradient_;
};

TEST_F(FusedBlocks, ATransformerFollowsTheCpu) {
  const Transformer::Pass cpu = Transformer().Run();
  EXPECT_THAT(cpu.node, testing::Not(HasSubstr("GateBackward"))) << "the CPU has its operators";
  TakeFarDevice();
  Transformer transformer;
  const Transformer::Pass kept = transformer.Run(),
                          again = transformer.Run({Activations::kRecompute});
  EXPECT_THAT(kept.node, HasSubstr("GateBackward")) << "the kernels are not used";
  EXPECT_LT(RelativeError(kept.hidden, cpu.hidden), 1e-5);
  EXPECT_LT(RelativeError(kept.input_of_head, cpu.input_of_head), 1e-5);
  EXPECT_LT(RelativeError(kept.d_rows, cpu.d_rows), 1e-5);
  for (const ParamSpec& spec : transformer.params().layout().specs()) {
    if (spec.name == "head.weight" || spec.name == "head.bias") continue;  // behind HeadInput
    const auto of = [&](const at::Tensor& flat) { return flat.narrow(0, spec.offset, spec.numel); };
    EXPECT_LT(RelativeError(of(kept.gradient), of(cpu.gradient)), 1e-4) << spec.name;
  }
  EXPECT_TRUE(SameBits(kept.hidden, again.hidden));
  EXPECT_TRUE(SameBits(kept.d_rows, again.d_rows));
  EXPECT_TRUE(SameBits(kept.gradient, again.gradient));
  EXPECT_TRUE(SameBits(kept.input_of_head, transformer.WithoutAutograd()));
  EXPECT_LT(RelativeError(transformer.ByScales(), cpu.hidden), 1e-5);
  transformer.params().SetRequiresGrad(false);
  const Transformer::Pass frozen = transformer.Run();
  EXPECT_TRUE(SameBits(kept.d_rows, frozen.d_rows));
  EXPECT_EQ(frozen.gradient.abs().max().item<double>(), 0);
}

TEST_F(FusedBlocks, ATransformerInBf16IsNearFp32AndKeepsItsOwnBits) {
  const Transformer::Pass cpu = Transformer().Run();
  TakeFarDevice();
  Transformer transformer;
  const Transformer::Pass kept = transformer.Run({Activations::kKeep, true}),
                          again = transformer.Run({Activations::kRecompute, true});
  const auto compare = [](const at::Tensor& far, const at::Tensor& recomputed,
                          const at::Tensor& wanted) {
    EXPECT_TRUE(SameBits(far, recomputed));
    EXPECT_GT(RelativeError(far, wanted), 1e-4) << "as exact as fp32";
    EXPECT_LT(RelativeError(far, wanted), 0.03);
  };
  compare(kept.hidden, again.hidden, cpu.hidden);
  compare(kept.d_rows, again.d_rows, cpu.d_rows);
  compare(kept.gradient, again.gradient, cpu.gradient);
}

}  // namespace
}  // namespace dd2
