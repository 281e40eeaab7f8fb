#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "cli/commands.h"
#include "cli/doctor_probes.h"
#include "cli/format.h"
#include "cli/run_folder.h"
#include "cli/run_options.h"
#include "cli/slurm_client.h"
#include "cli/slurm_jobs.h"
#include "cli/slurm_script.h"
#include "common/config_site.h"
#include "common/exit_codes.h"
#include "common/file.h"
#include "common/process.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;

// What is typed overrules what the site's file says; empty, or 0: not typed.
struct SubmitArguments {
  RunRequest request;
  std::string site_file;
  SiteConfig typed;
  std::string nodes = "1";
  bool dry_run = false;
  std::vector<std::string> sbatch;
};

// A job's script, and the file that it becomes.
struct PlannedScript {
  fs::path path;
  std::string text;
};

struct SubmitPlan {
  RunRequest request;
  RunConfig config;
  SiteConfig site;
  NodeRange nodes;
  fs::path folder;
  std::vector<PlannedScript> scripts;  // the main one first
};

// --site, $DD2_SITE, or slurm/site.yaml where dd2 is called; without any of them nothing is said.
Result<SiteConfig> FindSite(const std::string& typed) {
  if (!typed.empty()) return LoadSiteConfig(typed);
  const char* const named = std::getenv("DD2_SITE");
  if (named != nullptr && *named != '\0') return LoadSiteConfig(named);
  std::error_code ignored;
  const fs::path usual = "slurm/site.yaml";
  return fs::exists(usual, ignored) ? LoadSiteConfig(usual) : SiteConfig();
}

SiteConfig Overrule(SiteConfig site, const SiteConfig& typed) {
  static constexpr std::string SiteConfig::*kTexts[] = {
      &SiteConfig::shape, &SiteConfig::partition,  &SiteConfig::account, &SiteConfig::qos,
      &SiteConfig::time,  &SiteConfig::constraint, &SiteConfig::gres,    &SiteConfig::host};
  for (const auto text : kTexts) {
    if (!(typed.*text).empty()) site.*text = typed.*text;
  }
  if (typed.grace > 0) site.grace = typed.grace;
  return site;
}

void AddOption(const char* name, const std::string& value, std::vector<std::string>& options) {
  if (!value.empty()) options.push_back(std::string("--") + name + "=" + value);
}

// sbatch's own, as the site's file and then the command line have them.
std::vector<std::string> SbatchOptions(const SubmitArguments& arguments, const SubmitPlan& plan) {
  const SiteConfig& site = plan.site;
  std::vector<std::string> options;
  AddOption("partition", site.partition, options);
  AddOption("account", site.account, options);
  AddOption("qos", site.qos, options);
  AddOption("time", site.time, options);
  AddOption("constraint", site.constraint, options);
  AddOption("gres", site.gres, options);
  options.insert(options.end(), site.sbatch.begin(), site.sbatch.end());
  options.insert(options.end(), arguments.sbatch.begin(), arguments.sbatch.end());
  if (plan.config.device == kDeviceCuda) AddGpus(plan.config.ranks, options);
  return options;
}

// Of the coordinator's own job, which needs neither devices nor features.
std::vector<std::string> CoordinatorOptions(const SiteConfig& site) {
  const auto either = [](const std::string& own, const std::string& other) {
    return own.empty() ? other : own;
  };
  std::vector<std::string> options;
  AddOption("partition", either(site.coordinator_partition, site.partition), options);
  AddOption("account", site.account, options);
  if (site.coordinator_partition.empty()) AddOption("qos", site.qos, options);
  AddOption("time", either(site.coordinator_time, site.time), options);
  options.insert(options.end(), site.coordinator_sbatch.begin(), site.coordinator_sbatch.end());
  return options;
}

std::vector<std::string> Prolog(const SiteConfig& site) {
  std::vector<std::string> lines;
  for (const std::string& module : site.modules)
    lines.push_back(ShellLine({"module", "load", module}));
  lines.insert(lines.end(), site.prolog.begin(), site.prolog.end());
  return lines;
}

