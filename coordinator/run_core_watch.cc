// The part of RunCore that notices what nobody says: silence, hangs, deadlines; and the incidents.

#include <algorithm>
#include <utility>

#include "common/timeouts.h"
#include "coordinator/run_core.h"

namespace dd2 {

namespace {

// Its domain's mpirun ends, and has last words.
bool IsLoss(const IncidentState& incident) {
  return incident.kind == "lost" || incident.kind == "hang" || incident.kind == "failed";
}

double SecondsSince(const IncidentState& incident, Moment at) {
  return static_cast<double>(at.unix_ms - incident.unix_ms) / 1000.0;
}

}  // namespace

Actions RunCore::OnClosed(ConnectionId connection, const std::string& reason, Moment at) {
  Actions out;
  DomainMember* domain = members_.DomainOf(connection);
  if (domain == nullptr || stage_ == Stage::kEnded) return out;
  const bool agent = members_.IsAgent(connection);
  const WorkerMember* member = members_.worker(connection);
  const bool done = member != nullptr && member->done;
  const std::string who =
      agent ? "the agent of domain '" + domain->name + "' (pid " +
                  std::to_string(domain->agent->hello.pid()) + ")"
            : (member->rank ? "rank " + std::to_string(member->rank->value())
                            : "worker " + std::to_string(member->hello.local_rank())) +
                  " of domain '" + domain->name + "' (pid " + std::to_string(member->hello.pid()) +
                  ")";
  const bool active = stage_ == Stage::kActive || stage_ == Stage::kStopping;
  // A lost worker takes its whole domain along.
  const bool lost = active && !agent && !done;
  if (!lost) members_.Remove(connection);
  switch (stage_) {
    case Stage::kActive:
    case Stage::kStopping:
      if (done) break;
      if (agent && domain->dismissed) break;  // it leaves as it was told to
      Event(at, "incident", who + " is lost: " + reason);
      // Workers speak for themselves; the agent may come back to them.
      if (agent) break;
      LoseDomain(*domain, who + " is lost: " + reason, "lost", at, out);
      break;
    case Stage::kFinishing: break;
    case Stage::kFarewell: CheckGone(at, out); break;
    case Stage::kEnded: return out;
  }
  CheckReleased(at, out);
  Changed();
  return out;
}

Actions RunCore::OnTick(Moment at) {
  Actions out;
  if (stage_ == Stage::kEnded) return out;
  // A gap means that we were stopped or starved: what others sent meanwhile is still unread.
  if (last_tick_ && at.now - *last_tick_ > times().heartbeat_expiry / 3) {
    members_.ForgiveSilence(at.now);
  }
  last_tick_ = at.now;
  begun_ = true;
  for (const ConnectionId connection : members_.Expired(at.now, times().heartbeat_expiry)) {
    out.emplace_back(CloseAction{connection});
    const std::string reason = "no sign of life for " + FormatSeconds(times().heartbeat_expiry);
    for (Action& action : OnClosed(connection, reason, at)) out.emplace_back(std::move(action));
  }
  if (stage_ == Stage::kActive || stage_ == Stage::kStopping) CheckGenerations(at, out);
  CloseIncidents(false, at, out);
  CheckDeadlines(at, out);
  RequestDueCheckpoint(at, out);
  if (!view_updated_ || at.now - *view_updated_ >= std::chrono::seconds(1)) {
    view_updated_ = at.now;
    UpdatePhases(at);
    UpdateInterval(at);
    Changed();
  }
  return out;
}

void RunCore::CheckGenerations(Moment at, Actions& out) {
  for (auto& [name, domain] : members_.domains()) {
    if (domain.start_at && at.now >= *domain.start_at) StartDomain(domain, at, out);
    const bool working = domain.running && members_.Whole(domain);
    if (working && at.now - domain.started >= times().restart_forgotten) domain.failures = 0;
    if (ever_formed_ && domain.running && !domain.dismissed && !members_.Whole(domain) &&
        at.now - domain.started >= times().workers_join) {
      domain.started = at.now;
      // Without its agent nobody starts it again; one that comes back says what it runs.
      if (!domain.agent) domain.running = false;
      if (stage_ == Stage::kActive && domain.agent) deadline_ = at.now + times().workers_join;
      LoseDomain(domain, "not all workers of domain '" + name + "' joined in time", "lost", at,
                 out);
    }
  }
  if (trouble_deadline_ && at.now >= *trouble_deadline_) {
    trouble_deadline_.reset();
    if (members_.formed()) {
      OpenIncident("communication", "", trouble_, at);
      BreakGeneration(trouble_, true, at, out);
    }
  }
  if (gather_deadline_ && at.now >= *gather_deadline_) DropAbsent(at, out);
  if (members_.formed()) {
    CheckStall(at, out);
  } else {
    TryForm(at, out);
  }
}

// Ranks that did not come back to a restarted coordinator, or did not stop when they were told to.
void RunCore::DropAbsent(Moment at, Actions& out) {
  gather_deadline_.reset();
  if (!awaited_.empty()) {
    const std::string reason = std::to_string(awaited_.size()) +
                               " ranks did not come back to the restarted coordinator within " +
                               FormatSeconds(times().reattach);
    Event(at, "incident", reason);
    BreakGeneration(reason, true, at, out);
    for (auto& [name, domain] : members_.domains()) {
      if (!members_.Whole(domain) && domain.running) {
        LoseDomain(domain, reason, "lost", at, out);
      }
    }
    TryForm(at, out);
    return;
  }
  // All of them first: once the last one that hangs is gone the others form, and are not ready
  // then.
  std::vector<std::pair<DomainMember*, std::string>> absent;
  for (auto& [name, domain] : members_.domains()) {
    const bool hangs = std::any_of(domain.workers.begin(), domain.workers.end(),
                                   [](const auto& entry) { return !entry.second.ready; });
    // After its connections broke or the coordinator died: some came back, others did not.
    const bool torn =
        (start_.recovered || all_lost_) && !domain.workers.empty() && !members_.Whole(domain);
    if (!hangs && !torn) continue;
    // It came back, and is told to stop only now: what it is in must end first.
    if (!torn && at.now - broken_at_ < times().unwind) {
      gather_deadline_ = broken_at_ + times().unwind;
      continue;
    }
    absent.emplace_back(&domain, "a worker of domain '" + name +
                                     (hangs ? "' did not stop in time when it was told to"
                                            : "' did not come back"));
  }
  for (const auto& [domain, reason] : absent) LoseDomain(*domain, reason, "hang", at, out);
}

// All ranks enter the same collectives: who is behind the others and does not move hangs.
void RunCore::CheckStall(Moment at, Actions& out) {
  if (desired_.paused() || !awaited_.empty()) return;
  std::chrono::milliseconds limit = times().stall;
  if (scheduler_.steps_per_second() > 0) {
    const double steps = timeouts::kStallSteps * 1000.0 / scheduler_.steps_per_second();
    limit = std::max(limit, std::chrono::milliseconds(static_cast<std::int64_t>(steps)));
  }
  std::uint64_t most = 0;
  const std::vector<const WorkerMember*> ranks = members_.ranks();
  for (const WorkerMember* member : ranks) most = std::max(most, member->collectives);
  // The first that is there waits since it came: what a rank computed before is its own affair.
  TimePoint waiting = at.now;
  for (const WorkerMember* member : ranks) {
    if (member->collectives == most) waiting = std::min(waiting, member->moved);
  }
  for (const WorkerMember* member : ranks) {
    const std::chrono::milliseconds granted =
        member->on_disk ? std::max(limit, timeouts::kDiskStall) : limit;
    const std::chrono::milliseconds waited = std::chrono::duration_cast<std::chrono::milliseconds>(
        at.now - std::max(member->moved, waiting));
    if (member->collectives >= most || waited < granted) continue;
    DomainMember* domain = members_.DomainOf(member->connection);
    LoseDomain(*domain,
               "rank " + std::to_string(member->rank->value()) + " of domain '" + domain->name +
                   "' hangs: the others have waited for it for " + FormatSeconds(granted) +
                   (member->on_disk ? ", it waits for its disk" : ""),
               "hang", at, out);
    return;  // the ranks are others now
  }
}

void RunCore::OpenIncident(const std::string& kind, const std::string& domain,
                           const std::string& reason, Moment at) {
  IncidentState incident;
  incident.unix_ms = at.unix_ms;
  incident.kind = kind;
  incident.domain = domain;
  incident.reason = reason;
  incident.phase = scheduler_.position().phase;
  incident.step = scheduler_.position().step;
  state_.open_incidents.push_back(std::move(incident));
}

void RunCore::KeepLastWords(const std::string& domain, const std::string& end,
                            const std::string& evidence, Moment at) {
  const auto waits = [&domain](const IncidentState& incident) {
    return IsLoss(incident) && incident.domain == domain && incident.exited_seconds < 0;
  };
  std::vector<IncidentState>& open = state_.open_incidents;
  if (std::none_of(open.begin(), open.end(), waits)) OpenIncident("lost", domain, end, at);
  for (IncidentState& incident : open) {
    if (!waits(incident)) continue;
    incident.exited_seconds = SecondsSince(incident, at);
    incident.evidence = evidence;
  }
}

// A step was finished: what was under way is over.
void RunCore::ResumeIncidents(Moment at, Actions& out) {
  if (!members_.formed() || !awaited_.empty()) return;
  for (IncidentState& incident : state_.open_incidents) {
    if (incident.resumed_seconds < 0) incident.resumed_seconds = SecondsSince(incident, at);
    if (incident.generation == 0) incident.generation = state_.generation;
  }
  CloseIncidents(false, at, out);
}

void RunCore::CloseIncidents(bool all, Moment at, Actions& out) {
  std::vector<IncidentState> open;
  for (IncidentState& incident : state_.open_incidents) {
    // The survivors may be quicker than the last words of a domain that ends.
    const bool told = !IsLoss(incident) || incident.exited_seconds >= 0 ||
                      at.unix_ms - incident.unix_ms >= timeouts::kLastWords.count();
    if (!all && (incident.resumed_seconds < 0 || !told)) {
      open.push_back(std::move(incident));
      continue;
    }
    state_.incidents.push_back(incident);
    if (state_.incidents.size() > kIncidentsMax) state_.incidents.erase(state_.incidents.begin());
    IncidentAction action;
    action.incident = std::move(incident);
    out.emplace_back(std::move(action));
  }
  state_.open_incidents = std::move(open);
}

}  // namespace dd2
