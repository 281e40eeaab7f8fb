#include "worker/kernels/device.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <system_error>

namespace dd2 {
namespace {

Error NoDevice(const std::string& message) { return Error(Code::kFailedPrecondition, message); }

std::string Version(std::int32_t version, std::int32_t major, std::int32_t minor) {
  return std::to_string(version / major) + "." + std::to_string(version % major / minor);
}

Result<const Dd2DeviceApi*> LoadApi(const std::filesystem::path& library) {
  std::error_code ignored;
  if (!std::filesystem::exists(library, ignored)) {
    return NoDevice("there is no " + library.string() +
                    ": this build has no CUDA part. Build where nvcc and NCCL are "
                    "(docs/BUILDING.md), or run on the CPU");
  }
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    return NoDevice("cannot load " + library.string() + ": " + dlerror() +
                    ". CUDA 13's runtime and NCCL come with the wheels nvidia-cuda-runtime and "
                    "nvidia-nccl-cu13: put their lib folders into LD_LIBRARY_PATH");
  }
  // A function pointer comes as an object pointer; POSIX promises that this works.
  const auto get = reinterpret_cast<const Dd2DeviceApi* (*)()>(dlsym(handle, "dd2_device_api"));
  if (get == nullptr) {
    return NoDevice(library.string() + " has no dd2_device_api: it is another library");
  }
  const Dd2DeviceApi* api = get();
  if (api->version != DD2_DEVICE_API_VERSION || api->size != sizeof(Dd2DeviceApi)) {
    return NoDevice(library.string() + " has version " + std::to_string(api->version) +
                    " of the device interface (" + std::to_string(api->size) +
                    " bytes), this program has version " + std::to_string(DD2_DEVICE_API_VERSION) +
                    " (" + std::to_string(sizeof(Dd2DeviceApi)) +
                    " bytes): build both from the same sources");
  }
  return api;
}

}  // namespace

Status DeviceStatus(const Dd2DeviceApi& api, Dd2DeviceCode code) {
  switch (code) {
    case DD2_DEVICE_OK: return {};
    case DD2_DEVICE_NO_DRIVER:
    case DD2_DEVICE_NO_GPU: return NoDevice(api.last_error());
    case DD2_DEVICE_OUT_OF_MEMORY: return Error(Code::kResourceExhausted, api.last_error());
    case DD2_DEVICE_BAD_ARGUMENT: return Error(Code::kInvalidArgument, api.last_error());
    case DD2_DEVICE_GROUP_FAILED: return Error(Code::kAborted, api.last_error());
    default: return Error(Code::kInternal, api.last_error());
  }
}

std::string Device::Id() const {
  std::string text;
  for (const std::uint8_t byte : facts_.id) {
    char digits[3];
    std::snprintf(digits, sizeof(digits), "%02x", byte);
    text += digits;
  }
  return text;
}

std::string Device::Describe() const {
  char text[512];
  std::snprintf(text, sizeof(text),
                "%s (compute capability %d.%d, %.1f GiB, %d multiprocessors); driver for CUDA %s, "
                "runtime %s, NCCL %s.%d",
                facts_.name, facts_.capability_major, facts_.capability_minor,
                static_cast<double>(facts_.memory_bytes) / (1 << 30), facts_.multiprocessors,
                Version(facts_.driver_version, 1000, 10).c_str(),
                Version(facts_.runtime_version, 1000, 10).c_str(),
                Version(facts_.nccl_version, 10000, 100).c_str(), facts_.nccl_version % 100);
  return text;
}

std::string Device::Kind() const {
  return std::string("gpu=") + facts_.name + " runtime=" + std::to_string(facts_.runtime_version);
}

std::filesystem::path DeviceLibrary() {
  if (const char* other = std::getenv("DD2_DEVICE_LIBRARY")) return other;
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  return self.parent_path() / "libdd2_cuda.so";
}

Result<Device> LoadDevice(const std::filesystem::path& library, int number) {
  DD2_TRY_ASSIGN(const Dd2DeviceApi* api, LoadApi(library));
  std::int32_t count = 0;
  const Dd2DeviceCode code = api->count(&count);
  if (code == DD2_DEVICE_NO_DRIVER) {
    return NoDevice(std::string("no NVIDIA driver here, or one that is too old for CUDA 13 (") +
                    api->last_error() + "): install driver 580 or newer, or run on the CPU");
  }
  if (code == DD2_DEVICE_NO_GPU || (code == DD2_DEVICE_OK && count == 0)) {
    return NoDevice(
        "there is a driver but no GPU that this process may use: look at nvidia-smi and at "
        "CUDA_VISIBLE_DEVICES, or run on the CPU");
  }
  if (code != DD2_DEVICE_OK) return NoDevice(std::string("CUDA: ") + api->last_error());
  if (number < 0 || number >= count) {
    return NoDevice("there is no GPU " + std::to_string(number) + ": this machine shows " +
                    std::to_string(count) +
                    ", counted from 0 (CUDA_VISIBLE_DEVICES, --gpus-per-node)");
  }
  Device device;
  device.api_ = api;
  device.number_ = number;
  DD2_TRY(DeviceStatus(*api, api->use(number)));
  DD2_TRY(DeviceStatus(*api, api->facts(number, &device.facts_)));
  return device;
}

}  // namespace dd2
