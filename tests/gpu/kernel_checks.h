#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "worker/kernels/device_api.h"

namespace dd2 {

// One comparison of a kernel's output with fp64 (or of bits) on the CPU.
struct KernelCheck {
  std::string name;
  double error = 0;
  double limit = 0;  // 0: the bits must be equal, `error` counts those elements that are not
  bool ok() const { return error <= limit; }
};

// Runs every kernel of `api` on random input, twice, and compares the second run with fp64 and with
// the bits of the first ("same bits twice"). `large`: the sizes of VAR and LlamaGen, else some
// small and awkward ones.
std::vector<KernelCheck> CheckKernels(const Dd2DeviceApi& api, bool large);

}  // namespace dd2
