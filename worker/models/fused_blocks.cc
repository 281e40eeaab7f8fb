#include "worker/models/fused_blocks.h"

#include <ATen/autocast_mode.h>

#include <memory>
#include <utility>

#include "common/check.h"
#include "worker/kernels/torch_device.h"

namespace dd2 {
namespace {

constexpr double kNormEpsilon = 1e-6;
constexpr double kLengthEpsilon = 1e-12;

using Variables = torch::autograd::variable_list;

// What matrix products take from here.
at::ScalarType ProductType(const at::Tensor& x) {
  const at::DeviceType device = x.device().type();
  if (!at::autocast::is_autocast_enabled(device)) return at::kFloat;
  const at::ScalarType type = at::autocast::get_autocast_dtype(device);
  DD2_CHECK(type == at::kBFloat16);
  return type;
}

std::int32_t DeviceType(at::ScalarType type) {
  DD2_CHECK(type == at::kBFloat16 || type == at::kFloat);
  return type == at::kBFloat16 ? DD2_DEVICE_BF16 : DD2_DEVICE_FP32;
}

// x [B, l, d] beside modulation rows [B, 1, d], whose gradients are [B, 1, d] too.
Dd2RowShape ShapeOf(const at::Tensor& x, at::ScalarType type) {
  DD2_CHECK(x.dim() == 3 && x.is_contiguous());
  return {.rows = x.size(0) * x.size(1), .width = x.size(2), .type = DeviceType(type)};
}

Dd2ModulationRows RowsOf(const at::Tensor& x, const at::Tensor& modulation) {
  DD2_CHECK(modulation.size(0) == x.size(0) && modulation.size(1) == 1 &&
            modulation.size(2) == x.size(2) && modulation.stride(2) == 1);
  return {
      .repeats = x.size(1), .stride = modulation.stride(0), .gradient_stride = modulation.size(2)};
}

const float* Values(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr;
}
float* Data(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr<float>() : nullptr;
}
// A gradient of modulation rows, if somebody asks.
at::Tensor EmptyRows(const at::Tensor& modulation, bool wanted) {
  return wanted ? at::empty(modulation.sizes(), modulation.options()) : at::Tensor();
}

// A node is walked once. It keeps its inputs without their history.
class NormBackward : public torch::autograd::Node {
 public:
  NormBackward(at::Tensor x, at::Tensor scale, at::Tensor shift)
      : x_(std::move(x)), scale_(std::move(scale)), shift_(std::move(shift)) {}

  Branched Forward() {
    stats_ = at::empty({x_.size(0), x_.size(1), 2}, x_.options());
    const at::ScalarType type = ProductType(x_);
    const at::Tensor y = at::empty(x_.sizes(), x_.options().dtype(type));
    Dd2ModulatedNorm norm = Problem(type);
    norm.d_y = y.mutable_data_ptr();
    CheckKernel(DeviceKernels().modulated_norm(&norm, nullptr));
    return {y, x_.detach()};  // a tensor of its own: its history is to be this node, which keeps x
  }

  Variables apply(Variables&& gradients) override {
    const at::AutoDispatchBelowAutograd below;
    DD2_CHECK(x_.defined() && gradients.at(0).defined());
    const at::Tensor dy = gradients[0].contiguous();
    const at::Tensor residual = gradients[1].defined() ? gradients[1].contiguous() : gradients[1];
    const bool wants_rows = task_should_compute_output(1) || task_should_compute_output(2);
    const at::Tensor dx = at::empty_like(x_), d_scale = EmptyRows(scale_, wants_rows),
                     d_shift = EmptyRows(shift_, wants_rows);
    Dd2ModulatedNorm norm = Problem(dy.scalar_type());
    norm.d_dy = dy.const_data_ptr();
    norm.d_residual = Values(residual);
    norm.d_dx = Data(dx);
    norm.d_dshift = Data(d_shift);
    norm.d_dscale = Data(d_scale);
    CheckKernel(DeviceKernels().modulated_norm_backward(&norm, nullptr));
    return {dx, d_scale, d_shift};
  }
  void release_variables() override { x_ = scale_ = shift_ = stats_ = at::Tensor(); }

