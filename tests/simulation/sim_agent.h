#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/simulation/sim_worker.h"
#include "worker/agent/agent_state.h"

namespace dd2::simulation {

// An agent process with its mpirun: the real AgentState decides, what it starts is simulated. A
// domain dies as one: when a worker ends, mpirun takes the others along.
class SimAgent final : public Client {
 public:
  struct Site {
    World& world;
    Network& network;
    Disk& disk;
    MachineMemory& memory;
    Groups& groups;
    const std::vector<PhaseConfig>& phases;
    const Timeouts& timeouts;
    std::int64_t& next_pid;
  };
  SimAgent(Site site, std::string domain);

  void Begin();
  // kill -9 of the agent: its mpirun and the workers go with it.
  void Kill();
  void OnEnvelope(const proto::Envelope& envelope) override;
  void OnCut() override;
  const std::string& domain() const override { return domain_; }
  bool alive() const { return alive_; }
  // It ended because the coordinator said so: nobody starts it again.
  bool sent_away() const { return sent_away_; }
  std::vector<SimWorker*> Workers();

 private:
  void Connect();
  void Beat();
  void Perform(const AgentActions& actions);
  void StartWorkers(const DomainSpec& spec);
  void OnWorkerExit(int status);
  void KillWorkers();
  void EndMpirun(int status);
  void Report();

  const Site site_;
  const std::string domain_;
  bool alive_ = true;
  bool sent_away_ = false;
  ConnectionId connection_;
  TimePoint away_since_;
  AgentState state_;
  std::uint64_t life_ = 0;  // of mpirun
  bool ending_ = false;     // mpirun has seen a worker end
  std::vector<std::unique_ptr<SimWorker>> workers_;
  std::vector<std::unique_ptr<SimWorker>> graveyard_;  // events may still name them
  std::optional<proto::DomainExited> exited_;          // to be said, again after a reconnection
};

}  // namespace dd2::simulation
