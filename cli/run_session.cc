#include "cli/run_session.h"

#include <cstdio>
#include <thread>

#include "cli/incidents.h"
#include "cli/log_filter.h"
#include "cli/report.h"
#include "cli/result_table.h"
#include "cli/run_files.h"
#include "cli/slurm_jobs.h"
#include "common/exit_codes.h"
#include "common/timeouts.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::seconds;

// From the end of the run to the end of its processes; the coordinator itself waits kFarewell.
constexpr milliseconds children_end = timeouts::kFarewell + timeouts::kDomainKill + seconds(5);
constexpr milliseconds agent_grace = timeouts::kDomainKill + seconds(3);
// Until the coordinator, which sees the agent's connection break, has ended the run with a reason.
constexpr milliseconds agent_loss_notice = timeouts::kFarewell + seconds(10);
constexpr milliseconds poll_interval{50};
constexpr std::size_t tail_lines = 15;

std::vector<std::string> CoordinatorWords(const RunWork& work) {
  std::vector<std::string> words;
  if (work.elastic) words.emplace_back("--elastic");
  words.insert(words.end(), {"--command", work.command});
  return words;
}

}  // namespace

RunSession::RunSession(PreparedRun run, RunPrograms programs, RunWork work, const Clock& clock,
                       bool live)
    : run_(std::move(run)),
      programs_(std::move(programs)),
      elastic_(work.elastic),
      clock_(clock),
      live_(live),
      coordinator_(programs_.coordinator, run_.folder, CoordinatorWords(work), clock,
                   run_.config.timeouts.restart_forgotten),
      agents_(programs_.agent, run_.folder, std::move(work.places), clock,
              run_.config.timeouts.restart_forgotten) {
  if (work.node_jobs > 0) {
    node_jobs_.emplace(run_.folder, work.node_jobs, clock, run_.config.timeouts.restart_forgotten);
  }
}

int RunSession::Tell(int exit_code, const std::string& message) const {
  std::fflush(stdout);
  std::fprintf(stderr, "dd2: %s\n", message.c_str());
  return exit_code;
}

std::string RunSession::HowToResume() const {
  return "Continue it with: dd2 run " + run_.config_path.string() + " --run " +
         run_.folder.string() + " --resume";
}

std::string RunSession::TailOf(const std::string& log) const {
  const fs::path path = run_.folder / "logs" / log;
  const auto text = RealFileSystem().Read(path);
  if (!text || text->empty()) return "";
  return "\nThe end of " + path.string() + ":\n" + LastLines(*text, tail_lines);
}

Status RunSession::StartCoordinator() {
  DD2_TRY(coordinator_.Start(!run_.fresh));
  const TimePoint deadline = clock_.Now() + kCoordinatorStart;
  while (clock_.Now() < deadline) {
    static_cast<void>(coordinator_.Watch());
    if (coordinator_.up()) return {};
    if (coordinator_.status()) {
      auto said = RealFileSystem().Read(run_.folder / "logs" / "coordinator.out");
      return Error(Code::kUnavailable,
                   said && !said->empty()
                       ? LastLines(*said, tail_lines)
                       : "dd2-coordinator ended with " + DescribeStatus(*coordinator_.status()));
    }
    if (signals_.Count() > 0) return Error(Code::kAborted, "stopped before the run had begun");
    std::this_thread::sleep_for(poll_interval);
  }
  return Error(Code::kDeadlineExceeded, "dd2-coordinator did not come up in " +
                                            std::to_string(kCoordinatorStart.count() / 1000) +
                                            " s" + TailOf("coordinator.log"));
}

void RunSession::Note(const std::string& line) {
  if (!line.empty()) follower_->Note(line);
}

void RunSession::OnSignal() {
  signals_seen_ = signals_.Count();
  stop_wanted_ = true;
  forced_ = signals_seen_ > 1;
}

void RunSession::AskToStop() {
  // A coordinator that took over in between has it in its journal, or is asked again.
  if (stop_asked_in_ == coordinator_.lives()) return;
  auto client = HttpClient::ForRun(run_.folder);
  auto answer = client ? client->Post("/api/v1/run:cancel") : Result<HttpResponse>(client.error());
  const bool agreed = answer && answer->status < 300;
  const Error error = answer ? ErrorOf(*answer) : answer.error();
  const bool away = !coordinator_.up() || (!agreed && error.code() == Code::kUnavailable);
  if (!away) stop_asked_in_ = coordinator_.lives();
  if (stop_noted_) return;
  if (agreed) {
    Note(
        "stopping: a checkpoint is made at the next step, then the run ends "
        "(Ctrl-C again: stop at once)");
  } else if (away) {
    Note(
        "the coordinator is away: the run is asked to stop once it is back "
        "(Ctrl-C again: stop at once)");
  } else {
    Note("the run cannot be asked to stop (" + error.message() +
         "); Ctrl-C again stops it at once");
  }
  stop_noted_ = true;
}

