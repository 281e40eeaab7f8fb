// Blocks in bf16 on the far device (worker/models/recompute.h): LibTorch's own lists of what a GPU
// computes in bf16 and what in fp32.

#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "worker/torch.h"

using namespace at;  // LibTorch's lists name its types without it

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

#define DD2_LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define DD2_FP32(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define DD2_FP32_SUM(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  AT_FORALL_LOWER_PRECISION_FP(DD2_LOWER)
  AT_FORALL_FP32(DD2_FP32)
  AT_FORALL_FP32_SET_OPT_DTYPE(DD2_FP32_SUM)
  AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE(KERNEL_DIFFERENT_REDISPATCH_SIGNATURE_PRIVATEUSEONE)
}
