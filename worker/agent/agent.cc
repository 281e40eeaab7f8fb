#include "worker/agent/agent.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "common/exit_codes.h"
#include "common/file.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/process.h"
#include "common/timeouts.h"
#include "worker/agent/slurm_job.h"

namespace dd2 {

namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// How soon the end of mpirun is noticed.
constexpr milliseconds kWatch{50};
// The last message to the coordinator may take this long.
constexpr milliseconds kFlush = seconds(2);
constexpr milliseconds kSlurmAnswers = seconds(10);
// Slurm itself sees that a node is lost after SlurmdTimeout (300 s).
constexpr milliseconds kOrphan = seconds(900);
// SIGKILL takes effect within this, unless a process hangs in the kernel.
constexpr milliseconds kKillWait = seconds(5);

// kAborted: the agent ends.
Task<Status> Pause(asio::any_io_executor executor, milliseconds length) {
  asio::steady_timer timer(executor, length);
  error_code code;
  co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, code));
  if (code) co_return Error(Code::kAborted, "the agent ends");
  co_return Status();
}

std::string SignalName(int signal) {
  const char* name = sigabbrev_np(signal);
  return name != nullptr ? std::string("SIG") + name : "signal " + std::to_string(signal);
}

}  // namespace

Agent::Agent(asio::io_context& context, const Clock& clock, AgentOptions options)
    : clock_(clock),
      options_(std::move(options)),
      executor_(context.get_executor()),
      signals_(context, SIGTERM, SIGINT, SIGHUP),
      ended_(context, asio::steady_timer::time_point::max()),
      tasks_(executor_) {}

Task<int> Agent::Run() {
  tasks_.Spawn("link", LinkLoop());
  tasks_.Spawn("heartbeat", HeartbeatLoop());
  tasks_.Spawn("watch", WatchLoop());
  tasks_.Spawn("signal", SignalLoop());
  error_code ignored;
  while (!exit_code_) {
    co_await ended_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
  co_await SayFarewell();
  tasks_.Cancel();
  if (link_) CloseSocket(link_->socket);
  co_await tasks_.Wait();
  KillDescendants(kKillWait);
  RemoveSessionFolders(options_.paths);
  co_return *exit_code_;
}

Task<void> Agent::LinkLoop() {
  Result<std::string> secret = RealFileSystem().Read(options_.paths.run / "secret");
  if (!secret) {
    Leave(kExitCannotStart, secret.error().Wrap("the run's secret").message());
    co_return;
  }
  secret_ = std::move(*secret);
  Result<tcp::socket> connected = co_await Connect(clock_.Now() + timeouts::kHello);
  if (!connected) {
    const Code code = connected.error().code();
    const bool away = code == Code::kUnavailable || code == Code::kDeadlineExceeded;
    Leave(away ? kExitUnreachable : kExitCannotStart,
          connected.error().Wrap("cannot reach the coordinator").message());
    co_return;
  }
  TimePoint lost = clock_.Now();
  for (;;) {
    const TimePoint joined = clock_.Now();
    link_ = std::make_shared<AgentLink>(std::move(*connected));
    const Status served = co_await Serve(link_);
    link_.reset();
    if (state_.leaving()) co_return;
    // A connection that breaks at once, again and again, is no coordinator.
    if (heard_ || clock_.Now() - joined >= timeouts::kHello) lost = clock_.Now();
    LogWarning("the coordinator is away (" + served.error().message() +
               "); the domain goes on meanwhile");
    if (const Status waited = co_await Pause(executor_, timeouts::kReconnect); !waited) co_return;
    connected = co_await Connect(lost + options_.away_limit);
    if (!connected && !options_.slurm_job.empty()) connected = co_await OutliveScript();
    if (state_.leaving()) co_return;
    if (!connected) {
      Leave(kExitUnreachable, "the coordinator is lost: " + connected.error().message());
      co_return;
    }
  }
}

Task<Result<tcp::socket>> Agent::Connect(TimePoint deadline) {
  for (;;) {
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - clock_.Now());
    const milliseconds limit =
        std::clamp<milliseconds>(left, timeouts::kReconnect, timeouts::kHello);
    Result<tcp::socket> connected =
        co_await ConnectTo(options_.coordinator_host, options_.coordinator_port, limit);
    if (connected || connected.error().code() == Code::kInvalidArgument) co_return connected;
    if (state_.leaving() || clock_.Now() + timeouts::kReconnect >= deadline) co_return connected;
    if (const Status waited = co_await Pause(executor_, timeouts::kReconnect); !waited) {
      co_return waited.error();
    }
  }
}

