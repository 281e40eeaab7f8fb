#pragma once

#include <cstdint>

#include "worker/models/row_kernels.h"
#include "worker/torch.h"

namespace dd2 {

// Between the kernels and tensors, for networks that write out their own backward pass. Tensors are
// fp32, contiguous, [rows, width], all of them on one device: on the CPU these are the functions of
// row_kernels.h, on a GPU its kernels (device_api.h). Not for headers that others include.

// Addresses on the tensor's device: only kernels may follow those of a GPU.
inline float* Data(const at::Tensor& tensor) { return tensor.mutable_data_ptr<float>(); }
inline const float* Values(const at::Tensor& tensor) { return tensor.const_data_ptr<float>(); }
inline RowShape ShapeOf(const at::Tensor& tensor) { return {tensor.size(0), tensor.size(1)}; }

// A tensor [rows] of RowStats, beside x [rows, width].
inline at::Tensor EmptyStats(const at::Tensor& x) {
  return at::empty({x.size(0), 2}, x.options().dtype(at::kFloat));
}
inline RowStats* Stats(const at::Tensor& stats) {
  static_assert(sizeof(RowStats) == 2 * sizeof(float));
  return reinterpret_cast<RowStats*>(Data(stats));
}

// x W^T without a bias: x [rows, in], W [out, in]. With `bf16` both are rounded for the product,
// and so is what comes out; the result is fp32 in either case, here and below.
at::Tensor Product(const at::Tensor& x, const at::Tensor& weight, bool bf16 = false);
// dy W: the gradient of Product's x.
at::Tensor ProductBackward(const at::Tensor& dy, const at::Tensor& weight, bool bf16 = false);

// Where the gradient of a leaf is collected: its .grad (made when it has none), or an undefined
// tensor when the leaf does not want one.
at::Tensor GradientOf(const at::Tensor& leaf);
float* GradientData(const at::Tensor& leaf);  // null when the leaf does not want one
// .grad of W += dy^T x.
void AddWeightGradient(const at::Tensor& weight, const at::Tensor& dy, const at::Tensor& x,
                       bool bf16 = false);
// .grad of b += column sums of dy.
void AddBiasGradient(const at::Tensor& bias, const at::Tensor& dy);

inline NormGradients NormGradientsOf(const at::Tensor& weight, const at::Tensor& bias) {
  return {GradientData(weight), GradientData(bias)};
}

// a += bias; silu(a).
at::Tensor BiasSilu(const at::Tensor& a, const at::Tensor& bias);
// gradient: d silu(a) in, d a out. `d_bias` [width] (undefined: nobody asks) gets its column sums
// added.
void SiluBackward(const at::Tensor& a, const at::Tensor& gradient, const at::Tensor& d_bias);

// A layer norm's affine leaves; undefined ones stand for 1 and 0.
struct NormLeaves {
  at::Tensor weight, bias;
  double epsilon = 0;
};
// Modulation y W^T [rows, 2 or 3 times the width] without its bias: shift, scale (, gate).
struct ModulationRows {
  at::Tensor rows, bias;
};
// norm(x) (1 + scale) + shift; makes `stats`.
at::Tensor ModulatedNorm(const at::Tensor& x, const NormLeaves& norm,
                         const ModulationRows& modulation, at::Tensor& stats);
// residual + (d norm / dx)^T dy; `residual` may be undefined. Writes the shift and scale columns of
// d_modulation, adds to the .grad of the leaves.
at::Tensor ModulatedNormBackward(const at::Tensor& x, const at::Tensor& stats,
                                 const NormLeaves& norm, const ModulationRows& modulation,
                                 const at::Tensor& dy, const at::Tensor& residual,
                                 const at::Tensor& d_modulation);
// x + gate (branch + branch_bias).
at::Tensor GatedResidual(const at::Tensor& x, const at::Tensor& branch,
                         const at::Tensor& branch_bias, const ModulationRows& modulation);
// d branch, given d out; writes the gate columns of d_modulation. d x is d out itself.
at::Tensor GatedResidualBackward(const at::Tensor& branch, const at::Tensor& branch_bias,
                                 const ModulationRows& modulation, const at::Tensor& d_out,
                                 const at::Tensor& d_modulation);

// [rows of x]: of_time + (of_condition + bias), rows of either repeated as often as they fit.
at::Tensor AddRepeated(const at::Tensor& of_time, const at::Tensor& of_condition,
                       const at::Tensor& bias, std::int64_t rows);

}  // namespace dd2
