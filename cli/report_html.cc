#include "cli/report_html.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>

namespace dd2 {
namespace {

std::string Printed(int decimals, double value) {
  std::array<char, 64> buffer{};
  std::snprintf(buffer.data(), buffer.size(), "%.*f", decimals, value);
  return buffer.data();
}

}  // namespace

std::string EscapeHtml(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      case '\'': out += "&#39;"; break;
      default: out += c;
    }
  }
  return out;
}

std::string Base64(std::string_view bytes) {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const std::size_t left = std::min<std::size_t>(3, bytes.size() - i);
    std::uint32_t group = 0;
    for (std::size_t j = 0; j < 3; ++j) {
      group = group << 8 | (j < left ? static_cast<unsigned char>(bytes[i + j]) : 0U);
    }
    for (std::size_t j = 0; j < 4; ++j) {
      out += j <= left ? kDigits[group >> (18 - 6 * j) & 63U] : '=';
    }
  }
  return out;
}

std::string FigureText(double value) {
  if (!std::isfinite(value)) return "–";
  const double size = std::fabs(value);
  if (size == 0) return "0";
  if (size < 0.00095) {
    std::array<char, 64> buffer{};
    std::snprintf(buffer.data(), buffer.size(), "%.1e", value);
    return buffer.data();
  }
  // Three digits that mean something; the limits are where rounding reaches the next decade.
  const int decimals = size >= 99.95    ? 0
                       : size >= 9.995  ? 1
                       : size >= 0.9995 ? 2
                       : size >= .09995 ? 3
                                        : 4;
  return Printed(decimals, value);
}

std::string PercentText(double share) {
  return std::isfinite(share) ? Printed(1, share * 100) + " %" : "–";
}

std::string RatioText(double ratio) {
  return std::isfinite(ratio) ? Printed(ratio >= 99.95 ? 0 : 1, ratio) + "×" : "–";
}

std::string CountText(double count) {
  if (!std::isfinite(count)) return "–";
  std::string digits = Printed(0, std::fabs(count));
  for (std::size_t i = digits.size(); i > 3; i -= 3) digits.insert(i - 3, ",");
  return (count < 0 ? "-" : "") + digits;
}

std::string SecondsText(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "–";
  if (seconds < 9.95) return Printed(1, seconds) + " s";
  const auto whole = static_cast<std::int64_t>(std::llround(seconds));
  if (whole < 60) return std::to_string(whole) + " s";
  if (whole < 3600) {
    return std::to_string(whole / 60) + " min " + std::to_string(whole % 60) + " s";
  }
  return std::to_string(whole / 3600) + " h " + std::to_string(whole / 60 % 60) + " min";
}

std::string MillisecondsText(double milliseconds) {
  if (milliseconds >= 999.5) return FigureText(milliseconds / 1000) + " s";
  return FigureText(milliseconds) + " ms";
}

}  // namespace dd2
