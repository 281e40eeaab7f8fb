#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <memory>

#include "cli/commands.h"
#include "cli/follower.h"
#include "cli/http_client.h"
#include "cli/report_data.h"
#include "cli/run_view.h"
#include "cli/slurm_jobs.h"
#include "common/exit_codes.h"
#include "common/file.h"
#include "common/json.h"

namespace dd2 {
namespace {

namespace json = boost::json;

// `dd2 run` starts a coordinator that died again within this.
constexpr std::chrono::seconds restart_patience{5};

struct RunArgument {
  std::string run;
  bool json = false;
};

std::shared_ptr<RunArgument> AddArguments(CLI::App& command) {
  auto arguments = std::make_shared<RunArgument>();
  command.add_option("run", arguments->run, "Folder of the run, as runs/fashion-mnist")
      ->required()
      ->type_name("RUN");
  command.add_flag("--json", arguments->json, "Print JSON");
  return arguments;
}

// What Slurm has of the run goes into `document`; its lines for people.
std::string AddSlurm(const std::string& run, json::object& document) {
  const auto jobs = AskForJobs(run);
  if (!jobs) {
    if (jobs.error().code() == Code::kNotFound) return "";  // it was not submitted
    return "  slurm: " + jobs.error().message() + "\n";
  }
  if (document["live"] == false) {
    document["state"] = StateWithJobs(FindText(document, "state").value_or(""), *jobs);
  }
  document["slurm_jobs"] = JobsDocument(*jobs);
  return FormatJobs(*jobs);
}

int PrintStatus(const RunArgument& arguments) {
  auto document = DescribeRun(arguments.run);
  if (!document) return Fail(document.error());
  const std::string slurm = AddSlurm(arguments.run, *document);
  if (arguments.json) {
    std::printf("%s\n", json::serialize(*document).c_str());
    return kExitOk;
  }
  RunView view;
  if (const Status applied = ApplyDocument(*document, view); !applied) return Fail(applied.error());
  view.jobs = slurm;
  std::fputs(FormatStatus(view, arguments.run).c_str(), stdout);
  return kExitOk;
}

// Every event as one JSON object a line, until the run is over.
Status WatchJson(HttpClient& client) {
  const auto print = [](const StreamedEvent& event) {
    std::printf("{\"event\":%s,\"data\":%s}\n", json::serialize(json::value(event.type)).c_str(),
                event.data.c_str());
    std::fflush(stdout);
  };
  return client.StreamEvents(print, [] { return false; });
}

// Ctrl-C ends `dd2 watch` by the signal's default action: the run goes on without it.
int Watch(const RunArgument& arguments) {
  auto client = HttpClient::ForRun(arguments.run);
  if (!client) {
    if (client.error().code() != Code::kUnavailable) return Fail(client.error());
    return PrintStatus(arguments);  // it is over (or was killed): say how it stands
  }
  const SystemClock clock;
  Status followed;
  if (arguments.json) {
    followed = WatchJson(*client);
  } else {
    Follower follower(arguments.run, std::move(*client), clock, ::isatty(STDOUT_FILENO) == 1);
    followed = follower.Follow([] { return false; }, restart_patience);
    follower.Close();
    if (followed && !follower.view().state.empty()) {
      std::printf("%s: %s\n", follower.view().name.c_str(), follower.view().state.c_str());
    }
  }
  if (followed) return kExitOk;
  if (followed.error().code() == Code::kUnavailable) return PrintStatus(arguments);
  return Fail(followed.error());
}

void AddControl(CLI::App& app, int& exit_code, const std::string& action, const std::string& text) {
  CLI::App* command = app.add_subcommand(action, text);
  auto arguments = AddArguments(*command);
  command->callback([arguments, action, &exit_code] {
    exit_code = SendControl(arguments->run, action, arguments->json);
  });
}

}  // namespace

namespace {

// The body of the coordinator's answer; kUnavailable: nobody answers.
Result<std::string> AskFor(const std::filesystem::path& run, const std::string& action) {
  DD2_TRY_ASSIGN(HttpClient client, HttpClient::ForRun(run));
  DD2_TRY_ASSIGN(HttpResponse response, client.Post("/api/v1/run:" + action));
  if (response.status >= 300) return ErrorOf(response).Wrap(action + " refused");
  return std::move(response.body);
}

// What came of it, for people or as JSON; the exit code.
int Tell(const std::filesystem::path& run, const std::string& action,
         const Result<std::string>& answer, bool as_json) {
  if (!answer) return Fail(answer.error());
  if (as_json) {
    std::printf("%s\n", answer->c_str());
  } else {
    std::printf("%s: %s is asked for; every rank does it at the same step\n", run.c_str(),
                action.c_str());
  }
  return kExitOk;
}

// Of a run in Slurm whose coordinator is not there: its jobs are cancelled. One that runs is told
// by its script's own signal: its coordinator may be about to come back. kNotFound: it has none.
Result<std::string> CancelJobs(const std::filesystem::path& run) {
  DD2_TRY_ASSIGN(const LiveJobs jobs, AskForJobs(run));
  std::vector<std::string> words = {"scancel"};
  if (jobs.main && jobs.main->state == "RUNNING") {
    DD2_TRY(CallSlurm({"scancel", "--batch", "--signal=USR2", jobs.main->id}));
    return jobs.main->id + " (its script is told to stop)";
  }
  if (jobs.main) words.push_back(jobs.main->id);
  for (const SlurmJob& job : jobs.nodes) words.push_back(job.id);
  if (words.size() == 1) {
    return Error(Code::kNotFound, run.string() + " has no job in Slurm's queue");
  }
  DD2_TRY(CallSlurm(words));
  std::string ids;
  for (std::size_t i = 1; i < words.size(); ++i) ids += (i == 1 ? "" : ", ") + words[i];
  return ids;
}

// Its jobs do not queue again, whatever Slurm does with them. Nothing to be done where the run was
// not submitted.
Status MarkCancelled(const std::filesystem::path& run) {
  std::error_code error;
  if (!std::filesystem::is_directory(SlurmFolder(run), error)) return {};
  return WriteFileAtomically(RealFileSystem(), CancelMark(run), "dd2 cancel\n");
}

int Cancel(const std::filesystem::path& run, bool as_json) {
  if (const Status marked = MarkCancelled(run); !marked) return Fail(marked.error());
  const auto asked = AskFor(run, "cancel");
  const bool away = !asked && (asked.error().code() == Code::kUnavailable ||
                               asked.error().code() == Code::kDeadlineExceeded);
  if (!away) {
    if (!asked) static_cast<void>(RealFileSystem().Remove(CancelMark(run)));  // it goes on
    return Tell(run, "cancel", asked, as_json);
  }
  const auto jobs = CancelJobs(run);
  if (!jobs) return Fail(jobs.error().code() == Code::kNotFound ? asked.error() : jobs.error());
  if (as_json) {
    json::object document;
    document["cancelled_jobs"] = *jobs;
    std::printf("%s\n", json::serialize(document).c_str());
  } else {
    std::printf("%s: nobody works on it; taken out of Slurm's queue: %s\n", run.c_str(),
                jobs->c_str());
  }
  return kExitOk;
}

}  // namespace

int SendControl(const std::filesystem::path& run, const std::string& action, bool as_json) {
  return Tell(run, action, AskFor(run, action), as_json);
}

void AddStatusCommands(CLI::App& app, int& exit_code) {
  CLI::App* status = app.add_subcommand(
      "status", "How a run stands: phase, step, losses; works for finished and dead runs too");
  auto arguments = AddArguments(*status);
  status->callback([arguments, &exit_code] { exit_code = PrintStatus(*arguments); });

  CLI::App* watch = app.add_subcommand("watch", "Follow a live run (Ctrl-C leaves it running)");
  auto watched = AddArguments(*watch);
  watch->callback([watched, &exit_code] { exit_code = Watch(*watched); });
}

void AddControlCommands(CLI::App& app, int& exit_code) {
  AddControl(app, exit_code, "pause", "Hold a run at its next step");
  AddControl(app, exit_code, "resume", "Let a paused run go on");
  CLI::App* cancel = app.add_subcommand(
      "cancel",
      "Checkpoint, then stop; continue with --resume. Takes its jobs out of Slurm's queue");
  auto arguments = AddArguments(*cancel);
  cancel->callback(
      [arguments, &exit_code] { exit_code = Cancel(arguments->run, arguments->json); });
}

}  // namespace dd2
