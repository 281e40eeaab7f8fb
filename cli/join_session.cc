#include "cli/join_session.h"

#include <signal.h>

#include <cstdio>
#include <thread>
#include <utility>

#include "cli/commands.h"
#include "cli/control_file.h"
#include "cli/http_client.h"
#include "cli/report_data.h"
#include "cli/run_files.h"
#include "cli/slurm_jobs.h"
#include "common/exit_codes.h"
#include "common/file.h"
#include "common/json.h"
#include "common/timeouts.h"

namespace dd2 {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr milliseconds poll_interval{50};
constexpr milliseconds ask_interval = seconds(1);
constexpr milliseconds leave_interval{100};  // what is done after the checkpoint is done again
// The coordinator of a run that ends removes its file; one that is resumed makes it again soon.
constexpr milliseconds end_notice = seconds(15);
// Many nodes may wait, and the files of a run are not small.
constexpr milliseconds over_interval = seconds(10);
// The last domain of a run leaves when a checkpoint is there, or after this.
constexpr milliseconds checkpoint_patience = seconds(60);
constexpr milliseconds agent_grace = timeouts::kDomainKill + seconds(3);

void Say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

// The objects of `document`'s list `key`.
std::vector<boost::json::object> ObjectsOf(const boost::json::object& document,
                                           std::string_view key) {
  std::vector<boost::json::object> objects;
  const boost::json::value* list = document.if_contains(key);
  if (list == nullptr || !list->is_array()) return objects;
  for (const boost::json::value& item : list->get_array()) {
    if (item.is_object()) objects.push_back(item.get_object());
  }
  return objects;
}

// It has somebody who goes on with it now.
bool IsAtWork(const std::filesystem::path& run) {
  const auto document = AskRun(run, "/api/v1/run");
  const std::string state = document ? FindText(*document, "state").value_or("") : "";
  return state == "running" || state == "paused" || state == "recovering" || state == "waiting";
}

// The newest committed checkpoint; empty: none.
Result<std::string> NewestCheckpoint(const std::filesystem::path& run) {
  DD2_TRY_ASSIGN(const boost::json::object document, AskRun(run, "/api/v1/checkpoints"));
  std::string newest;
  for (const boost::json::object& one : ObjectsOf(document, "checkpoints")) {
    if (FindText(one, "state") == "committed") newest = FindText(one, "id").value_or(newest);
  }
  return newest;
}

}  // namespace

Result<std::string> JoinSession::AskState() const {
  DD2_TRY_ASSIGN(const boost::json::object document, AskRun(options_.run, "/api/v1/members"));
  for (const boost::json::object& domain : ObjectsOf(document, "domains")) {
    if (FindText(domain, "name") == options_.domain) return FindText(domain, "state").value_or("");
  }
  return std::string();
}

bool JoinSession::IsGivenUp() {
  const Result<std::string> state = AskState();
  if (!state || *state == state_ || state->empty()) return false;
  state_ = *state;
  Say("domain " + options_.domain + ": " + state_);
  return state_ == "given up";
}

bool JoinSession::RunHasMoved(const std::string& address) {
  const Result<ControlFile> file = ReadControlFile(options_.run);
  // A coordinator that takes its run over does so under its address.
  if (file) return file->Address() != address;
  if (file.error().code() != Code::kUnavailable) return false;
  if (!no_coordinator_since_) no_coordinator_since_ = clock_.Now();
  return clock_.Now() - *no_coordinator_since_ >= end_notice;
}

bool JoinSession::RunIsOver() const {
  const auto files = ReadRunFiles(options_.run);
  if (!files) return files.error().code() == Code::kNotFound;
  if (files->outcome == "finished" || files->outcome == "failed") return true;
  std::error_code ignored;
  return std::filesystem::exists(CancelMark(options_.run), ignored);
}

void JoinSession::AskForCheckpoint() {
  const auto before = NewestCheckpoint(options_.run);
  auto client = HttpClient::ForRun(options_.run);
  if (!before || !client) return;  // it may come back
  const auto answer = client->Post("/api/v1/run:checkpoint");
  if (!answer) return;
  leave_answered_ = true;
  // Refused: the run has not begun, or ends; there is nothing to wait for.
  const bool agreed = answer->status < 300;
  leave_by_ = clock_.Now() + (agreed ? checkpoint_patience : milliseconds(0));
  newest_ = *before;
  Say(agreed ? "it is the last domain of the run: it leaves after a checkpoint, and the run waits "
               "for another one"
             : "leaving at once");
}

bool JoinSession::CheckpointIsThere() {
  if (clock_.Now() >= *leave_by_) return true;
  const auto newest = NewestCheckpoint(options_.run);
  return newest && *newest != *newest_;
}

void JoinSession::AskToLeave() {
  auto client = HttpClient::ForRun(options_.run);
  const auto answer = client ? client->Post("/api/v1/run:drain?domain=" + options_.domain)
                             : Result<HttpResponse>(client.error());
  const bool agreed = answer && answer->status < 300;
  const Error error = answer ? ErrorOf(*answer) : answer.error();
  const bool answered =
      error.code() != Code::kUnavailable && error.code() != Code::kDeadlineExceeded;
  if (!agreed && !answered) return;  // it may come back
  if (!agreed && options_.wait.count() > 0) return AskForCheckpoint();
  leave_answered_ = true;
  Say(agreed ? "leaving at the end of a step (Ctrl-C again: at once)"
             : "it stays: " + error.message() + " (Ctrl-C again: leave at once)");
}

