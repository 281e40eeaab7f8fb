#include "cli/join_session.h"

#include <cstdio>
#include <thread>
#include <utility>

#include "cli/commands.h"
#include "cli/http_client.h"
#include "cli/report_data.h"
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
// The coordinator of a run that ends removes its file; one that is resumed makes it again soon.
constexpr milliseconds end_notice = seconds(15);
constexpr milliseconds agent_grace = timeouts::kDomainKill + seconds(3);

void Say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

}  // namespace

JoinSession::JoinSession(std::filesystem::path run, std::string domain, std::filesystem::path agent,
                         std::string address, const Clock& clock,
                         std::chrono::milliseconds long_life)
    : run_(std::move(run)),
      domain_(std::move(domain)),
      address_(std::move(address)),
      clock_(clock),
      agents_(std::move(agent), run_,
              AgentPlaces{.domains = {domain_}, .launcher = {}, .options = {}}, clock, long_life,
              RunAgents::Restarts::kKilledOnly) {}

Result<std::string> JoinSession::AskState() const {
  DD2_TRY_ASSIGN(HttpClient client, HttpClient::ForRun(run_));
  DD2_TRY_ASSIGN(const HttpResponse response, client.Get("/api/v1/members"));
  if (response.status >= 300) return ErrorOf(response);
  boost::system::error_code failure;
  const boost::json::value document = boost::json::parse(response.body, failure);
  const boost::json::value* domains =
      failure || !document.is_object() ? nullptr : document.get_object().if_contains("domains");
  if (domains == nullptr || !domains->is_array()) {
    return Error(Code::kCorruption, "the coordinator's answer lists no domains");
  }
  for (const boost::json::value& domain : domains->get_array()) {
    if (!domain.is_object() || FindText(domain.get_object(), "name") != domain_) continue;
    return FindText(domain.get_object(), "state").value_or("");
  }
  return std::string();
}

bool JoinSession::IsGivenUp() {
  const Result<std::string> state = AskState();
  if (!state || *state == state_ || state->empty()) return false;
  state_ = *state;
  Say("domain " + domain_ + ": " + state_);
  return state_ == "given up";
}

bool JoinSession::RunHasEnded() {
  std::error_code error;
  if (std::filesystem::exists(run_ / "coordinator.json", error) || error) {
    no_coordinator_since_.reset();
    return false;
  }
  if (!no_coordinator_since_) no_coordinator_since_ = clock_.Now();
  return clock_.Now() - *no_coordinator_since_ >= end_notice;
}

void JoinSession::AskToLeave() {
  auto client = HttpClient::ForRun(run_);
  const auto answer = client ? client->Post("/api/v1/run:drain?domain=" + domain_)
                             : Result<HttpResponse>(client.error());
  const bool agreed = answer && answer->status < 300;
  const Error error = answer ? ErrorOf(*answer) : answer.error();
  if (!agreed && error.code() == Code::kUnavailable) return;  // it may come back
  leave_answered_ = true;
  Say(agreed ? "leaving at the end of a step (Ctrl-C again: at once)"
             : "it stays: " + error.message() + " (Ctrl-C again: leave at once)");
}

std::string JoinSession::TailOf(const std::string& log, std::size_t tail_bytes) const {
  const auto text = RealFileSystem().Read(run_ / "logs" / log);
  if (!text || text->empty()) return "";
  std::string tail = text->substr(text->size() - std::min(text->size(), tail_bytes));
  if (tail.size() == tail_bytes) tail.erase(0, tail.find('\n') + 1);
  return "\nThe end of " + (run_ / "logs" / log).string() + ":\n" + tail;
}

int JoinSession::Conclude() {
  const int status = agents_.FirstEnded().status;
  if (status == kExitOk) {
    Say("domain " + domain_ + " has left the run" +
        (leave_answered_ ? std::string() : TailOf("agent-" + domain_ + ".log", 300)));
    return kExitOk;
  }
  std::string message = "dd2-agent ended with " + DescribeStatus(status) +
                        TailOf("agent-" + domain_ + ".log") + TailOf("agent-" + domain_ + ".out");
  while (message.ends_with('\n')) message.pop_back();
  std::fprintf(stderr, "dd2: %s\n", message.c_str());
  return status <= kExitDoNotRestart ? status : kExitRunFailed;
}

int JoinSession::Run() {
  const Result<std::string> taken = AskState();
  if (!taken) return Fail(taken.error());
  if (!taken->empty()) {
    return Fail(Error(Code::kInvalidArgument,
                      "the run has a domain '" + domain_ + "' already: choose another --domain"));
  }
  if (const Status started = agents_.Start(address_); !started) return Fail(started.error());
  Say("domain " + domain_ + " joins " + run_.string() + " (Ctrl-C: leave at the end of a step)");
  TimePoint asked = clock_.Now();
  while (!agents_.AllEnded()) {
    for (const std::string& line : agents_.Watch(true)) Say(line);
    if (signals_.Count() > 0) leave_wanted_ = true;
    if (signals_.Count() > 1) {
      agents_.Terminate(agent_grace);
      Say("domain " + domain_ + " has left the run at once");
      return kExitStopped;
    }
    if (leave_wanted_ && !leave_answered_) AskToLeave();
    if (clock_.Now() - asked >= ask_interval) {
      asked = clock_.Now();
      if (RunHasEnded()) {
        agents_.Terminate(agent_grace);
        Say("the run has ended while domain " + domain_ + " could not reach it");
        return kExitOk;
      }
      if (IsGivenUp()) {
        agents_.Terminate(agent_grace);
        std::fprintf(stderr,
                     "dd2: the coordinator has given domain %s up: it ended again and again%s\n",
                     domain_.c_str(), TailOf("domain-" + domain_ + ".log").c_str());
        return kExitRunFailed;
      }
    }
    std::this_thread::sleep_for(poll_interval);
  }
  return Conclude();
}

}  // namespace dd2
