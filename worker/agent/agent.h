#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "common/asio.h"
#include "common/clock.h"
#include "common/framing.h"
#include "common/result.h"
#include "common/task_group.h"
#include "proto/control.pb.h"
#include "worker/agent/agent_state.h"
#include "worker/agent/domain_process.h"

namespace dd2 {

struct AgentOptions {
  DomainPaths paths;
  std::string coordinator_host;
  std::uint16_t coordinator_port = 0;
};

// The agent of one domain: joins the coordinator with the run's secret, starts and watches mpirun
// as told, and takes everything it started along when it leaves.
//
// Owned by main(), which gives it the process: it adopts orphans and kills every process below its
// own. One thread, that of `context`, which must live as long as the domain.
class Agent {
 public:
  Agent(asio::io_context& context, const Clock& clock, AgentOptions options);

  // Works until the coordinator says StopDomain or is lost, or a SIGTERM, SIGINT or SIGHUP comes.
  // The process's exit code: kExitOk after StopDomain, kExitStopped after a signal,
  // kExitUnreachable without the coordinator, kExitCannotStart when it refused us or mpirun is
  // missing.
  Task<int> Run();

 private:
  Task<Status> Join();
  Task<void> ReadLoop();
  Task<void> WriteLoop();
  Task<void> HeartbeatLoop();
  Task<void> WatchLoop();
  Task<void> SignalLoop();
  Task<void> SayFarewell();

  void OnEnvelope(const proto::Envelope& envelope);
  void Leave(int exit_code, const std::string& reason);
  void Perform(const AgentActions& actions);
  void StartDomain(const DomainSpec& spec);
  void Report(int status);
  void Send(proto::Envelope envelope);

  const Clock& clock_;
  const AgentOptions options_;
  tcp::socket socket_;
  FrameSender sender_;  // of socket_
  asio::signal_set signals_;
  asio::steady_timer ended_;  // cancelled when exit_code_ is set
  TaskGroup tasks_;

  AgentState state_;
  std::optional<DomainProcess> domain_;
  std::string failure_;   // why the domain could not be started
  std::string run_id_;    // told by the coordinator
  bool written_ = false;  // the sender has nothing left to do
  std::optional<int> exit_code_;
};

}  // namespace dd2
