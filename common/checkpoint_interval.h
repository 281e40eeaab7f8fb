#pragma once

#include <cstdint>
#include <optional>

#include "common/clock.h"
#include "common/run_config.h"

namespace dd2 {

// When a run makes checkpoints besides those that its phases set. Pure.

// What a run has shown about itself, all of its lives together.
struct IntervalEvidence {
  std::int64_t checkpoints = 0;  // that were made
  double stall_seconds = 0;      // time that training stood still for them
  double trained_seconds = 0;
  std::int64_t failures = 0;  // losses of a member, and lives that ended by a failure
};

// Before a checkpoint was made, one is taken to cost this.
inline constexpr double kStallPriorSeconds = 1;
// What counts as seen before the run began: this long, with one failure at its end.
inline constexpr double kFailurePriorSeconds = 8 * 3600;
// However cheap a checkpoint is, and however rare failures are.
inline constexpr double kIntervalMinSeconds = 300;
inline constexpr double kIntervalMaxSeconds = 3600;

double MeanStallSeconds(const IntervalEvidence& evidence);
double MeanSecondsToFailure(const IntervalEvidence& evidence);
// sqrt(2 C M) (Young; Daly's first order), C what a checkpoint costs and M the mean time to a
// failure: where the time that checkpoints take equals the time that is done again after failures.
// Within the bounds above.
double YoungDalySeconds(const IntervalEvidence& evidence);

// Owned by RunCore; control thread.
class CheckpointTimer {
 public:
  explicit CheckpointTimer(CheckpointInterval setting) : setting_(setting) {}
  // Time between checkpoints now; nothing when the setting is off.
  std::optional<double> Seconds(const IntervalEvidence& evidence) const;
  // A checkpoint was made or asked for, or training begins.
  void Restart(TimePoint now) { since_ = now; }
  // It is time to ask for one.
  bool Due(const IntervalEvidence& evidence, TimePoint now) const;

 private:
  const CheckpointInterval setting_;
  std::optional<TimePoint> since_;
};

}  // namespace dd2
