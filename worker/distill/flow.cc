#include "worker/distill/flow.h"

#include <limits>

#include "common/check.h"
#include "worker/distill/score.h"

namespace dd2 {
namespace {

constexpr double kEnd = 0.02;  // of the flow: the posterior has settled on a code long before

// Posterior mean of x [B, C] at time t, in the shapes of TeacherPosteriorMean with one draw and one
// token.
at::Tensor MeanAt(const at::Tensor& x, double t, const at::Tensor& logp,
                  const at::Tensor& codebook) {
  const at::Tensor times = at::full({1, x.size(0), 1, 1}, t, x.options());
  return TeacherPosteriorMean(x.view({1, x.size(0), 1, x.size(1)}), times, logp, codebook)
      .view_as(x);
}

}  // namespace

at::Tensor FlowTokens(const at::Tensor& noise, const at::Tensor& logits, const at::Tensor& codebook,
                      int steps) {
  DD2_CHECK(steps > 0 && noise.dim() == 2 && noise.size(0) == logits.size(0));
  const at::NoGradGuard no_grad;
  const at::Tensor logp = logits.unsqueeze(1);  // [B, 1, V]
  const double step = (1.0 - kEnd) / steps;
  at::Tensor x = noise.contiguous();
  for (int i = 0; i < steps; ++i) {
    const double from = 1.0 - i * step;
    const double to = i + 1 == steps ? kEnd : from - step;
    const at::Tensor slope = (x - MeanAt(x, from, logp, codebook)) / from;
    const at::Tensor euler = x + slope * (to - from);
    const at::Tensor next_slope = (euler - MeanAt(euler, to, logp, codebook)) / to;
    x = x + (slope + next_slope) * ((to - from) / 2);
  }
  const at::Tensor mean = MeanAt(x, kEnd, logp, codebook);
  const at::Tensor distance = codebook.square().sum(1) - mean.matmul(codebook.t()) * 2;
  return distance
      .masked_fill(logits == -std::numeric_limits<float>::infinity(),
                   std::numeric_limits<float>::infinity())
      .argmin(1);
}

}  // namespace dd2
