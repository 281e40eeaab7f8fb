#include "cli/restart_policy.h"

#include <algorithm>

namespace dd2 {

std::optional<TimePoint> RestartPolicy::OnEnded(TimePoint now) {
  if (started_ && now - *started_ >= limits_.long_life) restarts_ = 0;
  started_.reset();
  if (restarts_ >= limits_.in_a_row) return std::nullopt;
  std::chrono::milliseconds delay = limits_.first_delay;
  for (int i = 0; i < restarts_ && delay < limits_.longest_delay; ++i) delay *= 2;
  ++restarts_;
  return now + std::min(delay, limits_.longest_delay);
}

}  // namespace dd2
