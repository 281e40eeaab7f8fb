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
  std::int32_t first_receiver = 0;       // it and all behind it RECEIVE; members.size(): nobody
};

// The newest state that some domain holds as a whole: each of its ranks is there already, holds the
// gradient of the one update that is missing, or has a snapshot of it in memory. That domain comes
// first; the others get there in these ways too, or receive everything. Pure. `domains` is not
// empty; each has the same size.
RegroupPlan PlanRegroup(const std::vector<CandidateDomain>& domains,
                        const std::vector<PhaseConfig>& phases);

}  // namespace dd2
