#pragma once

#include <cstdint>
#include <vector>

#include "common/run_config.h"
#include "proto/control.pb.h"

namespace dd2 {

// Updates that one step of a phase makes: K + 1 in csd, 1 in the other training phases.
std::int32_t UpdatesOfStep(const PhaseConfig& phase);

// The same state may be called by different positions: all updates of a step done is the step done,
// the end of a phase is the beginning of the next. This is the latest of them.
proto::Position Normalised(const proto::Position& position, const std::vector<PhaseConfig>& phases);

// Position order: phase, step, updates.
bool Before(const proto::Position& a, const proto::Position& b);
bool Same(const proto::Position& a, const proto::Position& b);

// Who stands at `position` and keeps progress from `first_kept` on (null: none) lacks none of the
// progress after this.
proto::Position RecordedBefore(const proto::Position& position, const proto::Progress* first_kept);

}  // namespace dd2
