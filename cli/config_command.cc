#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "cli/commands.h"
#include "common/config.h"
#include "common/config_site.h"
#include "common/exit_codes.h"

namespace dd2 {
namespace {

struct ConfigArguments {
  std::string config;
  std::vector<std::string> overrides;
};

std::shared_ptr<ConfigArguments> AddArguments(CLI::App& command) {
  auto arguments = std::make_shared<ConfigArguments>();
  command.add_option("config", arguments->config, "YAML file of a run")
      ->required()
      ->type_name("CONFIG");
  command.add_option("--set", arguments->overrides, "Overrule a setting (may be repeated)")
      ->type_name("KEY.PATH=VALUE")
      ->allow_extra_args(false);
  return arguments;
}

}  // namespace

void AddConfigCommands(CLI::App& app, int& exit_code) {
  CLI::App* config =
      app.add_subcommand("config", "Check a configuration, or show all its settings");
  config->require_subcommand(1);

  CLI::App* check = config->add_subcommand(
      "check", "Report every problem of a configuration with file, line and the nearest known key");
  auto checked = AddArguments(*check);
  check->callback([checked, &exit_code] {
    const auto loaded = LoadRunConfig(checked->config, checked->overrides);
    if (!loaded) {
      exit_code = Fail(loaded.error());
      return;
    }
    std::printf("%s: ok: run '%s', %zu phases, %d ranks, digest %s\n", checked->config.c_str(),
                loaded->name.c_str(), loaded->phases.size(), loaded->ranks,
                ConfigDigest(*loaded).Hex().c_str());
  });

  CLI::App* show = config->add_subcommand("show", "Print the effective configuration as YAML");
  auto shown = AddArguments(*show);
  show->callback([shown, &exit_code] {
    const auto loaded = LoadRunConfig(shown->config, shown->overrides);
    if (!loaded) {
      exit_code = Fail(loaded.error());
      return;
    }
    std::fputs(DumpRunConfig(*loaded).c_str(), stdout);
  });

  CLI::App* settings = config->add_subcommand(
      "settings", "Print every setting with its unit, default, bounds and one sentence");
  auto site = std::make_shared<bool>(false);
  settings->add_flag("--site", *site, "Those of a Slurm site's file instead (slurm/site.yaml)");
  settings->callback([site] {
    std::fputs((*site ? DescribeSiteSettings() : DescribeSettings()).c_str(), stdout);
  });
}

}  // namespace dd2
