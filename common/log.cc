#include "common/log.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <cstdio>
#include <exception>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace dd2 {
namespace {

struct LogState {
  std::mutex mutex;
  std::shared_ptr<spdlog::logger> logger;
  std::string prefix;  // with brackets and a space
};

// Never destroyed: threads may log while the process ends.
LogState& State() {
  static LogState* const state = new LogState;
  return *state;
}

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug: return spdlog::level::debug;
    case LogLevel::kInfo: return spdlog::level::info;
    case LogLevel::kWarning: return spdlog::level::warn;
    case LogLevel::kError: return spdlog::level::err;
  }
  return spdlog::level::info;
}

void ReportBrokenLog(const std::string& message) {
  static std::atomic<bool> said = false;
  if (said.exchange(true)) return;
  std::fprintf(stderr, "the log cannot be written any more: %s\n", message.c_str());
}

std::shared_ptr<spdlog::logger> MakeLogger(const LogOptions& options,
                                           std::vector<spdlog::sink_ptr> sinks) {
  auto logger = std::make_shared<spdlog::logger>(options.name, sinks.begin(), sinks.end());
  logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %n %l %v");
  logger->set_level(ToSpdlog(options.level));
  logger->flush_on(spdlog::level::info);
  logger->set_error_handler(ReportBrokenLog);
  return logger;
}

void Install(std::shared_ptr<spdlog::logger> logger) {
  const std::lock_guard<std::mutex> lock(State().mutex);
  State().logger = std::move(logger);
}

}  // namespace

Status StartLog(const LogOptions& options) {
  std::vector<spdlog::sink_ptr> sinks;
  Status status;
  try {
    if (options.to_stderr) sinks.push_back(std::make_shared<spdlog::sinks::stderr_sink_mt>());
    if (!options.file.empty()) {
      sinks.push_back(std::make_shared<spdlog::sinks::basic_file_sink_mt>(options.file.string()));
    }
  } catch (const std::exception& error) {
    status =
        Error(Code::kUnavailable, "cannot log to " + options.file.string() + ": " + error.what());
    if (sinks.empty()) sinks.push_back(std::make_shared<spdlog::sinks::stderr_sink_mt>());
  }
  Install(MakeLogger(options, std::move(sinks)));
  return status;
}

void SetLogPrefix(std::string_view prefix) {
  const std::lock_guard<std::mutex> lock(State().mutex);
  State().prefix = prefix.empty() ? std::string() : "[" + std::string(prefix) + "] ";
}

void Log(LogLevel level, std::string_view message) {
  std::shared_ptr<spdlog::logger> logger;
  std::string line;
  {
    const std::lock_guard<std::mutex> lock(State().mutex);
    logger = State().logger;
    line = State().prefix;
  }
  line += message;
  if (logger == nullptr) {
    std::fprintf(stderr, "%s\n", line.c_str());
    return;
  }
  // As an argument, so that braces in the message are text.
  logger->log(ToSpdlog(level), "{}", line);
}

std::optional<std::uint64_t> RateLimit::Admit(TimePoint now) {
  if (last_ && now - *last_ < interval_) {
    ++held_back_;
    return std::nullopt;
  }
  last_ = now;
  return std::exchange(held_back_, 0);
}

void LogLimited(RateLimit& limit, TimePoint now, LogLevel level, std::string_view message) {
  const std::optional<std::uint64_t> held_back = limit.Admit(now);
  if (!held_back) return;
  if (*held_back == 0) {
    Log(level, message);
  } else {
    Log(level, std::string(message) + " (and " + std::to_string(*held_back) + " like it before)");
  }
}

}  // namespace dd2
