#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "cli/commands.h"
#include "cli/http_client.h"
#include "cli/incidents.h"
#include "cli/run_files.h"
#include "common/config.h"
#include "common/exit_codes.h"

namespace dd2 {
namespace {

namespace json = boost::json;

struct IncidentsArguments {
  std::string run;
  bool json = false;
};

// The file has those that are over, of all lives of the run; a live coordinator knows the others.
Result<json::array> Gather(const std::filesystem::path& run) {
  DD2_TRY_ASSIGN(json::array incidents, ReadIncidents(run));
  const auto document = AskRun(run, "/api/v1/incidents");
  if (!document) {
    if (document.error().code() == Code::kUnavailable) return incidents;
    return document.error();
  }
  AddLiveIncidents(*document, incidents);
  return incidents;
}

int PrintIncidents(const IncidentsArguments& arguments) {
  const auto config = LoadRunConfig(std::filesystem::path(arguments.run) / "config.yaml");
  if (!config) return Fail(config.error());
  auto incidents = Gather(arguments.run);
  if (!incidents) return Fail(incidents.error());
  if (arguments.json) {
    json::object document;
    document["incidents"] = std::move(*incidents);
    std::printf("%s\n", json::serialize(document).c_str());
    return kExitOk;
  }
  const std::vector<std::string> phases = PhaseNames(config->phases);
  std::int64_t lost = 0;
  for (const json::value& value : *incidents) {
    const Incident incident = IncidentOf(value.get_object());
    lost += incident.steps_lost;
    std::printf("%s\n", FormatIncident(incident, phases).c_str());
  }
  std::printf("%zu incidents, steps lost: %lld\n", incidents->size(), static_cast<long long>(lost));
  return kExitOk;
}

}  // namespace

void AddIncidentsCommand(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand(
      "incidents", "What went wrong in a run: who, evidence, times, steps lost; dead runs too");
  auto arguments = std::make_shared<IncidentsArguments>();
  command->add_option("run", arguments->run, "Folder of the run")->required()->type_name("RUN");
  command->add_flag("--json", arguments->json, "Print JSON");
  command->callback([arguments, &exit_code] { exit_code = PrintIncidents(*arguments); });
}

}  // namespace dd2
