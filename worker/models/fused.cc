#include "worker/models/fused.h"

namespace dd2 {

at::Tensor Product(const at::Tensor& x, const at::Tensor& weight) { return at::mm(x, weight.t()); }

at::Tensor ProductBackward(const at::Tensor& dy, const at::Tensor& weight) {
  return at::mm(dy, weight);
}

at::Tensor GradientOf(const at::Tensor& leaf) {
  if (!leaf.requires_grad()) return {};
  at::Tensor& gradient = leaf.mutable_grad();
  if (!gradient.defined()) gradient = at::zeros_like(leaf);
  return gradient;
}

float* GradientData(const at::Tensor& leaf) {
  const at::Tensor gradient = GradientOf(leaf);
  return gradient.defined() ? Data(gradient) : nullptr;
}

void AddWeightGradient(const at::Tensor& weight, const at::Tensor& dy, const at::Tensor& x) {
  at::Tensor gradient = GradientOf(weight);
  if (gradient.defined()) gradient.addmm_(dy.t(), x);
}

void AddBiasGradient(const at::Tensor& bias, const at::Tensor& dy) {
  float* gradient = GradientData(bias);
  if (gradient != nullptr) AddColumnSums(ShapeOf(dy), Values(dy), gradient);
}

}  // namespace dd2
