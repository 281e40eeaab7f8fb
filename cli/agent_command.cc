#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <thread>

#include "cli/commands.h"
#include "cli/control_file.h"
#include "cli/http_client.h"
#include "cli/join_session.h"
#include "common/config.h"
#include "common/exit_codes.h"
#include "common/process.h"
#include "common/run_config.h"

namespace dd2 {
namespace {

struct JoinArguments {
  std::string run;
  std::string domain;
  int wait_seconds = 0;
  int first_device = 0;
};

struct DrainArguments {
  std::string run;
  std::string domain;
  bool json = false;
};

// HOST-PID: nobody else's.
std::string OwnDomainName() {
  std::string name = HostName();
  std::erase_if(name, [](char c) { return !IsDomainName(std::string("x") + c); });
  return name.substr(0, 40) + "-" + std::to_string(::getpid());
}

Result<std::filesystem::path> FindAgent() {
  DD2_TRY_ASSIGN(auto agent, FindSibling("dd2-agent"));
  DD2_TRY(FindSibling("dd2-worker"));
  if (!FindProgram("mpirun")) {
    return Error(Code::kFailedPrecondition,
                 "mpirun is missing: install Open MPI (Debian: apt-get install openmpi-bin), or "
                 "put its folder into PATH");
  }
  return agent;
}

// Whether this machine can reach the coordinator of a run that is there. kUnavailable: it is not.
Status CheckCoordinator(const std::filesystem::path& run) {
  std::error_code error;
  if (!std::filesystem::is_directory(run, error)) {
    return Error(Code::kNotFound, "there is no run folder " + run.string());
  }
  DD2_TRY_ASSIGN(const ControlFile file, ReadControlFile(run));
  if (file.OnlyForItsMachine() && !file.machine.empty() && file.machine != HostName()) {
    return Error(Code::kFailedPrecondition,
                 "the coordinator of " + run.string() + " waits at " + file.control_host + " of " +
                     file.machine + ", where this machine cannot reach it: start the run with " +
                     "--set api.host=ADDRESS, an address of " + file.machine);
  }
  return {};
}

int Join(const JoinArguments& arguments) {
  const std::string domain = arguments.domain.empty() ? OwnDomainName() : arguments.domain;
  if (!IsDomainName(domain)) {
    return Fail(Error(Code::kInvalidArgument,
                      "'" + domain +
                          "' is no name of a domain: 1 to 64 letters, digits, '-', '_' "
                          "or '.'"));
  }
  std::error_code error;
  const auto run = std::filesystem::absolute(arguments.run, error).lexically_normal();
  const Status coordinator = CheckCoordinator(run);
  const bool awaited = arguments.wait_seconds > 0 && !coordinator &&
                       coordinator.error().code() == Code::kUnavailable;
  if (!coordinator && !awaited) return Fail(coordinator.error());
  const auto agent = FindAgent();
  if (!agent) return Fail(agent.error());
  const Result<RunConfig> config = LoadRunConfig(run / "config.yaml");
  if (!config) return Fail(config.error());
  const SystemClock clock;
  JoinOptions options;
  options.run = run;
  options.domain = domain;
  options.agent = *agent;
  options.long_life = config->timeouts.restart_forgotten;
  options.wait = std::chrono::seconds(arguments.wait_seconds);
  options.first_device = arguments.first_device;
  return JoinSession(std::move(options), clock).Run();
}

int Drain(const DrainArguments& arguments) {
  if (!IsDomainName(arguments.domain)) {
    return Fail(Error(Code::kInvalidArgument, "'" + arguments.domain + "' is no domain's name"));
  }
  auto client = HttpClient::ForRun(arguments.run);
  if (!client) return Fail(client.error());
  const auto response = client->Post("/api/v1/run:drain?domain=" + arguments.domain);
  if (!response) return Fail(response.error());
  if (response->status >= 300) return Fail(ErrorOf(*response));
  if (arguments.json) {
    std::printf("%s\n", response->body.c_str());
  } else {
    std::printf("%s: domain %s leaves at the end of a step; the others go on without it\n",
                arguments.run.c_str(), arguments.domain.c_str());
  }
  return kExitOk;
}

}  // namespace

void AddAgentCommands(CLI::App& app, int& exit_code) {
  CLI::App* agent = app.add_subcommand("agent", "Give a running run more machines");
  agent->require_subcommand(1);
  CLI::App* join = agent->add_subcommand(
      "join",
      "Add a domain to a running run: its ranks work on this machine until the run ends.\n"
      "Ctrl-C lets it leave at the end of a step, without loss; a second one at once");
  auto joined = std::make_shared<JoinArguments>();
  join->add_option("run", joined->run, "Folder of the run, shared with its coordinator")
      ->required()
      ->type_name("RUN");
  join->add_option("--domain", joined->domain, "Name of the domain (default: HOST-PID)")
      ->type_name("NAME");
  join->add_option(
          "--wait", joined->wait_seconds,
          "Wait so long for a coordinator that is not there, at the beginning and whenever "
          "it is away, and join again: for runs in Slurm that come back (0: do not)")
      ->type_name("S")
      ->check(CLI::Range(0, 604800));
  join->add_option("--first-device", joined->first_device,
                   "GPU of its first rank, where others of this run compute on this machine too: "
                   "its ranks take those from N on (default: 0)")
      ->type_name("N")
      ->check(CLI::Range(0, 1023));
  join->callback([joined, &exit_code] { exit_code = Join(*joined); });

  CLI::App* drain = app.add_subcommand(
      "drain", "Let a domain leave a running run at the end of a step; the others go on");
  auto drained = std::make_shared<DrainArguments>();
  drain->add_option("run", drained->run, "Folder of the run")->required()->type_name("RUN");
  drain->add_option("domain", drained->domain, "Name of the domain, as `dd2 status` shows it")
      ->required()
      ->type_name("DOMAIN");
  drain->add_flag("--json", drained->json, "Print JSON");
  drain->callback([drained, &exit_code] { exit_code = Drain(*drained); });
}

}  // namespace dd2