 private:
  Dd2ModulatedNorm Problem(at::ScalarType type) const {
    Dd2ModulatedNorm norm{};
    norm.shape = ShapeOf(x_, type);
    norm.modulation = RowsOf(x_, scale_);
    DD2_CHECK(RowsOf(x_, shift_).stride == norm.modulation.stride);
    norm.d_x = Values(x_);
    norm.epsilon = static_cast<float>(kNormEpsilon);
    norm.d_shift = Values(shift_);
    norm.d_scale = Values(scale_);
    norm.d_stats = Data(stats_);
    return norm;
  }

  at::Tensor x_, scale_, shift_, stats_;
};

class GateBackward : public torch::autograd::Node {
 public:
  GateBackward(at::Tensor branch, at::Tensor gate)
      : branch_(std::move(branch)), gate_(std::move(gate)) {}

  at::Tensor Forward(const at::Tensor& stream) {
    const at::Tensor out = at::empty_like(stream);
    Dd2GatedResidual gated = Problem();
    gated.d_x = Values(stream);
    gated.d_out = Data(out);
    CheckKernel(DeviceKernels().gated_residual(&gated, nullptr));
    return out;
  }

  Variables apply(Variables&& gradients) override {
    const at::AutoDispatchBelowAutograd below;
    DD2_CHECK(branch_.defined() && gradients.at(0).defined());
    const at::Tensor d_out = gradients[0].contiguous(), d_branch = at::empty_like(branch_),
                     d_gate = EmptyRows(gate_, task_should_compute_output(2));
    Dd2GatedResidual gated = Problem();
    gated.d_dout = Values(d_out);
    gated.d_dbranch = d_branch.mutable_data_ptr();
    gated.d_dgate = Data(d_gate);
    CheckKernel(DeviceKernels().gated_residual_backward(&gated, nullptr));
    return {d_out, d_branch, d_gate};
  }
  void release_variables() override { branch_ = gate_ = at::Tensor(); }

 private:
  Dd2GatedResidual Problem() const {
    Dd2GatedResidual gated{};
    gated.shape = ShapeOf(branch_, branch_.scalar_type());
    gated.modulation = RowsOf(branch_, gate_);
    gated.d_branch = branch_.const_data_ptr();
    gated.d_gate = Values(gate_);
    return gated;
  }

  at::Tensor branch_, gate_;
};

// [B, heads, l, d / heads] of a kernel's [B, l, heads, d / heads], and the other way.
at::Tensor HeadsFirst(const at::Tensor& tensor) { return tensor.transpose(1, 2); }

class UnitLengthBackward : public torch::autograd::Node {
 public:
  UnitLengthBackward(at::Tensor qkv, at::Tensor temperature)
      : qkv_(std::move(qkv)), temperature_(std::move(temperature)) {}

  QueriesKeysValues Forward() {
    const at::Tensor q = at::empty(HeadSizes(), qkv_.options()), k = at::empty_like(q);
    Dd2UnitLength unit = Problem();
    unit.d_q = q.mutable_data_ptr();
    unit.d_k = k.mutable_data_ptr();
    CheckKernel(DeviceKernels().unit_length(&unit, nullptr));
    return {HeadsFirst(q), HeadsFirst(k), HeadsFirst(qkv_.select(2, 2))};
  }

  Variables apply(Variables&& gradients) override {
    const at::AutoDispatchBelowAutograd below;
    DD2_CHECK(qkv_.defined());
    Variables by_token;
    for (const at::Tensor& gradient : gradients) {
      DD2_CHECK(gradient.defined());
      by_token.push_back(HeadsFirst(gradient).contiguous());
    }
    const at::Tensor d_qkv = at::empty_like(qkv_);
    at::Tensor d_temperature;
    if (task_should_compute_output(1)) {
      d_temperature =
          at::empty({qkv_.size(0) * qkv_.size(1), qkv_.size(3)}, temperature_.options());
    }
    Dd2UnitLength unit = Problem();
    unit.d_dq = by_token[0].const_data_ptr();
    unit.d_dk = by_token[1].const_data_ptr();
    unit.d_dqkv = d_qkv.mutable_data_ptr();
    unit.d_dtemperature = Data(d_temperature);
    CheckKernel(DeviceKernels().unit_length_backward(&unit, nullptr));
    d_qkv.select(2, 2).copy_(by_token[2]);
    if (d_temperature.defined()) d_temperature = d_temperature.sum(0).view(temperature_.sizes());
    return {d_qkv, d_temperature};
  }
  void release_variables() override { qkv_ = temperature_ = at::Tensor(); }

