#pragma once

#include "worker/distill/score_kernel.h"
#include "worker/torch.h"

namespace dd2 {

// Tensors: x [m, B, n, C], t [m, B, n, 1], logp [B, n, V] shared by the m draws, codebook [V, C].
// mu [m, B, n, C]. Differentiable with respect to x through the analytic product of score_kernel.h
// (a custom function: no autograd through the softmax); everything else is a constant.
at::Tensor TeacherPosteriorMean(const at::Tensor& x, const at::Tensor& t, const at::Tensor& logp,
                                const at::Tensor& codebook);
// J^T u of the same, u like x: what that product multiplies by.
at::Tensor TeacherPosteriorVjp(const at::Tensor& x, const at::Tensor& t, const at::Tensor& logp,
                               const at::Tensor& codebook, const at::Tensor& u);

}  // namespace dd2
