#include "coordinator/regroup_plan.h"

#include <algorithm>

#include "common/check.h"
#include "proto/position.h"

namespace dd2 {

namespace {

using Means = proto::GenerationMember::Means;

// How one rank gets to `start`; nothing: only by receiving it.
struct Way {
  Means means = proto::GenerationMember::KEEP;
  std::optional<proto::Position> snapshot;  // RECALL
};
std::optional<Way> Reach(const proto::HeldState& held, const proto::Position& start,
                         const std::vector<PhaseConfig>& phases) {
  const proto::Position goal = Normalised(start, phases);
  if (held.has_state()) {
    if (Same(Normalised(held.position(), phases), goal)) return Way();
    proto::Position next = held.position();
    next.set_updates(next.updates() + 1);
    if (held.pending() && Same(Normalised(next, phases), goal)) {
      return Way{.means = proto::GenerationMember::ROLL, .snapshot = std::nullopt};
    }
  }
  for (const proto::MemorySnapshot& snapshot : held.snapshots()) {
    if (Same(Normalised(snapshot.position(), phases), goal)) {
      return Way{.means = proto::GenerationMember::RECALL, .snapshot = snapshot.position()};
    }
  }
  return std::nullopt;
}

bool Reaches(const CandidateDomain& domain, const proto::Position& start,
             const std::vector<PhaseConfig>& phases) {
  return std::all_of(domain.held.begin(), domain.held.end(), [&](const proto::HeldState& held) {
    return Reach(held, start, phases).has_value();
  });
}

// Positions that are held or in memory, newest first, each once.
std::vector<proto::Position> Candidates(const std::vector<CandidateDomain>& domains,
                                        const std::vector<PhaseConfig>& phases) {
  std::vector<proto::Position> positions;
  for (const CandidateDomain& domain : domains) {
    for (const proto::HeldState& held : domain.held) {
      if (held.has_state()) positions.push_back(held.position());
      // Only with its peers: else another domain might get there that has it under another name
      // alone, and nobody would stand at it exactly.
      for (const proto::MemorySnapshot& one : held.snapshots()) {
        if (Reaches(domain, one.position(), phases)) positions.push_back(one.position());
      }
    }
  }
  std::sort(positions.begin(), positions.end(),
            [](const auto& a, const auto& b) { return Before(b, a); });
  positions.erase(std::unique(positions.begin(), positions.end(), Same), positions.end());
  return positions;
}

}  // namespace

RegroupPlan PlanRegroup(const std::vector<CandidateDomain>& domains,
                        const std::vector<PhaseConfig>& phases) {
  DD2_CHECK(!domains.empty());
  RegroupPlan plan;
  std::vector<const CandidateDomain*> order;
  for (const CandidateDomain& domain : domains) order.push_back(&domain);
  for (const proto::Position& position : Candidates(domains, phases)) {
    const auto reaches = [&](const CandidateDomain* domain) {
      return Reaches(*domain, position, phases);
    };
    if (std::none_of(order.begin(), order.end(), reaches)) continue;
    plan.start = position;
    std::stable_partition(order.begin(), order.end(), reaches);
    break;
  }
  bool found = false;
  bool receives = false;
  for (const CandidateDomain* domain : order) {
    plan.domains.push_back(domain->name);
    const bool whole = plan.start && Reaches(*domain, *plan.start, phases);
    DD2_CHECK(!whole || !receives);
    receives = plan.start && !whole;
    if (!receives) plan.first_receiver += static_cast<std::int32_t>(domain->held.size());
    for (std::size_t i = 0; i < domain->held.size(); ++i) {
      proto::GenerationMember member;
      member.set_domain(domain->name);
      member.set_local_rank(static_cast<std::int32_t>(i));
      member.set_local_size(static_cast<std::int32_t>(domain->held.size()));
      if (plan.start) {
        const std::optional<Way> way =
            whole ? Reach(domain->held[i], *plan.start, phases) : std::nullopt;
        member.set_means(way ? way->means : proto::GenerationMember::RECEIVE);
        if (way && way->snapshot) *member.mutable_snapshot() = *way->snapshot;
        // It may be in a domain that receives its tensors: its small state still leads.
        const bool exact =
            (domain->held[i].has_state() && Same(domain->held[i].position(), *plan.start)) ||
            (member.has_snapshot() && Same(member.snapshot(), *plan.start));
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