bool RunSession::OthersWork() const {
  const auto document = AskRun(run_.folder, "/api/v1/members");
  const boost::json::value* domains = document ? document->if_contains("domains") : nullptr;
  return domains != nullptr && domains->is_array() && !domains->get_array().empty();
}

void RunSession::CancelNodeJobs() {
  if (!node_jobs_) return;
  // Asked to stop by a signal (its job's time is over), it is about to come back to them.
  const auto files = ReadRunFiles(run_.folder);
  std::error_code error;
  const bool cancelled_run = fs::exists(CancelMark(run_.folder), error);
  if (stop_wanted_ && files && files->outcome == "stopped" && !cancelled_run) return;
  const Status cancelled = node_jobs_->CancelAll();
  if (!cancelled)
    Tell(0, "the jobs of the run's nodes may still wait: " + cancelled.error().message());
}

bool RunSession::AgentsAreLost() {
  // Whoever joins an elastic run may come at any time, as long as there are jobs for it.
  const bool none = elastic_ ? node_jobs_ && node_jobs_->Hopeless() : agents_.AllEnded();
  if (!none) {
    agents_lost_.reset();
    return false;
  }
  if (!agents_lost_) agents_lost_ = clock_.Now();
  if (clock_.Now() - *agents_lost_ <= agent_loss_notice) return false;
  if (!OthersWork()) return true;
  agents_lost_.reset();
  return false;
}

bool RunSession::ShouldStop() {
  if (signals_.Count() > signals_seen_) OnSignal();
  if (forced_) return true;
  Note(coordinator_.Watch());
  if (coordinator_.status()) return true;
  if (stop_wanted_) AskToStop();
  for (const std::string& line : agents_.Watch(coordinator_.up())) Note(line);
  if (node_jobs_ && coordinator_.up()) {
    for (const std::string& line : node_jobs_->Watch()) Note(line);
  }
  return AgentsAreLost();
}

void RunSession::Gather() {
  coordinator_.StopRestarting();
  agents_.StopRestarting();
  const TimePoint deadline = clock_.Now() + children_end;
  while (!forced_ && clock_.Now() < deadline) {
    static_cast<void>(coordinator_.Watch());
    static_cast<void>(agents_.Watch(false));
    // An agent without its coordinator waits for another one to come.
    if (coordinator_.status() || AgentsAreLost()) break;
    if (signals_.Count() > 1) forced_ = true;
    std::this_thread::sleep_for(poll_interval);
  }
  agents_.Terminate(agent_grace);
  coordinator_.Terminate(seconds(3));
}

int RunSession::Abandon(const std::string& message) {
  const bool stopped = signals_.Count() > 0;
  forced_ = true;
  Gather();
  int exit_code = kExitCannotStart;
  // A coordinator that said why it cannot work said it with its exit code too.
  if (const auto& status = coordinator_.status();
      status && *status >= kExitUsage && *status <= kExitUnreachable) {
    exit_code = *status;
  }
  if (stopped) exit_code = kExitStopped;
  if (!stopped) CancelNodeJobs();
  AbandonRun(run_);
  return Tell(exit_code, message);
}

int RunSession::ConcludeFinished() {
  if (const Status written = WriteReport(run_.folder); !written) {
    Tell(0, "the run is finished, but its report cannot be written: " + written.error().message() +
                "\nTry again with: dd2 report " + run_.folder.string());
  }
  return PrintResult(run_.folder);
}

int RunSession::ConcludeDead(const std::string& state) {
  if (state == "finished") return ConcludeFinished();
  std::string message;
  const int status = coordinator_.status().value_or(0);
  if (forced_)
    return Tell(kExitRunFailed, "stopped at once, without a checkpoint\n" + HowToResume());
  if (agents_lost_ && !elastic_ && (status < 128 || coordinator_.terminated())) {
    const RunAgents::Ended ended = agents_.FirstEnded();
    message = "dd2-agent ended with " + DescribeStatus(ended.status) +
              TailOf("agent-" + ended.domain + ".log") + TailOf("agent-" + ended.domain + ".out");
  } else {
    message = "dd2-coordinator ended with " + DescribeStatus(status) + TailOf("coordinator.out") +
              TailOf("coordinator.log");
  }
  while (message.ends_with('\n')) message.pop_back();
  return Tell(kExitRunFailed, message + "\n" + HowToResume());
}

