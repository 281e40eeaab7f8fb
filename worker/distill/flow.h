#pragma once

#include "worker/torch.h"

namespace dd2 {

// A deterministic draw of one token a row, as in DD1 (method 6.5): x starts at `noise` [B, C] at
// t = 1 and follows the probability-flow ODE dx/dt = velocity of Eq. 1 (score.h) by `steps` Heun
// steps, equal in t, down to t = 0.02, where the posterior mean is next to one code; the nearest
// possible code is taken. logits [B, V] are filtered and guided, -inf = impossible. -> [B] int64.
// Over N(0, I) noise the tokens follow softmax(logits), up to the error of the solver.
at::Tensor FlowTokens(const at::Tensor& noise, const at::Tensor& logits, const at::Tensor& codebook,
                      int steps);

}  // namespace dd2
