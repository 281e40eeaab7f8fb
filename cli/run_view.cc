#include "cli/run_view.h"

#include <algorithm>
#include <system_error>

#include "cli/format.h"
#include "cli/report_data.h"

namespace dd2 {
namespace {

namespace json = boost::json;

// Metrics of one line: more would not fit a terminal.
constexpr std::size_t metrics_max = 4;

Result<json::object> ParseObject(std::string_view text) {
  boost::system::error_code code;
  json::value value = json::parse(json::string_view(text), code);
  if (code || !value.is_object()) {
    return Error(Code::kCorruption, "the coordinator's answer is not a JSON object: " +
                                        std::string(text.substr(0, 200)));
  }
  return std::move(value.get_object());
}

void TakeText(const json::object& document, std::string_view key, std::string& target) {
  if (auto text = FindText(document, key)) target = std::move(*text);
}

template <class Integer>
void TakeInteger(const json::object& document, std::string_view key, Integer& target) {
  if (const auto number = FindNumber(document, key)) target = static_cast<Integer>(*number);
}

PhaseView PhaseFrom(const json::object& object) {
  PhaseView phase;
  TakeText(object, "name", phase.name);
  TakeText(object, "kind", phase.kind);
  TakeText(object, "state", phase.state);
  TakeInteger(object, "step", phase.step);
  TakeInteger(object, "steps", phase.steps);
  phase.seconds = FindNumber(object, "seconds").value_or(0);
  return phase;
}

// "phase" of the run's document: the current one, null when all are done.
void ApplyCurrentPhase(const json::object& document, RunView& view) {
  const json::value* current = document.if_contains("phase");
  if (current == nullptr) return;
  view.steps_per_second = 0;
  view.remaining_seconds = -1;
  const json::object* object = current->if_object();
  if (object == nullptr) {
    view.phase = view.phase_count;
    return;
  }
  TakeInteger(*object, "index", view.phase);
  view.steps_per_second = FindNumber(*object, "steps_per_second").value_or(0);
  view.remaining_seconds = FindNumber(*object, "remaining_seconds").value_or(-1);
  if (view.phases.size() < view.phase + 1) view.phases.resize(view.phase + 1);
  view.phases[view.phase] = PhaseFrom(*object);
}

// The newest values of a kind belong to the last phase of that kind that has made a step; an
// earlier one must not be shown with them, nor one that has not begun.
bool OwnsMetrics(const RunView& view, std::size_t index) {
  if (view.phases[index].step == 0) return false;
  for (std::size_t later = index + 1; later < view.phases.size(); ++later) {
    if (view.phases[later].kind == view.phases[index].kind && view.phases[later].step > 0) {
      return false;
    }
  }
  return true;
}

std::string StateLine(const RunView& view) {
  std::string line = view.name + ": " + view.state;
  if (view.state == "running" || view.state == "paused" || view.state == "stopping") {
    line += ", generation " + std::to_string(view.generation);
  }
  return line + ", " + std::to_string(view.ranks) + " ranks, seed " + std::to_string(view.seed);
}

}  // namespace

Status ApplyDocument(const json::object& document, RunView& view) {
  TakeText(document, "name", view.name);
  TakeText(document, "state", view.state);
  TakeText(document, "message", view.message);
  TakeInteger(document, "seed", view.seed);
  TakeInteger(document, "ranks", view.ranks);
  TakeInteger(document, "generation", view.generation);
  TakeInteger(document, "phase_count", view.phase_count);
  if (const json::value* phases = document.if_contains("phases"); phases && phases->is_array()) {
    view.phases.clear();
    for (const auto& phase : phases->get_array()) {
      if (!phase.is_object()) return Error(Code::kCorruption, "a phase is not a JSON object");
      view.phases.push_back(PhaseFrom(phase.get_object()));
    }
    view.phase_count = view.phases.size();
  }
  ApplyCurrentPhase(document, view);
  if (const json::value* domains = document.if_contains("domains");
      domains && domains->is_array()) {
    view.domains.clear();
    for (const auto& domain : domains->get_array()) {
      if (!domain.is_object()) return Error(Code::kCorruption, "a domain is not a JSON object");
      view.domains.emplace_back(FindText(domain.get_object(), "name").value_or(""),
                                FindText(domain.get_object(), "state").value_or(""));
    }
  }
  if (const json::object* interval = FindObject(document, "checkpoint_interval")) {
    TakeText(*interval, "setting", view.interval_setting);
    view.interval_seconds = FindNumber(*interval, "seconds").value_or(-1);
    view.stall_seconds = FindNumber(*interval, "stall_seconds").value_or(0);
    view.failure_seconds = FindNumber(*interval, "failure_seconds").value_or(0);
  }
  if (const json::object* metrics = FindObject(document, "metrics")) {
    view.metrics.clear();
    for (const auto& [name, value] : *metrics) {
      if (value.is_number()) view.metrics.emplace_back(name, value.to_number<double>());
    }
  }
  return {};
}

Status ApplyRunDocument(std::string_view document, RunView& view) {
  DD2_TRY_ASSIGN(const auto object, ParseObject(document));
  if (!FindText(object, "state")) {
    return Error(Code::kCorruption, "the coordinator's run document has no state");
  }
  return ApplyDocument(object, view);
}

Status ApplyPhasesDocument(std::string_view document, RunView& view) {
  DD2_TRY_ASSIGN(const auto object, ParseObject(document));
  return ApplyDocument(object, view);
}

PhaseProgress ProgressOf(const RunView& view, std::size_t index) {
  PhaseProgress progress;
  progress.index = static_cast<int>(index);
  progress.phases = static_cast<int>(view.phase_count);
  if (index >= view.phases.size()) return progress;
  const PhaseView& phase = view.phases[index];
  progress.kind = phase.name;
  progress.step = phase.step;
  progress.steps = phase.steps;
  progress.seconds = phase.seconds;
  if (index == view.phase) {
    if (view.steps_per_second > 0) progress.step_seconds = 1 / view.steps_per_second;
    progress.remaining_seconds = view.remaining_seconds;
  }
  if (!OwnsMetrics(view, index)) return progress;
  for (const auto& [name, value] : view.metrics) {
    if (!name.starts_with(phase.kind + "/") || progress.metrics.size() >= metrics_max) continue;
    progress.metrics.emplace_back(name.substr(phase.kind.size() + 1), value);
  }
  return progress;
}

bool IsOver(const RunView& view) {
  return view.state == "finished" || view.state == "stopped" || view.state == "failed" ||
         view.state == "interrupted";
}

std::string FormatStatus(const RunView& view, std::string_view folder) {
  std::string out = StateLine(view) + "\n";
  if (!view.message.empty()) {
    out += "  " + view.message.substr(0, view.message.find_last_not_of('\n') + 1) + "\n";
  }
  std::string domains;
  for (const auto& [name, state] : view.domains) {
    domains += (domains.empty() ? "  domains: " : ", ") + name + " " + state;
  }
  if (!domains.empty()) out += domains + "\n";
  out += view.jobs;
  for (std::size_t i = 0; i < view.phases.size(); ++i) {
    const PhaseView& phase = view.phases[i];
    const PhaseProgress progress = ProgressOf(view, i);
    if (phase.state == "done") {
      out += "  " + FormatFinishedLine(progress) + "\n";
    } else if (i == view.phase) {
      out += "  " + FormatProgressLine(progress, 0) + "\n";
    } else {
      out += "  " + FormatPendingLine(progress) + "\n";
    }
  }
  if (view.interval_seconds >= 0 && !IsOver(view)) {
    out += "  a checkpoint at least every " + FormatDuration(view.interval_seconds);
    if (view.interval_setting == "auto") {
      out += " (auto: one costs " + FormatValue(view.stall_seconds) + " s, a failure every " +
             FormatDuration(view.failure_seconds) + ")";
    }
    out += "\n";
  }
  if (view.state == "stopped" || view.state == "failed" || view.state == "interrupted") {
    out += "Continue it with: dd2 run CONFIG --run " + std::string(folder) + " --resume\n";
  }
  return out;
}

}  // namespace dd2
