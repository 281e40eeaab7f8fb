#include "worker/models/fused.h"

#include "worker/kernels/torch_device.h"

namespace dd2 {
namespace {

float* DataOrNull(const at::Tensor& tensor) { return tensor.defined() ? Data(tensor) : nullptr; }
const float* ValuesOrNull(const at::Tensor& tensor) {
  return tensor.defined() ? Values(tensor) : nullptr;
}

NormAffine AffineOf(const NormLeaves& norm) {
  return {ValuesOrNull(norm.weight), ValuesOrNull(norm.bias), static_cast<float>(norm.epsilon)};
}

Modulation ModulationOf(const ModulationRows& modulation) {
  return {Values(modulation.rows), Values(modulation.bias), modulation.rows.size(1)};
}

// What the kernels of a GPU are given.
Dd2RowShape DeviceShape(const at::Tensor& x) { return {x.size(0), x.size(1), DD2_DEVICE_FP32}; }

// Each row has its own, and a gradient of the same shape.
Dd2ModulationRows DeviceRows(const ModulationRows& modulation) {
  const std::int64_t stride = modulation.rows.size(1);
  return {.repeats = 1, .stride = stride, .gradient_stride = stride};
}

void AddColumnSumsTo(const at::Tensor& x, float* out) {
  if (x.is_cpu()) return AddColumnSums(ShapeOf(x), Values(x), out);
  const Dd2ColumnSums sums{
      .shape = DeviceShape(x), .d_x = Values(x), .stride = x.size(1), .d_out = out};
  CheckKernel(DeviceKernels().column_sums(&sums, nullptr));
}

Dd2ModulatedNorm DeviceNorm(const at::Tensor& x, const at::Tensor& stats, const NormLeaves& norm,
                            const ModulationRows& modulation) {
  Dd2ModulatedNorm device{};
  const std::int64_t scale = x.size(1);  // behind the shift
  device.shape = DeviceShape(x);
  device.modulation = DeviceRows(modulation);
  device.d_x = Values(x);
  device.d_weight = ValuesOrNull(norm.weight);
  device.d_bias = ValuesOrNull(norm.bias);
  device.epsilon = static_cast<float>(norm.epsilon);
  device.d_shift = Values(modulation.rows);
  device.d_scale = device.d_shift + scale;
  device.d_shift_bias = Values(modulation.bias);
  device.d_scale_bias = device.d_shift_bias + scale;
  device.d_stats = Data(stats);
  return device;
}

Dd2GatedResidual DeviceGated(const at::Tensor& branch, const at::Tensor& branch_bias,
                             const ModulationRows& modulation) {
  Dd2GatedResidual device{};
  const std::int64_t gate = 2 * branch.size(1);  // behind shift and scale
  device.shape = DeviceShape(branch);
  device.modulation = DeviceRows(modulation);
  device.d_branch = Values(branch);
  device.d_branch_bias = Values(branch_bias);
  device.d_gate = Values(modulation.rows) + gate;
  device.d_gate_bias = Values(modulation.bias) + gate;
  return device;
}

// a b of matrices in fp32, computed in bf16.
at::Tensor RoundedProduct(const at::Tensor& a, const at::Tensor& b) {
  return at::mm(a.to(at::kBFloat16), b.to(at::kBFloat16)).to(at::kFloat);
}

}  // namespace

at::Tensor Product(const at::Tensor& x, const at::Tensor& weight, bool bf16) {
  return bf16 ? RoundedProduct(x, weight.t()) : at::mm(x, weight.t());
}

at::Tensor ProductBackward(const at::Tensor& dy, const at::Tensor& weight, bool bf16) {
  return bf16 ? RoundedProduct(dy, weight) : at::mm(dy, weight);
}

at::Tensor GradientOf(const at::Tensor& leaf) {
  if (!leaf.requires_grad()) return {};
  at::Tensor& gradient = leaf.mutable_grad();
  if (!gradient.defined()) gradient = at::zeros_like(leaf);
  return gradient;
}

float* GradientData(const at::Tensor& leaf) {
  return leaf.defined() ? DataOrNull(GradientOf(leaf)) : nullptr;
}

void AddWeightGradient(const at::Tensor& weight, const at::Tensor& dy, const at::Tensor& x,
                       bool bf16) {
  at::Tensor gradient = GradientOf(weight);
  if (!gradient.defined()) return;
  if (bf16) {
    gradient.add_(RoundedProduct(dy.t(), x));
  } else {
    gradient.addmm_(dy.t(), x);
  }
}

void AddBiasGradient(const at::Tensor& bias, const at::Tensor& dy) {
  float* gradient = GradientData(bias);
  if (gradient != nullptr) AddColumnSumsTo(dy, gradient);
}

at::Tensor BiasSilu(const at::Tensor& a, const at::Tensor& bias) {
  if (!a.is_cpu()) return at::silu(a.add_(bias));
  at::Tensor y = at::empty_like(a);
  BiasSilu(ShapeOf(a), Data(a), Values(bias), Data(y));
  return y;
}

void SiluBackward(const at::Tensor& a, const at::Tensor& gradient, const at::Tensor& d_bias) {
  if (a.is_cpu()) return SiluBackward(ShapeOf(a), Values(a), Data(gradient), DataOrNull(d_bias));
  gradient.copy_(at::silu_backward(gradient, a));
  if (d_bias.defined()) AddColumnSumsTo(gradient, Data(d_bias));
}

at::Tensor ModulatedNorm(const at::Tensor& x, const NormLeaves& norm,
                         const ModulationRows& modulation, at::Tensor& stats) {
  stats = EmptyStats(x);
  at::Tensor y = at::empty_like(x);
  if (x.is_cpu()) {
    ModulatedNorm(ShapeOf(x), Values(x), AffineOf(norm), ModulationOf(modulation), Data(y),
                  Stats(stats));
    return y;
  }
  Dd2ModulatedNorm device = DeviceNorm(x, stats, norm, modulation);
  device.d_y = Data(y);
  CheckKernel(DeviceKernels().modulated_norm(&device, nullptr));
  return y;
}

at::Tensor ModulatedNormBackward(const at::Tensor& x, const at::Tensor& stats,
                                 const NormLeaves& norm, const ModulationRows& modulation,
                                 const at::Tensor& dy, const at::Tensor& residual,
                                 const at::Tensor& d_modulation) {
  at::Tensor dx = at::empty_like(x);
  const NormGradients gradients = NormGradientsOf(norm.weight, norm.bias);
  if (x.is_cpu()) {
    ModulatedNormBackward(ShapeOf(x), Values(x), Stats(stats), AffineOf(norm),
                          ModulationOf(modulation), Values(dy), ValuesOrNull(residual), Data(dx),
                          Data(d_modulation), gradients);
    return dx;
  }
  Dd2ModulatedNorm device = DeviceNorm(x, stats, norm, modulation);
  device.d_dy = Values(dy);
  device.d_residual = ValuesOrNull(residual);
  device.d_dx = Data(dx);
  device.d_dshift = Data(d_modulation);
  device.d_dscale = device.d_dshift + x.size(1);
  device.d_dweight = gradients.weight;
  device.d_dbias = gradients.bias;
  CheckKernel(DeviceKernels().modulated_norm_backward(&device, nullptr));
  return dx;
}

at::Tensor GatedResidual(const at::Tensor& x, const at::Tensor& branch,
                         const at::Tensor& branch_bias, const ModulationRows& modulation) {
  at::Tensor out = at::empty_like(x);
  if (x.is_cpu()) {
    GatedResidual(ShapeOf(x), Values(x), Values(branch), Values(branch_bias),
                  ModulationOf(modulation), Data(out));
    return out;
  }
  Dd2GatedResidual device = DeviceGated(branch, branch_bias, modulation);
  device.d_x = Values(x);
  device.d_out = Data(out);
  CheckKernel(DeviceKernels().gated_residual(&device, nullptr));
  return out;
}

at::Tensor GatedResidualBackward(const at::Tensor& branch, const at::Tensor& branch_bias,
                                 const ModulationRows& modulation, const at::Tensor& d_out,
                                 const at::Tensor& d_modulation) {
  at::Tensor d_branch = at::empty_like(d_out);
  if (d_out.is_cpu()) {
    GatedResidualBackward(ShapeOf(d_out), Values(branch), Values(branch_bias),
                          ModulationOf(modulation), Values(d_out), Data(d_branch),
                          Data(d_modulation));
    return d_branch;
  }
  Dd2GatedResidual device = DeviceGated(branch, branch_bias, modulation);
  device.d_dout = Values(d_out);
  device.d_dbranch = Data(d_branch);
  device.d_dgate = Data(d_modulation) + 2 * d_out.size(1);
  CheckKernel(DeviceKernels().gated_residual_backward(&device, nullptr));
  return d_branch;
}

at::Tensor AddRepeated(const at::Tensor& of_time, const at::Tensor& of_condition,
                       const at::Tensor& bias, std::int64_t rows) {
  const std::int64_t w = bias.size(0), times = of_time.size(0), conditions = of_condition.size(0);
  if (!bias.is_cpu()) {
    const at::Tensor condition = (of_condition + bias).view({1, conditions, w});
    const at::Tensor time =
        times == 1 ? of_time.view({1, 1, w}) : of_time.view({rows / conditions, conditions, w});
    return (time + condition).expand({rows / conditions, conditions, w}).reshape({rows, w});
  }
  at::Tensor sum = at::empty({rows, w}, at::kFloat);
  const float* added = Values(bias);
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* time = Values(of_time) + row % times * w;
    const float* condition = Values(of_condition) + row % conditions * w;
    float* out = Data(sum) + row * w;
    for (std::int64_t i = 0; i < w; ++i) out[i] = time[i] + (condition[i] + added[i]);
  }
  return sum;
}

}  // namespace dd2
