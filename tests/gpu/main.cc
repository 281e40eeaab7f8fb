// dd2-gpu-check [--quick] [--json FILE]: whether the device side works on this machine's GPU, and
// how fast. Every kernel against fp64 on the CPU and twice for the same bits; NCCL groups of one
// GPU and, where there are two, of two, with abort and re-creation; times (not with --quick).
// Without a GPU it says why and ends with exit code 4. scripts/gpu-check runs it beside PyTorch.

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>

#include "common/exit_codes.h"
#include "common/version.h"
#include "tests/gpu/device_array.h"
#include "tests/gpu/group_checks.h"
#include "tests/gpu/kernel_checks.h"
#include "tests/gpu/measurements.h"
#include "worker/kernels/device.h"

namespace dd2 {
namespace {

// Groups of one GPU, and of two where the machine has them: in each generation a new one.
bool CheckGroups(const Dd2DeviceApi& api, boost::json::object& report, boost::json::array& checks) {
  std::int32_t devices = 0;
  Must(api, api.count(&devices));
  bool fine = true;
  for (int ranks = 1; ranks <= std::min(devices, 2); ++ranks) {
    for (int generation = 1; generation <= 3; ++generation) {
      const std::string name =
          "NCCL group of " + std::to_string(ranks) + ", generation " + std::to_string(generation);
      const Status status = CheckGroup(api, ranks, generation);
      boost::json::object check{{"name", name}, {"ok", status.has_value()}};
      if (!status) check["error"] = status.error().message();
      std::printf("%-4s %s%s\n", status ? "ok" : "BAD", name.c_str(),
                  status ? "" : (": " + status.error().message()).c_str());
      checks.push_back(std::move(check));
      fine = fine && status;
    }
  }
  report["nccl_group_of_two"] = devices > 1 ? "run" : "one GPU: not run";
  if (devices < 2) std::puts("     NCCL group of two: one GPU: not run");
  return fine;
}

boost::json::object FactsOf(const Device& device) {
  const Dd2DeviceFacts& facts = device.facts();
  return {{"gpu", facts.name},
          {"description", device.Describe()},
          {"capability",
           std::to_string(facts.capability_major) + "." + std::to_string(facts.capability_minor)},
          {"multiprocessors", facts.multiprocessors},
          {"driver", facts.driver_version},
          {"runtime", facts.runtime_version},
          {"nccl", facts.nccl_version},
          {"code_version", CodeVersion()}};
}

// Runs everything; false: something is wrong.
bool Check(const Device& device, bool quick, boost::json::object& report) {
  const Dd2DeviceApi& api = device.api();
  bool fine = true;
  boost::json::array checks;
  for (const KernelCheck& check : CheckKernels(api, true)) {
    checks.push_back(boost::json::object{
        {"name", check.name}, {"error", check.error}, {"limit", check.limit}, {"ok", check.ok()}});
    std::printf("%-4s %s: %.3g (limit %.3g)\n", check.ok() ? "ok" : "BAD", check.name.c_str(),
                check.error, check.limit);
    fine = fine && check.ok();
  }
  fine = CheckGroups(api, report, checks) && fine;
  report["checks"] = std::move(checks);
  if (!quick) {
    const double bandwidth = CopyBandwidth(api);
    report["copy_gb_s"] = bandwidth;
    report["kernels"] = MeasureKernels(api, bandwidth);
    report["host_copies"] = MeasureHostCopies(api);
  }
  return fine;
}

int Main(int argc, char** argv) {
  bool quick = false;
  const char* json = nullptr;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--quick") == 0) {
      quick = true;
    } else if (std::strcmp(argv[i], "--json") == 0 && i + 1 < argc) {
      json = argv[++i];
    } else {
      std::fputs("usage: dd2-gpu-check [--quick] [--json FILE]\n", stderr);
      return kExitUsage;
    }
  }
  const Result<Device> device = LoadDevice(DeviceLibrary());
  if (!device) {
    std::printf("no GPU here: %s\n", device.error().message().c_str());
    return kExitCannotStart;
  }
  std::puts(device->Describe().c_str());
  boost::json::object report = FactsOf(*device);
  const bool fine = Check(*device, quick, report);
  report["ok"] = fine;
  if (json != nullptr) std::ofstream(json) << boost::json::serialize(report) << '\n';
  std::puts(fine ? "gpu-check: all right" : "gpu-check: something is wrong, see BAD above");
  return fine ? kExitOk : kExitInternal;
}

}  // namespace
}  // namespace dd2

int main(int argc, char** argv) { return dd2::Main(argc, argv); }
