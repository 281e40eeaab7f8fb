#pragma once

#include <cstdint>

namespace dd2 {

// The element-wise work between the matrix products of the networks, forward and backward, each in
// one pass over its rows. Raw fp32 pointers, no LibTorch. Every row (and every sum over rows) is
// computed in an order of its own that depends on neither vector width nor other rows, so the bits
// are the same on every CPU. Outputs may alias inputs only where it is said. Any thread.
struct RowShape {
  std::int64_t rows = 0;
  std::int64_t width = 0;
};

// Layer norm's affine part; null pointers stand for 1 and 0.
struct NormAffine {
  const float* weight = nullptr;  // [width]
  const float* bias = nullptr;
  float epsilon = 0;
};

struct RowStats {
  float mean = 0;
  float inverse_deviation = 0;  // 1 / sqrt(variance + epsilon)
};

// Where the gradients of an affine or bias go (added to); null: nobody asks for them.
struct NormGradients {
  float* weight = nullptr;
  float* bias = nullptr;
};

// sum = x + (branch + branch_bias); y = norm(sum). Without a branch y = norm(x) and `sum` is not
// written. `sum` may be `x` or `branch`.
struct Residual {
  const float* x = nullptr;
  const float* branch = nullptr;
  const float* branch_bias = nullptr;
  float* sum = nullptr;
};
void ResidualNorm(const RowShape& shape, const Residual& residual, const NormAffine& norm, float* y,
                  RowStats* stats);
// dx = residual + (d norm / dx)^T dy; `residual` may be null, dx may be dy or residual.
void NormBackward(const RowShape& shape, const float* x, const RowStats* stats,
                  const NormAffine& norm, const float* dy, const float* residual, float* dx,
                  const NormGradients& gradients);

// Rows of modulation y W^T without its bias: shift, scale and (in a block) gate, `stride` apart.
struct Modulation {
  const float* rows = nullptr;  // [rows, stride]
  const float* bias = nullptr;  // [stride]
  std::int64_t stride = 0;      // 2 or 3 times the width
};
// y = norm(x) (1 + scale) + shift.
void ModulatedNorm(const RowShape& shape, const float* x, const NormAffine& norm,
                   const Modulation& modulation, float* y, RowStats* stats);
// As NormBackward; writes the shift and scale columns of d_modulation [rows, stride].
void ModulatedNormBackward(const RowShape& shape, const float* x, const RowStats* stats,
                           const NormAffine& norm, const Modulation& modulation, const float* dy,
                           const float* residual, float* dx, float* d_modulation,
                           const NormGradients& gradients);
// out = x + gate (branch + branch_bias).
void GatedResidual(const RowShape& shape, const float* x, const float* branch,
                   const float* branch_bias, const Modulation& modulation, float* out);
// Given d out: writes d_branch and the gate columns of d_modulation. d x is d out itself.
void GatedResidualBackward(const RowShape& shape, const float* branch, const float* branch_bias,
                           const Modulation& modulation, const float* d_out, float* d_branch,
                           float* d_modulation);

// a += bias; y = gelu(a), the exact form x Phi(x), or silu(a) = x sigmoid(x).
void BiasGelu(const RowShape& shape, float* a, const float* bias, float* y);
void BiasSilu(const RowShape& shape, float* a, const float* bias, float* y);
// gradient: d y in, d a out; d_bias (may be null) gets its column sums added.
void GeluBackward(const RowShape& shape, const float* a, float* gradient, float* d_bias);
void SiluBackward(const RowShape& shape, const float* a, float* gradient, float* d_bias);

// out[j] += sum_i x[i * stride + j], rows in order.
void AddColumnSums(const RowShape& shape, const float* x, float* out);

}  // namespace dd2
