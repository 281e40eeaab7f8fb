#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "worker/parallel/update_kernels.h"
#include "worker/torch.h"

namespace dd2 {

// The arithmetic of an exact update on contiguous fp32 tensors on ComputeDevice(): on the CPU that
// of update_kernels.h, on a GPU kernels with the same bits, which are only begun when a call
// returns. A kernel that could not be begun throws c10::Error (CheckKernel).

// out = factor * in, both whole chunks of kParamChunk, `out` may be `in`. Waits for its result: the
// squared norm of each chunk of `out`.
std::vector<double> ScaleAndSquareChunks(const at::Tensor& in, float factor, const at::Tensor& out);

// Elements [begin, end) of the tensors take the step of `factors`.
struct AdamRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  AdamFactors factors;
};
// AdamAndEma of update_kernels.h on each of at most DD2_DEVICE_ADAM_RANGES_MAX ranges, one behind
// the other. `parameter` takes the new values; `ema` undefined: there is none.
void AdamAndEma(std::span<const AdamRange> ranges, const at::Tensor& gradient,
                const at::Tensor& parameter, const at::Tensor& m, const at::Tensor& v,
                const at::Tensor& ema);

}  // namespace dd2
