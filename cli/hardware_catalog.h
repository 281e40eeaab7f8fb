#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace dd2 {

// What the ranks of a run compute on. Rates are the makers' peaks, dense, in one direction; how
// much of them a run gets is an assumption of the plan (plan.h).
struct Hardware {
  std::string name;
  std::string title;
  bool device = false;            // false: the CPU, in fp32: a rank is a process with its threads
  std::int64_t memory_bytes = 0;  // of one device; CPU: 0
  double matrix_flops = 0;        // matrix products: bf16 with fp32 sums; CPU: fp32, one thread
  double vector_flops = 0;        // all other arithmetic, fp32; CPU: one thread
  double memory_rate = 0;         // bytes a second; CPU: one thread
  double node_rate = 0;           // between ranks of a node, each
  double network_rate = 0;        // to other nodes, each rank
  double host_rate = 0;           // between the rank's tensors and memory of its node
};

std::vector<std::string> HardwareNames();
// kInvalidArgument, with all names: there is none of that name.
Result<Hardware> FindHardware(std::string_view name);

}  // namespace dd2
