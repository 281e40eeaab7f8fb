#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/result.h"
#include "common/run_config.h"

namespace dd2 {

// A point of a run: `step` steps of phase number `phase` are finished.
struct RunPosition {
  std::int32_t phase = 0;
  std::int64_t step = 0;
  auto operator<=>(const RunPosition&) const = default;
};

// Permission for steps [first_step, first_step + count) of a phase.
struct LeaseGrant {
  std::int32_t phase = 0;
  std::int64_t first_step = 0;
  std::int64_t count = 0;
  auto operator<=>(const LeaseGrant&) const = default;
};

// A phase that the journal says is finished.
struct FinishedPhase {
  std::int32_t phase = 0;
  double seconds = 0;
  std::string result_json;
};

// Decides what runs next: a pure function of configuration and journal (design 4). A step is one
// block in sample, one update in gts and align, one outer cycle in csd; teacher check, eval and
// export are one step.
//
// Owned by RunCore; control thread. Holds no clock: `now` comes with the event. Leases never cross
// the end of a phase or a checkpoint border, and the next phase is leased only when the one before
// it is finished.
class PhaseScheduler {
 public:
  // `start`: where the restored checkpoint stands; {0, 0} for a new run. `seconds_before`: time
  // that phase start.phase had already taken there. `finished`: what the journal knows of earlier
  // phases.
  PhaseScheduler(std::vector<PhaseConfig> phases, RunPosition start, double seconds_before,
                 std::vector<FinishedPhase> finished);

  // The run goes on from an earlier position (a restored checkpoint, or a state that survivors
  // hold): what was finished, timed and handed out after it is void.
  void GoBackTo(RunPosition start, double seconds_before);
  // After a restart of the coordinator: steps up to `granted_end` of the current phase were handed
  // out in its earlier life, and time has been counted up to `now`.
  void Continue(std::int64_t granted_end, TimePoint now);

  // The lease to hand out now; nothing while enough granted steps are left, while the end of the
  // phase is being waited for, or when all is done. Does not change anything.
  std::optional<LeaseGrant> NextLease() const;
  // `lease` (from NextLease) was journalled and handed out.
  void Granted(const LeaseGrant& lease, TimePoint now);

  // Rank 0 has finished `step` steps of `phase`. kAborted: an old phase or step, to be ignored.
  // kInvalidArgument: more than was granted.
  Status OnProgress(RunPosition reported, TimePoint now);
  // Rank 0 has finished the whole phase (after OnProgress of its last step). kInvalidArgument: it
  // is not at its end.
  Status OnPhaseFinished(std::int32_t phase, std::string result_json, TimePoint now);
  // While paused no time is counted.
  void SetPaused(bool paused, TimePoint now);

  bool finished() const { return position_.phase == static_cast<std::int32_t>(phases_.size()); }
  RunPosition position() const { return position_; }
  // End of the steps that are granted in the current phase.
  std::int64_t granted_end() const { return granted_end_; }
  // Whether the current phase has had a lease since the run went to it.
  bool phase_started() const { return phase_started_; }
  // Wall time in a phase without pauses, up to `now`.
  double PhaseSeconds(std::int32_t phase, TimePoint now) const;
  const std::string& ResultOf(std::int32_t phase) const;
  // Moving average over the current phase; 0 before its second step.
  double steps_per_second() const { return steps_per_second_; }
  // Remaining time of the current phase; -1 when not known.
  double PhaseEtaSeconds() const;

 private:
  const PhaseConfig& current() const { return phases_[static_cast<std::size_t>(position_.phase)]; }
  void EnterPhase(std::int32_t phase);
  // From `start`, where phase start.phase had taken `seconds_before`; all before it is finished.
  void GoTo(RunPosition start, double seconds_before);
  void CountTime(TimePoint now);

  const std::vector<PhaseConfig> phases_;
  std::vector<double> seconds_;       // of each phase
  std::vector<std::string> results_;  // of each phase
  std::vector<bool> finished_;        // phases whose end is known
  RunPosition position_;
  std::int64_t granted_end_ = 0;
  bool phase_started_ = false;
  bool paused_ = false;
  std::optional<TimePoint> counted_until_;  // the current phase's seconds_ include time up to here
  std::optional<TimePoint> last_progress_;
  double steps_per_second_ = 0;
  std::int64_t speed_samples_ = 0;
};

}  // namespace dd2
