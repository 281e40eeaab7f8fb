#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "cli/commands.h"
#include "cli/report.h"
#include "common/exit_codes.h"
#include "common/version.h"

namespace dd2 {

void AddReportCommands(CLI::App& app, int& exit_code) {
  CLI::App* report = app.add_subcommand("report", "Write report.html of a run again");
  auto run = std::make_shared<std::string>();
  report->add_option("run", *run, "Folder of the run")->required()->type_name("RUN");
  report->callback([run, &exit_code] {
    const std::filesystem::path folder = *run;
    if (const Status written = WriteReport(folder); !written) {
      exit_code = Fail(written.error());
      return;
    }
    std::printf("%s\n", (folder / "report.html").c_str());
  });

  CLI::App* version = app.add_subcommand("version", "Print the version");
  version->callback([] { std::printf("dd2 %s\n", std::string(CodeVersion()).c_str()); });
}

}  // namespace dd2
