#include "coordinator/regroup_plan.h"

#include <algorithm>
#include <tuple>

#include "common/check.h"

namespace dd2 {

namespace {

using Means = proto::GenerationMember::Means;

auto Key(const proto::Position& position) {
  return std::make_tuple(position.phase(), position.step(), position.updates());
}

bool Same(const proto::Position& a, const proto::Position& b) { return Key(a) == Key(b); }

// How one rank gets to `start`; nothing: only by receiving it.
std::optional<Means> Reach(const proto::HeldState& held, const proto::Position& start,
                           const std::vector<PhaseConfig>& phases) {
  if (!held.has_state()) return std::nullopt;
  const proto::Position goal = Normalised(start, phases);
  if (Same(Normalised(held.position(), phases), goal)) return proto::GenerationMember::KEEP;
  if (!held.pending()) return std::nullopt;
  proto::Position next = held.position();
  next.set_updates(next.updates() + 1);
  if (Same(Normalised(next, phases), goal)) return proto::GenerationMember::ROLL;
  return std::nullopt;
}

bool Reaches(const CandidateDomain& domain, const proto::Position& start,
             const std::vector<PhaseConfig>& phases) {
  return std::all_of(domain.held.begin(), domain.held.end(), [&](const proto::HeldState& held) {
    return Reach(held, start, phases).has_value();
  });
}

// Held positions, newest first, each once.
std::vector<proto::Position> Candidates(const std::vector<CandidateDomain>& domains) {
  std::vector<proto::Position> positions;
  for (const CandidateDomain& domain : domains) {
    for (const proto::HeldState& held : domain.held) {
      if (held.has_state()) positions.push_back(held.position());
    }
  }
  std::sort(positions.begin(), positions.end(),
            [](const auto& a, const auto& b) { return Before(b, a); });
  positions.erase(std::unique(positions.begin(), positions.end(), Same), positions.end());
  return positions;
}

}  // namespace

std::int32_t UpdatesOfStep(const PhaseConfig& phase) {
  switch (phase.kind) {
    case PhaseKind::kCsd: return phase.guidance_updates + 1;
    case PhaseKind::kGts:
    case PhaseKind::kRegress:
    case PhaseKind::kAlign: return 1;
    case PhaseKind::kTeacherCheck:
    case PhaseKind::kSample:
    case PhaseKind::kEval:
    case PhaseKind::kExport: return 0;
  }
  return 0;
}

bool Before(const proto::Position& a, const proto::Position& b) { return Key(a) < Key(b); }

proto::Position Normalised(const proto::Position& position,
                           const std::vector<PhaseConfig>& phases) {
  proto::Position normal = position;
  const auto index = static_cast<std::size_t>(std::max(0, position.phase()));
  if (index >= phases.size()) return normal;
  const std::int32_t updates = UpdatesOfStep(phases[index]);
  if (updates > 0 && normal.updates() >= updates) {
    normal.set_step(normal.step() + 1);
    normal.set_updates(0);
  }
  if (normal.updates() == 0 && normal.step() >= phases[index].steps) {
    normal.set_phase(normal.phase() + 1);
    normal.set_step(0);
  }
  return normal;
}

RegroupPlan PlanRegroup(const std::vector<CandidateDomain>& domains,
                        const std::vector<PhaseConfig>& phases) {
  DD2_CHECK(!domains.empty());
  RegroupPlan plan;
  std::vector<const CandidateDomain*> order;
  for (const CandidateDomain& domain : domains) order.push_back(&domain);
  for (const proto::Position& position : Candidates(domains)) {
    const auto reaches = [&](const CandidateDomain* domain) {
      return Reaches(*domain, position, phases);
    };
    if (std::none_of(order.begin(), order.end(), reaches)) continue;
    plan.start = position;
    std::stable_partition(order.begin(), order.end(), reaches);
    break;
  }
  bool found = false;
  for (const CandidateDomain* domain : order) {
    plan.domains.push_back(domain->name);
    const bool whole = plan.start && Reaches(*domain, *plan.start, phases);
    for (std::size_t i = 0; i < domain->held.size(); ++i) {
      proto::GenerationMember member;
      member.set_domain(domain->name);
      member.set_local_rank(static_cast<std::int32_t>(i));
      member.set_local_size(static_cast<std::int32_t>(domain->held.size()));
      if (plan.start) {
        member.set_means(whole ? *Reach(domain->held[i], *plan.start, phases)
                               : proto::GenerationMember::RECEIVE);
        // It may be in a domain that receives its tensors: its small state still leads.
        const bool exact =
            domain->held[i].has_state() && Same(domain->held[i].position(), *plan.start);
        if (!found && exact) {
          plan.source = static_cast<std::int32_t>(plan.members.size());
          found = true;
        }
      }
      plan.members.push_back(std::move(member));
    }
  }
  DD2_CHECK(!plan.start || found);
  return plan;
}

}  // namespace dd2
