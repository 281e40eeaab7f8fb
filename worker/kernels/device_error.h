#pragma once

#include <cuda_runtime.h>

#include <string>

#include "worker/kernels/device_api.h"

namespace dd2 {

// The text of this thread's last failure.
std::string& LastDeviceError();
Dd2DeviceCode DeviceFailure(Dd2DeviceCode code, std::string text);
// What CUDA's answer to `call` means; remembers its text when it is an error.
Dd2DeviceCode FromCuda(cudaError_t error, const char* call);

// nccl_calls.cc: fills in the functions of groups and NCCL's version.
void AddGroupCalls(Dd2DeviceApi& api);
int NcclVersion();

}  // namespace dd2
