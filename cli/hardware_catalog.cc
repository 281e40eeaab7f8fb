#include "cli/hardware_catalog.h"

namespace dd2 {
namespace {

constexpr std::int64_t kMiB = std::int64_t{1} << 20;
constexpr double kTera = 1e12;
constexpr double kGiga = 1e9;

struct Entry {
  const char* name;
  const char* title;
  bool device;
  std::int64_t memory_mib;  // as the driver says
  double matrix_tera, vector_tera, memory_giga, node_giga, network_giga, host_giga;
};

// Data sheets of the SXM boards, the L40S's, and for the network what such nodes usually have: one
// adapter a device (400, 200 and 100 Gbit/s). CPU: two units of AVX-512 at 2.5 GHz; the runs of
// docs/RESULTS.md get the plan's share of it.
constexpr Entry kEntries[] = {
    {"h200", "NVIDIA H200 141 GB", true, 143'771, 989, 67, 4'800, 450, 50, 55},
    {"h100", "NVIDIA H100 80 GB", true, 81'559, 989, 67, 3'350, 450, 50, 55},
    {"a100-80g", "NVIDIA A100 80 GB", true, 81'920, 312, 19.5, 2'039, 300, 25, 25},
    {"a100-40g", "NVIDIA A100 40 GB", true, 40'960, 312, 19.5, 1'555, 300, 25, 25},
    {"l40s", "NVIDIA L40S 48 GB", true, 46'068, 362, 91.6, 864, 25, 12.5, 25},
    {"cpu", "CPU", false, 0, 0.16, 0.03, 10, 5, 1.2, 5},
};

}  // namespace

std::vector<std::string> HardwareNames() {
  std::vector<std::string> names;
  for (const Entry& entry : kEntries) names.emplace_back(entry.name);
  return names;
}

Result<Hardware> FindHardware(std::string_view name) {
  std::string known;
  for (const Entry& entry : kEntries) {
    known += (known.empty() ? "" : ", ") + std::string(entry.name);
    if (name != entry.name) continue;
    return Hardware{.name = entry.name,
                    .title = entry.title,
                    .device = entry.device,
                    .memory_bytes = entry.memory_mib * kMiB,
                    .matrix_flops = entry.matrix_tera * kTera,
                    .vector_flops = entry.vector_tera * kTera,
                    .memory_rate = entry.memory_giga * kGiga,
                    .node_rate = entry.node_giga * kGiga,
                    .network_rate = entry.network_giga * kGiga,
                    .host_rate = entry.host_giga * kGiga};
  }
  return Error(Code::kInvalidArgument, "no hardware '" + std::string(name) + "'; known: " + known);
}

}  // namespace dd2
