#include "common/checkpoint_interval.h"

#include <algorithm>
#include <cmath>

namespace dd2 {

double MeanStallSeconds(const IntervalEvidence& evidence) {
  if (evidence.checkpoints < 1) return kStallPriorSeconds;
  return evidence.stall_seconds / static_cast<double>(evidence.checkpoints);
}

double MeanSecondsToFailure(const IntervalEvidence& evidence) {
  return (kFailurePriorSeconds + evidence.trained_seconds) /
         static_cast<double>(1 + evidence.failures);
}

double YoungDalySeconds(const IntervalEvidence& evidence) {
  const double seconds = std::sqrt(2 * MeanStallSeconds(evidence) * MeanSecondsToFailure(evidence));
  return std::clamp(seconds, kIntervalMinSeconds, kIntervalMaxSeconds);
}

std::optional<double> CheckpointTimer::Seconds(const IntervalEvidence& evidence) const {
  switch (setting_.kind) {
    case CheckpointInterval::Kind::kOff: return std::nullopt;
    case CheckpointInterval::Kind::kFixed: return setting_.seconds;
    case CheckpointInterval::Kind::kAuto: break;
  }
  return YoungDalySeconds(evidence);
}

bool CheckpointTimer::Due(const IntervalEvidence& evidence, TimePoint now) const {
  const std::optional<double> seconds = Seconds(evidence);
  return seconds && since_ && SecondsBetween(*since_, now) >= *seconds;
}

}  // namespace dd2
