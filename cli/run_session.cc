#include "cli/run_session.h"

#include <signal.h>

#include <cstdio>
#include <thread>

#include "cli/report.h"
#include "cli/report_data.h"
#include "cli/result_table.h"
#include "cli/run_files.h"
#include "common/exit_codes.h"
#include "common/json.h"
#include "common/timeouts.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using std::chrono::milliseconds;
using std::chrono::seconds;

// A coordinator opens its journal (a crash may have left some to replay) and two ports.
constexpr milliseconds coordinator_start{seconds(60)};
// From the end of the run to the end of its processes; the coordinator itself waits kFarewell.
constexpr milliseconds children_end = timeouts::kFarewell + timeouts::kDomainKill + seconds(5);
constexpr milliseconds agent_grace = timeouts::kDomainKill + seconds(3);
// Until the coordinator, which sees the agent's connection break, has ended the run with a reason.
constexpr milliseconds agent_loss_notice = timeouts::kLossReason + timeouts::kFarewell + seconds(5);
constexpr milliseconds poll_interval{50};
constexpr std::size_t tail_lines = 15;

// "127.0.0.1:4711" for workers and agents, once `pid` has written it.
std::optional<std::string> ControlAddress(const fs::path& folder, pid_t pid) {
  const auto text = RealFileSystem().Read(folder / "coordinator.json");
  if (!text) return std::nullopt;
  boost::system::error_code code;
  const json::value value = json::parse(*text, code);
  if (code || !value.is_object()) return std::nullopt;
  const auto writer = FindNumber(value.get_object(), "pid");
  const auto port = FindNumber(value.get_object(), "control_port");
  if (!writer || !port || static_cast<pid_t>(*writer) != pid) return std::nullopt;
  return "127.0.0.1:" + std::to_string(static_cast<int>(*port));
}

std::string LastLines(const std::string& text) {
  std::size_t begin = text.size();
  for (std::size_t lines = 0; begin > 0; --begin) {
    if (text[begin - 1] == '\n' && begin != text.size() && ++lines == tail_lines) break;
  }
  return text.substr(begin);
}

}  // namespace

RunSession::RunSession(PreparedRun run, RunPrograms programs, std::string command,
                       const Clock& clock, bool live)
    : run_(std::move(run)),
      programs_(std::move(programs)),
      command_(std::move(command)),
      clock_(clock),
      live_(live) {}

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
  return "\nThe end of " + path.string() + ":\n" + LastLines(*text);
}

Result<std::string> RunSession::StartCoordinator() {
  DD2_TRY(RealFileSystem().MakeDirectories(run_.folder / "logs"));
  const fs::path output = run_.folder / "logs" / "coordinator.out";
  DD2_TRY(RealFileSystem().Remove(output));  // what it says now is what a failure is told with
  SpawnOptions options;
  options.argv = {programs_.coordinator.string(), "--run", run_.folder.string()};
  if (!run_.fresh) options.argv.emplace_back("--resume");
  options.argv.insert(options.argv.end(), {"--command", command_});
  options.output = output;
  DD2_TRY_ASSIGN(coordinator_, ChildProcess::Spawn(options));
  const TimePoint deadline = clock_.Now() + coordinator_start;
  while (clock_.Now() < deadline) {
    if (auto address = ControlAddress(run_.folder, coordinator_->pid())) return *address;
    coordinator_status_ = coordinator_->TryWait();
    if (coordinator_status_) {
      auto said = RealFileSystem().Read(output);
      return Error(Code::kUnavailable, said && !said->empty()
                                           ? LastLines(*said)
                                           : "dd2-coordinator ended with status " +
                                                 std::to_string(*coordinator_status_));
    }
    if (signals_.Count() > 0) return Error(Code::kAborted, "stopped before the run had begun");
    std::this_thread::sleep_for(poll_interval);
  }
  return Error(Code::kDeadlineExceeded, "dd2-coordinator did not come up in " +
                                            std::to_string(coordinator_start.count() / 1000) +
                                            " s" + TailOf("coordinator.log"));
}

Status RunSession::StartAgent(const std::string& address) {
  SpawnOptions options;
  options.argv = {programs_.agent.string(), "--run", run_.folder.string(), "--domain", "local",
                  "--coordinator",          address};
  options.output = run_.folder / "logs" / "agent-local.out";
  DD2_TRY_ASSIGN(agent_, ChildProcess::Spawn(options));
  return {};
}

void RunSession::OnSignal() {
  signals_seen_ = signals_.Count();
  if (signals_seen_ > 1) {
    forced_ = true;
    return;
  }
  auto client = HttpClient::ForRun(run_.folder);
  auto answer = client ? client->Post("/api/v1/run:cancel") : Result<HttpResponse>(client.error());
  if (answer && answer->status < 300) {
    follower_->Note(
        "stopping: a checkpoint is made at the next step, then the run ends "
        "(Ctrl-C again: stop at once)");
  } else {
    const Error error = answer ? ErrorOf(*answer) : answer.error();
    follower_->Note("the run cannot be asked to stop (" + error.message() +
                    "); Ctrl-C again stops it at once");
  }
}