// Words of `dd2 run` in the main job.
std::vector<std::string> RunOptions(const SubmitPlan& plan) {
  const bool alone = plan.site.shape == kOneAllocation && plan.nodes.max == 1;
  const std::string host = !plan.site.host.empty() ? plan.site.host : alone ? "127.0.0.1" : "auto";
  std::vector<std::string> words = {"--set", "api.host=" + host};
  if (plan.site.shape == kJobPerNode) {
    words.insert(words.end(), {"--elastic", "--domains", std::to_string(plan.nodes.min),
                               "--node-jobs", std::to_string(plan.nodes.max)});
    return words;
  }
  for (const std::string& word : plan.site.srun) words.push_back("--srun=" + word);
  for (const std::string& word : plan.site.container) words.push_back("--container=" + word);
  return words;
}

Result<PlannedScript> Plan(SlurmScriptKind kind, const fs::path& path, const SubmitPlan& plan,
                           const SubmitArguments& arguments) {
  DD2_TRY_ASSIGN(const fs::path programs, OwnBinaryFolder());
  SlurmScript script;
  script.kind = kind;
  script.name = plan.config.name;
  script.run = plan.folder.string();
  script.script = path.string();
  script.dd2 = (programs / "dd2").string();
  script.nodes = arguments.nodes;
  script.grace_seconds = plan.site.grace;
  script.run_options = RunOptions(plan);
  script.launch = plan.site.srun;
  script.launch.insert(script.launch.end(), plan.site.container.begin(), plan.site.container.end());
  script.sbatch = kind == SlurmScriptKind::kCoordinator ? CoordinatorOptions(plan.site)
                                                        : SbatchOptions(arguments, plan);
  script.prolog = Prolog(plan.site);
  DD2_TRY_ASSIGN(std::string text, RenderSlurmScript(script));
  return PlannedScript{path, std::move(text)};
}

Status PlanScripts(const SubmitArguments& arguments, SubmitPlan& plan) {
  const bool one = plan.site.shape == kOneAllocation;
  DD2_TRY_ASSIGN(PlannedScript main,
                 Plan(one ? SlurmScriptKind::kOneAllocation : SlurmScriptKind::kCoordinator,
                      MainScript(plan.folder), plan, arguments));
  plan.scripts.push_back(std::move(main));
  if (one) return {};
  DD2_TRY_ASSIGN(PlannedScript node,
                 Plan(SlurmScriptKind::kNode, NodeScript(plan.folder), plan, arguments));
  plan.scripts.push_back(std::move(node));
  return {};
}

// Everything that can be checked without writing anything.
tl::expected<SubmitPlan, StartFailure> MakePlan(const SubmitArguments& arguments) {
  const auto wrong = [](const Error& error) {
    return tl::unexpected(StartFailure{ExitCodeFor(error.code()), error.message()});
  };
  SubmitPlan plan;
  const auto nodes = ParseNodes(arguments.nodes);
  if (!nodes) return wrong(nodes.error());
  plan.nodes = *nodes;
  auto site = FindSite(arguments.site_file);
  if (!site) return wrong(site.error());
  plan.site = Overrule(std::move(*site), arguments.typed);
  plan.request = arguments.request;
  plan.request.domains = nodes->max;  // so many must have something to do
  auto config = CheckRequest(plan.request);
  if (!config) return tl::unexpected(config.error());
  plan.config = std::move(*config);
  if (plan.request.folder.empty()) {
    plan.request.folder = plan.site.scratch.empty()
                              ? DefaultRunFolder(plan.config)
                              : fs::path(plan.site.scratch) / plan.config.name;
  }
  plan.folder = fs::absolute(plan.request.folder).lexically_normal();
  if (const Status room = CheckRoom(plan.config, plan.folder); !room) return wrong(room.error());
  const std::string partition =
      PartitionOf(SbatchOptions(arguments, plan), std::getenv("SBATCH_PARTITION"));
  const auto memory = CheckNodeMemory(plan.config, plan.nodes.min, partition);
  if (!memory) return wrong(memory.error());
  for (const std::string& warning : {*memory, CacheWarning(plan.config)}) {
    if (!warning.empty()) std::fprintf(stderr, "dd2: %s\n", warning.c_str());
  }
  if (const Status planned = PlanScripts(arguments, plan); !planned) return wrong(planned.error());
  return plan;
}