 private:
  at::DimVector HeadSizes() const {
    return {qkv_.size(0), qkv_.size(1), qkv_.size(3), qkv_.size(4)};
  }
  Dd2UnitLength Problem() const {
    DD2_CHECK(qkv_.dim() == 5 && qkv_.is_contiguous() && qkv_.size(2) == 3 &&
              temperature_.numel() == qkv_.size(3) && temperature_.is_contiguous());
    Dd2UnitLength unit{};
    unit.shape = {qkv_.size(0) * qkv_.size(1), qkv_.size(4), DeviceType(qkv_.scalar_type())};
    unit.heads = qkv_.size(3);
    unit.d_qkv = qkv_.const_data_ptr();
    unit.d_temperature = Values(temperature_);
    return unit;
  }

  at::Tensor qkv_, temperature_;
};

at::Tensor OfLengthOne(const at::Tensor& x) {
  return x / x.norm(2, -1, /*keepdim=*/true).clamp_min(kLengthEpsilon);
}

// The node's place in the graph, where there is one.
void SetHistory(const std::shared_ptr<torch::autograd::Node>& node, const Variables& inputs,
                Variables outputs) {
  if (!torch::autograd::any_variable_requires_grad(inputs) || !at::GradMode::is_enabled()) return;
  node->set_next_edges(torch::autograd::collect_next_edges(inputs));
  torch::autograd::set_history(outputs, node);
}

}  // namespace

Branched AdaptiveNorm(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& shift) {
  if (x.is_cpu()) {
    return {at::layer_norm(x, {x.size(-1)}, {}, {}, kNormEpsilon) * (1 + scale) + shift, x};
  }
  std::shared_ptr<NormBackward> node;
  Branched branched;
  {
    const at::AutoDispatchBelowAutograd below;
    node = {new NormBackward(x.detach().contiguous(), scale.detach(), shift.detach()),
            torch::autograd::deleteNode};
    branched = node->Forward();
  }
  SetHistory(node, {x, scale, shift}, {branched.input, branched.stream});
  return branched;
}

at::Tensor AddGated(const at::Tensor& stream, const at::Tensor& branch, const at::Tensor& gate) {
  if (stream.is_cpu()) return stream + branch * gate;
  DD2_CHECK(stream.sizes() == branch.sizes());
  std::shared_ptr<GateBackward> node;
  at::Tensor out;
  {
    const at::AutoDispatchBelowAutograd below;
    node = {new GateBackward(branch.detach().contiguous(), gate.detach()),
            torch::autograd::deleteNode};
    out = node->Forward(stream.contiguous());
  }
  SetHistory(node, {stream, branch, gate}, {out});
  return out;
}

QueriesKeysValues Split(const at::Tensor& qkv) {
  const std::vector<at::Tensor> parts = qkv.permute({2, 0, 3, 1, 4}).unbind(0);
  return {parts[0], parts[1], parts[2]};
}

QueriesKeysValues UnitLength(const at::Tensor& qkv, const at::Tensor& temperature) {
  if (qkv.is_cpu()) {
    const QueriesKeysValues parts = Split(qkv);
    return {OfLengthOne(parts.q) * temperature, OfLengthOne(parts.k), parts.v};
  }
  std::shared_ptr<UnitLengthBackward> node;
  QueriesKeysValues made;
  {
    const at::AutoDispatchBelowAutograd below;
    node = {new UnitLengthBackward(qkv.detach().contiguous(), temperature.detach()),
            torch::autograd::deleteNode};
    made = node->Forward();
  }
  SetHistory(node, {qkv, temperature}, {made.q, made.k, made.v});
  return made;
}

}  // namespace dd2
