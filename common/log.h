#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "common/clock.h"
#include "common/result.h"

namespace dd2 {

// The log of this process: lines for people, to standard error and to a file of the run. The home
// of spdlog. All functions are thread-safe and never fail: a log that cannot be written (disk full)
// says so once on standard error and the work goes on.
//
//   2026-08-07 12:00:00.123 agent-node0 warning [rank 1 gen 3] message

// Who reads it: debug - the developer of that code; info - somebody following the run; warning -
// the operator, when there is time; error - the operator, now.
enum class LogLevel : std::uint8_t { kDebug, kInfo, kWarning, kError };

struct LogOptions {
  std::string name;            // "coordinator", "agent-node0", "worker-3"
  std::filesystem::path file;  // appended to, folders are made; empty: standard error only
  bool to_stderr = true;
  LogLevel level = LogLevel::kInfo;
};

// Once, early in main(). Before it (and without it) lines go to standard error.
// kUnavailable: the file cannot be opened; lines still go to standard error then.
Status StartLog(const LogOptions& options);

// Stands in front of every later line: "rank 1 gen 3". Empty: nothing.
void SetLogPrefix(std::string_view prefix);

void Log(LogLevel level, std::string_view message);
inline void LogDebug(std::string_view message) { Log(LogLevel::kDebug, message); }
inline void LogInfo(std::string_view message) { Log(LogLevel::kInfo, message); }
inline void LogWarning(std::string_view message) { Log(LogLevel::kWarning, message); }
inline void LogError(std::string_view message) { Log(LogLevel::kError, message); }

// Lets a message through at most once per interval and counts the others. Pure; not thread-safe.
class RateLimit {
 public:
  explicit RateLimit(std::chrono::milliseconds interval) : interval_(interval) {}
  // How many were held back since the last one that passed; nothing when this one is held back.
  std::optional<std::uint64_t> Admit(TimePoint now);

 private:
  const std::chrono::milliseconds interval_;
  std::optional<TimePoint> last_;
  std::uint64_t held_back_ = 0;
};

// Log() through a limit, for what may happen a thousand times a second.
void LogLimited(RateLimit& limit, TimePoint now, LogLevel level, std::string_view message);

}  // namespace dd2
