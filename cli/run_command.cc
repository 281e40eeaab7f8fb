#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "cli/commands.h"
#include "cli/doctor_probes.h"
#include "cli/format.h"
#include "cli/report.h"
#include "cli/run_files.h"
#include "cli/run_folder.h"
#include "cli/run_options.h"
#include "cli/run_session.h"
#include "cli/shrink.h"
#include "cli/slurm_jobs.h"
#include "common/clock.h"
#include "common/config.h"
#include "common/exit_codes.h"
#include "common/process.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;

struct RunArguments {
  RunRequest request;
  std::vector<std::string> nodes;  // of the Slurm job that this is a part of; none: this machine
  std::vector<std::string> srun;
  std::vector<std::string> container;
  bool shrink = false;
  bool elastic = false;
  int node_jobs = 0;
};

int Refuse(int exit_code, const std::string& message) {
  std::fprintf(stderr, "dd2: %s\n", message.c_str());
  return exit_code;
}

// Everything that a run needs on this machine, before anything is written.
Result<RunPrograms> FindPrograms() {
  RunPrograms programs;
  DD2_TRY_ASSIGN(programs.coordinator, FindSibling("dd2-coordinator"));
  DD2_TRY_ASSIGN(programs.agent, FindSibling("dd2-agent"));
  DD2_TRY(FindSibling("dd2-worker"));
  if (!FindProgram("mpirun")) {
    return Error(Code::kFailedPrecondition,
                 "mpirun is missing: install Open MPI (Debian: apt-get install openmpi-bin), or "
                 "put its folder into PATH");
  }
  return programs;
}

// kInvalidArgument: what belongs into a Slurm job stands outside of one.
Result<RunWork> FindWork(const RunArguments& arguments, const RunConfig& config) {
  RunWork work;
  work.elastic = arguments.elastic;
  work.node_jobs = arguments.node_jobs;
  work.command = arguments.request.command;
  for (const std::string& node : arguments.nodes) {
    if (IsDomainName(node)) continue;
    return Error(Code::kInvalidArgument, "--nodes: '" + node + "' is no node's name");
  }
  const char* const job = std::getenv("SLURM_JOB_ID");
  if (job == nullptr && (!arguments.nodes.empty() || arguments.node_jobs > 0)) {
    return Error(Code::kInvalidArgument,
                 "--nodes and --node-jobs belong into a Slurm job: dd2 submit writes one");
  }
  if (!arguments.nodes.empty()) {
    work.places = OnSlurmNodes(arguments.nodes, job, arguments.srun, arguments.container);
  } else if (!work.elastic) {
    work.places = OnThisMachine(config.domains, config.ranks);
  }
  return work;
}

// What is asked for, or its rehearsal. Writes nothing.
tl::expected<ShrunkRun, StartFailure> PlanOf(const RunArguments& arguments) {
  const RunRequest& request = arguments.request;
  if (!arguments.shrink) {
    auto config = CheckRequest(request);
    if (!config) return tl::unexpected(config.error());
    if (const std::string warning = CacheWarning(*config); !warning.empty()) Refuse(0, warning);
    return ShrunkRun{std::move(*config), std::nullopt};
  }
  const auto shrunk = [&request]() -> Result<ShrunkRun> {
    DD2_TRY_ASSIGN(const RunConfig config, LoadRunConfig(request.config, OverridesOf(request)));
    DD2_TRY_ASSIGN(ShrunkRun run, Shrink(config, request.folder));
    // What the run itself would be refused for.
    std::error_code ignored;
    if (!run.teacher || fs::exists(config.teacher.path, ignored)) {
      DD2_TRY(CheckTeacherFiles(config));
    }
    return run;
  }();
  if (shrunk) return *shrunk;
  const Error& error = shrunk.error();
  return tl::unexpected(StartFailure{ExitCodeFor(error.code()), error.message()});
}

