#include "coordinator/run_state.h"

#include <algorithm>
#include <cstddef>

namespace dd2 {

const char* RunWordName(RunWord word) {
  switch (word) {
    case RunWord::kWaiting: return "waiting";
    case RunWord::kRunning: return "running";
    case RunWord::kRecovering: return "recovering";
    case RunWord::kPaused: return "paused";
    case RunWord::kStopping: return "stopping";
    case RunWord::kFinished: return "finished";
    case RunWord::kStopped: return "stopped";
    case RunWord::kFailed: return "failed";
  }
  return "unknown";
}

const char* PhaseWordName(PhaseWord word) {
  switch (word) {
    case PhaseWord::kPending: return "pending";
    case PhaseWord::kRunning: return "running";
    case PhaseWord::kDone: return "done";
  }
  return "unknown";
}

const char* CheckpointWordName(CheckpointWord word) {
  switch (word) {
    case CheckpointWord::kWriting: return "writing";
    case CheckpointWord::kCommitted: return "committed";
    case CheckpointWord::kDeleted: return "deleted";
    case CheckpointWord::kQuarantined: return "quarantined";
    case CheckpointWord::kFailed: return "failed";
  }
  return "unknown";
}

const RunEvent& EventRing::Add(std::int64_t unix_ms, std::string kind, std::string message) {
  RunEvent event;
  event.sequence = next_++;
  event.unix_ms = unix_ms;
  event.kind = std::move(kind);
  event.message = std::move(message);
  events_.push_back(std::move(event));
  if (events_.size() > kEventRingMax) events_.pop_front();
  return events_.back();
}

std::vector<RunEvent> EventRing::After(std::uint64_t sequence) const {
  // Their sequences have no holes.
  const std::uint64_t newer = last_sequence() > sequence ? last_sequence() - sequence : 0;
  const auto count = std::min<std::uint64_t>(newer, events_.size());
  return {events_.end() - static_cast<std::ptrdiff_t>(count), events_.end()};
}

}  // namespace dd2
