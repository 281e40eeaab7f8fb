#pragma once

#include "worker/kernels/device_api.h"

namespace dd2 {

// The table `base` with groups that move data between threads of this process, each of which is a
// rank. All-gather and all-to-all only. As on GPUs whose peer is gone, an exchange that somebody
// does not join never ends, and nobody is told.
Dd2DeviceApi WithThreadGroups(const Dd2DeviceApi& base);

}  // namespace dd2
