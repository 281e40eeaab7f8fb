#include "cli/format.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <ctime>

namespace dd2 {
namespace {

std::string Printed(const char* format, double value) {
  std::array<char, 64> buffer{};
  std::snprintf(buffer.data(), buffer.size(), format, value);
  return buffer.data();
}

}  // namespace

std::string FormatDuration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "-";
  const auto whole = static_cast<long long>(std::llround(seconds));
  std::array<char, 64> buffer{};
  if (whole >= 3600) {
    std::snprintf(buffer.data(), buffer.size(), "%lld:%02lld:%02lld", whole / 3600, whole / 60 % 60,
                  whole % 60);
  } else {
    std::snprintf(buffer.data(), buffer.size(), "%lld:%02lld", whole / 60, whole % 60);
  }
  return buffer.data();
}

std::string FormatValue(double value) { return Printed("%.4g", value); }

std::string FormatBytes(std::int64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (value < 1e3) return Printed("%.0f B", value);
  if (value < 1e6) return Printed("%.1f kB", value / 1e3);
  if (value < 1e9) return Printed("%.1f MB", value / 1e6);
  return Printed("%.1f GB", value / 1e9);
}

std::string FormatTime(std::int64_t unix_ms) {
  if (unix_ms == 0) return "-";
  const auto seconds = static_cast<std::time_t>(unix_ms / 1000);
  std::tm parts{};
  localtime_r(&seconds, &parts);
  char buffer[32];
  std::strftime(buffer, sizeof(buffer), "%Y-%m-%d %H:%M:%S", &parts);
  return buffer;
}

std::string FormatSpeed(double seconds_per_unit, std::string_view unit) {
  if (!std::isfinite(seconds_per_unit) || seconds_per_unit <= 0) return "";
  if (seconds_per_unit < 1)
    return Printed("%.1f ", 1 / seconds_per_unit) + std::string(unit) + "/s";
  return Printed("%.1f s/", seconds_per_unit) + std::string(unit);
}

std::string PadRight(std::string_view text, std::size_t width) {
  std::string out(text);
  if (out.size() < width) out.append(width - out.size(), ' ');
  return out;
}

std::string PadLeft(std::string_view text, std::size_t width) {
  std::string out(text);
  if (out.size() < width) out.insert(0, width - out.size(), ' ');
  return out;
}

std::string ShellLine(const std::vector<std::string>& words) {
  const auto plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("@%+=:,./-_").find(c) != std::string_view::npos;
  };
  std::string line;
  for (const std::string& word : words) {
    if (!line.empty()) line += ' ';
    if (!word.empty() && std::all_of(word.begin(), word.end(), plain)) {
      line += word;
      continue;
    }
    line += '\'';
    for (const char c : word) line += c == '\'' ? std::string("'\\''") : std::string(1, c);
    line += '\'';
  }
  return line;
}

}  // namespace dd2
