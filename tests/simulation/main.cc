// dd2-sim [--seeds N] [--first S] [--trace]: plays N histories of the control plane (coordinator,
// agents and workers on a simulated network), one for each seed. Ends with 1 at the first one in
// which something does not hold, and prints its trace.

#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <string_view>
#include <system_error>

#include "tests/simulation/simulation.h"

namespace {

struct Arguments {
  std::uint64_t seeds = 1000;
  std::uint64_t first = 1;
  bool trace = false;
};

bool Parse(int argc, char** argv, Arguments& arguments) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (word == "--trace") {
      arguments.trace = true;
      continue;
    }
    std::uint64_t* number = word == "--seeds"   ? &arguments.seeds
                            : word == "--first" ? &arguments.first
                                                : nullptr;
    if (number == nullptr || ++i == argc) return false;
    const std::string_view text = argv[i];
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *number);
    if (error != std::errc() || end != text.data() + text.size()) return false;
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  if (!Parse(argc, argv, arguments)) {
    std::fprintf(stderr, "usage: dd2-sim [--seeds N] [--first S] [--trace]\n");
    return 2;
  }
  const auto start = std::chrono::steady_clock::now();
  std::map<std::string, std::int64_t> faults;
  std::int64_t given_up = 0;
  std::int64_t steps_lost = 0;
  for (std::uint64_t seed = arguments.first; seed < arguments.first + arguments.seeds; ++seed) {
    const dd2::simulation::Report report = dd2::simulation::Play(seed);
    if (!report.violation.empty() || arguments.trace) {
      for (const std::string& line : report.trace) std::printf("%s\n", line.c_str());
    }
    if (!report.violation.empty()) {
      std::printf("seed %llu: %s\nagain: dd2-sim --first %llu --seeds 1\n",
                  static_cast<unsigned long long>(seed), report.violation.c_str(),
                  static_cast<unsigned long long>(seed));
      return 1;
    }
    for (const auto& [kind, count] : report.faults) faults[kind] += count;
    given_up += report.given_up;
    steps_lost += report.steps_lost;
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("%llu histories in %.1f s, everything held\n",
              static_cast<unsigned long long>(arguments.seeds), seconds);
  for (const auto& [kind, count] : faults) {
    std::printf("  %-40s %lld\n", kind.c_str(), static_cast<long long>(count));
  }
  std::printf("  steps done again %lld, ended after the same failure three times %lld\n",
              static_cast<long long>(steps_lost), static_cast<long long>(given_up));
  return 0;
}
