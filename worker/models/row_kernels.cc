#include "worker/models/row_kernels.h"

#include <cmath>
#include <vector>

#include "worker/models/simd.h"

namespace dd2 {
namespace {

// Phi(x), the normal distribution function, and x's density: erf by Abramowitz and Stegun 7.1.26,
// absolute error < 1.5e-7.
struct Normal {
  float distribution;
  float density;
};

[[gnu::always_inline]] inline Normal NormalAt(float x) {
  constexpr float kInverseRoot2 = 0.70710678118654752F;
  constexpr float kInverseRoot2Pi = 0.39894228040143268F;
  const float z = x * kInverseRoot2;
  const float magnitude = z < 0 ? -z : z;
  const float t = 1.0F / (1.0F + 0.3275911F * magnitude);
  float p = 1.061405429F * t - 1.453152027F;
  p = p * t + 1.421413741F;
  p = p * t - 0.284496736F;
  p = p * t + 0.254829592F;
  const float e = ExpClamped(-(z * z));
  const float tail = 0.5F * (p * t * e);  // Phi(-|x|)
  return {.distribution = x < 0 ? tail : 1.0F - tail, .density = kInverseRoot2Pi * e};
}

[[gnu::always_inline]] inline RowStats StatsOf(const float* x, std::int64_t width, float epsilon) {
  const float inverse_width = 1.0F / static_cast<float>(width);
  const float mean =
      LaneSum(width, [x](std::int64_t i, std::int64_t n) { return LoadLanes(x + i, n); }) *
      inverse_width;
  // The lanes behind a row's end hold zeros: their squares about the mean are taken off again.
  const auto beyond = static_cast<float>((kLanes - width % kLanes) % kLanes);
  const float squares = LaneSum(width, [x, mean](std::int64_t i, std::int64_t n) {
    const Lanes centred = LoadLanes(x + i, n) - mean;
    return centred * centred;
  });
  const float variance = (squares - beyond * (mean * mean)) * inverse_width;
  return {.mean = mean, .inverse_deviation = 1.0F / std::sqrt(variance + epsilon)};
}

// Affine parts as arrays, so that the loops have no branch: 1 and 0 where there is none.
struct Affine {
  Affine(const NormAffine& norm, std::int64_t width)
      : ones(norm.weight == nullptr ? width : 0, 1.0F),
        zeros(norm.bias == nullptr ? width : 0, 0.0F),
        weight(norm.weight == nullptr ? ones.data() : norm.weight),
        bias(norm.bias == nullptr ? zeros.data() : norm.bias) {}

  const std::vector<float> ones, zeros;
  const float* const weight;
  const float* const bias;
};

// dx = residual + inverse_deviation (g - mean(g) - xhat mean(g xhat)).
[[gnu::always_inline]] inline void NormRowBackward(std::int64_t width, const float* x,
                                                   const RowStats& stats, const float* g,
                                                   const float* residual, float* dx) {
  const float mean = stats.mean, inverse = stats.inverse_deviation;
  const float inverse_width = 1.0F / static_cast<float>(width);
  const float g_mean =
      LaneSum(width, [g](std::int64_t i, std::int64_t n) { return LoadLanes(g + i, n); }) *
      inverse_width;
  const float g_along =
      LaneSum(width,
              [=](std::int64_t i, std::int64_t n) {
                return LoadLanes(g + i, n) * ((LoadLanes(x + i, n) - mean) * inverse);
              }) *
      inverse_width;
  if (residual == nullptr) {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < width; ++i) {
      dx[i] = inverse * (g[i] - g_mean - (x[i] - mean) * inverse * g_along);
    }
    return;
  }
#pragma GCC ivdep
  for (std::int64_t i = 0; i < width; ++i) {
    dx[i] = residual[i] + inverse * (g[i] - g_mean - (x[i] - mean) * inverse * g_along);
  }
}

void AddTo(const std::vector<float>& sums, float* out) {
  if (out == nullptr) return;
  for (std::size_t i = 0; i < sums.size(); ++i) out[i] += sums[i];
}

template <class Function>
[[gnu::always_inline]] inline void BiasActivation(const RowShape& shape, float* a,
                                                  const float* bias, float* y, Function function) {
  for (std::int64_t row = 0; row < shape.rows; ++row) {
    float* in = a + row * shape.width;
    float* out = y + row * shape.width;
#pragma GCC ivdep
    for (std::int64_t i = 0; i < shape.width; ++i) {
      const float x = in[i] + bias[i];
      in[i] = x;
      out[i] = function(x);
    }
  }
}

template <class Slope>
[[gnu::always_inline]] inline void ActivationBackward(const RowShape& shape, const float* a,
                                                      float* gradient, float* d_bias, Slope slope) {
  std::vector<float> sums(shape.width);
  float* sum = sums.data();
  for (std::int64_t row = 0; row < shape.rows; ++row) {
    const float* in = a + row * shape.width;
    float* g = gradient + row * shape.width;
#pragma GCC ivdep
    for (std::int64_t i = 0; i < shape.width; ++i) {
      g[i] *= slope(in[i]);
      sum[i] += g[i];
    }
  }
  AddTo(sums, d_bias);
}

}  // namespace

