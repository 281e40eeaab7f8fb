#include "worker/agent/agent.h"

#include <signal.h>
#include <unistd.h>

#include <utility>

#include "common/exit_codes.h"
#include "common/file.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/timeouts.h"

namespace dd2 {

namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// How soon the end of mpirun is noticed.
constexpr milliseconds kWatch{50};
// The last message to the coordinator may take this long.
constexpr milliseconds kFlush = seconds(2);
// SIGKILL takes effect within this, unless a process hangs in the kernel.
constexpr milliseconds kKillWait = seconds(5);

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof name - 1) == 0 ? name : "unknown";
}

std::string SignalName(int signal) {
  const char* name = sigabbrev_np(signal);
  return name != nullptr ? std::string("SIG") + name : "signal " + std::to_string(signal);
}

}  // namespace

Agent::Agent(asio::io_context& context, const Clock& clock, AgentOptions options)
    : clock_(clock),
      options_(std::move(options)),
      socket_(context),
      sender_(socket_),
      signals_(context, SIGTERM, SIGINT, SIGHUP),
      ended_(context, asio::steady_timer::time_point::max()),
      tasks_(context.get_executor()) {}

Task<int> Agent::Run() {
  const Status joined = co_await Join();
  if (!joined) {
    LogError(joined.error().message());
    co_return joined.error().code() == Code::kUnavailable ||
            joined.error().code() == Code::kDeadlineExceeded
        ? kExitUnreachable
        : kExitCannotStart;
  }
  tasks_.Spawn("write", WriteLoop());
  tasks_.Spawn("read", ReadLoop());
  tasks_.Spawn("heartbeat", HeartbeatLoop());
  tasks_.Spawn("watch", WatchLoop());
  tasks_.Spawn("signal", SignalLoop());
  error_code ignored;
  while (!exit_code_) {
    co_await ended_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
  co_await SayFarewell();
  tasks_.Cancel();
  CloseSocket(socket_);
  co_await tasks_.Wait();
  KillDescendants(kKillWait);
  RemoveSessionFolder(options_.paths);
  co_return *exit_code_;
}

Task<Status> Agent::Join() {
  const Result<std::string> secret = RealFileSystem().Read(options_.paths.run / "secret");
  if (!secret) co_return Error(secret.error().Wrap("the run's secret"));
  Result<tcp::socket> connected =
      co_await ConnectTo(options_.coordinator_host, options_.coordinator_port, timeouts::kHello);
  if (!connected) co_return Error(connected.error().Wrap("cannot reach the coordinator"));
  socket_ = std::move(*connected);
  proto::Envelope envelope;
  proto::AgentHello& hello = *envelope.mutable_agent_hello();
  hello.set_secret(*secret);
  hello.set_domain(options_.paths.domain);
  hello.set_pid(getpid());
  hello.set_host(HostName());
  Send(std::move(envelope));
  LogInfo("joined the coordinator at " + options_.paths.coordinator);
  co_return Status();
}

Task<void> Agent::WriteLoop() {
  const Status status = co_await sender_.Run();
  written_ = true;
  if (!status && !exit_code_) {
    Leave(kExitUnreachable, "the coordinator is lost: " + status.error().message());
  }
}

Task<void> Agent::ReadLoop() {
  for (;;) {
    const Result<std::string> frame = co_await ReadFrame(socket_, kFrameBytesMax, kNoLimit);
    if (exit_code_) co_return;
    if (!frame) {
      Leave(kExitUnreachable, "the coordinator is lost: " + frame.error().message());
      co_return;
    }
    proto::Envelope envelope;
    if (!envelope.ParseFromString(*frame)) {
      Leave(kExitUnreachable, "the coordinator sent " + std::to_string(frame->size()) +
                                  " bytes that are no message: is it of this version?");
      co_return;
    }
    OnEnvelope(envelope);
  }
}

Task<void> Agent::HeartbeatLoop() {
  asio::steady_timer timer(socket_.get_executor());
  error_code code;
  while (!exit_code_) {
    timer.expires_after(timeouts::kHeartbeatInterval);
    co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, code));
    if (code || exit_code_) co_return;
    proto::Envelope envelope;
    envelope.mutable_heartbeat()->set_phase(-1);
    Send(std::move(envelope));
  }
}

// Looks after mpirun. Polling costs nothing and, unlike SIGCHLD, cannot be lost or taken by others.
Task<void> Agent::WatchLoop() {
  asio::steady_timer timer(socket_.get_executor());
  error_code code;
  while (!exit_code_) {
    timer.expires_after(kWatch);
    co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, code));
    if (code) co_return;
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

Task<void> Agent::SignalLoop() {
  error_code code;
  while (!exit_code_) {
    const int signal =
        co_await signals_.async_wait(asio::redirect_error(asio::use_awaitable, code));
    if (code) co_return;
    Leave(kExitStopped, "got " + SignalName(signal));
  }
}

// Lets the last report reach the coordinator.
Task<void> Agent::SayFarewell() {
  sender_.FinishAfterQueue();
  asio::steady_timer timer(socket_.get_executor());
  error_code ignored;
  const TimePoint deadline = clock_.Now() + kFlush;
  while (!written_ && clock_.Now() < deadline) {
    timer.expires_after(milliseconds(5));
    co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
}

void Agent::OnEnvelope(const proto::Envelope& envelope) {
  if (envelope.has_start_domain()) {
    run_id_ = envelope.run_id();
    const proto::StartDomain& wire = envelope.start_domain();
    DomainSpec spec;
    spec.local_size = wire.local_size();
    spec.threads_per_rank = wire.threads_per_rank();
    spec.generation = Generation(wire.attempt());
    Perform(state_.OnStartDomain(spec));
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
  if (actions.kill) {
    if (domain_ && state_.running()) {
      LogWarning("mpirun did not end after SIGTERM: killing it and everything below it");
      const Status sent = domain_->Kill();
      if (!sent) LogWarning(sent.error().message());
    } else if (const std::size_t left = KillDescendants(kKillWait); left > 0) {
      LogWarning("killed " + std::to_string(left) + " processes that mpirun left behind");
    }
  }
  if (actions.report) Report(*actions.report);
  if (actions.quit) {
    exit_code_ = actions.quit;
    ended_.cancel();
  }
}

void Agent::StartDomain(const DomainSpec& spec) {
  SetLogPrefix("gen " + std::to_string(spec.generation.value()));
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
  proto::Envelope envelope;
  proto::DomainExited& exited = *envelope.mutable_domain_exited();
  exited.set_domain(options_.paths.domain);
  exited.set_exit_status(status);
  exited.set_log_tail(domain_ ? domain_->LogTail() : failure_);
  Send(std::move(envelope));
  domain_.reset();
}

void Agent::Send(proto::Envelope envelope) {
  envelope.set_run_id(run_id_);
  envelope.set_generation(state_.generation().value());
  // False: the connection has failed, which its reader and writer deal with.
  sender_.Send(envelope.SerializeAsString());
}

}  // namespace dd2