std::string JoinSession::TailOf(const std::string& log, std::size_t tail_bytes) const {
  const auto text = RealFileSystem().Read(options_.run / "logs" / log);
  if (!text || text->empty()) return "";
  std::string tail = text->substr(text->size() - std::min(text->size(), tail_bytes));
  if (tail.size() == tail_bytes) tail.erase(0, tail.find('\n') + 1);
  return "\nThe end of " + (options_.run / "logs" / log).string() + ":\n" + tail;
}

JoinSession::Outcome JoinSession::Conclude() {
  const int status = agents_->FirstEnded().status;
  // Left out by a person or by itself; else the run is over, or about to go on elsewhere.
  const bool comes_back = status == kExitOk || status == kExitUnreachable
                              ? !leave_answered_ && !IsAtWork(options_.run)
                              : false;
  if (status == kExitOk) {
    Say("domain " + options_.domain + " has left the run" +
        (leave_answered_ ? std::string() : TailOf("agent-" + options_.domain + ".log", 300)));
    return {kExitOk, comes_back};
  }
  std::string message = "dd2-agent ended with " + DescribeStatus(status) +
                        TailOf("agent-" + options_.domain + ".log") +
                        TailOf("agent-" + options_.domain + ".out");
  while (message.ends_with('\n')) message.pop_back();
  std::fprintf(stderr, "dd2: %s\n", message.c_str());
  return {status <= kExitDoNotRestart ? status : kExitRunFailed, comes_back};
}

JoinSession::Outcome JoinSession::Leave(const std::string& why) {
  agents_->Terminate(agent_grace);
  Say(why);
  return {kExitOk, false};
}

JoinSession::Outcome JoinSession::Work(const std::string& address) {
  const std::string name = "domain " + options_.domain;
  AgentPlaces place;
  place.domains = {options_.domain};
  if (options_.first_device > 0) {
    place.options = {"--first-device", std::to_string(options_.first_device)};
  }
  // In a job Slurm signals everything in it: we are the one who says what comes of that.
  if (options_.wait.count() > 0) {
    place.options.insert(place.options.end(), {"--sigterm", "ignore"});
    place.stop_signal = SIGINT;
  }
  agents_.emplace(options_.agent, options_.run, std::move(place), clock_, options_.long_life,
                  RunAgents::Restarts::kKilledOnly);
  state_.clear();
  no_coordinator_since_.reset();
  if (const Status started = agents_->Start(address); !started)
    return {Fail(started.error()), false};
  Say(name + " joins " + options_.run.string() + " (Ctrl-C: leave at the end of a step)");
  TimePoint asked = clock_.Now();
  while (!agents_->AllEnded()) {
    for (const std::string& line : agents_->Watch(true)) Say(line);
    // Slurm may have two reasons, and kills those that take too long.
    if (signals_.Count() > 1 && options_.wait.count() == 0) {
      Leave(name + " has left the run at once");
      return {kExitStopped, false};
    }
    if (signals_.Count() > 0 && !leave_answered_) AskToLeave();
    if (clock_.Now() - asked >= (leave_by_ ? leave_interval : ask_interval)) {
      asked = clock_.Now();
      if (leave_by_ && CheckpointIsThere()) return Leave(name + " has left the run");
      if (RunHasMoved(address)) {
        Outcome moved = Leave("the run has ended, or moved, while " + name + " could not reach it");
        moved.comes_back = true;
        return moved;
      }
      if (IsGivenUp()) {
        agents_->Terminate(agent_grace);
        std::fprintf(stderr, "dd2: the coordinator has given %s up: it ended again and again%s\n",
                     name.c_str(), TailOf("domain-" + options_.domain + ".log").c_str());
        return {kExitRunFailed, false};
      }
    }
    std::this_thread::sleep_for(poll_interval);
  }
  return Conclude();
}

Result<std::string> JoinSession::AwaitCoordinator() {
  const TimePoint deadline = clock_.Now() + options_.wait;
  TimePoint look_at = clock_.Now();
  bool told = false;
  while (true) {
    const Result<std::string> taken = AskState();
    if (taken && !taken->empty()) {
      return Error(Code::kInvalidArgument, "the run has a domain '" + options_.domain +
                                               "' already: choose another --domain");
    }
    const Result<ControlFile> file = ReadControlFile(options_.run);
    if (taken && file) return file->Address();
    const Error error = taken ? file.error() : taken.error();
    if (signals_.Count() > 0 || clock_.Now() >= deadline) return error;
    if (clock_.Now() >= look_at) {
      if (RunIsOver()) return error;
      look_at = clock_.Now() + over_interval;
    }
    if (!told) Say("waiting for the run's coordinator: " + error.message());
    told = true;
    std::this_thread::sleep_for(ask_interval);
  }
}

int JoinSession::Run() {
  bool joined = false;
  while (true) {
    const Result<std::string> address = AwaitCoordinator();
    if (!address) {
      if (joined && RunIsOver()) return kExitOk;
      return Fail(address.error());
    }
    const Outcome outcome = Work(*address);
    joined = true;
    const bool again = outcome.comes_back && options_.wait.count() > 0 && signals_.Count() == 0;
    if (!again || RunIsOver()) return outcome.exit_code;
  }
}

}  // namespace dd2
