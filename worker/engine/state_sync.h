#pragma once

#include <functional>

#include "common/result.h"
#include "proto/control.pb.h"
#include "worker/engine/trainer.h"
#include "worker/engine/training_state.h"
#include "worker/parallel/collectives.h"
#include "worker/parallel/rank_layout.h"

namespace dd2 {

// The place of rank `assignment.rank` in its generation. An assignment that names no members is of
// one domain.
RankLayout LayoutOf(const proto::Assignment& assignment);

// Brings all ranks of a new generation to the state that `assignment.start` says, by the means that
// it says for each rank. Collective; the trainer has been regrouped. What a rank reports as held
// (Trainer::Held) is true at every moment, so this can be interrupted and a later generation begun.
// RECALL: the rank's snapshot lies in its networks already, and its small state in `mine`.
// `mine`: this rank's small state, with all that others shall take over from it if it is the
// source. `take_over`: called once with the source's, together with the change of position.
// Errors: of the collectives and the device; kCorruption: something arrived damaged; kInternal: the
// means do not fit what this rank holds.
Status SyncState(const proto::Assignment& assignment, const proto::RankState& mine,
                 Trainer& trainer, TrainingState& state, Collectives& collectives,
                 const std::function<void(const proto::RankState&)>& take_over);

}  // namespace dd2
