#include "coordinator/phase_scheduler.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/limits.h"

namespace dd2 {

namespace {

// Such a phase changes no network: when its outcome is lost it is done again.
bool HasOutcomeOnly(PhaseKind kind) {
  switch (kind) {
    case PhaseKind::kTeacherCheck:
    case PhaseKind::kSample:
    case PhaseKind::kEval:
    case PhaseKind::kExport: return true;
    case PhaseKind::kGts:
    case PhaseKind::kRegress:
    case PhaseKind::kCsd:
    case PhaseKind::kAlign: return false;
  }
  return false;
}

std::string Describe(RunPosition position) {
  return "phase " + std::to_string(position.phase) + " step " + std::to_string(position.step);
}

}  // namespace

PhaseScheduler::PhaseScheduler(std::vector<PhaseConfig> phases, RunPosition start,
                               double seconds_before, std::vector<FinishedPhase> finished)
    : phases_(std::move(phases)),
      seconds_(phases_.size()),
      results_(phases_.size()),
      finished_(phases_.size()) {
  const auto count = static_cast<std::int32_t>(phases_.size());
  for (FinishedPhase& phase : finished) {
    // What lies after the start is void: the run was rolled back.
    if (phase.phase > start.phase || phase.phase >= count || phase.phase < 0) continue;
    const auto index = static_cast<std::size_t>(phase.phase);
    finished_[index] = true;
    seconds_[index] = phase.seconds;
    results_[index] = std::move(phase.result_json);
  }
  GoTo(start, seconds_before);
}

void PhaseScheduler::GoBackTo(RunPosition start, double seconds_before) {
  for (auto i = static_cast<std::size_t>(start.phase) + 1; i < phases_.size(); ++i) {
    finished_[i] = false;
    seconds_[i] = 0;
    results_[i].clear();
  }
  GoTo(start, seconds_before);
}

void PhaseScheduler::GoTo(RunPosition start, double seconds_before) {
  const auto count = static_cast<std::int32_t>(phases_.size());
  DD2_CHECK(start.phase >= 0 && start.phase <= count);
  EnterPhase(start.phase);
  position_ = start;
  if (start.phase < count) {
    const auto index = static_cast<std::size_t>(start.phase);
    const bool at_end = start.step >= phases_[index].steps;
    if (at_end && (finished_[index] || !HasOutcomeOnly(phases_[index].kind))) {
      if (!finished_[index]) seconds_[index] = seconds_before;
      finished_[index] = true;
      position_ = RunPosition{start.phase + 1, 0};
    } else {
      if (at_end) position_.step = 0;
      seconds_[index] = seconds_before;
      results_[index].clear();
      finished_[index] = false;
    }
  }
  granted_end_ = position_.step;
}

void PhaseScheduler::Continue(std::int64_t granted_end, TimePoint now) {
  if (finished()) return;
  granted_end_ = std::clamp(granted_end, position_.step, current().steps);
  phase_started_ = true;
  counted_until_ = now;
  last_progress_ = now;
}

std::optional<LeaseGrant> PhaseScheduler::NextLease() const {
  if (finished()) return std::nullopt;
  const PhaseConfig& phase = current();
  if (granted_end_ >= phase.steps) return std::nullopt;
  const std::int64_t left = granted_end_ - position_.step;
  if (left >= kLeaseLowWater) return std::nullopt;
  std::int64_t end = std::min(granted_end_ + kLeaseSteps, phase.steps);
  if (phase.checkpoint_every > 0) {
    const std::int64_t every = phase.checkpoint_every;
    end = std::min(end, (granted_end_ / every + 1) * every);
  }
  LeaseGrant lease;
  lease.phase = position_.phase;
  lease.first_step = granted_end_;
  lease.count = end - granted_end_;
  return lease;
}

void PhaseScheduler::Granted(const LeaseGrant& lease, TimePoint now) {
  DD2_CHECK(!finished());
  DD2_CHECK(lease.phase == position_.phase);
  DD2_CHECK(lease.first_step == granted_end_);
  DD2_CHECK(lease.count > 0 && lease.first_step + lease.count <= current().steps);
  granted_end_ += lease.count;
  if (!phase_started_) {
    phase_started_ = true;
    counted_until_ = now;
    last_progress_ = now;
  }
}

Status PhaseScheduler::OnProgress(RunPosition reported, TimePoint now) {
  if (finished() || reported.phase < position_.phase ||
      (reported.phase == position_.phase && reported.step <= position_.step)) {
    return Error(Code::kAborted, Describe(reported) + " is behind " + Describe(position_));
  }
  if (reported.phase > position_.phase || reported.step > granted_end_) {
    return Error(Code::kInvalidArgument, "a worker reports " + Describe(reported) +
                                             ", but only steps up to " +
                                             std::to_string(granted_end_) + " of phase " +
                                             std::to_string(position_.phase) + " were handed out");
  }
  CountTime(now);
  const auto steps = static_cast<double>(reported.step - position_.step);
  position_.step = reported.step;
  if (last_progress_) {
    const double seconds = SecondsBetween(*last_progress_, now);
    // The first steps of a phase count fully, later ones with weight 1/20.
    speed_samples_ = std::min<std::int64_t>(speed_samples_ + 1, 20);
    if (seconds > 0) {
      const double weight = 1.0 / static_cast<double>(speed_samples_);
      const double previous = steps_per_second_ > 0 ? 1.0 / steps_per_second_ : seconds / steps;
      steps_per_second_ = 1.0 / (previous + weight * (seconds / steps - previous));
    }
  }
  last_progress_ = now;
  return Status();
}

Status PhaseScheduler::OnPhaseFinished(std::int32_t phase, std::string result_json, TimePoint now) {
  if (finished() || phase != position_.phase || position_.step != current().steps) {
    return Error(Code::kInvalidArgument,
                 "a worker reports the end of phase " + std::to_string(phase) +
                     " while the run is at " + Describe(position_) +
                     (finished() ? "" : " of " + std::to_string(current().steps)));
  }
  CountTime(now);
  results_[static_cast<std::size_t>(phase)] = std::move(result_json);
  finished_[static_cast<std::size_t>(phase)] = true;
  EnterPhase(phase + 1);
  return Status();
}

void PhaseScheduler::SetPaused(bool paused, TimePoint now) {
  if (paused == paused_) return;
  CountTime(now);
  paused_ = paused;
  // The first step after a pause would look slow.
  last_progress_.reset();
}

double PhaseScheduler::PhaseSeconds(std::int32_t phase, TimePoint now) const {
  double seconds = seconds_.at(static_cast<std::size_t>(phase));
  if (phase == position_.phase && counted_until_ && !paused_) {
    seconds += SecondsBetween(*counted_until_, now);
  }
  return seconds;
}

const std::string& PhaseScheduler::ResultOf(std::int32_t phase) const {
  return results_.at(static_cast<std::size_t>(phase));
}

double PhaseScheduler::PhaseEtaSeconds() const {
  if (finished()) return 0;
  if (steps_per_second_ <= 0) return -1;
  return static_cast<double>(current().steps - position_.step) / steps_per_second_;
}

void PhaseScheduler::EnterPhase(std::int32_t phase) {
  position_ = RunPosition{phase, 0};
  granted_end_ = 0;
  phase_started_ = false;
  counted_until_.reset();
  last_progress_.reset();
  steps_per_second_ = 0;
  speed_samples_ = 0;
}

void PhaseScheduler::CountTime(TimePoint now) {
  if (!counted_until_) return;
  if (!paused_) {
    seconds_[static_cast<std::size_t>(position_.phase)] += SecondsBetween(*counted_until_, now);
  }
  counted_until_ = now;
}

}  // namespace dd2
