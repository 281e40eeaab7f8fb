#include "tests/simulation/sim_coordinator.h"

#include <algorithm>
#include <utility>

#include "common/timeouts.h"
#include "coordinator/core_start.h"
#include "coordinator/journal_replay.h"

namespace dd2::simulation {

SimCoordinator::SimCoordinator(World& world, Network& network, Disk& disk, RunConfig config)
    : world_(world), network_(network), disk_(disk), config_(std::move(config)) {}

Moment SimCoordinator::Now() const {
  Moment moment;
  moment.now = world_.now();
  moment.unix_ms = world_.unix_ms();
  return moment;
}

void SimCoordinator::Begin() {
  CoreOptions options;
  options.config = config_;
  options.run_id = "simulated";
  CoreStart start;
  const JournalView view = ReplayJournal(journal_);
  if (!view.outcome.empty()) {
    // It died after the end was decided: `dd2 run` ends the agents.
    exit_code_ = view.outcome == "finished" ? kExitOk : kExitRunFailed;
    return;
  }
  if (life_ > 0) {
    const auto last = record_.empty() ? std::make_pair(-1, std::int64_t{0}) : record_.back();
    StartTakingOver(view, config_.phases, RunPosition{last.first, last.second}, world_.unix_ms(),
                    start);
    for (const proto::CheckpointManifest& manifest : view.checkpoints) {
      Publish(manifest);
    }
  }
  ++life_;
  world_.Trace("coordinator: life " + std::to_string(life_));
  core_ = std::make_unique<RunCore>(options, std::move(start));
  Perform(core_->Start(Now()));
  Tick();
}

void SimCoordinator::Tick() {
  world_.After(timeouts::kTick, [this, life = life_] {
    if (life != life_ || !up()) return;
    if (world_.now() >= frozen_until_) {
      reading_late_ = false;
      for (const auto& what : std::exchange(unread_, {})) {
        if (up()) what();
      }
      if (up()) Perform(core_->OnTick(Now()));
    }
    Tick();
  });
}

void SimCoordinator::Freeze(milliseconds time) {
  frozen_until_ = world_.now() + time;
  reading_late_ = true;
}

void SimCoordinator::Kill() {
  if (!up()) return;
  world_.Trace("coordinator is killed");
  core_.reset();
  die_after_.reset();
  unread_.clear();
  frozen_until_ = world_.now();
  reading_late_ = false;
  network_.CutAll();
  world_.After(world_.Between(50, 2000), [this] { Begin(); });
}

void SimCoordinator::OnEnvelope(ConnectionId from, const proto::Envelope& envelope) {
  if (world_.now() < frozen_until_ || reading_late_) {
    unread_.emplace_back([this, from, envelope] { OnEnvelope(from, envelope); });
    return;
  }
  Perform(core_->OnMessage(from, "127.0.0.1", envelope, Now()));
}

void SimCoordinator::OnCut(ConnectionId connection, const std::string& reason) {
  if (world_.now() < frozen_until_ || reading_late_) {
    unread_.emplace_back([this, connection, reason] { OnCut(connection, reason); });
    return;
  }
  Perform(core_->OnClosed(connection, reason, Now()));
}

void SimCoordinator::Wish(int which) {
  if (!up()) return;
  Result<Actions> actions = which == 0   ? core_->Pause("a person", Now())
                            : which == 1 ? core_->Resume("a person", Now())
                                         : core_->RequestCheckpoint("a person", Now());
  if (actions) Perform(std::move(*actions));
}

void SimCoordinator::Drain(const std::string& domain) {
  if (!up()) return;
  Result<Actions> actions = core_->Drain(domain, "a person", Now());
  if (actions) Perform(std::move(*actions));
}

void SimCoordinator::Perform(Actions actions) {
  for (const Action& action : actions) {
    if (die_after_ && (*die_after_)-- == 0) return Kill();
    Do(action);
    if (!up()) return;
  }
}

void SimCoordinator::Do(const Action& action) {
  if (const auto* journal = std::get_if<JournalAction>(&action)) {
    OnJournal(journal->record);
  } else if (const auto* send = std::get_if<SendAction>(&action)) {
    network_.ToClient(send->to, send->envelope);
  } else if (const auto* close = std::get_if<CloseAction>(&action)) {
    network_.CloseByServer(close->connection);
  } else if (const auto* publish = std::get_if<PublishAction>(&action)) {
    Publish(publish->manifest);
    // Litter of lost generations.
    std::erase_if(disk_.parts, [&](const auto& folder) {
      return folder.first < publish->manifest.checkpoint_id() &&
             !disk_.manifests.contains(folder.first);
    });
    CheckNewest();
  } else if (const auto* removal = std::get_if<DeleteAction>(&action)) {
    disk_.manifests.erase(removal->checkpoint_id);
    disk_.parts.erase(removal->checkpoint_id);
    CheckNewest();
  } else if (const auto* position = std::get_if<PositionAction>(&action)) {
    const auto at = std::make_pair(position->position.phase, position->position.step);
    std::erase_if(record_, [&at](const auto& step) { return step > at; });
  } else if (const auto* step = std::get_if<RecordAction>(&action)) {
    const auto at = std::make_pair(step->step.phase, step->step.step);
    if (!record_.empty() && at <= record_.back()) {
      world_.Violate("step " + std::to_string(at.second) + " of phase " + std::to_string(at.first) +
                     " was counted twice");
    }
    record_.push_back(at);
  } else if (const auto* incident = std::get_if<IncidentAction>(&action)) {
    steps_lost_ += incident->incident.steps_lost;
  } else if (const auto* end = std::get_if<EndAction>(&action)) {
    exit_code_ = end->exit_code;
    message_ = core_->state().message;
    core_.reset();
    network_.CutAll();
  }
}

void SimCoordinator::OnJournal(const proto::JournalRecord& record) {
  journal_.push_back(record);
  journal_.back().set_unix_ms(world_.unix_ms());
  if (record.has_generation_formed()) {
    const std::uint64_t formed = record.generation_formed().generation();
    if (formed <= newest_generation_) {
      world_.Violate("generation " + std::to_string(formed) + " was formed after generation " +
                     std::to_string(newest_generation_));
    }
    newest_generation_ = formed;
    OnFormed(record.generation_formed());
  } else if (record.has_domain_drained()) {
    drained_.insert(record.domain_drained().domain());
  } else if (record.has_checkpoint_committed()) {
    OnCommit(record.checkpoint_committed());
  } else if (record.has_phase_started()) {
    const std::int32_t phase = record.phase_started().phase();
    const JournalView view = ReplayJournal(journal_);
    if (phase > 0 && std::none_of(view.finished.begin(), view.finished.end(),
                                  [&](const auto& done) { return done.phase == phase - 1; })) {
      world_.Violate("phase " + std::to_string(phase) + " began before the end of the one before");
    }
  }
  std::string line = record.ShortDebugString();
  if (line.size() > 160) line.resize(160);
  world_.Trace("journal: " + line);
}

// Who was let go does not come back.
void SimCoordinator::OnFormed(const proto::GenerationFormed& formed) {
  std::set<std::string> members;
  for (const proto::GenerationMember& member : formed.members()) members.insert(member.domain());
  for (const std::string& domain : drained_) {
    if (!members.contains(domain)) left_.insert(domain);
    if (members.contains(domain) && left_.contains(domain)) {
      world_.Violate("domain " + domain + " was drained and came back");
    }
  }
}

// Every part is there, and of the same state.
void SimCoordinator::OnCommit(const proto::CheckpointManifest& manifest) {
  const auto parts = disk_.parts.find(manifest.checkpoint_id());
  std::set<std::uint64_t> values;
  std::int32_t found = 0;
  for (const proto::CheckpointPart& part : manifest.parts()) {
    if (parts == disk_.parts.end() || !parts->second.contains(part.file())) continue;
    ++found;
    values.insert(parts->second.at(part.file()));
  }
  if (found != manifest.header().world_size() || values.size() != 1) {
    world_.Violate("checkpoint " + manifest.checkpoint_id() + " was committed from " +
                   std::to_string(found) + " of " + std::to_string(manifest.header().world_size()) +
                   " parts with " + std::to_string(values.size()) + " states");
  }
}

void SimCoordinator::Publish(const proto::CheckpointManifest& manifest) {
  std::vector<std::string>& files = disk_.manifests[manifest.checkpoint_id()];
  files.clear();
  for (const proto::CheckpointPart& part : manifest.parts()) files.push_back(part.file());
}

// What the journal counts as committed is there, except for one that is about to be published.
void SimCoordinator::CheckNewest() const {
  const JournalView view = ReplayJournal(journal_);
  std::size_t missing = 0;
  for (const proto::CheckpointManifest& manifest : view.checkpoints) {
    missing += disk_.manifests.contains(manifest.checkpoint_id()) ? 0U : 1U;
  }
  if (missing > 0) world_.Violate("a committed checkpoint is gone");
}

bool SimCoordinator::over() const { return exit_code_.has_value(); }

}  // namespace dd2::simulation
