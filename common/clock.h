#pragma once

#include <chrono>
#include <cstdint>

namespace dd2 {

// Monotonic time: for durations, deadlines and expiry; never written down.
using TimePoint = std::chrono::steady_clock::time_point;

// Where every reading of time comes from, so that a test or a simulation can set it. Pure cores do
// not hold a Clock: they take `now` as an argument. Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual TimePoint Now() const = 0;
  // Milliseconds since 1970, for records that people read. May jump.
  virtual std::int64_t UnixMs() const = 0;
};

// The machine's clocks.
class SystemClock final : public Clock {
 public:
  TimePoint Now() const override { return std::chrono::steady_clock::now(); }
  std::int64_t UnixMs() const override {
    const auto since_epoch = std::chrono::system_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::milliseconds>(since_epoch).count();
  }
};

// Seconds from `begin` to `end` as a floating-point number.
inline double SecondsBetween(TimePoint begin, TimePoint end) {
  return std::chrono::duration<double>(end - begin).count();
}

}  // namespace dd2
