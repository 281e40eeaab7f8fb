// The part of RunCore that gathers, forms and breaks generations, and starts domains again.

#include <algorithm>
#include <utility>

#include "common/timeouts.h"
#include "coordinator/regroup_plan.h"
#include "coordinator/run_core.h"
#include "proto/position.h"

namespace dd2 {

namespace {

using std::chrono::milliseconds;

// A rank saw another one go: the cause is elsewhere.
bool IsEcho(const std::string& code) {
  return code == CodeName(Code::kUnavailable) || code == CodeName(Code::kAborted) ||
         code == CodeName(Code::kDeadlineExceeded);
}

// Trying again would meet the same settings and files.
bool IsFinal(const std::string& code) {
  return code == CodeName(Code::kInvalidArgument) || code == CodeName(Code::kFailedPrecondition) ||
         code == CodeName(Code::kNotFound);
}

std::string DescribeExit(int status) {
  if (status == 0) return "ended although the run was not finished";
  if (status > 128 && status < 128 + 65) {
    return "was killed by signal " + std::to_string(status - 128);
  }
  return "ended with status " + std::to_string(status);
}

std::string NameOf(const WorkerMember& member) {
  return (member.rank ? "rank " + std::to_string(member.rank->value())
                      : "worker " + std::to_string(member.hello.local_rank())) +
         " of domain '" + member.hello.domain() + "' (pid " + std::to_string(member.hello.pid()) +
         ")";
}

}  // namespace

void RunCore::OnAgentHello(ConnectionId from, const proto::AgentHello& hello, Moment at,
                           Actions& out) {
  Status added = CheckRoom(hello);
  if (added) added = members_.AddAgent(from, hello, at.now);
  if (!added) {
    Refuse(from, added.error(), out);
    return;
  }
  DomainMember& domain = members_.domains().at(hello.domain());
  attempts_ = std::max(attempts_, hello.attempt());
  domain.running = hello.running();
  domain.killed = false;  // it may not have heard
  domain.started = at.now;
  if (!members_.formed() && stage_ == Stage::kActive) {
    deadline_ = std::max(*deadline_, at.now + 2 * times().workers_join);
  }
  Event(at, "member",
        "agent of domain '" + hello.domain() + "' joined from " + hello.host() + " (pid " +
            std::to_string(hello.pid()) + ")");
  if (stage_ == Stage::kFarewell) {
    domains_told_ = false;
    CheckGone(at, out);
  } else if (drained_.contains(domain.name)) {
    if (!domain.running) Dismiss(domain, at, out);  // else it may still be needed
  } else if (stage_ != Stage::kFinishing && !domain.running) {
    StartDomain(domain, at, out);
  }
}

void RunCore::StartDomain(DomainMember& domain, Moment at, Actions& out) {
  domain.start_at.reset();
  if (!domain.agent) return;  // its hello starts it
  domain.running = true;
  domain.started = at.now;
  domain.attempt = ++attempts_;
  domain.worked = false;
  domain.killed = false;
  proto::Envelope envelope = NewEnvelope();
  proto::StartDomain& start = *envelope.mutable_start_domain();
  start.set_local_size(options_.config.ranks);
  start.set_threads_per_rank(options_.config.threads_per_rank);
  start.set_attempt(domain.attempt);
  SendTo(domain.agent->connection, std::move(envelope), out);
  if (!members_.formed() && stage_ == Stage::kActive) {
    deadline_ = at.now + times().workers_join;
  }
}

void RunCore::OnWorkerHello(ConnectionId from, const std::string& address,
                            const proto::Envelope& envelope, Moment at, Actions& out) {
  const proto::WorkerHello& hello = envelope.worker_hello();
  if (stage_ != Stage::kActive && stage_ != Stage::kStopping) {
    Refuse(from, Error(Code::kAborted, "the run is over"), out);
    return;
  }
  if (drained_.contains(hello.domain()) && !hello.resumes()) {
    Refuse(from, Error(Code::kAborted, "domain '" + hello.domain() + "' was drained"), out);
    return;
  }
  if (hello.resumes()) {
    OnReturn(from, address, envelope, at, out);
    return;
  }
  const Status added =
      members_.AddWorker(from, address, hello, Generation(envelope.generation()), at.now);
  if (!added) {
    Refuse(from, added.error(), out);
    // A worker of the past is turned away; one of our own that does not fit ends the run, unless
    // it goes on without that one.
    if (added.error().code() != Code::kAborted && !ever_formed_) {
      Fail(added.error().message(), at, out);
    }
    return;
  }
  const DomainMember& domain = members_.domains().at(hello.domain());
  Event(at, "member",
        "worker " + std::to_string(hello.local_rank()) + " of domain '" + hello.domain() +
            "' joined (pid " + std::to_string(hello.pid()) + ")");
  if (!members_.Whole(domain) || stage_ != Stage::kActive) return;
  if (members_.formed() && awaited_.empty()) {
    OpenIncident("joined", domain.name, "domain '" + domain.name + "' joined", at);
    BreakGeneration("domain '" + domain.name + "' joined", false, at, out);
  }
  TryForm(at, out);
}

// The orphan generation waits for this very worker. (One that was left out of it names the rank
// that it had before.)
bool RunCore::IsAwaited(const proto::WorkerHello& hello) const {
  if (!awaited_.contains(hello.rank()) || !start_.orphan) return false;
  const auto& member = start_.orphan->members.at(static_cast<std::size_t>(hello.rank()));
  return member.domain() == hello.domain() && member.local_rank() == hello.local_rank();
}

// Nobody was told to end it, and nobody of its generation goes on without it. Not one that was
// given up in an earlier generation, or left out of the last one: its state is of the past.
bool RunCore::MayReturn(const proto::WorkerHello& hello, Generation said) const {
  if (members_.formed() || said < last_formed_) return false;
  if (start_.recovered) return true;
  const auto domain = members_.domains().find(hello.domain());
  return all_lost_ && std::ranges::count(last_domains_, hello.domain()) > 0 &&
         domain != members_.domains().end() && !(domain->second.agent && domain->second.killed);
}

// A worker whose connection broke, because of the network or because the coordinator died.
void RunCore::OnReturn(ConnectionId from, const std::string& address,
                       const proto::Envelope& envelope, Moment at, Actions& out) {
  const proto::WorkerHello& hello = envelope.worker_hello();
  const Generation said(envelope.generation());
  if (members_.formed() && IsAwaited(hello)) {
    const Status back = members_.Reattach(from, address, hello, said, at.now);
    if (!back) {
      Refuse(from, back.error(), out);
      return;
    }
    awaited_.erase(hello.rank());
    state_.numeric_mode = hello.numeric_mode();
    proto::Envelope resumed = NewEnvelope();
    *resumed.mutable_resumed()->mutable_recorded() = Recorded();
    resumed.mutable_resumed()->set_committed_checkpoint(ledger_.newest());
    SendTo(from, std::move(resumed), out);
    proto::Envelope wish = NewEnvelope();
    *wish.mutable_desired() = desired_;
    SendTo(from, std::move(wish), out);
    SendGrantedLease(from, Recorded(), out);
    if (awaited_.empty()) {
      gather_deadline_.reset();
      Event(at, "member",
            "all ranks of generation " + std::to_string(state_.generation) + " are back");
      GrantLeases(at, out);
    }
  } else if (MayReturn(hello, said)) {
    const Status added = members_.AddWorker(from, address, hello, said, at.now);
    if (!added) {
      Refuse(from, added.error(), out);
      return;
    }
    // Also one that has heard of this generation: what its hello says may be of the last step's
    // begin.
    proto::Envelope regroup = NewEnvelope();
    regroup.mutable_regroup()->set_reason("the coordinator was away");
    SendTo(from, std::move(regroup), out);
  } else {
    Refuse(from, Error(Code::kAborted, "this worker was given up as lost"), out);
  }
  UpdateWord();
}

void RunCore::OnWorkerFailed(const WorkerMember& member, const proto::WorkerFailed& failed,
                             Moment at, Actions& out) {
  if (stage_ == Stage::kFinishing) return;
  const std::string reason =
      NameOf(member) + " failed " +
      (member.phase < 0 ? "before its first step"
                        : "in phase " + PhaseLabel(scheduler_.position().phase) + " after step " +
                              std::to_string(member.step)) +
      ": " + failed.message() + " (" + failed.code() + ")";
  if (IsEcho(failed.code())) {
    if (!members_.formed()) return;  // they are being called together already
    if (!trouble_deadline_) trouble_deadline_ = at.now + timeouts::kTrouble;
    trouble_ = reason;
    return;
  }
  Event(at, "incident", reason);
  last_failure_ = reason;
  DomainMember* domain = members_.DomainOf(member.connection);
  if (IsFinal(failed.code())) {
    OpenIncident("failed", domain->name, reason, at);
    Fail(reason, at, out);
    return;
  }
  const std::string& restored = restore_checkpoint_;
  if (failed.code() == CodeName(Code::kCorruption) && !restored.empty() &&
      failed.message().find(restored) != std::string::npos) {
    QuarantineNewest(failed.message(), at, out);
  }
  const std::string what = failed.code() + ": " + failed.message();
  domain->lacks_space = failed.code() == CodeName(Code::kResourceExhausted);
  if (domain->lacks_space) {
    if (++space_failures_ >= kDomainFailuresMax) {
      Fail(reason, at, out);
      return;
    }
  } else {
    if (strikes_[what] + 1 == kStrikesMax) OpenIncident("failed", domain->name, reason, at);
    if (StruckOut(what, at, out)) return;
  }
  LoseDomain(*domain, reason, "failed", at, out);
}

// The checkpoint that everybody was to load does not verify: the one before it is taken.
void RunCore::QuarantineNewest(const std::string& reason, Moment at, Actions& out) {
  const std::string id = restore_checkpoint_;
  proto::JournalRecord record;
  record.mutable_checkpoint_dropped()->set_checkpoint_id(id);
  record.mutable_checkpoint_dropped()->set_reason("quarantined: " + reason);
  Journal(std::move(record), out);
  QuarantineAction action;
  action.checkpoint_id = id;
  action.reason = reason;
  out.emplace_back(std::move(action));
  ledger_.Forget(id);
  restore_checkpoint_ = ledger_.newest();
  CheckpointState& view = CheckpointView(id);
  view.word = CheckpointWord::kQuarantined;
  view.reason = reason;
  Event(at, "incident", "checkpoint " + id + " was quarantined: " + reason);
}

void RunCore::OnDomainExited(DomainMember& domain, const proto::DomainExited& exited, Moment at,
                             Actions& out) {
  // Told again after a reconnection, or of a start that another one followed.
  if (!domain.running || (domain.attempt != 0 && exited.attempt() < domain.attempt)) return;
  domain.running = false;
  attempts_ = std::max(attempts_, exited.attempt());
  if (domain.dismissed && stage_ != Stage::kFarewell) return;
  if (stage_ == Stage::kFarewell) {
    CheckGone(at, out);
    return;
  }
  if (stage_ == Stage::kFinishing || (stage_ == Stage::kStopping && AllWorkersDone())) return;
  // That its workers are done may still be on its way, over their own connections.
  if (stage_ == Stage::kStopping && exited.exit_status() == 0) return;
  const std::string how = DescribeExit(exited.exit_status());
  const std::string end = "mpirun of domain '" + domain.name + "' " + how;
  std::string reason = end;
  if (!exited.log_tail().empty()) reason += ". The end of its log:\n" + exited.log_tail();
  Event(at, "incident", reason);
  // A worker's own words explain more.
  if (last_failure_.empty()) last_failure_ = reason;
  if (drained_.contains(domain.name)) {
    if (!domain.workers.empty()) LoseDomain(domain, end, "lost", at, out);
    Dismiss(domain, at, out);
    return;
  }
  // What cannot even begin would not begin the next time; somebody's kill is another matter.
  if (!ever_formed_ && !options_.elastic && exited.exit_status() < 128) {
    Fail(last_failure_, at, out);
    return;
  }
  if (!domain.workers.empty()) LoseDomain(domain, end, "lost", at, out);
  KeepLastWords(domain.name, end, reason, at);
  if (stage_ != Stage::kActive) return;
  ++domain.failures;
  // One that cannot even join a run that trains is its own affair.
  const bool of_the_run = domain.worked || !members_.formed();
  const bool may_pass = std::exchange(domain.lacks_space, false);
  if (of_the_run && !may_pass && StruckOut(end, at, out)) return;
  if (domain.failures >= kDomainFailuresMax) {
    Event(at, "incident",
          "domain '" + domain.name + "' is given up: it ended " + std::to_string(domain.failures) +
              " times in a row");
    return;
  }
  const milliseconds wait = times().restart_first * (1 << (domain.failures - 1));
  domain.start_at = at.now + std::min(wait, times().restart_last);
}

// Its mpirun kills what is left of it; nothing that it still says counts.
void RunCore::LoseDomain(DomainMember& domain, const std::string& reason, const std::string& kind,
                         Moment at, Actions& out) {
  bool was_member = !members_.formed();
  for (const auto& [local_rank, member] : domain.workers) {
    was_member = was_member || member.rank.has_value();
    out.emplace_back(CloseAction{member.connection});
  }
  members_.RemoveWorkers(domain);
  domain.started = at.now;  // the next loss of it is another one
  if (domain.agent && domain.running) {
    proto::Envelope envelope = NewEnvelope();
    envelope.mutable_kill_domain()->set_reason(reason);
    domain.killed = true;
    SendTo(domain.agent->connection, std::move(envelope), out);
  }
  if (!was_member) return;
  OpenIncident(kind, domain.name, reason, at);
  if (members_.formed()) BreakGeneration(reason, true, at, out);
  const auto& domains = members_.domains();
  all_lost_ = all_lost_ || std::all_of(domains.begin(), domains.end(),
                                       [](const auto& entry) { return IsFresh(entry.second); });
  TryForm(at, out);
}

void RunCore::BreakGeneration(const std::string& reason, bool failure, Moment at, Actions& out) {
  failures_ += failure ? 1 : 0;
  const std::vector<ConnectionId> survivors = members_.Break();
  awaited_.clear();
  trouble_deadline_.reset();
  gather_deadline_ = at.now + times().unwind;
  broken_at_ = at.now;
  if (stage_ == Stage::kActive) deadline_ = at.now + times().workers_join;
  proto::JournalRecord record;
  record.mutable_generation_broken()->set_generation(members_.generation().value());
  record.mutable_generation_broken()->set_reason(reason);
  record.mutable_generation_broken()->set_failure(failure);
  Journal(std::move(record), out);
  for (const ConnectionId survivor : survivors) {
    proto::Envelope envelope = NewEnvelope();
    envelope.mutable_regroup()->set_reason(reason);
    SendTo(survivor, std::move(envelope), out);
  }
  UpdateWord();
}

void RunCore::TryForm(Moment at, Actions& out) {
  if (members_.formed() || (stage_ != Stage::kActive && stage_ != Stage::kStopping)) return;
  if (members_.unready() > 0) return;
  std::int32_t whole = 0;  // those that stay
  bool any = false;
  bool survivors = false;
  bool coming = false;
  for (const auto& [name, domain] : members_.domains()) {
    if (members_.Whole(domain)) {
      any = true;
      if (!drained_.contains(name)) ++whole;
    } else if (domain.agent && (domain.running || domain.start_at)) {
      coming = true;
    }
    for (const auto& [local_rank, member] : domain.workers) {
      survivors = survivors || member.held.has_state();
    }
  }
  // Survivors do not wait for anybody; where all is lost, or nothing has begun, everybody is
  // waited for until the deadline. In a run that has worked before, an agent that stays away is not
  // waited for as long as one that is about to bring its domain.
  // An elastic run begins with as many as it wants, however long that takes, but not the later for
  // one more that does not get ready.
  const bool enough = ever_formed_ || !options_.elastic || whole >= options_.config.domains;
  const bool late = deadline_ && at.now >= *deadline_ && enough;
  const bool abandoned = ever_formed_ && !coming && at.now - broken_at_ >= times().reattach;
  if (!any || (!survivors && whole < WantedDomains() && !late && !abandoned)) return;
  Form(at, out);
}

bool RunCore::RecordReaches(const proto::Position& recorded) const {
  const proto::Position normal = Normalised(recorded, options_.config.phases);
  return RunPosition{normal.phase(), normal.step()} <= scheduler_.position();
}

std::vector<CandidateDomain> RunCore::Candidates() const {
  std::vector<CandidateDomain> candidates;
  for (const auto& [name, domain] : members_.domains()) {
    if (!members_.Whole(domain)) continue;
    CandidateDomain candidate;
    candidate.name = name;
    for (const auto& [rank, member] : domain.workers) {
      candidate.held.push_back(member.held);
      proto::HeldState& held = candidate.held.back();
      // The run may have gone back behind it, and on without it.
      held.set_has_state(held.has_state() && RecordReaches(held.recorded()));
      const auto unusable = [this](const proto::MemorySnapshot& one) {
        return Generation(one.generation()) < start_.first_generation ||
               !RecordReaches(one.recorded());
      };
      auto& snapshots = *held.mutable_snapshots();
      snapshots.erase(std::remove_if(snapshots.begin(), snapshots.end(), unusable),
                      snapshots.end());
    }
    candidates.push_back(std::move(candidate));
  }
  return candidates;
}

void RunCore::Form(Moment at, Actions& out) {
  // Only at the start: a run that trains is not ended because the disk might become full.
  if (const std::string lack = ever_formed_ ? std::string() : LackOfSpace(); !lack.empty()) {
    Fail(lack, at, out);
    return;
  }
  RegroupPlan plan = PlanForStaying(Candidates());
  if (plan.start) {
    // Whoever is of the last generation holds what it has committed, or more; what lies in memory
    // may be older.
    const proto::Position normal = Normalised(*plan.start, options_.config.phases);
    const auto committed = checkpoint_positions_.find(restore_checkpoint_);
    if (committed != checkpoint_positions_.end() &&
        RunPosition{normal.phase(), normal.step()} < committed->second) {
      plan.start.reset();
    }
  }
  members_.Form(plan.domains);
  last_domains_ = plan.domains;
  all_lost_ = false;
  const auto world_size = static_cast<std::int32_t>(plan.members.size());
  ledger_.StartGeneration(world_size);
  std::erase_if(state_.checkpoints, [](const CheckpointState& view) {
    return view.word == CheckpointWord::kWriting;  // its parts are void
  });
  rank_counters_.clear();
  state_.counters.cache_hits = 0;
  state_.counters.cache_misses = 0;
  trouble_deadline_.reset();
  gather_deadline_.reset();
  if (stage_ == Stage::kActive) deadline_.reset();
  state_.generation = members_.generation().value();
  state_.numeric_mode = members_.ranks().front()->hello.numeric_mode();
  if (plan.start) {
    // Progress of a state that nobody holds as a whole any more is void.
    const proto::Position normal = Normalised(*plan.start, options_.config.phases);
    const RunPosition held{normal.phase(), normal.step()};
    if (held < scheduler_.position()) {
      const bool same = held.phase == scheduler_.position().phase;
      GoBack(held, same ? scheduler_.PhaseSeconds(held.phase, at.now) : 0, "", at, out);
    }
  } else if (ever_formed_) {
    const auto found = checkpoint_positions_.find(restore_checkpoint_);
    const RunPosition position =
        found == checkpoint_positions_.end() ? RunPosition() : found->second;
    GoBack(position, checkpoint_seconds_[restore_checkpoint_], restore_checkpoint_, at, out);
  }
  proto::JournalRecord record;
  proto::GenerationFormed& formed = *record.mutable_generation_formed();
  formed.set_generation(state_.generation);
  formed.set_world_size(world_size);
  if (!plan.start) formed.set_restore_checkpoint(restore_checkpoint_);
  for (const proto::GenerationMember& member : plan.members) *formed.add_members() = member;
  Journal(std::move(record), out);
  out.emplace_back(GenerationAction{members_.generation()});
  ever_formed_ = true;
  if (!plan.start) timer_.Restart(at.now);
  last_formed_ = members_.generation();
  for (IncidentState& incident : state_.open_incidents) {
    incident.generation = state_.generation;
    incident.formed_seconds = static_cast<double>(at.unix_ms - incident.unix_ms) / 1000.0;
  }
  SendAssignments(plan, at, out);
  DismissLeftOut(at, out);
  GrantLeases(at, out);
  UpdateWord();
}

void RunCore::SendAssignments(const RegroupPlan& plan, Moment at, Actions& out) {
  for (const WorkerMember* worker : members_.ranks()) {
    proto::Envelope envelope = NewEnvelope();
    proto::Assignment& assignment = *envelope.mutable_assignment();
    assignment.set_rank(worker->rank->value());
    assignment.set_world_size(static_cast<std::int32_t>(plan.members.size()));
    assignment.set_store_prefix("g" + std::to_string(state_.generation) + "/");
    assignment.set_host(worker->address);
    *assignment.mutable_member() = plan.members[static_cast<std::size_t>(assignment.rank())];
    assignment.set_first_receiver(plan.first_receiver);
    assignment.set_committed_checkpoint(ledger_.newest());
    *assignment.mutable_recorded() = Recorded();
    if (plan.start) {
      *assignment.mutable_start() = *plan.start;
      assignment.set_source(plan.source);
    } else {
      assignment.set_restore_checkpoint(restore_checkpoint_);
    }
    SendTo(worker->connection, std::move(envelope), out);
    proto::Envelope wish = NewEnvelope();
    *wish.mutable_desired() = desired_;
    SendTo(worker->connection, std::move(wish), out);
    if (plan.start) SendGrantedLease(worker->connection, *plan.start, out);
  }
  std::string from;
  if (plan.start) {
    const bool recalls = plan.members.front().means() == proto::GenerationMember::RECALL;
    from = recalls ? ", from snapshots in memory" : ", from the state that its members hold";
  } else if (!restore_checkpoint_.empty()) {
    from = ", from checkpoint " + restore_checkpoint_;
  }
  Event(at, "member",
        "generation " + std::to_string(state_.generation) + " formed with " +
            std::to_string(plan.members.size()) + " ranks" + from);
}

void RunCore::SendGrantedLease(ConnectionId to, const proto::Position& start, Actions& out) const {
  const RunPosition position = scheduler_.position();
  // At the end of the phase before the current one, nothing of the current one is done.
  const std::int64_t first = start.phase() == position.phase ? start.step() : 0;
  if (scheduler_.finished() || start.phase() > position.phase || first >= scheduler_.granted_end())
    return;
  proto::Envelope envelope = NewEnvelope();
  envelope.mutable_lease()->set_phase(position.phase);
  envelope.mutable_lease()->set_first_step(first);
  envelope.mutable_lease()->set_count(scheduler_.granted_end() - first);
  *envelope.mutable_lease()->mutable_recorded() = Recorded();
  SendTo(to, std::move(envelope), out);
}

void RunCore::GoBack(RunPosition to, double seconds, const std::string& checkpoint, Moment at,
                     Actions& out) {
  const RunPosition from = scheduler_.position();
  std::int64_t lost = from.step - (from.phase == to.phase ? to.step : 0);
  for (std::int32_t phase = to.phase; phase < from.phase; ++phase) {
    lost += options_.config.phases.at(static_cast<std::size_t>(phase)).steps -
            (phase == to.phase ? to.step : 0);
  }
  for (IncidentState& incident : state_.open_incidents) incident.steps_lost += lost;
  proto::JournalRecord back;
  back.mutable_rolled_back()->set_phase(to.phase);
  back.mutable_rolled_back()->set_step(to.step);
  back.mutable_rolled_back()->set_checkpoint_id(checkpoint);
  back.mutable_rolled_back()->set_at_end(IsAtEnd(to));
  Journal(std::move(back), out);
  scheduler_.GoBackTo(to, seconds);
  ledger_.GoBack(to.phase, to.step);
  PositionAction position;
  position.position = scheduler_.position();
  out.emplace_back(position);
  Event(at, "run",
        "back to " +
            (checkpoint.empty() ? std::string("an earlier state") : "checkpoint " + checkpoint) +
            ": " + std::to_string(lost) + " steps are done again");
}

proto::Position RunCore::Recorded() const {
  proto::Position position;
  position.set_phase(scheduler_.position().phase);
  position.set_step(scheduler_.position().step);
  return position;
}

bool RunCore::StruckOut(const std::string& what, Moment at, Actions& out) {
  if (++strikes_[what] < kStrikesMax) return false;
  const RunPosition position = scheduler_.position();
  Fail("the same failure " + std::to_string(kStrikesMax) + " times at phase " +
           PhaseLabel(position.phase) + " after step " + std::to_string(position.step) +
           ", a restart would only repeat it: " + last_failure_,
       at, out, kExitDoNotRestart);
  return true;
}

}  // namespace dd2
