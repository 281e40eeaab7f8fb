#pragma once

#include <chrono>
#include <optional>

#include "common/clock.h"

namespace dd2 {

struct RestartLimits {
  std::chrono::milliseconds first_delay{0};  // after the first end; doubles with each one in a row
  std::chrono::milliseconds longest_delay{0};
  int in_a_row = 5;  // so many restarts without a long life between them
  std::chrono::milliseconds long_life = std::chrono::seconds(60);
};

// Whether and when a process that ended unasked is started again: not for ever when it dies at
// once each time. Pure; one object for one process and its successors.
class RestartPolicy {
 public:
  explicit RestartPolicy(RestartLimits limits) : limits_(limits) {}

  void OnStarted(TimePoint now) { started_ = now; }
  // The process that was started last has ended: when to start the next one. Nothing: give up.
  std::optional<TimePoint> OnEnded(TimePoint now);

 private:
  const RestartLimits limits_;
  std::optional<TimePoint> started_;  // nothing: it could not even be started
  int restarts_ = 0;                  // since the last long life
};

}  // namespace dd2
