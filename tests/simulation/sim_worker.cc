#include "tests/simulation/sim_worker.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "common/timeouts.h"
#include "proto/position.h"

namespace dd2::simulation {

namespace {

std::string CheckpointName(const proto::Position& position) {
  char name[64];
  std::snprintf(name, sizeof name, "p%03d-s%09lld", position.phase(),
                static_cast<long long>(position.step()));
  return name;
}

proto::Position PositionOf(const std::string& checkpoint) {
  proto::Position position;
  position.set_phase(std::stoi(checkpoint.substr(1, 3)));
  position.set_step(std::stoll(checkpoint.substr(6)));
  return position;
}

bool ChangesState(PhaseKind kind) { return kind != PhaseKind::kEval && kind != PhaseKind::kExport; }

}  // namespace

std::uint64_t Updated(std::uint64_t value, std::int32_t phase, std::int64_t step,
                      std::int32_t update) {
  for (const std::uint64_t part :
       {static_cast<std::uint64_t>(phase) + 1, static_cast<std::uint64_t>(step) + 1,
        static_cast<std::uint64_t>(update) + 1}) {
    value = (value ^ part) * 0x9E3779B97F4A7C15ULL;
    value ^= value >> 29;
  }
  return value;
}

std::uint64_t UndisturbedValue(const std::vector<PhaseConfig>& phases) {
  std::uint64_t value = 0;
  for (std::size_t phase = 0; phase < phases.size(); ++phase) {
    for (std::int64_t step = 0; step < phases[phase].steps; ++step) {
      for (std::int32_t update = 0; update < UpdatesOfStep(phases[phase]); ++update) {
        value = Updated(value, static_cast<std::int32_t>(phase), step, update);
      }
    }
  }
  return value;
}

SimWorker::SimWorker(World& world, Network& network, Disk& disk, MachineMemory& memory,
                     Groups& groups, const std::vector<PhaseConfig>& phases,
                     const Timeouts& timeouts, WorkerPlace place,
                     std::function<void(int status)> on_exit)
    : world_(world),
      network_(network),
      disk_(disk),
      memory_(memory),
      groups_(groups),
      phases_(phases),
      timeouts_(timeouts),
      place_(std::move(place)),
      on_exit_(std::move(on_exit)) {}

void SimWorker::Always(milliseconds delay, std::function<void()> what) {
  world_.After(delay, [this, what = std::move(what)] {
    if (!alive_) return;
    if (stopped_) {
      backlog_.push_back(what);
    } else {
      what();
    }
  });
}

void SimWorker::Later(milliseconds delay, std::function<void()> what) {
  Always(delay, [this, epoch = epoch_, what = std::move(what)] {
    if (epoch == epoch_) what();
  });
}

void SimWorker::Begin() {
  away_since_ = world_.now();
  Connect();
  Beat();
}

void SimWorker::Exit(int status) {
  if (!alive_) return;
  alive_ = false;
  world_.Trace("worker pid " + std::to_string(place_.pid) + " exits with " +
               std::to_string(status));
  if (group_) group_->Break();
  network_.CloseByClient(connection_);
  on_exit_(status);
}

void SimWorker::Kill() { Exit(137); }

void SimWorker::Continue() {
  stopped_ = false;
  while (alive_ && !stopped_ && !backlog_.empty()) {
    const std::function<void()> what = std::move(backlog_.front());
    backlog_.pop_front();
    what();
  }
}

void SimWorker::OnEnvelope(const proto::Envelope& envelope) {
  Always(milliseconds(0), [this, envelope] { Handle(envelope); });
}

void SimWorker::OnCut() {
  if (!alive_) return;
  connection_ = ConnectionId(0);
  talking_ = false;
  away_since_ = world_.now();
  Always(timeouts::kReconnect, [this] { Connect(); });
}

void SimWorker::Connect() {
  if (connection_ != ConnectionId(0)) return;
  if (world_.now() - away_since_ > timeouts_.coordinator_away) return Exit(9);
  connection_ = network_.Connect(*this);
  if (connection_ == ConnectionId(0)) {
    Always(timeouts::kReconnect, [this] { Connect(); });
    return;
  }
  SayHello(generation_ != 0);
}

void SimWorker::SayHello(bool resumes) {
  proto::Envelope envelope;
  envelope.set_generation(generation_);
  proto::WorkerHello& hello = *envelope.mutable_worker_hello();
  hello.set_domain(place_.domain);
  hello.set_local_rank(place_.local_rank);
  hello.set_local_size(place_.local_size);
  hello.set_pid(place_.pid);
  hello.set_numeric_mode("simulated");
  hello.set_resumes(resumes);
  if (resumes && assignment_) hello.set_rank(assignment_->rank());
  if (resumes && !assignment_) hello.set_rank(-1);
  *hello.mutable_held() = Held();
  talking_ = !resumes;
  network_.ToServer(connection_, envelope);
  Flush();
}

void SimWorker::Beat() {
  Always(timeouts_.heartbeat_interval, [this] {
    proto::Envelope envelope;
    envelope.mutable_heartbeat()->set_phase(has_state_ ? position_.phase() : -1);
    envelope.mutable_heartbeat()->set_step(position_.step());
    envelope.mutable_heartbeat()->set_collectives(collectives_);
    envelope.mutable_heartbeat()->set_waiting(waiting_);
    envelope.set_generation(generation_);
    if (talking_) network_.ToServer(connection_, envelope);
    Beat();
  });
}

void SimWorker::Send(proto::Envelope envelope) {
  envelope.set_generation(generation_);
  unsent_.push_back(std::move(envelope));
  Flush();
}

void SimWorker::Flush() {
  while (talking_ && connection_ != ConnectionId(0) && !unsent_.empty()) {
    network_.ToServer(connection_, unsent_.front());
    unsent_.pop_front();
  }
}

void SimWorker::Handle(const proto::Envelope& envelope) {
  if (envelope.has_refused()) return Exit(4);
  if (envelope.has_regroup()) return OnRegroup(envelope);
  if (envelope.has_assignment()) return OnAssignment(envelope);
  if (envelope.generation() < generation_) return;
  if (envelope.has_resumed()) {
    talking_ = true;
    unsent_.clear();
    OnRecorded(envelope.resumed().recorded());
    committed_ = std::max(committed_, envelope.resumed().committed_checkpoint());
    OnDecided();
    SendKept();
    for (const proto::Envelope& report : reports_) Send(report);
  } else if (envelope.has_lease()) {
    OnLease(envelope.lease());
  } else if (envelope.has_desired()) {
    if (envelope.desired().version() > desired_.version()) desired_ = envelope.desired();
    if (paused_) {
      paused_ = false;
      AfterStep();
    }
  } else if (envelope.has_checkpoint_committed()) {
    committed_ = std::max(committed_, envelope.checkpoint_committed().checkpoint_id());
    OnDecided();
  } else if (envelope.has_checkpoint_failed()) {
    failed_ = envelope.checkpoint_failed();
    OnDecided();
  } else if (envelope.has_run_finished()) {
    Exit(0);
  }
}

void SimWorker::OnRegroup(const proto::Envelope& envelope) {
  // Said again after a reconnection: answered again.
  const bool again = envelope.generation() == generation_ && !assignment_;
  if (envelope.generation() <= generation_ && !again) return;
  generation_ = envelope.generation();
  ++epoch_;
  talking_ = true;
  unsent_.clear();
  assignment_.reset();
  if (group_) group_->Break();
  group_.reset();
  lease_phase_ = -1;
  hungry_ = false;
  paused_ = false;
  waiting_ = false;
  after_writing_ = nullptr;
  after_decision_ = nullptr;
  // The computation that it is in must end first.
  Later(world_.Between(0, 150), [this] {
    proto::Envelope answer;
    *answer.mutable_regrouped()->mutable_held() = Held();
    Send(std::move(answer));
  });
}

proto::HeldState SimWorker::Held() const {
  proto::HeldState held;
  held.set_has_state(has_state_);
  *held.mutable_position() = position_;
  held.set_pending(pending_);
  *held.mutable_recorded() = RecordedBefore(position_, kept_.empty() ? nullptr : &kept_.front());
  for (const KeptSnapshot& one : memory_[place_.local_rank]) *held.add_snapshots() = one.said;
  return held;
}

Snapshot SimWorker::Brought() const {
  const proto::GenerationMember& me = assignment_->member();
  if (assignment_->has_start()) {
    if (me.means() == proto::GenerationMember::RECALL) {
      for (const KeptSnapshot& one : memory_[place_.local_rank]) {
        if (Same(one.said.position(), me.snapshot())) return one.state;
      }
      world_.Violate("told to recall a snapshot that this rank does not have");
    }
  }
  const bool rolls = assignment_->has_start() && me.means() == proto::GenerationMember::ROLL;
  return Snapshot{value_, position_, kept_, requests_served_, begun_, rolls};
}

void SimWorker::OnAssignment(const proto::Envelope& envelope) {
  if (envelope.generation() < generation_) return;
  generation_ = envelope.generation();
  ++epoch_;
  talking_ = true;
  assignment_ = envelope.assignment();
  collectives_ = 0;
  committed_ = assignment_->has_start() ? assignment_->committed_checkpoint()
                                        : assignment_->restore_checkpoint();
  saving_ = committed_;
  attempt_ = 0;
  failed_.reset();
  owed_ = false;
  reports_.clear();
  std::shared_ptr<SimGroup>& group = groups_[generation_];
  if (!group) group = std::make_shared<SimGroup>(world_, assignment_->world_size());
  group_ = group;
  group_->snapshots[assignment_->rank()] = Brought();
  Later(world_.Between(1, 100), [this] { Collective([this] { Synchronise(); }); });
}

void SimWorker::Synchronise() {
  const proto::Assignment& assignment = *assignment_;
  if (!assignment.has_start()) {
    const std::string& id = assignment.restore_checkpoint();
    value_ = 0;
    position_ = proto::Position();
    kept_.clear();
    requests_served_ = 0;
    begun_ = id;
    if (!id.empty()) {
      const auto manifest = disk_.manifests.find(id);
      if (manifest == disk_.manifests.end()) {
        return world_.Violate("checkpoint " + id + " is not on the disk");
      }
      value_ = disk_.parts.at(id).at(manifest->second.front());
      position_ = PositionOf(id);
    }
  } else {
    const auto state_of = [&](std::int32_t rank) {
      const Snapshot& snapshot = group_->snapshots.at(rank);
      const proto::Position& at = snapshot.position;
      return snapshot.rolls ? Updated(snapshot.value, at.phase(), at.step(), at.updates())
                            : snapshot.value;
    };
    const bool receives = assignment.member().means() == proto::GenerationMember::RECEIVE;
    if (receives != (assignment.rank() >= assignment.first_receiver())) {
      return world_.Violate("an assignment contradicts itself on who receives");
    }
    value_ = state_of(receives ? place_.local_rank : assignment.rank());
    const Snapshot& source = group_->snapshots.at(assignment.source());
    position_ = source.position;
    kept_ = source.kept;
    requests_served_ = source.requests_served;
    begun_ = source.begun;
    owed_ = begun_ > assignment.committed_checkpoint();
  }
  has_state_ = true;
  pending_ = false;
  OnRecorded(assignment.recorded());
  Collective([this] {
    SendKept();
    GoOn();
  });
}

void SimWorker::GoOn() {
  if (position_.updates() == 0 && position_.step() > 0) {
    CheckpointIfDue(false, [this] { Work(); });
  } else if (UpdatesOfStep(phase()) > 0 && position_.updates() >= UpdatesOfStep(phase())) {
    // Everything of the step but its end is done: agree again on the wish of it.
    Collective([this] {
      step_wish_ = group_->agreed();
      FinishStep();
    });
  } else {
    Work();
  }
}

void SimWorker::OnLease(const proto::Lease& lease) {
  OnRecorded(lease.recorded());
  const std::int64_t end = lease.first_step() + lease.count();
  lease_end_ = lease.phase() == lease_phase_ ? std::max(lease_end_, end) : end;
  lease_phase_ = lease.phase();
  if (!hungry_) return;
  hungry_ = false;
  Work();
}

void SimWorker::OnRecorded(const proto::Position& recorded) {
  while (!kept_.empty()) {
    proto::Position at;
    at.set_phase(kept_.front().phase());
    at.set_step(kept_.front().step());
    const bool end_of_phase = kept_.front().phase_finished();
    const bool known = end_of_phase ? recorded.phase() > at.phase() : !Before(recorded, at);
    if (!known) break;
    kept_.pop_front();
  }
}

void SimWorker::SendKept() {
  if (assignment_->rank() != 0) return;
  for (const proto::Progress& progress : kept_) {
    proto::Envelope envelope;
    *envelope.mutable_progress() = progress;
    Send(std::move(envelope));
  }
}

void SimWorker::Work() {
  if (position_.step() >= phase().steps && lease_phase_ == position_.phase() + 1) {
    position_.set_phase(lease_phase_);
    position_.set_step(0);
  }
  if (lease_phase_ != position_.phase() || position_.step() >= lease_end_) {
    hungry_ = true;
    return;
  }
  Later(world_.Between(5, 80), [this] { Update(); });
}

void SimWorker::Update() {
  if (UpdatesOfStep(phase()) == 0) {
    Collective([this] {
      step_wish_ = group_->agreed();
      FinishStep();
    });
    return;
  }
  Collective([this] {
    pending_ = true;  // the whole gradient is here
    Collective([this] {
      pending_ = false;
      value_ = Updated(value_, position_.phase(), position_.step(), position_.updates());
      position_.set_updates(position_.updates() + 1);
      step_wish_ = group_->agreed();
      if (position_.updates() == UpdatesOfStep(phase())) {
        Later(world_.Between(0, 10), [this] { FinishStep(); });
      } else {
        Later(world_.Between(5, 80), [this] { Update(); });
      }
    });
  });
}

void SimWorker::FinishStep() {
  position_.set_step(position_.step() + 1);
  position_.set_updates(0);
  proto::Progress progress;
  progress.set_phase(position_.phase());
  progress.set_step(position_.step());
  progress.set_phase_finished(position_.step() == phase().steps);
  if (phase().kind == PhaseKind::kCsd && position_.step() % 7 == 0) {
    proto::Metric& fdr = *progress.add_metrics();
    fdr.set_name("eval/fdr");
    fdr.set_value(static_cast<double>(position_.step() * 5 % 11));
  }
  proto::Metric& metric = *progress.add_metrics();
  metric.set_name("value");
  metric.set_value(static_cast<double>(value_ >> 16));
  kept_.push_back(progress);
  if (assignment_->rank() == 0) {
    proto::Envelope envelope;
    *envelope.mutable_progress() = std::move(progress);
    Send(std::move(envelope));
  }
  TakeSnapshot();
  const bool requested = step_wish_.checkpoint_requests() > requests_served_;
  requests_served_ = std::max(requests_served_, step_wish_.checkpoint_requests());
  CheckpointIfDue(requested, [this] { AfterStep(); });
}

void SimWorker::TakeSnapshot() {
  constexpr std::int64_t kEvery = 4;
  if (UpdatesOfStep(phase()) == 0) return;
  if (position_.step() % kEvery != 0 && position_.step() != phase().steps) return;
  KeptSnapshot kept{Snapshot{value_, position_, kept_, requests_served_, begun_}, {}};
  *kept.said.mutable_position() = position_;
  *kept.said.mutable_recorded() =
      RecordedBefore(position_, kept_.empty() ? nullptr : &kept_.front());
  kept.said.set_generation(generation_);
  std::deque<KeptSnapshot>& mine = memory_[place_.local_rank];
  mine.push_front(std::move(kept));
  if (mine.size() > 2) mine.pop_back();
}

bool SimWorker::IsBorder() const {
  const std::int64_t every = phase().checkpoint_every;
  return ChangesState(phase().kind) &&
         (position_.step() == phase().steps || (every > 0 && position_.step() % every == 0));
}

// No later checkpoint would make up for this one.
bool SimWorker::IsLast() const {
  const auto next =
      static_cast<std::size_t>(position_.phase()) + (position_.step() == phase().steps ? 1 : 0);
  return !ChangesState(phase().kind) || next >= phases_.size() || !ChangesState(phases_[next].kind);
}

void SimWorker::CheckpointIfDue(bool requested, std::function<void()> then) {
  if (!IsBorder() && !requested && !owed_) return then();
  owed_ = false;
  begun_ = CheckpointName(position_);
  Save(IsLast(), std::move(then));
}

void SimWorker::Save(bool for_commit, std::function<void()> then) {
  const auto begin = [this, for_commit, then] {
    ++attempt_;
    if (!writing_) return Begin(for_commit, then);
    after_writing_ = [this, for_commit, then] { Begin(for_commit, then); };
  };
  if (begun_ != saving_) {
    saving_ = begun_;
    attempt_ = 0;
    return begin();
  }
  WaitForDecision([begin, then](bool committed) { committed ? then() : begin(); });
}

// The copy is taken; everything else happens beside the training, and is not of its epoch.
void SimWorker::Begin(bool for_commit, const std::function<void()>& then) {
  proto::PartReport report;
  report.set_checkpoint_id(saving_);
  report.set_rank(assignment_->rank());
  report.set_attempt(attempt_);
  report.mutable_header()->set_phase(position_.phase());
  report.mutable_header()->set_step(position_.step());
  report.mutable_header()->set_world_size(assignment_->world_size());
  report.mutable_part()->set_file(std::to_string(assignment_->rank()) + "-of-" +
                                  std::to_string(assignment_->world_size()) + "-g" +
                                  std::to_string(generation_));
  report.mutable_part()->set_size_bytes(1);
  writing_ = true;
  Always(world_.Between(0, world_.Chance(10) ? 5000 : 400),
         [this, report, generation = generation_, value = value_] {
           OnWritten(report, generation, value);
         });
  if (for_commit) return WaitForDecision([then](bool) { then(); });
  Later(milliseconds(0), then);
}

void SimWorker::OnWritten(const proto::PartReport& report, std::uint64_t generation,
                          std::uint64_t value) {
  const std::string& id = report.checkpoint_id();
  proto::Envelope envelope;
  const bool full = world_.now() < disk_.full_until && world_.Chance(70);
  if (full || disk_.manifests.contains(id)) {
    if (full) disk_.failed.insert(id);
    proto::PartFailed& failed = *envelope.mutable_part_failed();
    failed.set_checkpoint_id(id);
    failed.set_rank(report.rank());
    failed.set_attempt(report.attempt());
    failed.set_message(full ? "no space left on device" : "it is a committed checkpoint");
  } else {
    disk_.parts[id][report.part().file()] = value;
    *envelope.mutable_part_report() = report;
  }
  if (generation == generation_) {
    reports_.push_back(envelope);
    Send(std::move(envelope));
  }
  writing_ = false;
  if (after_writing_) std::exchange(after_writing_, nullptr)();
}

void SimWorker::WaitForDecision(std::function<void(bool committed)> then) {
  after_decision_ = std::move(then);
  OnDecided();
}

void SimWorker::OnDecided() {
  const auto failed = [this](const std::string& id, std::int32_t attempt) {
    return failed_ && failed_->checkpoint_id() == id && failed_->attempt() >= attempt;
  };
  std::erase_if(reports_, [&](const proto::Envelope& kept) {
    if (kept.has_part_failed()) return kept.part_failed().checkpoint_id() <= committed_;
    const proto::PartReport& report = kept.part_report();
    return report.checkpoint_id() <= committed_ || failed(report.checkpoint_id(), report.attempt());
  });
  const bool committed = committed_ >= saving_;
  if (!after_decision_ || (!committed && !failed(saving_, attempt_))) return;
  Later(milliseconds(0),
        [then = std::exchange(after_decision_, nullptr), committed] { then(committed); });
}

void SimWorker::AfterStep() {
  if (!step_wish_.paused()) return Work();
  if (desired_.version() <= step_wish_.version()) {
    paused_ = true;
    return;
  }
  Collective([this] {
    step_wish_ = group_->agreed();
    AfterStep();
  });
}

void SimWorker::Collective(std::function<void()> then) {
  ++collectives_;
  waiting_ = true;
  group_->Enter(assignment_->rank(), desired_,
                [this, epoch = epoch_, then = std::move(then)](bool ok) {
                  if (!alive_ || epoch != epoch_) return;
                  Later(milliseconds(0), [this, ok, then] {
                    waiting_ = false;
                    if (ok) {
                      then();
                    } else {
                      Trouble();
                    }
                  });
                });
}

// Told at once; who brings the ranks together again is the coordinator.
void SimWorker::Trouble() {
  if (group_) group_->Break();
  proto::Envelope envelope;
  envelope.mutable_worker_failed()->set_code("aborted");
  envelope.mutable_worker_failed()->set_message("connection closed by peer");
  Send(std::move(envelope));
  Later(timeouts_.regroup, [this] { Exit(1); });
}

}  // namespace dd2::simulation