Task<Status> Agent::Serve(std::shared_ptr<AgentLink> link) {
  tasks_.Spawn("write", WriteLoop(link));
  heard_ = false;
  SayHello();
  for (;;) {
    const Result<std::string> frame = co_await ReadFrame(link->socket, kFrameBytesMax, kNoLimit);
    if (exit_code_) co_return Error(Code::kAborted, "the agent ends");
    if (!frame) {
      CloseSocket(link->socket);
      link->sender.FinishAfterQueue();
      if (frame.error().code() == Code::kInvalidArgument) {
        Leave(kExitUnreachable, frame.error().message());
      }
      co_return frame.error();
    }
    proto::Envelope envelope;
    if (!envelope.ParseFromString(*frame)) {
      Leave(kExitUnreachable, "the coordinator sent " + std::to_string(frame->size()) +
                                  " bytes that are no message: is it of this version?");
      continue;
    }
    heard_ = true;
    OnEnvelope(envelope);
  }
}

// What it could not write is lost; the reader notices that the connection is broken.
Task<void> Agent::WriteLoop(std::shared_ptr<AgentLink> link) {
  const Status status = co_await link->sender.Run();
  if (!status && !exit_code_) LogWarning(status.error().message());
  link->written = true;
}

Task<void> Agent::HeartbeatLoop() {
  while (!exit_code_) {
    const Status waited = co_await Pause(executor_, options_.beat);
    if (!waited || exit_code_) co_return;
    proto::Envelope envelope;
    envelope.mutable_heartbeat()->set_phase(-1);
    Send(std::move(envelope));
  }
}

// Looks after mpirun. Polling costs nothing and, unlike SIGCHLD, cannot be lost or taken by others.
Task<void> Agent::WatchLoop() {
  while (!exit_code_) {
    const Status waited = co_await Pause(executor_, kWatch);
    if (!waited) co_return;
    if (!domain_) continue;
    if (const std::optional<int> status = domain_->TryWait()) {
      LogInfo("mpirun (pid " + std::to_string(domain_->pid()) + ") ended with status " +
              std::to_string(*status));
      Perform(state_.OnExited(*status));
    } else {
      Perform(state_.OnTick(clock_.Now()));
    }
  }
}

Task<bool> Agent::CallSlurm(std::vector<std::string> command) {
  SpawnOptions options;
  options.argv = std::move(command);
  options.output = options_.paths.run / "logs" / ("agent-" + options_.paths.domain + ".out");
  Result<ChildProcess> child = ChildProcess::Spawn(options);
  const TimePoint deadline = clock_.Now() + kSlurmAnswers;
  while (child && clock_.Now() < deadline) {
    if (const std::optional<int> status = child->TryWait()) co_return *status == 0;
    const Status waited = co_await Pause(executor_, milliseconds(20));
    if (!waited) break;
  }
  co_return false;
}

Task<Result<tcp::socket>> Agent::OutliveScript() {
  const TimePoint deadline = clock_.Now() + kOrphan;
  for (;;) {
    const std::vector<std::string> command = RequeueOrphan(options_.slurm_job);
    const bool queued = co_await CallSlurm(command);
    if (queued) co_return Error(Code::kUnavailable, "its node is down; the job is queued again");
    const TimePoint again = clock_.Now() + kSlurmAnswers;
    Result<tcp::socket> connected = co_await Connect(again);
    if (connected || state_.leaving() || clock_.Now() >= deadline) co_return connected;
  }
}

Task<void> Agent::SignalLoop() {
  error_code code;
  bool told = options_.slurm_job.empty();
  while (!exit_code_) {
    const int signal =
        co_await signals_.async_wait(asio::redirect_error(asio::use_awaitable, code));
    if (code) co_return;
    if (signal == SIGTERM && options_.ignores_sigterm) continue;
    if (signal == SIGTERM && !told) {
      told = true;
      LogInfo("Slurm wants the nodes; its job's script is told");
      // Steps hear of a preemption, the script does not.
      const std::vector<std::string> command = TellScript(options_.slurm_job);
      const bool heard = co_await CallSlurm(command);
      if (heard) continue;
    }
    Leave(kExitStopped, "got " + SignalName(signal));
  }
}

// Lets the last report reach the coordinator.
Task<void> Agent::SayFarewell() {
  const std::shared_ptr<AgentLink> link = link_;
  if (!link) co_return;
  link->sender.FinishAfterQueue();
  const TimePoint deadline = clock_.Now() + kFlush;
  while (!link->written && clock_.Now() < deadline) {
    static_cast<void>(co_await Pause(executor_, milliseconds(5)));
  }
}