int DryRun(const SubmitPlan& plan) {
  std::string verdicts;
  for (const PlannedScript& script : plan.scripts) {
    std::printf("%s# %s\n%s", verdicts.empty() ? "" : "\n", script.path.c_str(),
                script.text.c_str());
    const fs::path draft =
        fs::temp_directory_path() / ("dd2-submit-" + std::to_string(::getpid()) + ".sh");
    if (const Status written = WriteFileAtomically(RealFileSystem(), draft, script.text);
        !written) {
      return Fail(written.error());
    }
    const auto verdict = CallSlurm({"sbatch", "--test-only", draft.string()});
    static_cast<void>(RealFileSystem().Remove(draft));
    if (!verdict) return Fail(verdict.error());
    verdicts += "\n" + *verdict;
  }
  std::printf("%s\nNothing was written or submitted (--dry-run). Shape: %s\n", verdicts.c_str(),
              plan.site.shape.c_str());
  return kExitOk;
}

// Writes the scripts and lets Slurm judge them.
Status PrepareScripts(const SubmitPlan& plan) {
  DD2_TRY(RealFileSystem().MakeDirectories(SlurmFolder(plan.folder)));
  DD2_TRY(RealFileSystem().MakeDirectories(plan.folder / "logs"));
  for (const PlannedScript& script : plan.scripts) {
    DD2_TRY(WriteFileAtomically(RealFileSystem(), script.path, script.text));
    DD2_TRY(CallSlurm({"sbatch", "--test-only", script.path.string()}));
  }
  return {};
}

// A run has one main job at a time.
Status CheckNoneQueued(const fs::path& folder) {
  const auto jobs = AskForJobs(folder);
  if (!jobs && jobs.error().code() != Code::kNotFound) {
    return jobs.error().Wrap("it is not known whether " + folder.string() + " has a job already");
  }
  if (!jobs || !jobs->main) return {};
  return Error(Code::kFailedPrecondition,
               folder.string() + " has a job already: " + jobs->main->id + " " +
                   DescribeJob(*jobs->main) + ". Wait for its end, cancel it (dd2 cancel " +
                   folder.string() + "), or follow it with dd2 status " + folder.string());
}

Result<std::string> SubmitMain(const SubmitPlan& plan) {
  DD2_TRY(RealFileSystem().Remove(CancelMark(plan.folder)));
  DD2_TRY_ASSIGN(const std::string said,
                 CallSlurm({"sbatch", "--parsable", plan.scripts.front().path.string()}));
  // What of an earlier submission's nodes still waits is welcome; and the job may be quicker.
  RunJobs jobs;
  if (auto before = ReadRunJobs(plan.folder)) jobs.nodes = std::move(before->nodes);
  DD2_TRY_ASSIGN(jobs.main, ParseSubmitted(said));
  if (const Status kept = WriteRunJobs(plan.folder, jobs); !kept) {
    std::fprintf(stderr, "dd2: %s\n", kept.error().message().c_str());
  }
  return jobs.main;
}

