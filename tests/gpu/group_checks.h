#pragma once

#include "common/result.h"
#include "worker/kernels/device_api.h"

namespace dd2 {

// A group of `ranks` GPUs of this machine, each in a thread of its own, for a generation: the
// numbers that each exchange gives, then its end while rank 0 waits for one that nobody else joins
// (alone: between two exchanges). Afterwards another one can be formed. The error of the first rank
// that found something wrong.
Status CheckGroup(const Dd2DeviceApi& api, int ranks, int generation);

}  // namespace dd2
