#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common/run_config.h"
#include "proto/control.pb.h"

namespace dd2 {

// A whole domain that could be part of the next generation: what its workers hold, by local rank.
struct CandidateDomain {
  std::string name;
  std::vector<proto::HeldState> held;
};

// Who is in the next generation, and where it goes on.
struct RegroupPlan {
  // Of `members` and of the ranks: by rank, domains contiguous.
  std::vector<proto::GenerationMember> members;
  std::vector<std::string> domains;      // in rank order
  std::optional<proto::Position> start;  // nothing: from a checkpoint or the beginning
  std::int32_t source = 0;               // the rank that stands at `start` exactly
};

// Updates that one step of a phase makes: K + 1 in csd, 1 in the other training phases.
std::int32_t UpdatesOfStep(const PhaseConfig& phase);

// The same state may be called by different positions: all updates of a step done is the step done,
// the end of a phase is the beginning of the next. This is the latest of them.
proto::Position Normalised(const proto::Position& position, const std::vector<PhaseConfig>& phases);

// Position order: phase, step, updates.
bool Before(const proto::Position& a, const proto::Position& b);

// The newest state that some domain holds as a whole: each of its ranks is there already, or holds
// the gradient of the one update that is missing. That domain comes first; the others are there, do
// their update, or receive everything. Pure. `domains` is not empty; each has the same size.
RegroupPlan PlanRegroup(const std::vector<CandidateDomain>& domains,
                        const std::vector<PhaseConfig>& phases);

}  // namespace dd2
