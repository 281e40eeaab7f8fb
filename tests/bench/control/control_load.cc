// A load on the control plane: agents and workers that compute nothing speak the real protocol over
// loopback to a real dd2-coordinator, N agents with 8 ranks each. Prints what was measured as a
// table, a column for each N (docs/PERFORMANCE.md says what the lines mean).
//
//   dd2-bench-control [--agents N,N,...] [--seconds S] [--pace MS] [--folder DIR] [--json FILE]
//   dd2-bench-control --check     8 agents, a few seconds, nothing but whether the protocol holds

#include <charconv>
#include <cstdio>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "common/file.h"
#include "common/json.h"
#include "common/process.h"
#include "tests/bench/control/load_scenario.h"

namespace dd2::load {
namespace {

struct Arguments {
  std::vector<std::int32_t> agents = {8, 128, 1250};
  ScenarioOptions scenario;
  std::filesystem::path json;
};

bool ParseNumber(std::string_view text, std::int32_t& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size() && number > 0;
}

bool ParseList(std::string_view text, std::vector<std::int32_t>& numbers) {
  numbers.clear();
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    if (!ParseNumber(text.substr(begin, end - begin), numbers.emplace_back())) return false;
    begin = end + 1;
  }
  return true;
}

bool Parse(int argc, char** argv, Arguments& arguments) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    std::int32_t number = 0;
    if (word == "--check") {
      arguments.agents = {8};
      arguments.scenario.check = true;
      continue;
    }
    if (++i == argc) return false;
    const std::string_view value = argv[i];
    if (word == "--agents" && ParseList(value, arguments.agents)) continue;
    if (word == "--folder") {
      arguments.scenario.folder = value;
    } else if (word == "--json") {
      arguments.json = value;
    } else if (word == "--seconds" && ParseNumber(value, number)) {
      arguments.scenario.window = std::chrono::seconds(number);
    } else if (word == "--pace" && ParseNumber(value, number)) {
      arguments.scenario.pace = std::chrono::milliseconds(number);
    } else {
      return false;
    }
  }
  return true;
}

std::string LoadAverage() {
  const Result<std::string> text = RealFileSystem().Read("/proc/loadavg");
  return text ? text->substr(0, text->find(' ')) : "not known";
}

void PrintTable(const std::vector<std::int32_t>& agents, const std::vector<Measures>& columns) {
  std::string head = "| agents (ranks) |";
  std::string rule = "|---|";
  for (const std::int32_t count : agents) {
    head += " " + std::to_string(count) + " (" + std::to_string(count * kRanksOfDomain) + ") |";
    rule += "---|";
  }
  std::printf("%s\n%s\n", head.c_str(), rule.c_str());
  for (std::size_t line = 0; line < columns.front().size(); ++line) {
    std::string text = "| " + columns.front()[line].name + " |";
    for (const Measures& column : columns) text += " " + column.at(line).Text() + " |";
    std::printf("%s\n", text.c_str());
  }
}

Status WriteJson(const std::filesystem::path& path, const std::vector<std::int32_t>& agents,
                 const std::vector<Measures>& columns) {
  boost::json::array all;
  for (std::size_t i = 0; i < columns.size(); ++i) {
    boost::json::object values;
    for (const Measure& measure : columns[i]) values[measure.name] = measure.value;
    boost::json::object column;
    column["agents"] = agents[i];
    column["measures"] = std::move(values);
    all.push_back(std::move(column));
  }
  return WriteFileAtomically(RealFileSystem(), path, boost::json::serialize(all) + "\n");
}

int Run(const Arguments& arguments) {
  const std::uint64_t files = RaiseFileLimit();
  std::vector<Measures> columns;
  for (const std::int32_t agents : arguments.agents) {
    const auto wanted = static_cast<std::uint64_t>(agents) * (kRanksOfDomain + 1) + 100;
    if (files < wanted) {
      std::fprintf(
          stderr,
          "%d agents want %llu open files in this process and in the coordinator; the hard "
          "limit is %llu (ulimit -Hn)\n",
          agents, static_cast<unsigned long long>(wanted), static_cast<unsigned long long>(files));
      return 1;
    }
    std::fprintf(stderr, "%d agents with %d ranks each; load average %s\n", agents, kRanksOfDomain,
                 LoadAverage().c_str());
    Result<Measures> measured = RunScenario(agents, arguments.scenario);
    if (!measured) {
      std::fprintf(stderr, "%d agents: %s\n", agents, measured.error().message().c_str());
      return 1;
    }
    columns.push_back(std::move(*measured));
  }
  PrintTable(arguments.agents, columns);
  if (arguments.json.empty()) return 0;
  const Status written = WriteJson(arguments.json, arguments.agents, columns);
  if (!written) std::fprintf(stderr, "%s\n", written.error().message().c_str());
  return written ? 0 : 1;
}

}  // namespace
}  // namespace dd2::load

int main(int argc, char** argv) {
  dd2::load::Arguments arguments;
  if (!dd2::load::Parse(argc, argv, arguments)) {
    std::fprintf(stderr,
                 "usage: dd2-bench-control [--agents N,N,...] [--seconds S] [--pace MS] "
                 "[--folder DIR] [--json FILE]\n       dd2-bench-control --check\n");
    return 2;
  }
  return dd2::load::Run(arguments);
}
