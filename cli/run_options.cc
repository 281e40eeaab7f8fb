#include "cli/run_options.h"

#include <CLI/CLI.hpp>
#include <string>

namespace dd2 {

void AddRunOptions(CLI::App& command, RunRequest& request) {
  command
      .add_option_function<std::string>(
          "config", [&request](const std::string& value) { request.config = value; },
          "YAML file, as configs/fashion-mnist-quick.yaml")
      ->required()
      ->type_name("CONFIG");
  command
      .add_option_function<std::string>(
          "--run", [&request](const std::string& value) { request.folder = value; },
          "Folder of the run (default: runs/<config name>)")
      ->type_name("DIR");
  command
      .add_option_function<int>(
          "--ranks", [&request](int value) { request.ranks = value; },
          "Worker processes of each domain; the result is the same")
      ->type_name("N");
  command
      .add_option_function<std::uint64_t>(
          "--seed", [&request](std::uint64_t value) { request.seed = value; }, "Seed of the run")
      ->type_name("S");
  command.add_option("--set", request.overrides, "Overrule a setting (may be repeated)")
      ->type_name("KEY.PATH=VALUE")
      ->allow_extra_args(false);
  command.add_flag("--resume", request.resume,
                   "Go on from the newest checkpoint of the run folder");
}

}  // namespace dd2