bool RunSession::AgentIsLost() {
  if (!agent_status_) agent_status_ = agent_->TryWait();
  if (!agent_status_) return false;
  if (!agent_lost_) agent_lost_ = clock_.Now();
  return clock_.Now() - *agent_lost_ > agent_loss_notice;
}

bool RunSession::ShouldStop() {
  if (signals_.Count() > signals_seen_) OnSignal();
  if (forced_) return true;
  if (!coordinator_status_) coordinator_status_ = coordinator_->TryWait();
  return coordinator_status_.has_value() || AgentIsLost();
}

void RunSession::Gather() {
  const TimePoint deadline = clock_.Now() + children_end;
  while (!forced_ && clock_.Now() < deadline) {
    if (!coordinator_status_) coordinator_status_ = coordinator_->TryWait();
    if (agent_ && !agent_status_) agent_status_ = agent_->TryWait();
    if (coordinator_status_ && (!agent_ || agent_status_)) return;
    // An agent without its coordinator leaves by itself, but only after it noticed.
    if (coordinator_status_ && agent_) break;
    if (AgentIsLost()) break;
    if (signals_.Count() > 1) forced_ = true;
    std::this_thread::sleep_for(poll_interval);
  }
  if (agent_ && !agent_status_) {
    // The agent takes mpirun and the workers along: it is asked first, and killed only after that.
    if (auto status = agent_->Terminate(agent_grace)) agent_status_ = *status;
  }
  if (coordinator_ && !coordinator_status_) {
    if (auto status = coordinator_->Terminate(seconds(3))) coordinator_status_ = *status;
  }
}

int RunSession::Abandon(const std::string& message) {
  const bool stopped = signals_.Count() > 0;
  forced_ = true;
  Gather();
  int exit_code = kExitCannotStart;
  // A coordinator that said why it cannot work said it with its exit code too.
  if (coordinator_status_ && *coordinator_status_ >= kExitUsage &&
      *coordinator_status_ <= kExitUnreachable) {
    exit_code = *coordinator_status_;
  }
  if (stopped) exit_code = kExitStopped;
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
  const int status = coordinator_status_.value_or(0);
  if (forced_)
    return Tell(kExitRunFailed, "stopped at once, without a checkpoint\n" + HowToResume());
  if (agent_lost_ && status < 128) {
    message = "dd2-agent ended with status " + std::to_string(agent_status_.value_or(0)) +
              TailOf("agent-local.log") + TailOf("agent-local.out");
  } else {
    message = "dd2-coordinator ended with status " + std::to_string(status) +
              (status > 128 ? " (killed by signal " + std::to_string(status - 128) + ")" : "") +
              TailOf("coordinator.out") + TailOf("coordinator.log");
  }
  while (message.ends_with('\n')) message.pop_back();
  return Tell(kExitRunFailed, message + "\n" + HowToResume());
}

// What became of the run is read from its files: they are what a resume starts from.
int RunSession::Conclude() {
  const auto files = ReadRunFiles(run_.folder);
  if (!files) return Tell(ExitCodeFor(files.error().code()), files.error().message());
  if (files->outcome == "stopped") {
    std::printf("%s: %s\n%s\n", run_.config.name.c_str(), files->message.c_str(),
                HowToResume().c_str());
    return kExitStopped;
  }
  if (files->outcome != "failed") return ConcludeDead(files->outcome);
  std::string reason = files->message;
  while (reason.ends_with('\n')) reason.pop_back();
  const int status = coordinator_status_.value_or(kExitRunFailed);
  return Tell(status == kExitCannotStart || status == kExitBadData ? status : kExitRunFailed,
              "the run failed: " + reason + "\n" + HowToResume() +
                  "\nLogs: " + (run_.folder / "logs").string());
}

int RunSession::Run() {
  const auto address = StartCoordinator();
  if (!address) return Abandon(address.error().message());
  if (const Status started = StartAgent(*address); !started) {
    return Abandon(started.error().message());
  }
  auto client = HttpClient::ForRun(run_.folder);
  if (!client) return Abandon(client.error().message());
  std::printf("%s %s (API: http://%s:%d, token in %s)\n", run_.fresh ? "started" : "resumed",
              run_.folder.c_str(), client->target().host.c_str(), client->target().port,
              (run_.folder / "token").c_str());
  std::fflush(stdout);
  follower_.emplace(std::move(*client), clock_, live_);
  const Status followed = follower_->Follow([this] { return ShouldStop(); });
  follower_->Close();
  // Lost the stream, but not the coordinator: nothing can be shown, the run itself is unharmed.
  if (!followed && !coordinator_->TryWait() && followed.error().code() != Code::kUnavailable) {
    Tell(0, "progress cannot be shown: " + followed.error().message());
    while (!ShouldStop()) std::this_thread::sleep_for(poll_interval);
  }
  Gather();
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
