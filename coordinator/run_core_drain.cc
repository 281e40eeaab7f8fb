// The part of RunCore that lets domains join a running run, and leave it.

#include <algorithm>
#include <utility>

#include "coordinator/regroup_plan.h"
#include "coordinator/run_core.h"
#include "proto/position.h"

namespace dd2 {

namespace {

bool HasRanks(const DomainMember& domain) {
  return std::any_of(domain.workers.begin(), domain.workers.end(),
                     [](const auto& entry) { return entry.second.rank.has_value(); });
}

// Fresh workers without snapshots, or none.
bool HoldsNothing(const DomainMember& domain) {
  return IsFresh(domain) &&
         std::all_of(domain.workers.begin(), domain.workers.end(),
                     [](const auto& entry) { return entry.second.held.snapshots().empty(); });
}

bool IsHere(const DomainMember& domain) { return domain.agent || !domain.workers.empty(); }

}  // namespace

bool RunCore::Stays(const DomainMember& domain) const {
  return domain.agent && domain.failures < kDomainFailuresMax && !drained_.contains(domain.name);
}

std::int32_t RunCore::WantedDomains() const {
  const auto& domains = members_.domains();
  const auto here = std::count_if(domains.begin(), domains.end(),
                                  [this](const auto& entry) { return Stays(entry.second); });
  const std::int32_t configured =
      options_.elastic ? (ever_formed_ ? 1 : options_.config.domains)
                       : options_.config.domains - static_cast<std::int32_t>(drained_.size());
  return std::max({1, configured, static_cast<std::int32_t>(here)});
}

Status RunCore::CheckRoom(const proto::AgentHello& hello) const {
  if (hello.running()) return Status();  // it was let in before
  std::int32_t others = 0;
  for (const auto& [name, domain] : members_.domains()) {
    if (name != hello.domain() && IsHere(domain) && !domain.dismissed) ++others;
  }
  const std::int32_t ranks = (others + 1) * options_.config.ranks;
  if (others == 0 || ranks <= options_.config.batch.shards) return Status();
  return Error(Code::kFailedPrecondition,
               "no room for domain '" + hello.domain() + "': " + std::to_string(others + 1) +
                   " domains of " + std::to_string(options_.config.ranks) + " ranks for " +
                   std::to_string(options_.config.batch.shards) +
                   " shards (batch.shards), some would have nothing to do. Drain another domain "
                   "first (dd2 drain " +
                   options_.run_folder + " DOMAIN)");
}

Result<Actions> RunCore::Drain(const std::string& name, const std::string& by, Moment at) {
  DD2_TRY(CheckSteerable("drain a domain"));
  Actions out;
  if (drained_.contains(name)) return out;
  auto& domains = members_.domains();
  const auto found = domains.find(name);
  if (found == domains.end() || !IsHere(found->second)) {
    std::string known;
    for (const auto& [other, domain] : domains) {
      if (IsHere(domain)) known += (known.empty() ? "" : ", ") + other;
    }
    return Error(Code::kNotFound, "the run has no domain '" + name + "'" +
                                      (known.empty() ? "" : "; it has " + known));
  }
  const bool last = std::none_of(domains.begin(), domains.end(), [&](const auto& entry) {
    return entry.first != name && Stays(entry.second);
  });
  if (last) {
    return Error(Code::kFailedPrecondition,
                 "cannot drain domain '" + name +
                     "': it is the last one of the run. Let another one join before (dd2 agent "
                     "join " +
                     options_.run_folder + "), or stop the run (dd2 cancel " + options_.run_folder +
                     ")");
  }
  drained_.insert(name);
  proto::JournalRecord record;
  record.mutable_domain_drained()->set_domain(name);
  record.mutable_domain_drained()->set_by(by);
  Journal(std::move(record), out);
  Event(at, "member", "domain '" + name + "' is to leave the run, asked for by " + by);
  // A restarted coordinator does not know yet who holds what.
  const bool known_state = awaited_.empty() && !(start_.recovered && gather_deadline_);
  // While the run is paused no step ends.
  if (desired_.paused() || !HasRanks(found->second)) LetDrainedGo(at, out);
  if (!members_.formed() && known_state && HoldsNothing(found->second)) {
    Dismiss(found->second, at, out);
  }
  TryForm(at, out);
  Changed();
  return out;
}

void RunCore::LetDrainedGo(Moment at, Actions& out) {
  if (drained_.empty() || !members_.formed() || !awaited_.empty()) return;
  bool others = false;
  for (const auto& [name, domain] : members_.domains()) {
    others = others || (Stays(domain) && HasRanks(domain));
  }
  std::string leaving;
  for (const auto& [name, domain] : members_.domains()) {
    if (!others || !drained_.contains(name) || !HasRanks(domain)) continue;
    OpenIncident("drained", name, "domain '" + name + "' leaves the run", at);
    leaving = name;
  }
  DismissLeftOut(at, out);
  if (!leaving.empty()) BreakGeneration("domain '" + leaving + "' leaves the run", false, at, out);
}

// All of `candidates`, or those that stay where they lose nothing without the others.
RegroupPlan RunCore::PlanForStaying(const std::vector<CandidateDomain>& candidates) const {
  const std::vector<PhaseConfig>& phases = options_.config.phases;
  RegroupPlan all = PlanRegroup(candidates, phases);
  std::vector<CandidateDomain> staying;
  for (const CandidateDomain& candidate : candidates) {
    if (!drained_.contains(candidate.name)) staying.push_back(candidate);
  }
  if (staying.empty() || staying.size() == candidates.size()) return all;
  RegroupPlan plan = PlanRegroup(staying, phases);
  const bool loses = all.start && (!plan.start || Before(Normalised(*plan.start, phases),
                                                         Normalised(*all.start, phases)));
  return loses ? all : plan;
}

void RunCore::DismissLeftOut(Moment at, Actions& out) {
  for (auto& [name, domain] : members_.domains()) {
    if (drained_.contains(name) && !HasRanks(domain)) Dismiss(domain, at, out);
  }
}

void RunCore::Dismiss(DomainMember& domain, Moment at, Actions& out) {
  for (const auto& [local_rank, member] : domain.workers) {
    proto::Envelope envelope = NewEnvelope();
    envelope.mutable_run_finished()->set_outcome("drained");
    SendTo(member.connection, std::move(envelope), out);
    out.emplace_back(CloseAction{member.connection});
  }
  members_.RemoveWorkers(domain);
  domain.start_at.reset();
  if (!domain.agent || domain.dismissed) return;
  domain.dismissed = true;
  proto::Envelope envelope = NewEnvelope();
  envelope.mutable_stop_domain()->set_reason("domain '" + domain.name +
                                             "' was drained; the run goes on without it");
  SendTo(domain.agent->connection, std::move(envelope), out);
  if (!domain.running) out.emplace_back(CloseAction{domain.agent->connection});
  Event(at, "member", "domain '" + domain.name + "' has left the run");
}

std::string RunCore::DomainWord(const DomainMember& domain) const {
  if (drained_.contains(domain.name)) return "leaving";
  if (!domain.agent) return "agent away";
  if (domain.failures >= kDomainFailuresMax) return "given up";
  if (HasRanks(domain)) return "working";
  return domain.running ? "starting" : "waiting";
}

}  // namespace dd2