int Submit(const SubmitArguments& arguments) {
  auto plan = MakePlan(arguments);
  if (!plan) {
    std::fprintf(stderr, "dd2: %s\n", plan.error().message.c_str());
    return plan.error().exit_code;
  }
  if (arguments.dry_run) return DryRun(*plan);
  if (const Status none = CheckNoneQueued(plan->folder); !none) {
    std::fprintf(stderr, "dd2: %s\n", none.error().message().c_str());
    return kExitAlreadyStarted;
  }
  {
    auto run = PrepareRun(plan->request, plan->config);
    if (!run) {
      std::fprintf(stderr, "dd2: %s\n", run.error().message.c_str());
      return run.error().exit_code;
    }
    if (const Status prepared = PrepareScripts(*plan); !prepared) {
      AbandonRun(*run);
      return Fail(prepared.error());
    }
  }  // the folder's lock is the job's from here on
  const auto job = SubmitMain(*plan);
  const std::string folder = plan->folder.string();
  if (!job) {
    std::fprintf(stderr, "dd2: %s\nThe run is prepared: try again with dd2 submit %s --resume\n",
                 job.error().message().c_str(), arguments.request.config.c_str());
    return kExitCannotStart;
  }
  std::printf(
      "submitted job %s: %s nodes, %s\n"
      "run folder  %s\n"
      "log         %s/logs/slurm-%s.out\n"
      "follow it   dd2 status %s, dd2 watch %s, dd2 logs %s\n"
      "its API     once it runs: from elsewhere ssh -L PORT:HOST:PORT with HOST and PORT of "
      "%s/coordinator.json\n",
      job->c_str(), arguments.nodes.c_str(), plan->site.shape.c_str(), folder.c_str(),
      folder.c_str(), job->c_str(), folder.c_str(), folder.c_str(), folder.c_str(), folder.c_str());
  return kExitOk;
}

void AddSiteOptions(CLI::App& command, SubmitArguments& arguments) {
  SiteConfig& typed = arguments.typed;
  typed.shape.clear();
  typed.grace = 0;
  command
      .add_option("--site", arguments.site_file,
                  "File with the site's settings (default: $DD2_SITE, or slurm/site.yaml if it is "
                  "there)")
      ->type_name("FILE");
  command
      .add_option("--shape", typed.shape,
                  "one-allocation: one job for all nodes. job-per-node: one for the coordinator, "
                  "one for each node; lost ones are replaced, the run grows and shrinks")
      ->type_name("SHAPE")
      ->check(CLI::IsMember({kOneAllocation, kJobPerNode}));
  for (const auto& [name, value] :
       {std::pair<const char*, std::string*>{"--partition", &typed.partition},
        {"--account", &typed.account},
        {"--qos", &typed.qos},
        {"--time", &typed.time},
        {"--constraint", &typed.constraint},
        {"--gres", &typed.gres}}) {
    command.add_option(name, *value, "As for sbatch")->type_name("...");
  }
  command
      .add_option("--grace", typed.grace,
                  "Seconds before the time limit at which the run makes a checkpoint (180)")
      ->type_name("S")
      ->check(CLI::Range(10, 86400));
  command
      .add_option("--host", typed.host,
                  "Where the nodes reach the coordinator: an address, an interface, a network "
                  "(default: by rule)")
      ->type_name("ADDRESS");
}

}  // namespace

void AddSubmitCommand(CLI::App& app, const std::vector<std::string>& words, int& exit_code) {
  CLI::App* command = app.add_subcommand(
      "submit",
      "Submit a distillation to Slurm, which runs it to its end over time limits and "
      "lost nodes");
  auto arguments = std::make_shared<SubmitArguments>();
  arguments->request.command = ShellLine(words);
  AddRunOptions(*command, arguments->request);
  command->add_option("sbatch", arguments->sbatch, "After --: more options for sbatch")
      ->type_name("[-- OPTION...]");
  command
      ->add_option("--nodes", arguments->nodes,
                   "Nodes (1); MIN-MAX: as many as there are, at least the first number to begin "
                   "with")
      ->type_name("N|MIN-MAX");
  AddSiteOptions(*command, *arguments);
  command->add_flag("--dry-run", arguments->dry_run,
                    "Show the batch scripts and what Slurm says of them, and do nothing");
  command->callback([arguments, &exit_code] { exit_code = Submit(*arguments); });
}

}  // namespace dd2
