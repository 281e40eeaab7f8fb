#include "worker/engine/command_frame.h"

#include <algorithm>
#include <cstdio>
#include <exception>

#include "common/exit_codes.h"
#include "common/run_config.h"
#include "worker/kernels/torch_device.h"

namespace dd2 {
namespace {

Status TakeGpu() {
  DD2_TRY_ASSIGN(const Device device, LoadDevice(DeviceLibrary()));
  DD2_TRY(UseTorchDevice(device));
  std::fprintf(stderr, "computes on %s\n", device.Describe().c_str());
  return {};
}

// LibTorch throws; what does not fit a GPU is the one thing to expect.
Status Guarded(const std::function<Status()>& action) {
  try {
    return action();
  } catch (const c10::OutOfMemoryError& problem) {
    return Error(Code::kResourceExhausted,
                 std::string("not enough memory: ") + problem.what_without_backtrace() +
                     " (let nothing else use the GPU, or take --device cpu)");
  } catch (const c10::Error& problem) {
    return Error(Code::kInternal, problem.what_without_backtrace());
  } catch (const std::exception& problem) {
    return Error(Code::kInternal, problem.what());
  }
}

}  // namespace

Status TakeDevice(const Options& options) {
  const std::string name = options.Text(kDeviceOption, std::string(kDeviceCpu));
  if (name == kDeviceCpu) return {};
  if (name != kDeviceCuda) return Usage("--device must be cpu or cuda, not '" + name + "'");
  const Status taken = TakeGpu();
  if (taken) return {};
  return Error(taken.error().code(),
               "--device cuda: " + taken.error().message() + " (--device cpu)");
}

int RunCommand(const std::vector<std::string>& arguments, const char* usage,
               const std::function<Status()>& action) {
  if (std::ranges::find(arguments, "--help") != arguments.end()) {
    std::fputs(usage, stdout);
    return kExitOk;
  }
  const Status status = Guarded(action);
  if (status) return kExitOk;
  std::fprintf(stderr, "dd2: %s\n", status.error().message().c_str());
  return ExitCodeFor(status.error().code());
}

}  // namespace dd2
