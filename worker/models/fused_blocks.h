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

// What attention takes, each [B, heads, l, d / heads].
struct QueriesKeysValues {
  at::Tensor q, k, v;
};
// Of qkv [B, l, 3, heads, d / heads], as one linear layer gives it: queries and keys of length 1,
// the queries times the temperature [1, heads, 1, 1] of their head. On a device of the type of qkv.
QueriesKeysValues UnitLength(const at::Tensor& qkv, const at::Tensor& temperature);
// The parts of qkv as they are.
QueriesKeysValues Split(const at::Tensor& qkv);

}  // namespace dd2