void Agent::SayHello() {
  proto::Envelope envelope;
  proto::AgentHello& hello = *envelope.mutable_agent_hello();
  hello.set_secret(secret_);
  hello.set_domain(options_.paths.domain);
  hello.set_pid(getpid());
  hello.set_host(HostName());
  hello.set_running(state_.running());
  hello.set_attempt(state_.attempt());
  Send(std::move(envelope));
  LogInfo("joined the coordinator at " + options_.paths.coordinator);
  if (!last_exit_) return;
  proto::Envelope exited;
  *exited.mutable_domain_exited() = *last_exit_;
  Send(std::move(exited));
}

void Agent::OnEnvelope(const proto::Envelope& envelope) {
  if (envelope.has_start_domain()) {
    run_id_ = envelope.run_id();
    const proto::StartDomain& wire = envelope.start_domain();
    DomainSpec spec;
    spec.local_size = wire.local_size();
    spec.threads_per_rank = wire.threads_per_rank();
    spec.attempt = wire.attempt();
    spec.run_id = run_id_;
    Perform(state_.OnStartDomain(spec));
  } else if (envelope.has_kill_domain()) {
    LogWarning("the coordinator kills the domain: " + envelope.kill_domain().reason());
    Perform(state_.OnKillDomain());
  } else if (envelope.has_stop_domain()) {
    Leave(kExitOk, "the coordinator ends the domain: " + envelope.stop_domain().reason());
  } else if (envelope.has_refused()) {
    Leave(kExitCannotStart, "the coordinator refused: " + envelope.refused().message() + " (" +
                                envelope.refused().code() + ")");
  }
  // Anything else comes from a newer coordinator and is not for us.
}

void Agent::Leave(int exit_code, const std::string& reason) {
  if (state_.leaving()) return;
  if (exit_code == kExitOk || exit_code == kExitStopped) {
    LogInfo(reason);
  } else {
    LogError(reason);
  }
  Perform(state_.OnLeave(exit_code, clock_.Now()));
}

void Agent::Perform(const AgentActions& actions) {
  if (!actions.refused.empty()) LogWarning("StartDomain was not followed: " + actions.refused);
  if (actions.start) StartDomain(*actions.start);
  if (actions.terminate && domain_) {
    const Status sent = domain_->Terminate();
    if (!sent) LogWarning(sent.error().message());
  }
  if (actions.kill) Kill();
  if (actions.report) Report(*actions.report);
  if (actions.quit) {
    exit_code_ = actions.quit;
    ended_.cancel();
  }
}

void Agent::Kill() {
  if (domain_ && state_.running()) {
    LogWarning("killing mpirun and everything below it");
    const Status sent = domain_->Kill();
    if (!sent) LogWarning(sent.error().message());
    return;
  }
  if (const std::size_t left = KillDescendants(kKillWait); left > 0) {
    LogWarning("killed " + std::to_string(left) + " processes that mpirun left behind");
  }
  if (!DescendantsOf(getpid()).empty()) {
    LogError("a process that mpirun left behind does not die: it hangs in the kernel");
  }
}

void Agent::StartDomain(const DomainSpec& spec) {
  SetLogPrefix("start " + std::to_string(spec.attempt));
  last_exit_.reset();
  Result<DomainProcess> started = DomainProcess::Start(options_.paths, spec);
  if (started) {
    domain_ = std::move(*started);
    LogInfo("started mpirun (pid " + std::to_string(domain_->pid()) + ") with " +
            std::to_string(spec.local_size) + " ranks of " + std::to_string(spec.threads_per_rank) +
            " threads; output: " + domain_->log().string());
    return;
  }
  failure_ = started.error().message();
  LogError(failure_);
  Perform(state_.OnStartFailed(kExitCannotStart));
}

void Agent::Report(int status) {
  proto::DomainExited& exited = last_exit_.emplace();
  exited.set_domain(options_.paths.domain);
  exited.set_exit_status(status);
  exited.set_log_tail(domain_ ? domain_->LogTail() : failure_);
  exited.set_attempt(state_.attempt());
  domain_.reset();
  proto::Envelope envelope;
  *envelope.mutable_domain_exited() = exited;
  Send(std::move(envelope));
}

// Without a connection a message is dropped: the next hello says what matters. An agent belongs to
// no generation, its starts are numbered: it leaves the envelope's at 0.
void Agent::Send(proto::Envelope envelope) {
  if (!link_) return;
  envelope.set_run_id(run_id_);
  // False: the connection has failed, which its reader deals with.
  link_->sender.Send(envelope.SerializeAsString());
}

}  // namespace dd2
