#include "worker/distill/losses.h"

#include "common/check.h"
#include "worker/distill/score.h"

namespace dd2 {
namespace {

// x_t = (1 - t) q + t noise: q [B, n, C], t [m, B, n, 1], noise [m, B, n, C].
at::Tensor Noised(const at::Tensor& q, const at::Tensor& t, const at::Tensor& noise) {
  return at::addcmul(q * (1 - t), t, noise);
}

// The weight of SiD's loss: per sample and draw, [m, B, 1, 1].
constexpr double kWeightFloor = 1e-3;

}  // namespace

at::Tensor GtsLoss(const Network& network, const at::Tensor& q, const at::Tensor& labels,
                   const at::Tensor& logp, const at::Tensor& codebook, const at::Tensor& t,
                   const at::Tensor& noise, Reaches reaches) {
  at::Tensor x;
  at::Tensor target;
  {
    const at::NoGradGuard no_grad;
    x = Noised(q, t, noise);
    target = (x - TeacherPosteriorMean(x, t, logp, codebook)).div_(t);
  }
  at::Tensor features;
  {
    const at::AutoGradMode through_backbone(at::GradMode::is_enabled() && reaches == Reaches::kAll);
    features = network.Features(q, labels);
  }
  return at::mse_loss(network.Velocity(x, t, features), target);
}

at::Tensor FcsLoss(const Network& guidance, const at::Tensor& q, const at::Tensor& labels,
                   const at::Tensor& t, const at::Tensor& noise) {
  const at::Tensor clean = q.detach();
  at::Tensor x;
  at::Tensor target;
  {
    const at::NoGradGuard no_grad;
    x = Noised(clean, t, noise);
    target = noise - clean;
  }
  return at::mse_loss(guidance.Velocity(x, t, guidance.Features(clean, labels)), target);
}

CsdLossResult CsdLoss(const Network& guidance, const at::Tensor& q, const at::Tensor& features,
                      const at::Tensor& logp, const at::Tensor& codebook, const at::Tensor& t,
                      const at::Tensor& noise, double alpha) {
  DD2_CHECK(!guidance.params().requires_grad());
  const at::Tensor clean = q.detach();
  at::Tensor x = Noised(clean, t, noise).detach().requires_grad_(true);
  at::Tensor velocity;
  {
    const at::AutoGradMode with_grad(true);
    velocity = guidance.Velocity(x, t, features.detach());
  }

  const at::NoGradGuard no_grad;
  const at::Tensor plain_x = x.detach();
  const at::Tensor mu_teacher = TeacherPosteriorMean(plain_x, t, logp, codebook);
  const at::Tensor mu_guidance = plain_x - t * velocity.detach();
  const at::Tensor delta = mu_teacher - mu_guidance;
  const at::Tensor error = mu_teacher - clean;
  const at::Tensor u = error - alpha * delta;
  const at::Tensor weight =
      error.abs().mean({2, 3}, /*keepdim=*/true).clamp_min_(kWeightFloor).reciprocal_();
  // Mean over draws, samples and tokens; sum over channels.
  const std::int64_t rows = delta.numel() / delta.size(-1);
  const at::Tensor scale = weight / rows;

  // L = scale delta . u with delta = mu_T - mu_G, u = (mu_T - q) - alpha delta (method 5.1).
  const at::Tensor to_teacher = scale * (u + (1 - alpha) * delta);
  const at::Tensor to_guidance = scale * (alpha * delta - u);
  at::Tensor to_x = TeacherPosteriorVjp(plain_x, t.contiguous(), logp.contiguous(),
                                        codebook.contiguous(), to_teacher.contiguous());
  {
    // mu_G = x - t v(x): through the head's input only.
    const at::AutoGradMode with_grad(true);
    const torch::autograd::variable_list through_head =
        torch::autograd::grad({velocity}, {x}, {(-t * to_guidance).contiguous()});
    to_x.add_(to_guidance).add_(through_head.at(0).detach());
  }
  CsdLossResult result;
  result.gradient = ((1 - t) * to_x - scale * delta).sum(0);
  result.loss = (scale * delta * u).sum().item<double>();
  result.mean_difference = delta.square().mean().item<double>();
  return result;
}

}  // namespace dd2
