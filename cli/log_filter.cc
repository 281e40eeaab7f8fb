#include "cli/log_filter.h"

#include <charconv>

namespace dd2 {

bool LogFilter::Passes(std::string_view line) const {
  if (!local_rank_) return true;
  std::string_view number;
  if (line.starts_with("[1,")) {
    number = line.substr(3);
  } else if (line.starts_with("worker ")) {  // a worker's last words
    number = line.substr(7);
  } else {
    return true;
  }
  int rank = 0;
  const auto parsed = std::from_chars(number.data(), number.data() + number.size(), rank);
  return parsed.ec != std::errc() || rank == *local_rank_;
}

std::string LogFilter::Take(std::string_view text) {
  rest_ += text;
  std::string out;
  std::size_t begin = 0;
  for (std::size_t end = rest_.find('\n'); end != std::string::npos;
       end = rest_.find('\n', begin)) {
    const std::string_view line = std::string_view(rest_).substr(begin, end + 1 - begin);
    if (Passes(line)) out += line;
    begin = end + 1;
  }
  rest_.erase(0, begin);
  return out;
}

std::string LastLines(const std::string& text, std::size_t count) {
  std::size_t begin = text.size();
  for (std::size_t lines = 0; begin > 0; --begin) {
    if (text[begin - 1] == '\n' && begin != text.size() && ++lines >= count) break;
  }
  return count == 0 ? "" : text.substr(begin);
}

}  // namespace dd2