DD2_SIMD_CLONES
void ResidualNorm(const RowShape& shape, const Residual& residual, const NormAffine& norm, float* y,
                  RowStats* stats) {
  const std::int64_t width = shape.width;
  const Affine affine(norm, width);
  const float* weight = affine.weight;
  const float* bias = affine.bias;
  for (std::int64_t row = 0; row < shape.rows; ++row) {
    const float* x = residual.x + row * width;
    if (residual.branch != nullptr) {
      const float* branch = residual.branch + row * width;
      const float* branch_bias = residual.branch_bias;
      float* sum = residual.sum + row * width;
#pragma GCC ivdep
      for (std::int64_t i = 0; i < width; ++i) sum[i] = x[i] + (branch[i] + branch_bias[i]);
      x = sum;
    }
    const RowStats at = StatsOf(x, width, norm.epsilon);
    stats[row] = at;
    float* out = y + row * width;
#pragma GCC ivdep
    for (std::int64_t i = 0; i < width; ++i) {
      out[i] = (x[i] - at.mean) * at.inverse_deviation * weight[i] + bias[i];
    }
  }
}

DD2_SIMD_CLONES
void NormBackward(const RowShape& shape, const float* x, const RowStats* stats,
                  const NormAffine& norm, const float* dy, const float* residual, float* dx,
                  const NormGradients& gradients) {
  const std::int64_t width = shape.width;
  const Affine affine(norm, width);
  const float* weight = affine.weight;
  std::vector<float> d_weight(width), d_bias(width), scratch(width);
  float* dw = d_weight.data();
  float* db = d_bias.data();
  float* g = scratch.data();
  for (std::int64_t row = 0; row < shape.rows; ++row) {
    const float* x_row = x + row * width;
    const float* dy_row = dy + row * width;
    const RowStats at = stats[row];
#pragma GCC ivdep
    for (std::int64_t i = 0; i < width; ++i) {
      dw[i] += dy_row[i] * ((x_row[i] - at.mean) * at.inverse_deviation);
      db[i] += dy_row[i];
      g[i] = dy_row[i] * weight[i];
    }
    NormRowBackward(width, x_row, at, g, residual == nullptr ? nullptr : residual + row * width,
                    dx + row * width);
  }
  AddTo(d_weight, gradients.weight);
  AddTo(d_bias, gradients.bias);
}

DD2_SIMD_CLONES
void ModulatedNorm(const RowShape& shape, const float* x, const NormAffine& norm,
                   const Modulation& modulation, float* y, RowStats* stats) {
  const std::int64_t width = shape.width;
  const Affine affine(norm, width);
  const float* weight = affine.weight;
  const float* bias = affine.bias;
  const float* shift_bias = modulation.bias;
  const float* scale_bias = modulation.bias + width;
  for (std::int64_t row = 0; row < shape.rows; ++row) {
    const float* in = x + row * width;
    const RowStats at = StatsOf(in, width, norm.epsilon);
    stats[row] = at;
    const float* shift = modulation.rows + row * modulation.stride;
    const float* scale = shift + width;
    float* out = y + row * width;
#pragma GCC ivdep
    for (std::int64_t i = 0; i < width; ++i) {
      const float normed = (in[i] - at.mean) * at.inverse_deviation * weight[i] + bias[i];
      out[i] = normed * (1.0F + (scale[i] + scale_bias[i])) + (shift[i] + shift_bias[i]);
    }
  }
}

