#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dd2 {

// Small pure helpers that turn numbers into what a person reads in a terminal.

// "0:07", "12:05", "1:02:03"; negative or not finite: "-".
std::string FormatDuration(double seconds);
// Four significant digits without an exponent where that is short: "0.2143", "589", "1.2e-05".
std::string FormatValue(double value);
// "12.3 MB" (powers of 1000).
std::string FormatBytes(std::int64_t bytes);
// "2026-11-24 09:30:00", local time; "-" when it is 0.
std::string FormatTime(std::int64_t unix_ms);
// Speed of `unit`s ("step") that take `seconds_per_unit` each: "9.3 step/s", or "1.6 s/step" when
// slower than one a second; empty when not known.
std::string FormatSpeed(double seconds_per_unit, std::string_view unit);
// `text` followed by spaces up to `width` characters (never cut).
std::string PadRight(std::string_view text, std::size_t width);
std::string PadLeft(std::string_view text, std::size_t width);
// A command line that a shell splits into `words` again.
std::string ShellLine(const std::vector<std::string>& words);

}  // namespace dd2
