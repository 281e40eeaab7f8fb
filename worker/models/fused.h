#pragma once

#include <cstdint>

#include "worker/models/row_kernels.h"
#include "worker/torch.h"

namespace dd2 {

// Between the raw kernels and tensors, for networks that write out their own backward pass. Tensors
// are fp32, contiguous, [rows, width]. Not for headers that others include.

inline float* Data(const at::Tensor& tensor) { return tensor.mutable_data_ptr<float>(); }
inline const float* Values(const at::Tensor& tensor) { return tensor.const_data_ptr<float>(); }
inline RowShape ShapeOf(const at::Tensor& tensor) { return {tensor.size(0), tensor.size(1)}; }

// A tensor [rows] of RowStats.
inline at::Tensor EmptyStats(std::int64_t rows) { return at::empty({rows, 2}, at::kFloat); }
inline RowStats* Stats(const at::Tensor& stats) {
  static_assert(sizeof(RowStats) == 2 * sizeof(float));
  return reinterpret_cast<RowStats*>(Data(stats));
}

// x W^T without a bias: x [rows, in], W [out, in].
at::Tensor Product(const at::Tensor& x, const at::Tensor& weight);
// dy W: the gradient of Product's x.
at::Tensor ProductBackward(const at::Tensor& dy, const at::Tensor& weight);

// Where the gradient of a leaf is collected: its .grad (made when it has none), or an undefined
// tensor when the leaf does not want one.
at::Tensor GradientOf(const at::Tensor& leaf);
float* GradientData(const at::Tensor& leaf);  // null when the leaf does not want one
// .grad of W += dy^T x.
void AddWeightGradient(const at::Tensor& weight, const at::Tensor& dy, const at::Tensor& x);
// .grad of b += column sums of dy.
void AddBiasGradient(const at::Tensor& bias, const at::Tensor& dy);

inline NormGradients NormGradientsOf(const at::Tensor& weight, const at::Tensor& bias) {
  return {GradientData(weight), GradientData(bias)};
}

}  // namespace dd2
