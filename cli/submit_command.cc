#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "cli/commands.h"
#include "cli/format.h"
#include "cli/run_folder.h"
#include "cli/run_options.h"
#include "cli/slurm_script.h"
#include "common/exit_codes.h"
#include "common/file.h"
#include "common/process.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;

constexpr std::chrono::seconds kSlurmPatience(60);

struct SubmitArguments {
  RunRequest request;
  std::string nodes = "1";
  int grace = 180;
  std::string host;
  bool dry_run = false;
  std::vector<std::pair<std::string, std::string>> named;  // partition, account, ...
  std::vector<std::string> sbatch;
};

// Runs a program of Slurm to its end; what it said. kUnavailable with its words: it failed.
Result<std::string> CallSlurm(const std::vector<std::string>& words, const fs::path& output) {
  DD2_TRY(RealFileSystem().Remove(output));
  SpawnOptions options;
  options.argv = words;
  options.output = output;
  Result<ChildProcess> child = ChildProcess::Spawn(options);
  if (!child) {
    return Error(child.error().code(), child.error().message() +
                                           ": dd2 submit needs Slurm's programs in PATH (on a "
                                           "login node of the cluster they are)");
  }
  const std::optional<int> status = child->Wait(kSlurmPatience);
  Result<std::string> said = RealFileSystem().Read(output);
  std::string text = said ? *said : "";
  static_cast<void>(RealFileSystem().Remove(output));
  while (text.ends_with('\n')) text.pop_back();
  if (status == 0) return text;
  return Error(Code::kUnavailable,
               ShellLine(words) + (status ? " failed: " : " does not answer: ") + text);
}

// As sbatch's own options, in the order in which they were typed.
std::vector<std::string> SbatchOptions(const SubmitArguments& arguments) {
  std::vector<std::string> options;
  for (const auto& [name, value] : arguments.named) {
    if (!value.empty()) options.push_back("--" + name + "=" + value);
  }
  options.insert(options.end(), arguments.sbatch.begin(), arguments.sbatch.end());
  return options;
}

Result<SlurmScript> Values(const SubmitArguments& arguments, const fs::path& run,
                           const std::string& name) {
  DD2_TRY_ASSIGN(const fs::path folder, OwnBinaryFolder());
  SlurmScript script;
  script.name = name;
  script.run = run.string();
  script.script = (run / "slurm" / "job.sh").string();
  script.dd2 = (folder / "dd2").string();
  script.nodes = arguments.nodes;
  // On one node nobody else needs to reach it. Else what its own name stands for, as its peers
  // would look it up.
  script.host = !arguments.host.empty() ? ShellLine({arguments.host})
                : arguments.nodes == "1"
                    ? "127.0.0.1"
                    : "$(getent ahostsv4 \"$(hostname)\" | awk 'NR == 1 {print $1}')";
  script.grace_seconds = arguments.grace;
  script.sbatch = SbatchOptions(arguments);
  return script;
}

int DryRun(const SubmitArguments& arguments, const std::string& text) {
  std::printf("%s", text.c_str());
  const fs::path draft =
      fs::temp_directory_path() / ("dd2-submit-" + std::to_string(::getpid()) + ".sh");
  Status written = WriteFileAtomically(RealFileSystem(), draft, text);
  if (!written) return Fail(written.error());
  const auto verdict =
      CallSlurm({"sbatch", "--test-only", draft.string()}, draft.string() + ".out");
  static_cast<void>(RealFileSystem().Remove(draft));
  if (!verdict) return Fail(verdict.error());
  std::printf("\n%s\nNothing was written or submitted (--dry-run). Nodes: %s\n", verdict->c_str(),
              arguments.nodes.c_str());
  return kExitOk;
}

// Writes the script and lets Slurm judge it; what it is to be submitted as.
Result<std::string> PrepareScript(const SlurmScript& values, const std::string& text) {
  const fs::path script = values.script;
  DD2_TRY(RealFileSystem().MakeDirectories(script.parent_path()));
  DD2_TRY(RealFileSystem().MakeDirectories(fs::path(values.run) / "logs"));
  DD2_TRY(WriteFileAtomically(RealFileSystem(), script, text));
  DD2_TRY(CallSlurm({"sbatch", "--test-only", script.string()}, script.string() + ".out"));
  return script.string();
}