int RunSession::ConcludeHopeless(const RunFiles& files, const std::string& reason) {
  std::string text = "the run failed and would fail again: " + reason + "\n\nWhat happened:\n\n";
  if (const auto incidents = ReadIncidents(run_.folder)) {
    for (const boost::json::value& value : *incidents) {
      const Incident incident = IncidentOf(value.get_object());
      if (incident.unix_ms < files.started_unix_ms || incident.resumed_seconds) continue;
      text += FormatIncident(incident, PhaseNames(run_.config.phases)) + "\n";
    }
  }
  const std::string folder = run_.folder.string();
  text +=
      "What to do:\n"
      "  1. Do not start it again as it is: it would end at the same step.\n"
      "  2. Find the cause: the reason above, " +
      folder +
      "/logs, and what came before\n"
      "     (dd2 incidents " +
      folder +
      ").\n"
      "  3. Mend it (a file, memory, the build). If a setting that decides the result must\n"
      "     change, start a new run in another folder.\n"
      "  4. " +
      HowToResume() +
      "\n"
      "     Checkpoints that it can go on from: dd2 checkpoint ls " +
      folder;
  return Tell(kExitDoNotRestart, text);
}

// What became of the run is read from its files: they are what a resume starts from.
int RunSession::Conclude() {
  const auto files = ReadRunFiles(run_.folder);
  if (!files) return Tell(ExitCodeFor(files.error().code()), files.error().message());
  if (node_jobs_ && node_jobs_->Hopeless() && files->outcome != "finished") {
    return Tell(kExitRunFailed,
                "no node could be had: each job of one ended soon after its start, "
                "again and again; see slurm-*.out in " +
                    (run_.folder / "logs").string() + "\n" + HowToResume());
  }
  if (files->outcome == "stopped") {
    std::printf("%s: %s\n%s\n", run_.config.name.c_str(), files->message.c_str(),
                HowToResume().c_str());
    return kExitStopped;
  }
  if (files->outcome != "failed") return ConcludeDead(files->outcome);
  std::string reason = files->message;
  while (reason.ends_with('\n')) reason.pop_back();
  const int status = coordinator_.status().value_or(kExitRunFailed);
  if (status == kExitDoNotRestart) return ConcludeHopeless(*files, reason);
  return Tell(status == kExitCannotStart || status == kExitBadData ? status : kExitRunFailed,
              "the run failed: " + reason + "\n" + HowToResume() +
                  "\nLogs: " + (run_.folder / "logs").string());
}

int RunSession::Run() {
  Status started = StartCoordinator();
  if (started) started = agents_.Start(*coordinator_.address());
  if (!started) return Abandon(started.error().message());
  auto client = HttpClient::ForRun(run_.folder);
  if (!client) return Abandon(client.error().message());
  std::printf("%s %s (API: http://%s:%d, token in %s)\n", run_.fresh ? "started" : "resumed",
              run_.folder.c_str(), client->target().host.c_str(), client->target().port,
              (run_.folder / "token").c_str());
  std::fflush(stdout);
  follower_.emplace(run_.folder, std::move(*client), clock_, live_);
  // However long the coordinator is away: ShouldStop knows when it does not come back.
  const Status followed = follower_->Follow([this] { return ShouldStop(); }, Follower::no_limit);
  follower_->Close();
  // Lost the stream, but not the coordinator: nothing can be shown, the run itself is unharmed.
  if (!followed && !ShouldStop()) {
    Tell(0, "progress cannot be shown: " + followed.error().message());
    while (!ShouldStop()) std::this_thread::sleep_for(poll_interval);
  }
  Gather();
  CancelNodeJobs();
  return Conclude();
}

int PrintResult(const fs::path& folder) {
  const auto text = RealFileSystem().Read(folder / "result.json");
  if (!text) {
    std::fprintf(stderr, "dd2: %s\n", text.error().message().c_str());
    return ExitCodeFor(text.error().code());
  }
  const auto table = FormatResultTable(*text);
  if (!table) {
    std::fprintf(stderr, "dd2: %s: %s\n", folder.c_str(), table.error().message().c_str());
    return ExitCodeFor(table.error().code());
  }
  std::printf("\n%s\n", table->c_str());
  std::error_code ignored;
  if (fs::exists(folder / "report.html", ignored)) {
    std::printf("report: %s\n", (folder / "report.html").c_str());
  }
  return kExitOk;
}

}  // namespace dd2
