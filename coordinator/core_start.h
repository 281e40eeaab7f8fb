#pragma once

#include <cstdint>
#include <vector>

#include "coordinator/core_actions.h"
#include "coordinator/journal_replay.h"

namespace dd2 {

// What the journal says about where a life of the run begins, once the checkpoints on disk agree
// with it. Pure. `start` may hold what the journal does not know (quarantined checkpoints).

// A new life, from the newest checkpoint.
void StartFromCheckpoint(const JournalView& view, CoreStart& start);

// The coordinator died and its workers did not. `recorded`: last position in the record. Where it
// died between the last step of a phase and the journal's word on its end, that step is taken back:
// the workers tell it again.
void StartTakingOver(const JournalView& view, const std::vector<PhaseConfig>& phases,
                     RunPosition recorded, std::int64_t unix_ms, CoreStart& start);

}  // namespace dd2