// Of a rehearsal, once its folder is there.
Status FinishRehearsal(const ShrunkRun& plan, PreparedRun& run) {
  run.notes.push_back("a rehearsal of " + run.config_path.string() +
                      " with small networks and few steps: what it makes is useless");
  run.config_path = run.folder / "config.yaml";  // what a resume is told to take
  Status ready = WriteSmallTeacher(plan);
  if (ready) ready = CheckInputFiles(plan.config);
  if (!ready) AbandonRun(run);
  return ready;
}

int StartRun(const RunArguments& arguments) {
  const RunRequest& request = arguments.request;
  const auto plan = PlanOf(arguments);
  if (!plan) return Refuse(plan.error().exit_code, plan.error().message);
  auto work = FindWork(arguments, plan->config);
  if (!work) return Refuse(kExitUsage, work.error().message());
  const auto programs = FindPrograms();
  if (!programs) return Refuse(kExitCannotStart, programs.error().message());
  auto run = PrepareRun(request, plan->config);
  if (!run) return Refuse(run.error().exit_code, run.error().message);
  if (arguments.shrink) {
    if (const Status made = FinishRehearsal(*plan, *run); !made) {
      return Refuse(ExitCodeFor(made.error().code()), made.error().message());
    }
  }
  if (const Status kept = RememberOwnJob(run->folder); !kept) Refuse(0, kept.error().message());
  for (const auto& note : run->notes) std::printf("note: %s\n", note.c_str());
  if (!run->fresh) {
    const auto files = ReadRunFiles(run->folder);
    if (files && files->outcome == "finished") {
      std::printf("%s is finished already\n", run->folder.c_str());
      const Status written = WriteReport(run->folder);
      if (!written) Refuse(0, written.error().message());
      return PrintResult(run->folder);
    }
  }
  const SystemClock clock;
  RunSession session(std::move(*run), *programs, std::move(*work), clock,
                     ::isatty(STDOUT_FILENO) == 1);
  return session.Run();
}

void AddSlurmOptions(CLI::App& command, RunArguments& arguments) {
  CLI::Option* elastic = command.add_flag(
      "--elastic", arguments.elastic,
      "Start no workers: --domains of them join (dd2 agent join) before the run begins, others may "
      "come and go, and while there is none it waits");
  command
      .add_option(
          "--node-jobs", arguments.node_jobs,
          "In the Slurm job of a coordinator: keep so many jobs of RUN/slurm/node.sh queued")
      ->type_name("N")
      ->check(CLI::Range(1, 4096))
      ->needs(elastic);
  command.add_option("--srun", arguments.srun, "With --nodes: one more word of srun")
      ->type_name("WORD")
      ->allow_extra_args(false);
  command
      .add_option("--container", arguments.container,
                  "With --nodes: one more word in front of each agent, as of apptainer exec")
      ->type_name("WORD")
      ->allow_extra_args(false);
}

}  // namespace

void AddRunCommand(CLI::App& app, const std::vector<std::string>& words, int& exit_code) {
  CLI::App* command = app.add_subcommand(
      "run", "Run a distillation on this machine: start it, show its progress, print the result");
  auto arguments = std::make_shared<RunArguments>();
  arguments->request.command = ShellLine(words);
  AddRunOptions(*command, arguments->request);
  command->add_flag("--shrink", arguments->shrink,
                    "A rehearsal: small networks of the teacher's kind, which need not be there, "
                    "and two steps of each phase");
  CLI::Option* domains =
      command
          ->add_option_function<int>(
              "--domains", [arguments](int value) { arguments->request.domains = value; },
              "Failure domains, each an agent with its workers: while one is down the others train "
              "on")
          ->type_name("N");
  command
      ->add_option("--nodes", arguments->nodes,
                   "In a Slurm job: its nodes, each a failure domain with an agent started by srun")
      ->type_name("NODE,...")
      ->delimiter(',')
      ->excludes(domains);
  AddSlurmOptions(*command, *arguments);
  command->footer(
      "Ctrl-C makes a checkpoint and stops; a second Ctrl-C stops at once. Settings: dd2 config "
      "settings");
  command->callback([arguments, &exit_code] {
    if (!arguments->nodes.empty()) {
      arguments->request.domains = static_cast<int>(arguments->nodes.size());
    }
    exit_code = StartRun(*arguments);
  });
}

}  // namespace dd2
