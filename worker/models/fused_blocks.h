#pragma once

#include "worker/torch.h"

namespace dd2 {

// What VAR's blocks compute between their matrix products, with autograd: LibTorch's operators on
// the CPU; one kernel forwards and one or two backwards on a device. x [B, l, d] fp32 is the
// residual stream; shift, scale and gate [B, 1, d] are a sequence's (on a device fp32, elements of
// a row one behind the other). Bits of a sequence do not depend on those beside it.

// The input of a branch, and the stream as it goes on beside it: whoever adds to the stream takes
// it from here, so that the gradient of both is made in one pass.
struct Branched {
  at::Tensor input;   // norm(x) (1 + scale) + shift: fp32, or bf16 on a device under autocast
  at::Tensor stream;  // x
};
Branched AdaptiveNorm(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& shift);

// stream + branch gate: branch [B, l, d] in fp32 or bf16.
at::Tensor AddGated(const at::Tensor& stream, const at::Tensor& branch, const at::Tensor& gate);

}  // namespace dd2
