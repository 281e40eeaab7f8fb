// The part of RunCore that builds messages and keeps RunState up to date.

#include <algorithm>
#include <map>
#include <utility>

#include "common/check.h"
#include "common/timeouts.h"
#include "coordinator/run_core.h"

namespace dd2 {

namespace {

// "csd", then "csd-2" for the second of its kind.
std::vector<PhaseState> NamePhases(const std::vector<PhaseConfig>& phases) {
  std::vector<PhaseState> named;
  std::map<PhaseKind, int> seen;
  for (const PhaseConfig& phase : phases) {
    PhaseState state;
    state.kind = phase.kind;
    state.steps = phase.steps;
    const int number = ++seen[phase.kind];
    state.name = PhaseKindName(phase.kind);
    if (number > 1) state.name += "-" + std::to_string(number);
    named.push_back(std::move(state));
  }
  return named;
}

CheckpointState ViewOf(const proto::CheckpointManifest& manifest) {
  CheckpointState view;
  view.id = manifest.checkpoint_id();
  view.word = CheckpointWord::kCommitted;
  view.phase = manifest.header().phase();
  view.step = manifest.header().step();
  view.parts = manifest.parts_size();
  for (const proto::CheckpointPart& part : manifest.parts()) view.bytes += part.size_bytes();
  view.committed_unix_ms = manifest.committed_unix_ms();
  return view;
}

}  // namespace

RunCore::RunCore(CoreOptions options, CoreStart start)
    : options_(std::move(options)),
      start_(std::move(start)),
      scheduler_(options_.config.phases, start_.position, start_.seconds_before, start_.finished),
      ledger_(options_.run_id, options_.config.checkpoint, start_.checkpoint_totals.count),
      timer_(ParseCheckpointInterval(options_.config.checkpoint.interval)
                 .value_or(CheckpointInterval())),
      failures_(start_.failures),
      members_(options_.config.ranks, start_.generation) {
  state_.run_id = options_.run_id;
  state_.name = options_.config.name;
  state_.code_version = options_.code_version;
  state_.config_digest = options_.config_digest;
  state_.seed = options_.config.seed;
  state_.ranks = options_.config.ranks;
  state_.resumed = start_.resumed;
  state_.command = start_.resumed || start_.recovered ? start_.command : options_.command;
  state_.counters = start_.counters;
  state_.checkpoint_totals = start_.checkpoint_totals;
  state_.phases = NamePhases(options_.config.phases);
  drained_ = start_.drained;
  restore_checkpoint_ = start_.restore_checkpoint;
  checkpoint_seconds_ = start_.checkpoint_seconds;
  for (const proto::CheckpointManifest& manifest : start_.checkpoints) {
    checkpoint_positions_[manifest.checkpoint_id()] =
        RunPosition{manifest.header().phase(), manifest.header().step()};
    ledger_.Restore(manifest);
    state_.checkpoints.push_back(ViewOf(manifest));
  }
  for (const CheckpointState& bad : start_.quarantined) state_.checkpoints.push_back(bad);
  for (const proto::Evaluation& evaluation : start_.evaluations) ledger_.OnEvaluation(evaluation);
  ledger_.GoBack(start_.position.phase, start_.position.step);
}

Actions RunCore::Start(Moment at) {
  Actions out;
  state_.started_unix_ms = at.unix_ms;
  deadline_ = at.now + times().agent_join;
  if (start_.recovered) {
    TakeOver(at, out);
  } else {
    Begin(at, out);
  }
  for (const CheckpointState& bad : start_.quarantined) {
    Event(at, "incident", "checkpoint " + bad.id + " was quarantined: " + bad.reason);
  }
  Expire(at, out);
  UpdatePhases(at);
  UpdateInterval(at);
  UpdateWord();
  Changed();
  // It died between its last step and its end: nothing is left to compute.
  if (scheduler_.finished()) {
    ended_at_start_ = true;
    End(RunWord::kFinished, "", at, out);
  }
  return out;
}

// A new life of the run: from its beginning or a checkpoint.
void RunCore::Begin(Moment at, Actions& out) {
  proto::JournalRecord started;
  started.mutable_run_started()->set_run_id(options_.run_id);
  started.mutable_run_started()->set_config_digest(options_.config_digest);
  started.mutable_run_started()->set_code_version(options_.code_version);
  started.mutable_run_started()->set_resumed(start_.resumed);
  started.mutable_run_started()->set_generation(start_.generation.value());
  started.mutable_run_started()->set_command(options_.command);
  Journal(std::move(started), out);
  if (start_.resumed) {
    proto::JournalRecord back;
    back.mutable_rolled_back()->set_phase(start_.position.phase);
    back.mutable_rolled_back()->set_step(start_.position.step);
    back.mutable_rolled_back()->set_checkpoint_id(start_.restore_checkpoint);
    back.mutable_rolled_back()->set_at_end(IsAtEnd(start_.position));
    Journal(std::move(back), out);
    Event(at, "run",
          start_.restore_checkpoint.empty()
              ? std::string("resumed from the beginning: there is no checkpoint")
              : "resumed from checkpoint " + start_.restore_checkpoint);
  } else {
    Event(at, "run", "run '" + state_.name + "' started");
  }
  // What people wished of the last life (pause, stop) does not bind this one.
  state_.desired_version = start_.desired_version;
  if (start_.desired_version > 0) ChangeDesired(proto::Desired(), "resume", at, out);
  PositionAction position;
  position.position = scheduler_.position();
  out.emplace_back(position);
}

// The coordinator died and its workers did not: the run simply goes on.
void RunCore::TakeOver(Moment at, Actions& out) {
  state_.resumed = true;
  desired_ = start_.desired;
  state_.desired_version = desired_.version();
  state_.desired_paused = desired_.paused();
  state_.desired_stop = desired_.stop();
  state_.checkpoint_requests = desired_.checkpoint_requests();
  if (desired_.stop()) {
    stage_ = Stage::kStopping;
    deadline_ = at.now + times().stop;
  }
  PositionAction position;
  position.position = scheduler_.position();
  out.emplace_back(position);
  OpenIncident("coordinator", "", "the coordinator died and was started again", at);
  ever_formed_ = start_.worked;
  last_formed_ = start_.last_formed;
  if (stage_ == Stage::kActive) deadline_ = at.now + times().workers_join;
  gather_deadline_ = at.now + times().reattach;
  broken_at_ = at.now;
  std::int64_t age_ms = 0;
  if (!start_.checkpoints.empty()) {
    age_ms = std::max<std::int64_t>(0, at.unix_ms - start_.checkpoints.back().committed_unix_ms());
  }
  timer_.Restart(at.now - std::chrono::milliseconds(age_ms));
  if (!start_.orphan) {
    Event(at, "run", "taken over by a new coordinator; no generation had been formed");
    return;
  }
  members_.AdoptFormed();
  state_.generation = start_.orphan->generation.value();
  const std::vector<proto::GenerationMember>& members = start_.orphan->members;
  ledger_.StartGeneration(static_cast<std::int32_t>(members.size()));
  for (std::size_t rank = 0; rank < members.size(); ++rank) {
    awaited_.insert(static_cast<std::int32_t>(rank));
  }
  scheduler_.Continue(start_.orphan->granted_end, at.now);
  scheduler_.SetPaused(desired_.paused(), at.now);
  Event(at, "run",
        "taken over by a new coordinator; waiting for the " + std::to_string(members.size()) +
            " ranks of generation " + std::to_string(state_.generation));
}

void RunCore::Journal(proto::JournalRecord record, Actions& out) const {
  if (!journal_works_) return;
  JournalAction action;
  action.record = std::move(record);
  out.emplace_back(std::move(action));
}

proto::Envelope RunCore::NewEnvelope() const {
  proto::Envelope envelope;
  envelope.set_run_id(options_.run_id);
  envelope.set_generation(members_.generation().value());
  return envelope;
}

void RunCore::SendTo(ConnectionId to, proto::Envelope envelope, Actions& out) const {
  SendAction action;
  action.to = to;
  action.envelope = std::move(envelope);
  out.emplace_back(std::move(action));
}

void RunCore::SendToRanks(const proto::Envelope& envelope, Actions& out) const {
  for (const WorkerMember* worker : members_.ranks()) SendTo(worker->connection, envelope, out);
}

void RunCore::Refuse(ConnectionId to, const Error& error, Actions& out) const {
  proto::Envelope envelope = NewEnvelope();
  envelope.mutable_refused()->set_code(std::string(CodeName(error.code())));
  envelope.mutable_refused()->set_message(error.message());
  SendTo(to, std::move(envelope), out);
  out.emplace_back(CloseAction{to});
}

void RunCore::Event(Moment at, std::string kind, std::string message) {
  state_.events.Add(at.unix_ms, std::move(kind), std::move(message));
}

void RunCore::Changed() {
  ++state_.version;
  state_.agents = static_cast<std::int32_t>(members_.agent_count());
  state_.workers = static_cast<std::int32_t>(members_.worker_count());
  state_.members.clear();
  state_.domains.clear();
}

const RunState& RunCore::ListMembers(Moment at) {
  state_.members.clear();
  state_.domains.clear();
  const auto seen_ms = [&at](TimePoint seen) {
    return at.unix_ms -
           std::chrono::duration_cast<std::chrono::milliseconds>(at.now - seen).count();
  };
  for (const auto& [name, domain] : members_.domains()) {
    if (!domain.agent && domain.workers.empty()) continue;
    state_.domains.push_back(DomainState{.name = name,
                                         .word = DomainWord(domain),
                                         .workers = static_cast<int>(domain.workers.size())});
    if (!domain.agent) continue;
    MemberState& view = state_.members.emplace_back();
    view.agent = true;
    view.domain = domain.name;
    view.host = domain.agent->hello.host();
    view.pid = domain.agent->hello.pid();
    view.last_seen_unix_ms = seen_ms(domain.agent->last_seen);
  }
  for (const WorkerMember* worker : members_.workers()) {
    MemberState& view = state_.members.emplace_back();
    view.rank = worker->rank.value_or(Rank(-1)).value();
    view.domain = worker->hello.domain();
    view.host = worker->hello.host();
    view.pid = worker->hello.pid();
    view.local_rank = worker->hello.local_rank();
    view.numeric_mode = worker->hello.numeric_mode();
    view.phase = worker->phase;
    view.step = worker->step;
    view.last_seen_unix_ms = seen_ms(worker->last_seen);
  }
  return state_;
}

// Of all ranks what is counted by each, of rank 0 the rest.
void RunCore::KeepCounters(std::int32_t rank, const RunCounters& counters) {
  RunCounters& kept = rank_counters_[rank];
  RunCounters& shown = state_.counters;
  const std::int64_t hits = shown.cache_hits + counters.cache_hits - kept.cache_hits;
  const std::int64_t misses = shown.cache_misses + counters.cache_misses - kept.cache_misses;
  if (rank == 0) shown = counters;
  shown.cache_hits = hits;
  shown.cache_misses = misses;
  kept = counters;
}

void RunCore::UpdatePhases(Moment at) {
  const RunPosition position = scheduler_.position();
  state_.phase = position.phase;
  for (std::size_t i = 0; i < state_.phases.size(); ++i) {
    const auto index = static_cast<std::int32_t>(i);
    PhaseState& phase = state_.phases[i];
    phase.seconds = scheduler_.PhaseSeconds(index, at.now);
    if (index < position.phase) {
      phase.word = PhaseWord::kDone;
      phase.done = phase.steps;
      phase.result_json = scheduler_.ResultOf(index);
    } else if (index == position.phase) {
      phase.word = scheduler_.phase_started() ? PhaseWord::kRunning : PhaseWord::kPending;
      phase.done = position.step;
    }
  }
  state_.steps_per_second = scheduler_.steps_per_second();
  state_.phase_eta_seconds = scheduler_.PhaseEtaSeconds();
}

void RunCore::UpdateWord() {
  switch (stage_) {
    case Stage::kActive:
      if (!members_.formed() || !awaited_.empty()) {
        state_.word = ever_formed_ ? RunWord::kRecovering : RunWord::kWaiting;
      } else {
        state_.word = desired_.paused() ? RunWord::kPaused : RunWord::kRunning;
      }
      break;
    case Stage::kFinishing: state_.word = RunWord::kRunning; break;
    case Stage::kStopping: state_.word = RunWord::kStopping; break;
    case Stage::kFarewell:
    case Stage::kEnded: state_.word = outcome_; break;
  }
}

CheckpointState& RunCore::CheckpointView(const std::string& id) {
  for (CheckpointState& view : state_.checkpoints) {
    if (view.id == id && view.word != CheckpointWord::kQuarantined) return view;
  }
  CheckpointState view;
  view.id = id;
  state_.checkpoints.push_back(std::move(view));
  return state_.checkpoints.back();
}

bool RunCore::IsAtEnd(RunPosition position) const {
  const auto index = static_cast<std::size_t>(position.phase);
  const std::vector<PhaseConfig>& phases = options_.config.phases;
  return index >= phases.size() || position.step >= phases[index].steps;
}

std::string RunCore::PhaseLabel(std::int32_t phase) const {
  const auto index = static_cast<std::size_t>(phase);
  if (phase < 0 || index >= state_.phases.size()) return std::to_string(phase);
  return std::to_string(phase + 1) + "/" + std::to_string(state_.phases.size()) + " '" +
         state_.phases[index].name + "'";
}

}  // namespace dd2
