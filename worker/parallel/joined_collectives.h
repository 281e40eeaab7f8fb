#pragma once

#include <chrono>
#include <memory>

#include "common/result.h"
#include "worker/kernels/device_api.h"
#include "worker/parallel/collectives.h"
#include "worker/parallel/generation_collectives.h"

namespace dd2 {

// Joins the GPUs of the ranks that `host` connects into one group (NCCL), for Collectives::devices
// of the result; records in host memory keep going through `host`. Blocks until all ranks are
// there; all call it. The group's id travels over `host`, so that it needs no store.
//
// Whatever fails on one side ends the other too, so that no rank goes on alone: the peers'
// exchanges in host memory end with ours, those on devices with the peers' time-out or when Abort
// is called. kDeadlineExceeded: a rank did not come or was silent for `timeout`; kAborted: a peer
// or the network has failed, or `abort` was called; of the device: as DeviceStatus. `api` outlives
// it all.
Result<std::unique_ptr<Collectives>> JoinDevices(std::unique_ptr<Collectives> host,
                                                 const Dd2DeviceApi& api,
                                                 std::chrono::milliseconds timeout,
                                                 ConnectAbort& abort);

}  // namespace dd2
