#pragma once

#include <cstddef>
#include <optional>
#include <string>

#include "cli/run_view.h"

namespace dd2 {

// Turns successive views of a run into what is written on a terminal (one live line for the current
// phase, a line that stays for each finished one) or into a log (plain lines every few seconds).
//
// Pure: it returns the text, the caller writes it. One object for one run; not thread-safe.
class ProgressView {
 public:
  // `live`: the output is a terminal that understands "\r" and "erase line".
  explicit ProgressView(bool live, double plain_interval_seconds = 5)
      : live_(live), plain_interval_seconds_(plain_interval_seconds) {}

  // `now_seconds` on any monotonic scale; `columns` of the terminal, 0: unknown.
  std::string Update(const RunView& view, double now_seconds, int columns);
  // A line of its own, above the live line.
  std::string Note(const std::string& text);
  // Ends the live line, so that what is printed next starts on a line of its own.
  std::string Close();

 private:
  std::string Line(const std::string& text);  // one that stays

  bool live_;
  double plain_interval_seconds_;
  std::size_t printed_ = 0;          // phases whose finished line is out
  std::optional<std::string> open_;  // the live line on the screen
  std::string last_plain_;
  double last_plain_seconds_ = 0;
};

}  // namespace dd2
