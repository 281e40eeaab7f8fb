#include "cli/progress.h"

#include <algorithm>

#include "cli/format.h"

namespace dd2 {
namespace {

constexpr std::size_t kind_width = 14;
constexpr int bar_cells = 20;

std::string Head(const PhaseProgress& phase) {
  return "[" + std::to_string(phase.index + 1) + "/" + std::to_string(phase.phases) + "] " +
         PadRight(phase.kind, kind_width);
}

std::string Metrics(const PhaseProgress& phase) {
  std::string out;
  for (const auto& [name, value] : phase.metrics) {
    out += "  " + name + " " + FormatValue(value);
  }
  return out;
}

std::string Bar(std::int64_t step, std::int64_t steps) {
  const double ratio = std::clamp(static_cast<double>(step) / static_cast<double>(steps), 0.0, 1.0);
  const auto full = static_cast<std::size_t>(ratio * bar_cells);
  std::string cells(full, '=');
  if (cells.size() < bar_cells) cells += '>';
  return "[" + PadRight(cells, bar_cells) + "]";
}

// Phases have a name of their own when a kind comes twice: "csd-2".
std::string UnitOf(const std::string& name) {
  if (name.starts_with("csd")) return "cycle";
  return name.starts_with("sample") ? "block" : "step";
}

}  // namespace

std::string FormatProgressLine(const PhaseProgress& phase, int columns) {
  const std::string count = std::to_string(phase.step) + "/" + std::to_string(phase.steps);
  std::string tail;
  if (const auto speed = FormatSpeed(phase.step_seconds, UnitOf(phase.kind)); !speed.empty()) {
    tail += "  " + speed;
    if (phase.remaining_seconds >= 0) {
      tail += "  " + FormatDuration(phase.remaining_seconds) + " left";
    }
  } else if (phase.seconds >= 1) {
    tail += "  " + FormatDuration(phase.seconds);
  }
  // A phase of one step (teacher check, eval, export) has no bar worth the room.
  const std::string head = Head(phase);
  const std::string bar = phase.steps > 1 ? Bar(phase.step, phase.steps) + "  " : "";
  const std::string metrics = Metrics(phase);
  std::string line = head + bar + count + metrics + tail;
  if (columns <= 0 || line.size() <= static_cast<std::size_t>(columns)) return line;
  line = head + count + metrics + tail;  // the bar goes first, then the end of the line
  if (line.size() > static_cast<std::size_t>(columns))
    line.resize(static_cast<std::size_t>(columns));
  return line;
}

std::string FormatFinishedLine(const PhaseProgress& phase) {
  std::string line = Head(phase);
  if (phase.steps > 1) {
    line += std::to_string(phase.steps) + " " + UnitOf(phase.kind) + "s in ";
  }
  return line + FormatDuration(phase.seconds) + Metrics(phase);
}

std::string FormatPendingLine(const PhaseProgress& phase) {
  std::string line = Head(phase);
  if (phase.steps > 1) line += std::to_string(phase.steps) + " " + UnitOf(phase.kind) + "s to come";
  return line;
}

}  // namespace dd2
