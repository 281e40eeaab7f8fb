#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "common/result.h"
#include "worker/kernels/device_api.h"

namespace dd2 {

// The Status of a call of the table: kResourceExhausted (memory), kAborted (a group has failed),
// kFailedPrecondition (no driver or GPU), kInvalidArgument, kInternal. DD2_DEVICE_BUSY is the
// caller's to handle.
Status DeviceStatus(const Dd2DeviceApi& api, Dd2DeviceCode code);

// A GPU of this machine, through libdd2_cuda.so, which stays loaded until the process ends (CUDA
// does not like to be unloaded).
class Device {
 public:
  const Dd2DeviceApi& api() const { return *api_; }
  int number() const { return number_; }
  const Dd2DeviceFacts& facts() const { return facts_; }
  // The same in every process that uses this GPU, whatever its number there.
  std::string Id() const;
  // "NVIDIA H100 80GB HBM3 (compute capability 9.0, 79.1 GiB, 132 multiprocessors); driver ..."
  std::string Describe() const;
  // What decides the bits of a result: "gpu=NVIDIA H100 80GB HBM3 runtime=13000".
  std::string Kind() const;

 private:
  friend Result<Device> LoadDevice(const std::filesystem::path& library, int number);
  Device() = default;
  const Dd2DeviceApi* api_ = nullptr;
  int number_ = 0;
  Dd2DeviceFacts facts_{};
};

// Where the library lies: beside this program's own file. $DD2_DEVICE_LIBRARY names another one
// (tests have one whose device is a part of the host's memory).
std::filesystem::path DeviceLibrary();

// Loads the library and takes GPU `number`, which becomes the calling thread's. Only who wants a
// device calls this: it costs some 0.3 s and 300 MB. All errors are kFailedPrecondition and say
// what to do: no such library; one that cannot be loaded; one of another interface version; no
// driver, or too old; no GPU; fewer GPUs than that.
Result<Device> LoadDevice(const std::filesystem::path& library, int number = 0);

}  // namespace dd2
