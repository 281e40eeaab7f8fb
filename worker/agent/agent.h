#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "common/asio.h"
#include "common/clock.h"
#include "common/framing.h"
#include "common/result.h"
#include "common/task_group.h"
#include "common/timeouts.h"
#include "proto/control.pb.h"
#include "worker/agent/agent_state.h"
#include "worker/agent/domain_process.h"

namespace dd2 {

struct AgentOptions {
  DomainPaths paths;
  std::string coordinator_host;
  std::uint16_t coordinator_port = 0;
  std::chrono::milliseconds beat = Timeouts().heartbeat_interval;
  // A coordinator that was reached and is gone is waited for this long; the domain runs meanwhile.
  std::chrono::milliseconds away_limit = Timeouts().coordinator_away;
  // The Slurm job that this is a step of; empty: none.
  std::string slurm_job;
  bool ignores_sigterm = false;  // whoever started us hears it too and decides
};

// One connection to the coordinator. Shared by the coroutines that read and write it.
struct AgentLink {
  explicit AgentLink(tcp::socket connected) : socket(std::move(connected)), sender(socket) {}
  tcp::socket socket;
  FrameSender sender;    // of socket
  bool written = false;  // the sender has nothing left to do
};

// The agent of one domain: joins the coordinator with the run's secret, starts, watches and kills
// mpirun as told, and takes everything it started along when it leaves. A connection that breaks is
// made again, and the domain does not notice: a coordinator that ends on purpose says StopDomain.
//
// Owned by main(), which gives it the process: it adopts orphans and kills every process below its
// own. One thread, that of `context`, which must live as long as the domain.
class Agent {
 public:
  Agent(asio::io_context& context, const Clock& clock, AgentOptions options);

  // Works until the coordinator says StopDomain or stays away too long, or a SIGTERM, SIGINT or
  // SIGHUP comes. In a Slurm job the first SIGTERM is Slurm's word that another job gets the nodes
  // after its grace time: it is passed on to the job's script, and the work goes on; and a job
  // whose coordinator's node is lost is queued again. The process's exit code: kExitOk after
  // StopDomain, kExitStopped after a signal, kExitUnreachable without the coordinator (never
  // reached in timeouts::kHello, or away for `away_limit`), kExitCannotStart when it refused us or
  // mpirun is missing.
  Task<int> Run();

 private:
  // Keeps a connection to the coordinator until the agent leaves.
  Task<void> LinkLoop();
  // Tries until it works, `deadline` has passed or the agent leaves; the last error.
  Task<Result<tcp::socket>> Connect(TimePoint deadline);
  // Says hello and follows what comes, until the connection breaks: the error.
  Task<Status> Serve(std::shared_ptr<AgentLink> link);
  Task<void> WriteLoop(std::shared_ptr<AgentLink> link);
  Task<void> HeartbeatLoop();
  Task<void> WatchLoop();
  Task<void> SignalLoop();
  // Runs a command of slurm_job.h; whether Slurm took it.
  Task<bool> CallSlurm(std::vector<std::string> command);
  // The coordinator of a Slurm job stays away: until it is back, its node is down and the job is
  // queued again, or Slurm has had time to notice; then the error.
  Task<Result<tcp::socket>> OutliveScript();
  Task<void> SayFarewell();

  void SayHello();
  void OnEnvelope(const proto::Envelope& envelope);
  void Leave(int exit_code, const std::string& reason);
  void Perform(const AgentActions& actions);
  void Kill();
  void StartDomain(const DomainSpec& spec);
  void Report(int status);
  void Send(proto::Envelope envelope);

  const Clock& clock_;
  const AgentOptions options_;
  const asio::any_io_executor executor_;
  asio::signal_set signals_;
  asio::steady_timer ended_;  // cancelled when exit_code_ is set
  TaskGroup tasks_;

  AgentState state_;
  std::shared_ptr<AgentLink> link_;  // empty while there is no connection
  std::optional<DomainProcess> domain_;
  std::string failure_;  // why the domain could not be started
  // Of the last domain, until the next one starts: a coordinator that died may not have read it.
  std::optional<proto::DomainExited> last_exit_;
  std::string secret_;
  std::string run_id_;  // told by the coordinator
  bool heard_ = false;  // the coordinator said something on this connection
  std::optional<int> exit_code_;
};

}  // namespace dd2
