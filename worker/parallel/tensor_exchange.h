#pragma once

#include <cstdint>
#include <span>

#include "common/result.h"
#include "worker/parallel/collectives.h"
#include "worker/torch.h"

namespace dd2 {

// The exchanges of Collectives for contiguous fp32 tensors on ComputeDevice(). On a GPU directly
// where the ranks' GPUs are joined (Collectives::devices), else through host memory, which takes
// room for a copy of each side there.

// Counts as in Collectives::AllToAll.
Status AllToAll(Collectives& collectives, const at::Tensor& send,
                std::span<const std::int64_t> send_counts, const at::Tensor& receive,
                std::span<const std::int64_t> receive_counts);
// all [world size * n], mine [n]. On a device `mine` may lie in `all` at this rank's place.
Status AllGather(Collectives& collectives, const at::Tensor& mine, const at::Tensor& all);

}  // namespace dd2
