#include "worker/parallel/update_kernels.h"

#include <algorithm>
#include <cmath>

#include "common/check.h"

namespace dd2 {
namespace {

// `out` may be `a` itself: every element depends on its own position only.
void Add(const float* a, const float* b, std::int64_t count, float* out) {
#pragma GCC ivdep
  for (std::int64_t i = 0; i < count; ++i) out[i] = a[i] + b[i];
}

template <bool kWithEma>
void AdamLoop(const AdamFactors f, std::int64_t count, const float* __restrict gradient,
              const float* __restrict parameter, float* __restrict m, float* __restrict v,
              float* __restrict ema, float* __restrict updated) {
  for (std::int64_t i = 0; i < count; ++i) {
    const float g = gradient[i] * f.gradient_scale;
    const float m_new = m[i] + f.one_minus_beta1 * (g - m[i]);
    const float v_new = f.beta2 * v[i] + f.one_minus_beta2 * (g * g);
    const float denominator = std::sqrt(v_new) / f.root_bias_correction2 + f.epsilon;
    const float p = parameter[i] - f.step_size * (m_new / denominator);
    m[i] = m_new;
    v[i] = v_new;
    updated[i] = p;
    if constexpr (kWithEma) ema[i] = f.ema_decay * ema[i] + f.one_minus_ema_decay * p;
  }
}

}  // namespace

TreeSummer::TreeSummer(int levels, std::int64_t block)
    : block_(block), scratch_(static_cast<std::size_t>((levels + 1) * block)) {}

const float* TreeSummer::Sum(const TreeNode& node, std::span<const TreeLeaf> leaves,
                             std::int64_t offset, std::int64_t count) {
  DD2_CHECK(count <= block_);
  return Evaluate(node, leaves, offset, count, scratch_.data(), scratch_.data() + block_);
}

// An inner node leaves its sum in `slot`; what lies from `free` on is for the nodes below it.
const float* TreeSummer::Evaluate(const TreeNode& node, std::span<const TreeLeaf> leaves,
                                  std::int64_t offset, std::int64_t count, float* slot,
                                  float* free) {
  const auto leaf = std::ranges::find(leaves, node, &TreeLeaf::node);
  if (leaf != leaves.end()) return leaf->values + offset;
  DD2_CHECK(node.size > 1);
  const int half = node.size / 2;
  const float* left = Evaluate({node.begin, half}, leaves, offset, count, slot, free);
  const float* right =
      Evaluate({node.begin + half, half}, leaves, offset, count, free, free + block_);
  Add(left, right, count, slot);
  return slot;
}

double ScaleAndSquareSum(const float* in, float factor, std::int64_t count, float* out) {
  constexpr std::int64_t kLanes = 16;
  DD2_CHECK(count % kLanes == 0);
  double sums[kLanes] = {};
  for (std::int64_t i = 0; i < count; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
      const float value = in[i + lane] * factor;
      out[i + lane] = value;
      sums[lane] += static_cast<double>(value) * static_cast<double>(value);
    }
  }
  for (std::int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (std::int64_t lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
  }
  return sums[0];
}

void AdamAndEma(const AdamFactors& factors, std::int64_t count, const float* gradient,
                const float* parameter, float* m, float* v, float* ema, float* updated) {
  if (ema == nullptr) {
    AdamLoop<false>(factors, count, gradient, parameter, m, v, nullptr, updated);
  } else {
    AdamLoop<true>(factors, count, gradient, parameter, m, v, ema, updated);
  }
}

}  // namespace dd2
