#include "tests/simulation/sim_agent.h"

#include <utility>

#include "common/timeouts.h"

namespace dd2::simulation {

SimAgent::SimAgent(Site site, std::string domain) : site_(site), domain_(std::move(domain)) {}

void SimAgent::Begin() {
  away_since_ = site_.world.now();
  Connect();
  Beat();
}

std::vector<SimWorker*> SimAgent::Workers() {
  std::vector<SimWorker*> living;
  for (const auto& worker : workers_) {
    if (worker->alive()) living.push_back(worker.get());
  }
  return living;
}

void SimAgent::Connect() {
  if (!alive_ || connection_ != ConnectionId(0)) return;
  if (site_.world.now() - away_since_ > site_.timeouts.coordinator_away) return Kill();
  connection_ = site_.network.Connect(*this);
  if (connection_ == ConnectionId(0)) {
    site_.world.After(timeouts::kReconnect, [this] { Connect(); });
    return;
  }
  proto::Envelope envelope;
  envelope.mutable_agent_hello()->set_domain(domain_);
  envelope.mutable_agent_hello()->set_running(state_.running());
  envelope.mutable_agent_hello()->set_attempt(state_.attempt());
  site_.network.ToServer(connection_, envelope);
  Report();
}

void SimAgent::Beat() {
  site_.world.After(site_.timeouts.heartbeat_interval, [this] {
    if (!alive_) return;
    proto::Envelope envelope;
    envelope.mutable_heartbeat()->set_phase(-1);
    site_.network.ToServer(connection_, envelope);
    Perform(state_.OnTick(site_.world.now()));
    Beat();
  });
}

void SimAgent::OnCut() {
  if (!alive_) return;
  connection_ = ConnectionId(0);
  away_since_ = site_.world.now();
  site_.world.After(timeouts::kReconnect, [this] { Connect(); });
}

void SimAgent::OnEnvelope(const proto::Envelope& envelope) {
  if (!alive_) return;
  if (envelope.has_start_domain()) {
    const proto::StartDomain& wire = envelope.start_domain();
    Perform(state_.OnStartDomain(
        DomainSpec{wire.local_size(), wire.threads_per_rank(), wire.attempt(), {}}));
  } else if (envelope.has_kill_domain()) {
    Perform(state_.OnKillDomain());
  } else if (envelope.has_stop_domain()) {
    Perform(state_.OnLeave(0, site_.world.now()));
  } else if (envelope.has_refused()) {
    Perform(state_.OnLeave(4, site_.world.now()));
  }
}

void SimAgent::Perform(const AgentActions& actions) {
  if (actions.start) StartWorkers(*actions.start);
  if (actions.terminate || actions.kill) KillWorkers();
  if (actions.report) {
    proto::DomainExited exited;
    exited.set_domain(domain_);
    exited.set_exit_status(*actions.report);
    exited.set_attempt(state_.attempt());
    exited_ = exited;
    Report();
  }
  if (actions.quit) {
    alive_ = false;
    sent_away_ = *actions.quit == 0;
    site_.memory.clear();
    site_.network.CloseByClient(connection_);
  }
}

void SimAgent::Report() {
  if (!exited_ || connection_ == ConnectionId(0)) return;
  proto::Envelope envelope;
  *envelope.mutable_domain_exited() = *exited_;
  site_.network.ToServer(connection_, envelope);
}

void SimAgent::StartWorkers(const DomainSpec& spec) {
  exited_.reset();
  ending_ = false;
  ++life_;
  for (auto& worker : workers_) graveyard_.push_back(std::move(worker));
  workers_.clear();
  for (std::int32_t rank = 0; rank < spec.local_size; ++rank) {
    WorkerPlace place{domain_, rank, spec.local_size, site_.next_pid++};
    workers_.push_back(std::make_unique<SimWorker>(
        site_.world, site_.network, site_.disk, site_.memory, site_.groups, site_.phases,
        site_.timeouts, std::move(place), [this, life = life_](int status) {
          if (alive_ && life == life_) OnWorkerExit(status);
        }));
    // Programs and teacher are loaded first.
    site_.world.After(site_.world.Between(300, 3000), [worker = workers_.back().get()] {
      if (worker->alive()) worker->Begin();
    });
  }
}

// mpirun gives the others a second at most.
void SimAgent::OnWorkerExit(int status) {
  const bool all_gone = Workers().empty();
  if (status == 0 && !all_gone) return;
  if (ending_) return;
  ending_ = true;
  site_.world.After(site_.world.Between(1, all_gone ? 5 : 1000), [this, life = life_, status] {
    if (!alive_ || life != life_) return;
    KillWorkers();
    EndMpirun(status);
  });
}

void SimAgent::KillWorkers() {
  for (SimWorker* worker : Workers()) worker->Kill();
}

void SimAgent::EndMpirun(int status) {
  if (state_.running()) Perform(state_.OnExited(status));
}

void SimAgent::Kill() {
  if (!alive_) return;
  alive_ = false;
  site_.world.Trace("agent of " + domain_ + " is killed");
  site_.network.CloseByClient(connection_);
  KillWorkers();
}

}  // namespace dd2::simulation