int Submit(const SubmitArguments& arguments) {
  RunRequest request = arguments.request;
  const auto nodes = ParseNodes(arguments.nodes);
  if (!nodes) return Fail(nodes.error());
  request.domains = nodes->max;
  auto config = CheckRequest(request);
  if (!config) {
    std::fprintf(stderr, "dd2: %s\n", config.error().message.c_str());
    return config.error().exit_code;
  }
  const std::string name = config->name;
  const fs::path folder =
      fs::absolute(request.folder.empty() ? DefaultRunFolder(*config) : request.folder)
          .lexically_normal();
  const auto values = Values(arguments, folder, name);
  if (!values) return Fail(values.error());
  const auto text = RenderSlurmScript(*values);
  if (!text) return Fail(text.error());
  if (arguments.dry_run) return DryRun(arguments, *text);
  {
    auto run = PrepareRun(request, std::move(*config));
    if (!run) {
      std::fprintf(stderr, "dd2: %s\n", run.error().message.c_str());
      return run.error().exit_code;
    }
    const auto script = PrepareScript(*values, *text);
    if (!script) {
      AbandonRun(*run);
      return Fail(script.error());
    }
  }  // the folder's lock is the job's from here on
  const auto job = CallSlurm({"sbatch", "--parsable", values->script}, values->script + ".out");
  if (!job) {
    std::fprintf(stderr, "dd2: %s\nThe run is prepared: try again with sbatch %s\n",
                 job.error().message().c_str(), values->script.c_str());
    return kExitCannotStart;
  }
  const std::string number = job->substr(0, job->find_first_not_of("0123456789"));
  std::printf(
      "submitted job %s: %s nodes\n"
      "run folder  %s\n"
      "log         %s/logs/slurm-%s.out\n"
      "follow it   dd2 watch %s\n"
      "its API     once it runs: dd2 status %s; from elsewhere ssh -L PORT:HOST:PORT with HOST "
      "and PORT of %s/coordinator.json\n",
      number.c_str(), arguments.nodes.c_str(), values->run.c_str(), values->run.c_str(),
      number.c_str(), values->run.c_str(), values->run.c_str(), values->run.c_str());
  return kExitOk;
}

}  // namespace

void AddSubmitCommand(CLI::App& app, const std::vector<std::string>& words, int& exit_code) {
  CLI::App* command = app.add_subcommand(
      "submit", "Submit a distillation to Slurm: one job, an agent with its workers on each node");
  auto arguments = std::make_shared<SubmitArguments>();
  arguments->request.command = ShellLine(words);
  AddRunOptions(*command, arguments->request);
  command->add_option("sbatch", arguments->sbatch, "After --: more options for sbatch")
      ->type_name("[-- OPTION...]");
  command->add_option("--nodes", arguments->nodes, "Nodes of the job (1)")->type_name("N|MIN-MAX");
  arguments->named = {{"partition", ""}, {"account", ""},    {"qos", ""},
                      {"time", ""},      {"constraint", ""}, {"gres", ""}};
  for (auto& [name, value] : arguments->named) {
    command->add_option("--" + name, value, "As for sbatch")->type_name("...");
  }
  command
      ->add_option("--grace", arguments->grace,
                   "Seconds before the time limit at which the run makes a checkpoint (180)")
      ->type_name("S")
      ->check(CLI::Range(10, 86400));
  command
      ->add_option("--host", arguments->host,
                   "Address at which the other nodes reach the first one (default: what its name "
                   "stands for)")
      ->type_name("ADDRESS");
  command->add_flag("--dry-run", arguments->dry_run,
                    "Show the batch script and what Slurm says of it, and do nothing");
  command->callback([arguments, &exit_code] { exit_code = Submit(*arguments); });
}

}  // namespace dd2
