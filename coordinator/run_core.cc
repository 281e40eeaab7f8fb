#include "coordinator/run_core.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/timeouts.h"

namespace dd2 {

namespace {

RunCounters FromWire(const proto::Counters& wire) {
  RunCounters counters;
  counters.outer_cycles = wire.outer_cycles();
  counters.generator_updates = wire.generator_updates();
  counters.guidance_updates = wire.guidance_updates();
  counters.skipped_updates = wire.skipped_updates();
  counters.phase_generator_updates = wire.phase_generator_updates();
  counters.phase_guidance_updates = wire.phase_guidance_updates();
  counters.cache_hits = wire.cache_hits();
  counters.cache_misses = wire.cache_misses();
  return counters;
}

void SetMetric(std::vector<MetricValue>& metrics, const std::string& name, double value) {
  const auto same = [&name](const MetricValue& metric) { return metric.name == name; };
  const auto found = std::find_if(metrics.begin(), metrics.end(), same);
  if (found != metrics.end()) {
    found->value = value;
    return;
  }
  MetricValue metric;
  metric.name = name;
  metric.value = value;
  metrics.push_back(std::move(metric));
}

}  // namespace

Actions RunCore::OnMessage(ConnectionId from, const std::string& address,
                           const proto::Envelope& envelope, Moment at) {
  Actions out;
  if (stage_ == Stage::kEnded) return out;
  begun_ = true;
  members_.Seen(from, at.now);
  if (envelope.has_agent_hello()) {
    OnAgentHello(from, envelope.agent_hello(), at, out);
  } else if (envelope.has_worker_hello()) {
    OnWorkerHello(from, address, envelope, at, out);
  } else if (members_.IsAgent(from)) {
    OnFromAgent(from, envelope, at, out);
  } else if (WorkerMember* member = members_.worker(from)) {
    OnFromWorker(*member, envelope, at, out);
  } else {
    Refuse(from, Error(Code::kFailedPrecondition, "say hello first"), out);
  }
  Changed();
  return out;
}

void RunCore::GrantLeases(Moment at, Actions& out) {
  while (members_.formed()) {
    const std::optional<LeaseGrant> lease = scheduler_.NextLease();
    if (!lease) break;
    if (!scheduler_.phase_started()) {
      proto::JournalRecord begun;
      begun.mutable_phase_started()->set_phase(lease->phase);
      begun.mutable_phase_started()->set_seconds_before(
          scheduler_.PhaseSeconds(lease->phase, at.now));
      Journal(std::move(begun), out);
      Event(at, "phase",
            "phase " + PhaseLabel(lease->phase) + " begins at step " +
                std::to_string(lease->first_step));
    }
    proto::JournalRecord record;
    record.mutable_lease_granted()->set_phase(lease->phase);
    record.mutable_lease_granted()->set_first_step(lease->first_step);
    record.mutable_lease_granted()->set_count(lease->count);
    Journal(std::move(record), out);
    proto::Envelope envelope = NewEnvelope();
    envelope.mutable_lease()->set_phase(lease->phase);
    envelope.mutable_lease()->set_first_step(lease->first_step);
    envelope.mutable_lease()->set_count(lease->count);
    *envelope.mutable_lease()->mutable_recorded() = Recorded();
    SendToRanks(envelope, out);
    scheduler_.Granted(*lease, at.now);
  }
  UpdatePhases(at);
}

void RunCore::OnFromWorker(WorkerMember& member, const proto::Envelope& envelope, Moment at,
                           Actions& out) {
  const Generation said(envelope.generation());
  if (envelope.has_heartbeat()) {
    // Before its Assignment a worker does not know its generation.
    const proto::Heartbeat& beat = envelope.heartbeat();
    const bool moved = member.phase != beat.phase() || member.step != beat.step() ||
                       member.collectives != beat.collectives();
    if (moved) member.moved = at.now;
    member.phase = beat.phase();
    member.step = beat.step();
    member.collectives = beat.collectives();
    member.waiting = beat.waiting();
    member.on_disk = beat.on_disk();
    return;
  }
  // What it said before it heard of the newer generation.
  if (said < members_.generation()) {
    // Its own failure counts all the same.
    if (envelope.has_worker_failed()) OnWorkerFailed(member, envelope.worker_failed(), at, out);
    return;
  }
  if (envelope.has_regrouped() && said == members_.generation() && !members_.formed()) {
    members_.SetReady(member, envelope.regrouped().held());
    TryForm(at, out);
    return;
  }
  const Status current = members_.CheckGeneration(said);
  if (!current) {
    Refuse(member.connection, current.error(), out);
    return;
  }
  if (stage_ == Stage::kFarewell) return;
  if (envelope.has_progress()) {
    OnProgress(member, envelope.progress(), at, out);
  } else if (envelope.has_part_report()) {
    OnPartReport(member, envelope.part_report(), at, out);
  } else if (envelope.has_part_failed()) {
    OnPartFailed(member, envelope.part_failed(), at, out);
  } else if (envelope.has_checkpoint_held()) {
    OnCheckpointHeld(member, envelope.checkpoint_held(), out);
  } else if (envelope.has_worker_failed()) {
    OnWorkerFailed(member, envelope.worker_failed(), at, out);
  } else if (envelope.has_worker_done()) {
    OnWorkerDone(member, envelope.worker_done().stopped(), at, out);
  } else {
    Refuse(member.connection, Error(Code::kInvalidArgument, "a worker may not send this"), out);
  }
}

void RunCore::OnFromAgent(ConnectionId from, const proto::Envelope& envelope, Moment at,
                          Actions& out) {
  if (envelope.has_heartbeat()) return;
  if (envelope.has_domain_exited()) {
    OnDomainExited(*members_.DomainOf(from), envelope.domain_exited(), at, out);
  } else {
    Refuse(from, Error(Code::kInvalidArgument, "an agent may not send this"), out);
  }
}

void RunCore::OnProgress(WorkerMember& member, const proto::Progress& progress, Moment at,
                         Actions& out) {
  member.phase = progress.phase();
  member.step = progress.step();
  member.moved = at.now;
  KeepCounters(member.rank->value(), FromWire(progress.counters()));
  if (member.rank != Rank(0)) return;
  RunPosition reported;
  reported.phase = progress.phase();
  reported.step = progress.step();
  const Status status = scheduler_.OnProgress(reported, at.now);
  if (!status) {
    if (status.error().code() != Code::kAborted) Fail(status.error().message(), at, out);
    return;
  }
  StepRecord step;
  step.phase = progress.phase();
  step.kind = options_.config.phases.at(static_cast<std::size_t>(progress.phase())).kind;
  step.step = progress.step();
  step.unix_ms = at.unix_ms;
  step.step_seconds = progress.step_seconds();
  step.counters = rank_counters_[0];
  for (const proto::Metric& metric : progress.metrics()) {
    SetMetric(step.metrics, metric.name(), metric.value());
    SetMetric(state_.metrics, metric.name(), metric.value());
    state_.metrics_unix_ms = at.unix_ms;
    OnEvaluation(reported, metric, out);
  }
  if (!step.metrics.empty()) out.emplace_back(RecordAction{std::move(step)});
  strikes_.clear();
  space_failures_ = 0;
  last_failure_.clear();
  if (progress.phase_finished()) OnPhaseFinished(progress, at, out);
  ResumeIncidents(at, out);
  UpdatePhases(at);
  if (stage_ != Stage::kActive && stage_ != Stage::kStopping) return;
  GrantLeases(at, out);
  if (scheduler_.finished()) {
    ReleaseWorkers(at, out);
  } else if (stage_ == Stage::kActive) {
    LetDrainedGo(at, out);
  }
}

void RunCore::OnPhaseFinished(const proto::Progress& progress, Moment at, Actions& out) {
  const Status ended = scheduler_.OnPhaseFinished(progress.phase(), progress.result_json(), at.now);
  if (!ended) {
    Fail(ended.error().message(), at, out);
    return;
  }
  proto::JournalRecord record;
  record.mutable_phase_finished()->set_phase(progress.phase());
  record.mutable_phase_finished()->set_seconds(scheduler_.PhaseSeconds(progress.phase(), at.now));
  record.mutable_phase_finished()->set_result_json(progress.result_json());
  Journal(std::move(record), out);
  Event(at, "phase",
        "phase " + PhaseLabel(progress.phase()) + " finished after " +
            std::to_string(progress.step()) + " steps");
}

void RunCore::OnPartReport(const WorkerMember& member, const proto::PartReport& report, Moment at,
                           Actions& out) {
  if (report.rank() != member.rank->value()) {
    Fail("rank " + std::to_string(member.rank->value()) + " reported the checkpoint part of rank " +
             std::to_string(report.rank()),
         at, out);
    return;
  }
  const Result<CheckpointLedger::Outcome> outcome = ledger_.OnPart(report, at.unix_ms);
  if (!outcome) {
    Fail(outcome.error().message(), at, out);
    return;
  }
  if (outcome->already_committed || outcome->already_failed) {
    TellDecided(member, report.checkpoint_id(), *outcome, out);
    return;
  }
  CheckpointState& view = WritingView(report.checkpoint_id());
  view.phase = report.header().phase();
  view.step = report.header().step();
  view.parts += 1;
  view.bytes += report.part().size_bytes();
  view.write_seconds = std::max(view.write_seconds, report.seconds());
  if (outcome->commit) Commit(*outcome->commit, at, out);
  TellDecided(member, report.checkpoint_id(), *outcome, out);
}

CheckpointState& RunCore::WritingView(const std::string& id) {
  CheckpointState& view = CheckpointView(id);
  if (view.word != CheckpointWord::kWriting) {
    const double held = view.hold_seconds;  // of this try: it may be told before the first part
    view = CheckpointState();
    view.hold_seconds = held;
  }
  view.id = id;
  return view;
}

// The worker goes on; people hear of it at once, the other ranks when nobody writes any more.
void RunCore::OnPartFailed(const WorkerMember& member, const proto::PartFailed& failed, Moment at,
                           Actions& out) {
  const std::string& id = failed.checkpoint_id();
  const Result<CheckpointLedger::Outcome> outcome = ledger_.OnPartFailed(failed);
  if (!outcome || failed.rank() != member.rank->value()) {
    Fail(outcome ? "rank " + std::to_string(member.rank->value()) +
                       " reported the checkpoint part of rank " + std::to_string(failed.rank())
                 : outcome.error().message(),
         at, out);
    return;
  }
  if (!outcome->already_committed && !outcome->already_failed) {
    const std::string reason = "rank " + std::to_string(failed.rank()) + ": " + failed.message();
    Event(at, "incident", reason);
    OpenIncident("checkpoint", member.hello.domain(), reason, at);
    WritingView(id).reason = reason;
  }
  TellDecided(member, id, *outcome, out);
}

void RunCore::TellDecided(const WorkerMember& member, const std::string& id,
                          const CheckpointLedger::Outcome& outcome, Actions& out) {
  proto::Envelope envelope = NewEnvelope();
  if (outcome.already_committed) {
    envelope.mutable_checkpoint_committed()->set_checkpoint_id(id);
    SendTo(member.connection, std::move(envelope), out);
    return;
  }
  if (!outcome.failed) return;
  *envelope.mutable_checkpoint_failed() = *outcome.failed;
  if (outcome.already_failed) {
    SendTo(member.connection, std::move(envelope), out);
    return;
  }
  // Its parts would take the space that the next try needs.
  DeleteAction removal;
  removal.checkpoint_id = id;
  out.emplace_back(std::move(removal));
  SendToRanks(envelope, out);
  CheckpointState& view = WritingView(id);
  view.word = CheckpointWord::kFailed;
  view.reason = outcome.failed->reason();
}

void RunCore::Commit(const proto::CheckpointManifest& manifest, Moment at, Actions& out) {
  const std::string& id = manifest.checkpoint_id();
  proto::JournalRecord record;
  *record.mutable_checkpoint_committed() = manifest;
  Journal(std::move(record), out);
  PublishAction publish;
  publish.manifest = manifest;
  out.emplace_back(std::move(publish));
  proto::Envelope envelope = NewEnvelope();
  envelope.mutable_checkpoint_committed()->set_checkpoint_id(id);
  SendToRanks(envelope, out);
  checkpoint_positions_[id] = RunPosition{manifest.header().phase(), manifest.header().step()};
  checkpoint_seconds_[id] = scheduler_.PhaseSeconds(manifest.header().phase(), at.now);
  restore_checkpoint_ = ledger_.newest();
  CheckpointState& view = CheckpointView(id);
  view.word = CheckpointWord::kCommitted;
  view.committed_unix_ms = manifest.committed_unix_ms();
  timer_.Restart(at.now);
  state_.checkpoint_totals.count += 1;
  state_.checkpoint_totals.bytes += view.bytes;
  Event(at, "checkpoint",
        "checkpoint " + id + " committed: " + std::to_string(view.bytes) + " bytes in " +
            std::to_string(view.parts) + " parts");
  Expire(at, out);
}

void RunCore::OnCheckpointHeld(const WorkerMember& member, const proto::CheckpointHeld& held,
                               Actions& out) {
  if (member.rank != Rank(0)) return;
  CheckpointState& view = CheckpointView(held.checkpoint_id());
  if (view.parts == 0) {
    view.phase = held.phase();
    view.step = held.step();
  }
  view.hold_seconds = held.seconds();
  state_.checkpoint_totals.stall_seconds += held.seconds();
  proto::JournalRecord record;
  *record.mutable_checkpoint_held() = held;
  Journal(std::move(record), out);
}

void RunCore::Expire(Moment at, Actions& out) {
  for (const std::string& id : ledger_.TakeExpired()) {
    const std::string reason = RetentionText(options_.config.checkpoint);
    proto::JournalRecord record;
    record.mutable_checkpoint_dropped()->set_checkpoint_id(id);
    record.mutable_checkpoint_dropped()->set_reason(reason);
    Journal(std::move(record), out);
    DeleteAction removal;
    removal.checkpoint_id = id;
    out.emplace_back(std::move(removal));
    CheckpointState& view = CheckpointView(id);
    view.word = CheckpointWord::kDeleted;
    view.reason = reason;
    Event(at, "checkpoint", "checkpoint " + id + " deleted (" + reason + ")");
  }
}

}  // namespace dd2
