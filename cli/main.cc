// dd2: the command that people type. What each sub-command does is in its own *_command.cc.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>

#include "cli/commands.h"
#include "common/exit_codes.h"

int main(int argc, char** argv) {
  CLI::App app(
      "DD2: makes a one-step image generator of an auto-regressive teacher.\n"
      "Start here:  dd2 run configs/fashion-mnist-quick.yaml",
      "dd2");
  app.require_subcommand(1);
  app.footer("Exit codes are listed in docs/CLI.md. More: dd2 COMMAND --help");
  int exit_code = dd2::kExitOk;
  dd2::AddRunCommand(app, {argv, argv + argc}, exit_code);
  dd2::AddStatusCommands(app, exit_code);
  dd2::AddControlCommands(app, exit_code);
  dd2::AddCheckpointCommands(app, exit_code);
  dd2::AddConfigCommands(app, exit_code);
  dd2::AddCacheCommands(app, exit_code);
  dd2::AddWorkerCommands(app, exit_code);
  dd2::AddAgentCommands(app, exit_code);
  dd2::AddIncidentsCommand(app, exit_code);
  dd2::AddDoctorCommand(app, exit_code);
  dd2::AddPlanCommand(app, exit_code);
  dd2::AddLogsCommand(app, exit_code);
  dd2::AddReportCommands(app, exit_code);
  dd2::AddSubmitCommand(app, {argv, argv + argc}, exit_code);
  if (argc > 1 && dd2::IsUnknownCommand(app, argv[1])) return dd2::kExitUsage;
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? dd2::kExitOk : dd2::kExitUsage;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "dd2: %s\n", error.what());
    return dd2::kExitInternal;
  }
  return exit_code;
}
