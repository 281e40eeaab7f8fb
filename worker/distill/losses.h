#pragma once

#include <cstdint>

#include "worker/models/networks.h"
#include "worker/torch.h"

namespace dd2 {

// The losses of one shard (micro-batch) of B sequences. Shapes as in networks.h: q [B, n, C],
// labels [B], t [m, B, n, 1], noise [m, B, n, C], logp [B, n, V] (unnormalised, filtered, guided).
// Every loss is a mean over the shard, so that the mean over equal shards is the loss of the batch.

// Which parameters a loss reaches.
enum class Reaches : std::uint8_t { kAll, kHead };

// GTS, Eq. 6 in velocity form: mean (v_psi(x_t, t | q_<i) - (x_t - mu_Phi)/t)^2 over m, B, n, C.
at::Tensor GtsLoss(const Network& network, const at::Tensor& q, const at::Tensor& labels,
                   const at::Tensor& logp, const at::Tensor& codebook, const at::Tensor& t,
                   const at::Tensor& noise, Reaches reaches = Reaches::kAll);

// FCS, Eq. 5 in velocity form: mean (v_psi(x_t, t | q_<i) - (noise - q))^2; q is detached inside.
at::Tensor FcsLoss(const Network& guidance, const at::Tensor& q, const at::Tensor& labels,
                   const at::Tensor& t, const at::Tensor& noise);

// CSD, Eq. 4 with d = SiD in data form (method 5.1), weight w = 1 / max(1e-3, mean |q - mu_Phi|)
// per sample and draw (detached), summed over channels, averaged over m, B, n:
//   L = w (mu_Phi - mu_psi) . ((mu_Phi - q) - alpha (mu_Phi - mu_psi)),   mu_psi = x_t - t v_psi
// Gradients reach q through x_t (both Jacobian terms) and directly; never the prefix, the guidance
// parameters or the teacher.
struct CsdLossResult {
  at::Tensor gradient;         // dL/dq [B, n, C], to be fed to backward of the generator
  double loss = 0;             // expectation ~0 when guidance keeps up: not a progress metric
  double mean_difference = 0;  // mean |mu_Phi - mu_psi|^2: the progress metric ("dmu")
};
// features: guidance backbone features of the detached q [B, n, d]. The guidance network must be
// frozen (its parameters without requires_grad), or its gradients would collect what is not theirs.
CsdLossResult CsdLoss(const Network& guidance, const at::Tensor& q, const at::Tensor& features,
                      const at::Tensor& logp, const at::Tensor& codebook, const at::Tensor& t,
                      const at::Tensor& noise, double alpha);

}  // namespace dd2
