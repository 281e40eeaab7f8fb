#pragma once

#include <string>
#include <string_view>

namespace dd2 {

// Small pure helpers of the report.

// Text with & < > " ' made safe for element content and attribute values.
std::string EscapeHtml(std::string_view text);
std::string Base64(std::string_view bytes);

// Numbers as a person writes them: "589", "43.1", "3.67", "0.143", "0.0051"; "–" when not finite.
std::string FigureText(double value);
std::string PercentText(double share);              // 0.871 -> "87.1 %"
std::string RatioText(double ratio);                // 17.84 -> "17.8×"
std::string CountText(double count);                // 10000 -> "10,000"
std::string SecondsText(double seconds);            // 312 -> "5 min 12 s"
std::string MillisecondsText(double milliseconds);  // 83.7 -> "83.7 ms"; "1.24 s"

// The style sheet of the page: light and dark by the reader's preference, and for print.
std::string_view ReportStyle();

}  // namespace dd2
