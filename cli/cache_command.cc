#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <system_error>

#include "cli/commands.h"
#include "cli/format.h"
#include "common/config.h"
#include "common/exit_codes.h"
#include "common/file.h"
#include "common/json.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

struct CacheArguments {
  std::string path;
  bool json = false;
};

// One slot of the score cache, as it lies on the disk.
struct SlotFigures {
  std::string name;
  std::int64_t bytes = 0;
  std::int64_t files = 0;
};

SlotFigures Measure(const fs::path& slot) {
  SlotFigures figures;
  figures.name = slot.filename().string();
  std::error_code code;
  for (const auto& entry : fs::recursive_directory_iterator(slot, code)) {
    std::error_code ignored;
    if (!entry.is_regular_file(ignored)) continue;
    const auto size = entry.file_size(ignored);
    if (ignored) continue;  // compacted away while we looked
    figures.bytes += static_cast<std::int64_t>(size);
    ++figures.files;
  }
  return figures;
}

Status PrintStats(const CacheArguments& arguments) {
  const fs::path root =
      arguments.path.empty() ? ScoreCacheFolder(RunConfig()) : fs::path(arguments.path);
  DD2_TRY_ASSIGN(const auto names, RealFileSystem().List(root));
  json::array slots;
  std::int64_t total = 0;
  for (const auto& name : names) {
    if (!name.starts_with("slot-")) continue;
    const SlotFigures slot = Measure(root / name);
    total += slot.bytes;
    json::object row;
    row["slot"] = slot.name;
    row["bytes"] = slot.bytes;
    row["files"] = slot.files;
    slots.push_back(std::move(row));
    if (arguments.json) continue;
    std::printf("%-16s %10s in %lld files\n", slot.name.c_str(), FormatBytes(slot.bytes).c_str(),
                static_cast<long long>(slot.files));
  }
  if (!arguments.json) {
    std::printf("%-16s %10s in %s\n", "all", FormatBytes(total).c_str(), root.c_str());
    return {};
  }
  json::object document;
  document["path"] = root.string();
  document["bytes"] = total;
  document["slots"] = std::move(slots);
  std::printf("%s\n", json::serialize(document).c_str());
  return {};
}

}  // namespace

void AddCacheCommands(CLI::App& app, int& exit_code) {
  CLI::App* cache = app.add_subcommand("cache", "The score cache of this machine");
  cache->require_subcommand(1);
  CLI::App* stats = cache->add_subcommand("stats", "Size of the cache by slot");
  auto arguments = std::make_shared<CacheArguments>();
  stats->add_option("path", arguments->path, "Folder of the cache (default: the machine's own)")
      ->type_name("PATH");
  stats->add_flag("--json", arguments->json, "Print JSON");
  stats->callback([arguments, &exit_code] {
    const Status printed = PrintStats(*arguments);
    if (!printed) exit_code = Fail(printed.error());
  });
}

}  // namespace dd2
