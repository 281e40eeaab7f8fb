#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "cli/commands.h"
#include "cli/doctor_probes.h"
#include "cli/run_folder.h"
#include "common/config.h"
#include "common/exit_codes.h"
#include "common/version.h"

namespace dd2 {
namespace {

struct DoctorArguments {
  std::string config;
  std::string run = "runs";
  std::string host = "auto";
  bool slurm = false;
  int nodes = 1;
  std::string partition;
  std::string meeting;  // in the step that ProbeNodes starts
  bool json = false;
};

Finding Failed(const std::string& what, const Error& error, const std::string& advice) {
  return {Grade::kFail, what, error.message(), advice, ""};
}

int NumberFromSlurm(const char* name) {
  const char* const text = std::getenv(name);
  return text == nullptr ? 0 : std::atoi(text);
}

int Report(const DoctorArguments& arguments) {
  const int count = std::max(1, NumberFromSlurm("SLURM_NTASKS"));
  const Status reported =
      ReportNode(arguments.meeting, arguments.host, NumberFromSlurm("SLURM_PROCID"), count,
                 NeedsOf(std::nullopt, count));
  return reported ? kExitOk : Fail(reported.error());
}

void Append(Findings more, Findings& findings) {
  for (Finding& finding : more) findings.push_back(std::move(finding));
}

void ExamineSlurm(const DoctorArguments& arguments, const Timeouts& timeouts, Findings& findings) {
  const auto facts = ProbeSlurm(arguments.partition);
  if (!facts) {
    findings.push_back(Failed("slurm", facts.error(), "try `scontrol ping`"));
    return;
  }
  Append(JudgeSlurm(*facts, arguments.nodes, timeouts), findings);
  std::vector<std::string> srun;
  if (!arguments.partition.empty()) srun.push_back("--partition=" + arguments.partition);
  std::fprintf(stderr, "looking at %d nodes (srun; it may wait for them) ...\n", arguments.nodes);
  const auto nodes = ProbeNodes(arguments.run, arguments.host, arguments.nodes, srun);
  if (!nodes) {
    findings.push_back(Failed("nodes", nodes.error(), "try `srun hostname` with the same options"));
    return;
  }
  Append(JudgeNodes(*nodes, arguments.nodes, std::string(CodeVersion())), findings);
}

int Examine(const DoctorArguments& arguments) {
  Findings findings;
  std::optional<RunConfig> config;
  if (!arguments.config.empty()) {
    auto loaded = LoadRunConfig(arguments.config);
    if (!loaded) return Fail(loaded.error());
    config = std::move(*loaded);
    if (const Status teacher = CheckTeacherFiles(*config); !teacher) {
      findings.push_back(Failed("teacher", teacher.error(), "set teacher.path"));
    }
    if (const Status judge = CheckJudgeFiles(config->eval); !judge) {
      findings.push_back(
          Failed("evaluation", judge.error(), "set eval.inception and eval.reference"));
    }
  }
  const Timeouts timeouts = config ? config->timeouts : Timeouts();
  const Needs needs = NeedsOf(config, arguments.nodes);
  Append(JudgeMachine(ProbeMachine(arguments.run, arguments.host), needs), findings);
  Append(JudgeTimeouts(timeouts), findings);
  if (arguments.slurm) ExamineSlurm(arguments, timeouts, findings);
  findings = Merge(std::move(findings));
  if (arguments.json) {
    std::printf("%s\n", boost::json::serialize(FindingsDocument(findings)).c_str());
  } else {
    std::fputs(FormatFindings(findings).c_str(), stdout);
  }
  return AnyFailed(findings) ? kExitCannotStart : kExitOk;
}

}  // namespace

void AddDoctorCommand(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand(
      "doctor", "What a run needs of this machine, or of the nodes of a cluster: ok, warn or fail");
  auto arguments = std::make_shared<DoctorArguments>();
  command->add_option("config", arguments->config, "Settings that the run would have")
      ->type_name("CONFIG");
  command->add_option("--run", arguments->run, "Folder that run folders are made in (runs)")
      ->type_name("DIR");
  command->add_option("--host", arguments->host, "api.host that the run would have (auto)")
      ->type_name("ADDRESS");
  CLI::Option* slurm =
      command->add_flag("--slurm", arguments->slurm, "Also Slurm, and nodes of it in a short step");
  command->add_option("--nodes", arguments->nodes, "So many nodes (1)")
      ->type_name("N")
      ->check(CLI::Range(1, 4096))
      ->needs(slurm);
  command->add_option("--partition", arguments->partition, "Of this partition (the default one)")
      ->type_name("NAME")
      ->needs(slurm);
  command->add_option("--meeting", arguments->meeting)->group("");
  command->add_flag("--json", arguments->json, "Print JSON");
  command->callback([arguments, &exit_code] {
    exit_code = arguments->meeting.empty() ? Examine(*arguments) : Report(*arguments);
  });
}

}  // namespace dd2
