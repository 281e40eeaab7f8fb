#include "worker/kernels/torch_device.h"

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <optional>

#include "common/check.h"

namespace dd2 {
namespace {

std::optional<Device> process_device;  // set before other threads begin

bool IsCuda(const Device& device) {
  return device.api().torch_type == static_cast<std::int32_t>(at::kCUDA);
}

// It registers itself when it is loaded. Nothing of ours links it, so that a process on the CPU
// needs none of its libraries.
Status LoadTorchCuda() {
  if (dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) != nullptr) return {};
  return Error(
      Code::kFailedPrecondition,
      std::string("cannot load LibTorch's CUDA part: ") + dlerror() +
          ". Its libraries are those of Python's torch for CUDA 13: `scripts/setup --cuda` "
          "installs them (docs/BUILDING.md), or run on the CPU");
}

void MakeDeterministic() {
  at::Context& context = at::globalContext();
  // Without `warn_only`: attention takes its deterministic backward pass under errors alone.
  context.setDeterministicAlgorithms(true, /*warn_only=*/false);
  context.setDeterministicFillUninitializedMemory(false);
  context.setDeterministicCuDNN(true);
  context.setBenchmarkCuDNN(false);
  context.setAllowTF32CuDNN(false);
  context.setAllowTF32CuBLAS(false);
}

// A stream of the calling thread, so that its copies wait for nothing that others have begun.
class CopyStream {
 public:
  explicit CopyStream(const Dd2DeviceApi& api) : api_(api) {}
  ~CopyStream() {
    if (stream_ != nullptr) api_.end_stream(stream_);
  }
  CopyStream(const CopyStream&) = delete;
  CopyStream& operator=(const CopyStream&) = delete;

  Status Copy(void* to, const void* from, std::size_t bytes) {
    if (stream_ == nullptr) {
      DD2_TRY(DeviceStatus(api_, api_.use(process_device->number())));
      DD2_TRY(DeviceStatus(api_, api_.make_stream(&stream_)));
    }
    DD2_TRY(DeviceStatus(api_, api_.copy(to, from, bytes, stream_)));
    return DeviceStatus(api_, api_.wait_stream(stream_));
  }

 private:
  const Dd2DeviceApi& api_;
  Dd2Stream stream_ = nullptr;
};

}  // namespace

Status LoadTorchPart(const Device& device) { return IsCuda(device) ? LoadTorchCuda() : Status(); }

Status UseTorchDevice(const Device& device) {
  DD2_CHECK(!process_device);
  DD2_TRY(LoadTorchPart(device));
  if (IsCuda(device)) {
    if (!at::hasCUDA()) {
      return Error(Code::kFailedPrecondition,
                   "LibTorch's CUDA part was loaded and LibTorch does not see it: libtorch_cuda.so "
                   "and libtorch_cpu.so must be of one PyTorch 2.11 (`scripts/setup --cuda`; look "
                   "at LD_LIBRARY_PATH)");
    }
    setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 0);
  }
  MakeDeterministic();
  process_device = device;
  return {};
}

at::Device ComputeDevice() {
  if (!process_device) return at::kCPU;
  return {static_cast<at::DeviceType>(process_device->api().torch_type),
          static_cast<at::DeviceIndex>(process_device->number())};
}

std::string ComputeKind() { return process_device ? process_device->Kind() : std::string(); }

at::TensorOptions OnDevice(at::ScalarType type) {
  return at::TensorOptions(type).device(ComputeDevice());
}

at::Tensor ToDevice(const at::Tensor& tensor) { return tensor.to(ComputeDevice()); }

const Dd2DeviceApi& DeviceKernels() {
  DD2_CHECK(process_device);
  return process_device->api();
}

void CheckKernel(Dd2DeviceCode code) {
  TORCH_CHECK_WITH(OutOfMemoryError, code != DD2_DEVICE_OUT_OF_MEMORY,
                   DeviceKernels().last_error());
  TORCH_CHECK(code == DD2_DEVICE_OK, DeviceKernels().last_error());
}

Status CopyMemory(void* to, const void* from, std::size_t bytes) {
  if (!process_device) {
    std::memcpy(to, from, bytes);
    return {};
  }
  thread_local CopyStream stream(process_device->api());
  return stream.Copy(to, from, bytes);
}

Status WaitForCompute() {
  if (!process_device) return {};
  return DeviceStatus(DeviceKernels(), DeviceKernels().wait_stream(nullptr));
}

}  // namespace dd2
