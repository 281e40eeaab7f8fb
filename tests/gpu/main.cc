// dd2-gpu-check [--quick] [--json FILE]: whether the device side works on this machine's GPU, and
// how fast. Every kernel against fp64 on the CPU and twice for the same bits; an NCCL group of one
// with abort and re-creation; times (not with --quick). Without a GPU it says why and ends with
// exit code
// 4. scripts/gpu-check runs it beside PyTorch.

#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <string>

#include "common/exit_codes.h"
#include "common/version.h"
#include "tests/gpu/device_array.h"
#include "tests/gpu/kernel_checks.h"
#include "tests/gpu/measurements.h"
#include "worker/kernels/device.h"
#include "worker/kernels/nccl_group.h"

namespace dd2 {
namespace {

// A group of one for a generation: what each exchange gives, then an abort in the middle.
Status TryGroup(const Dd2DeviceApi& api, int generation) {
  std::map<std::string, std::vector<std::uint8_t>> store;
  NcclOptions options;
  options.prefix = "generation-" + std::to_string(generation);
  options.store.set = [&store](const std::string& key, std::span<const std::uint8_t> value) {
    store[key].assign(value.begin(), value.end());
    return Status();
  };
  options.store.get = [&store](const std::string& key, std::chrono::milliseconds) {
    return Result<std::vector<std::uint8_t>>(store[key]);
  };
  std::atomic<bool> over{false};
  DD2_TRY_ASSIGN(const std::unique_ptr<NcclGroup> group, NcclGroup::Connect(api, options, over));
  const std::vector<float> values{1, 2, 3, 4, 5, 6, 7, static_cast<float>(generation)};
  const auto count = static_cast<std::int64_t>(values.size());
  const std::vector<std::int64_t> counts{count};
  const DeviceArray<float> send(api, values), receive(api, values.size());
  const auto gave = [&](const char* what) -> Status {
    DD2_TRY(group->Wait(nullptr));
    if (receive.Get() == values) return {};
    return Error(Code::kInternal, std::string("NCCL's ") + what + " gave other numbers");
  };
  DD2_TRY(group->AllGather(send.data(), receive.data(), count, nullptr));
  DD2_TRY(gave("all-gather"));
  DD2_TRY(group->AllToAll(send.data(), counts, receive.data(), counts, nullptr));
  DD2_TRY(gave("all-to-all"));
  DD2_TRY(group->AllGather(send.data(), receive.data(), count, nullptr));
  over = true;
  const Status ended = group->AllGather(send.data(), receive.data(), count, nullptr);
  if (ended || ended.error().code() != Code::kAborted) {
    return Error(Code::kInternal, "NCCL: a group whose generation is over goes on");
  }
  return {};
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
  for (int generation = 1; generation <= 3; ++generation) {
    const std::string name = "NCCL group of one, generation " + std::to_string(generation);
    const Status status = TryGroup(api, generation);
    checks.push_back(boost::json::object{{"name", name}, {"ok", status.has_value()}});
    std::printf("%-4s %s%s\n", status ? "ok" : "BAD", name.c_str(),
                status ? "" : (": " + status.error().message()).c_str());
    fine = fine && status;
  }
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
