#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace dd2 {

// The lines of a domain's log that belong to one of its ranks: mpirun marks a rank's lines with
// "[1,RANK]<stderr>:". Those of nobody (mpirun's own, a crash's stack) are kept, others' are not.
// Pure; feed it the file as it grows.
class LogFilter {
 public:
  // Nothing: all lines pass.
  explicit LogFilter(std::optional<int> local_rank) : local_rank_(local_rank) {}

  // Whole lines out of what has come so far; the last one waits for its end.
  std::string Take(std::string_view text);

 private:
  bool Passes(std::string_view line) const;

  const std::optional<int> local_rank_;
  std::string rest_;
};

// The last `count` lines of `text`.
std::string LastLines(const std::string& text, std::size_t count);

}  // namespace dd2