DD2_SIMD_CLONES
void ModulatedNormBackward(const RowShape& shape, const float* x, const RowStats* stats,
                           const NormAffine& norm, const Modulation& modulation, const float* dy,
                           const float* residual, float* dx, float* d_modulation,
                           const NormGradients& gradients) {
  const std::int64_t width = shape.width;
  const Affine affine(norm, width);
  const float* weight = affine.weight;
  const float* bias = affine.bias;
  const float* scale_bias = modulation.bias + width;
  std::vector<float> d_weight(width), d_bias(width), scratch(width);
  float* dw = d_weight.data();
  float* db = d_bias.data();
  float* g = scratch.data();
  for (std::int64_t row = 0; row < shape.rows; ++row) {
    const float* x_row = x + row * width;
    const float* dy_row = dy + row * width;
    const float* scale = modulation.rows + row * modulation.stride + width;
    float* d_shift = d_modulation + row * modulation.stride;
    float* d_scale = d_shift + width;
    const RowStats at = stats[row];
#pragma GCC ivdep
    for (std::int64_t i = 0; i < width; ++i) {
      const float normed = (x_row[i] - at.mean) * at.inverse_deviation;
      const float d_affine = dy_row[i] * (1.0F + (scale[i] + scale_bias[i]));
      d_shift[i] = dy_row[i];
      d_scale[i] = dy_row[i] * (normed * weight[i] + bias[i]);
      dw[i] += d_affine * normed;
      db[i] += d_affine;
      g[i] = d_affine * weight[i];
    }
    NormRowBackward(width, x_row, at, g, residual == nullptr ? nullptr : residual + row * width,
                    dx + row * width);
  }
  AddTo(d_weight, gradients.weight);
  AddTo(d_bias, gradients.bias);
}

DD2_SIMD_CLONES
void GatedResidual(const RowShape& shape, const float* x, const float* branch,
                   const float* branch_bias, const Modulation& modulation, float* out) {
  const std::int64_t width = shape.width;
  const float* gate_bias = modulation.bias + 2 * width;
  for (std::int64_t row = 0; row < shape.rows; ++row) {
    const std::int64_t at = row * width;
    const float* gate = modulation.rows + row * modulation.stride + 2 * width;
#pragma GCC ivdep
    for (std::int64_t i = 0; i < width; ++i) {
      out[at + i] = x[at + i] + (gate[i] + gate_bias[i]) * (branch[at + i] + branch_bias[i]);
    }
  }
}

DD2_SIMD_CLONES
void GatedResidualBackward(const RowShape& shape, const float* branch, const float* branch_bias,
                           const Modulation& modulation, const float* d_out, float* d_branch,
                           float* d_modulation) {
  const std::int64_t width = shape.width;
  const float* gate_bias = modulation.bias + 2 * width;
  for (std::int64_t row = 0; row < shape.rows; ++row) {
    const std::int64_t at = row * width;
    const float* gate = modulation.rows + row * modulation.stride + 2 * width;
    float* d_gate = d_modulation + row * modulation.stride + 2 * width;
#pragma GCC ivdep
    for (std::int64_t i = 0; i < width; ++i) {
      d_gate[i] = d_out[at + i] * (branch[at + i] + branch_bias[i]);
      d_branch[at + i] = d_out[at + i] * (gate[i] + gate_bias[i]);
    }
  }
}

DD2_SIMD_CLONES
void BiasGelu(const RowShape& shape, float* a, const float* bias, float* y) {
  BiasActivation(shape, a, bias, y, [](float x) { return x * NormalAt(x).distribution; });
}

DD2_SIMD_CLONES
void BiasSilu(const RowShape& shape, float* a, const float* bias, float* y) {
  BiasActivation(shape, a, bias, y, [](float x) { return x * Sigmoid(x); });
}

DD2_SIMD_CLONES
void GeluBackward(const RowShape& shape, const float* a, float* gradient, float* d_bias) {
  ActivationBackward(shape, a, gradient, d_bias, [](float x) {
    const Normal normal = NormalAt(x);
    return normal.distribution + x * normal.density;
  });
}

DD2_SIMD_CLONES
void SiluBackward(const RowShape& shape, const float* a, float* gradient, float* d_bias) {
  ActivationBackward(shape, a, gradient, d_bias, [](float x) {
    const float s = Sigmoid(x);
    return s * (1.0F + x * (1.0F - s));
  });
}

DD2_SIMD_CLONES
void AddColumnSums(const RowShape& shape, const float* x, float* out) {
  std::vector<float> sums(shape.width);
  float* sum = sums.data();
  for (std::int64_t row = 0; row < shape.rows; ++row) {
    const float* in = x + row * shape.width;
#pragma GCC ivdep
    for (std::int64_t i = 0; i < shape.width; ++i) sum[i] += in[i];
  }
  AddTo(sums, out);
}

}  // namespace dd2
