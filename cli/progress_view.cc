#include "cli/progress_view.h"

#include <algorithm>

#include "cli/progress.h"

namespace dd2 {
namespace {

constexpr const char* erase_line = "\r\x1b[K";

}  // namespace

std::string ProgressView::Line(const std::string& text) {
  std::string out = open_ ? erase_line : "";
  out += text + "\n";
  if (open_) out += *open_;
  return out;
}

std::string ProgressView::Note(const std::string& text) { return Line(text); }

std::string ProgressView::Close() {
  if (!open_) return "";
  open_.reset();
  return "\n";
}

std::string ProgressView::Update(const RunView& view, double now_seconds, int columns) {
  std::string out;
  const std::size_t current = view.phase;
  // A resumed run (or `watch`): the phases that were done before are one line each all the same.
  for (; printed_ < std::min(current, view.phases.size()); ++printed_) {
    if (open_) {
      out += erase_line;
      open_.reset();
    }
    out += FormatFinishedLine(ProgressOf(view, printed_)) + "\n";
    last_plain_.clear();
  }
  if (current >= view.phases.size()) return out;
  const PhaseProgress progress = ProgressOf(view, current);
  const std::string state =
      view.state == "running" || view.state == "finished" ? "" : "  (" + view.state + ")";
  if (live_) {
    const int room = columns > 0 ? std::max(20, columns - 1 - static_cast<int>(state.size())) : 0;
    const std::string line = FormatProgressLine(progress, room) + state;
    if (open_ && *open_ == line) return out;
    out += (open_ ? erase_line : "") + line;
    open_ = line;
    return out;
  }
  const std::string line = FormatProgressLine(progress, 0) + state;
  const bool due =
      last_plain_.empty() || now_seconds - last_plain_seconds_ >= plain_interval_seconds_;
  if (due && line != last_plain_) {
    out += line + "\n";
    last_plain_ = line;
    last_plain_seconds_ = now_seconds;
  }
  return out;
}

}  // namespace dd2
