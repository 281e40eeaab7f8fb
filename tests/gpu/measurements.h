#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/json.h"
#include "worker/kernels/device_api.h"

namespace dd2 {

// The bandwidth of device memory: a large copy, bytes read and written, in GB/s.
double CopyBandwidth(const Dd2DeviceApi& api);

// Times of the kernels at the sizes of VAR and LlamaGen, each a JSON object: "case" (what and with
// which numbers; tests/gpu/rival.py times PyTorch on the same), "ms" (median), "gb" (bytes that
// must move, each input read and each output written once), "share" (of `bandwidth`: gb / ms
// against a copy).
boost::json::array MeasureKernels(const Dd2DeviceApi& api, double bandwidth);

// Copies of 1 GiB of training state into the host's memory, as a JSON object of milliseconds: 20
// Adam steps alone; beside a copy into pinned memory, as a checkpoint's; that copy alone; one into
// memory that is not pinned; one into memory that was pinned later, as a snapshot's.
boost::json::object MeasureHostCopies(const Dd2DeviceApi& api);

}  // namespace dd2
