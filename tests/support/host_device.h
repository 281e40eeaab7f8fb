#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "worker/kernels/device_api.h"

namespace dd2 {

// A table of device_api.h whose device is the host: memory is the heap, the kernels' sources run on
// the CPU (cuda_on_host), streams are queues, groups are a word of state that the test sets. There
// is one for the whole process; Reset() makes it new. One thread.
struct HostDevice {
  bool held = false;  // streams do nothing until Run() or until somebody waits for one
  // The next call of the function of this name fails like that, once.
  std::map<std::string, Dd2DeviceCode> failures;
  Dd2DeviceCode group_state = DD2_DEVICE_OK;  // what the next calls of group_state answer
  int busy_polls = 0;                         // before that, so many times BUSY
  int allocations = 0, streams = 0, events = 0, groups = 0;  // alive
  std::vector<std::string> calls;                            // of groups, in order

  // Does what the streams have been given.
  void Run();
};

HostDevice& TheHostDevice();
const Dd2DeviceApi& HostDeviceApi();
void ResetHostDevice();

}  // namespace dd2
