#include "tests/bench/control/load_domain.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "proto/position.h"
#include "tests/bench/control/load_cluster.h"

namespace dd2::load {

namespace {

constexpr std::int64_t kMemoryEvery = 10;  // steps between snapshots in memory, as by default
constexpr std::int32_t kKilled = 128 + 9;

std::string DomainName(std::int32_t index) {
  char name[32];
  std::snprintf(name, sizeof(name), "node-%04d", index);
  return name;
}

}  // namespace

Worker::Worker(Cluster& cluster, std::string domain, std::int32_t local_rank)
    : cluster_(cluster), domain_(std::move(domain)), local_rank_(local_rank) {}

void Worker::Start() {
  proto::Envelope envelope;
  proto::WorkerHello& hello = *envelope.mutable_worker_hello();
  hello.set_secret(cluster_.options().secret);
  hello.set_domain(domain_);
  hello.set_local_rank(local_rank_);
  hello.set_local_size(cluster_.config().ranks);
  hello.set_pid(1000 + local_rank_);
  hello.set_host(domain_ + ".cluster.example");
  hello.set_numeric_mode("load generator: computes nothing, 1 thread");
  hello.set_teacher_digest("00112233445566778899aabbccddeeff");
  hello.set_code_version("load");
  hello.set_checkpoint_bytes(std::int64_t{1} << 20);
  link_ = Link::Open(cluster_.links(), *this, envelope);
  cluster_.OnHello();
}

void Worker::Kill() {
  if (link_) link_->Close();
  link_.reset();
  silent_ = false;
  generation_ = 0;
  assigned_ = false;
  rank_ = -1;
  has_state_ = false;
  position_ = proto::Position();
  collectives_ = 0;
  lease_phase_ = -1;
  lease_end_ = 0;
  desired_ = proto::Desired();
}

void Worker::Send(proto::Envelope& envelope) {
  if (!link_ || silent_) return;
  envelope.set_run_id(cluster_.run_id());
  envelope.set_generation(generation_);
  link_->Send(envelope);
}

void Worker::Beat() {
  if (!link_ || silent_) return;
  proto::Envelope envelope;
  proto::Heartbeat& beat = *envelope.mutable_heartbeat();
  beat.set_phase(assigned_ ? position_.phase() : -1);
  beat.set_step(position_.step());
  beat.set_collectives(collectives_);
  beat.set_waiting(assigned_);
  Send(envelope);
}

bool Worker::HasLease() {
  const auto& phases = cluster_.config().phases;
  const std::int64_t steps = phases.at(static_cast<std::size_t>(position_.phase())).steps;
  if (position_.step() >= steps && lease_phase_ == position_.phase() + 1) {
    position_.set_phase(lease_phase_);
    position_.set_step(0);
  }
  return lease_phase_ == position_.phase() && position_.step() < lease_end_;
}

void Worker::FinishStep(std::int64_t steps_of_phase) {
  position_.set_step(position_.step() + 1);
  collectives_ += 2;
  proto::Envelope envelope;
  proto::Progress& progress = *envelope.mutable_progress();
  progress.set_phase(position_.phase());
  progress.set_step(position_.step());
  progress.set_step_seconds(static_cast<double>(cluster_.options().pace.count()) / 1000.0);
  progress.set_phase_finished(position_.step() == steps_of_phase);
  progress.mutable_counters()->set_guidance_updates(position_.step());
  progress.mutable_counters()->set_cache_hits(7 * position_.step());
  if (rank_ == 0) {
    for (const char* name : {"load/loss", "load/norm", "load/rate", "load/samples"}) {
      proto::Metric& metric = *progress.add_metrics();
      metric.set_name(name);
      metric.set_value(1.0 / static_cast<double>(position_.step()));
    }
  }
  Send(envelope);
}

void Worker::ReportTrouble() {
  if (!assigned_) return;
  proto::Envelope envelope;
  proto::WorkerFailed& failed = *envelope.mutable_worker_failed();
  failed.set_rank(rank_);
  failed.set_phase(position_.phase());
  failed.set_step(position_.step());
  failed.set_code("unavailable");
  failed.set_message("a collective failed: connection closed by peer");
  Send(envelope);
}

void Worker::ReportPart(const proto::PartReport& report) {
  proto::Envelope envelope;
  *envelope.mutable_part_report() = report;
  Send(envelope);
}

proto::HeldState Worker::Held() const {
  proto::HeldState held;
  held.set_has_state(has_state_);
  *held.mutable_position() = position_;
  *held.mutable_recorded() = RecordedBefore(position_, nullptr);
  const std::int64_t newest = position_.step() / kMemoryEvery * kMemoryEvery;
  for (std::int64_t step = newest; step > 0 && step > newest - 2 * kMemoryEvery;
       step -= kMemoryEvery) {
    proto::MemorySnapshot& snapshot = *held.add_snapshots();
    snapshot.mutable_position()->set_phase(position_.phase());
    snapshot.mutable_position()->set_step(step);
    *snapshot.mutable_recorded() = snapshot.position();
    snapshot.set_generation(generation_ - 1);
  }
  return held;
}

void Worker::OnEnvelope(const proto::Envelope& envelope) {
  if (silent_) return;
  cluster_.Heard(envelope);
  if (envelope.has_refused()) {
    cluster_.Problem("a worker was refused: " + envelope.refused().message());
  } else if (envelope.has_run_finished()) {
    cluster_.Problem("the run ended: " + envelope.run_finished().outcome());
  } else if (envelope.generation() < generation_) {
    return;
  } else if (envelope.has_regroup()) {
    OnRegroup(envelope);
  } else if (envelope.has_assignment()) {
    OnAssignment(envelope);
  } else if (envelope.has_lease()) {
    const proto::Lease& lease = envelope.lease();
    const std::int64_t end = lease.first_step() + lease.count();
    lease_end_ = lease.phase() == lease_phase_ ? std::max(lease_end_, end) : end;
    lease_phase_ = lease.phase();
  } else if (envelope.has_desired()) {
    if (envelope.desired().version() > desired_.version()) desired_ = envelope.desired();
  } else if (envelope.has_checkpoint_committed()) {
    cluster_.OnCommitted(envelope.checkpoint_committed().checkpoint_id());
  } else if (envelope.has_checkpoint_failed()) {
    cluster_.Problem("a checkpoint failed: " + envelope.checkpoint_failed().reason());
  }
}

void Worker::OnRegroup(const proto::Envelope& regroup) {
  generation_ = regroup.generation();
  assigned_ = false;
  lease_phase_ = -1;
  lease_end_ = 0;
  cluster_.OnRegroup(generation_);
  proto::Envelope answer;
  *answer.mutable_regrouped()->mutable_held() = Held();
  Send(answer);
}

void Worker::OnAssignment(const proto::Envelope& envelope) {
  const proto::Assignment& assignment = envelope.assignment();
  generation_ = envelope.generation();
  rank_ = assignment.rank();
  world_size_ = assignment.world_size();
  collectives_ = 0;
  assigned_ = true;
  if (assignment.has_start()) {
    position_ = assignment.start();
  } else if (has_state_ || !assignment.restore_checkpoint().empty()) {
    cluster_.Problem("the run went back to checkpoint '" + assignment.restore_checkpoint() + "'");
  }
  has_state_ = true;
  cluster_.OnAssignment(*this);
}

void Worker::OnClosed() {
  link_.reset();
  if (!silent_) cluster_.Problem("the coordinator closed a worker's connection");
}

Domain::Domain(Cluster& cluster, std::int32_t index) : cluster_(cluster), name_(DomainName(index)) {
  for (std::int32_t rank = 0; rank < cluster.config().ranks; ++rank) {
    workers_.push_back(std::make_unique<Worker>(cluster, name_, rank));
  }
}

void Domain::Start() {
  proto::Envelope envelope;
  proto::AgentHello& hello = *envelope.mutable_agent_hello();
  hello.set_secret(cluster_.options().secret);
  hello.set_domain(name_);
  hello.set_pid(999);
  hello.set_host(name_ + ".cluster.example");
  link_ = Link::Open(cluster_.links(), *this, envelope);
}

void Domain::Crash() {
  if (link_) link_->Close();
  link_.reset();
  for (const auto& worker : workers_) worker->Kill();
  silent_ = false;
  running_ = false;
  attempt_ = 0;
}

void Domain::GoSilent() {
  silent_ = true;
  last_word_ = SystemClock().Now();
  for (const auto& worker : workers_) worker->SetSilent(true);
}

void Domain::Send(proto::Envelope& envelope) {
  if (!link_ || silent_) return;
  envelope.set_run_id(cluster_.run_id());
  link_->Send(envelope);
}

void Domain::Beat() {
  proto::Envelope envelope;
  envelope.mutable_heartbeat()->set_phase(-1);
  Send(envelope);
}

void Domain::SayExited(std::int32_t status) {
  proto::Envelope envelope;
  proto::DomainExited& exited = *envelope.mutable_domain_exited();
  exited.set_domain(name_);
  exited.set_exit_status(status);
  exited.set_attempt(attempt_);
  Send(envelope);
}

void Domain::OnEnvelope(const proto::Envelope& envelope) {
  if (silent_) return;
  cluster_.Heard(envelope);
  if (envelope.has_start_domain()) {
    running_ = true;
    attempt_ = envelope.start_domain().attempt();
    for (const auto& worker : workers_) {
      worker->Kill();
      worker->Start();
    }
  } else if (envelope.has_kill_domain()) {
    for (const auto& worker : workers_) worker->Kill();
    if (std::exchange(running_, false)) SayExited(kKilled);
  } else if (envelope.has_stop_domain()) {
    cluster_.Problem("domain " + name_ + " was told to leave: " + envelope.stop_domain().reason());
  } else if (envelope.has_refused()) {
    cluster_.Problem("an agent was refused: " + envelope.refused().message());
  }
}

void Domain::OnClosed() {
  link_.reset();
  if (!silent_) {
    cluster_.Problem("the coordinator closed the connection of agent " + name_);
    return;
  }
  // All of it is given up at the same moment; what is left of it dies with its agent.
  Crash();
  Start();
}

}  // namespace dd2::load
