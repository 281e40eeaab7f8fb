#include "cli/incidents.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "cli/format.h"
#include "cli/report_data.h"
#include "common/file.h"

namespace dd2 {
namespace {

namespace json = boost::json;

std::int64_t Whole(const json::object& object, std::string_view key) {
  return std::llround(FindNumber(object, key).value_or(0));
}

bool SameIncident(const json::value& a, const json::value& b) {
  const auto key = [](const json::value& value) {
    const Incident incident = IncidentOf(value.get_object());
    return std::make_tuple(incident.unix_ms, incident.kind, incident.domain, incident.reason);
  };
  return key(a) == key(b);
}

std::string Milliseconds(double seconds) { return std::to_string(std::llround(seconds * 1000)); }

// Every line of `text` behind `margin`.
std::string Indented(std::string_view text, std::string_view margin) {
  std::string out;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    out += std::string(margin) + std::string(text.substr(0, end)) + "\n";
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  return out;
}

std::string Place(const Incident& incident, const std::vector<std::string>& phases) {
  std::string place = "phase " + std::to_string(incident.phase + 1);
  if (incident.phase >= 0 && static_cast<std::size_t>(incident.phase) < phases.size()) {
    place += "/" + std::to_string(phases.size()) + " '" +
             phases[static_cast<std::size_t>(incident.phase)] + "'";
  }
  return place + " after step " + std::to_string(incident.step);
}

}  // namespace

json::array ParseIncidentLines(std::string_view text) {
  json::array incidents;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    boost::system::error_code failure;
    json::value value = json::parse(json::string_view(text.substr(0, end)), failure);
    if (!failure && value.is_object()) incidents.push_back(std::move(value));
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  return incidents;
}

void AddLiveIncidents(const json::object& document, json::array& incidents) {
  const json::value* list = document.if_contains("incidents");
  if (list == nullptr || !list->is_array()) return;
  for (const json::value& live : list->get_array()) {
    if (!live.is_object()) continue;
    const bool known = std::any_of(incidents.begin(), incidents.end(),
                                   [&](const json::value& old) { return SameIncident(old, live); });
    if (!known) incidents.push_back(live);
  }
}

Incident IncidentOf(const json::object& object) {
  Incident incident;
  incident.unix_ms = Whole(object, "unix_ms");
  incident.kind = FindText(object, "kind").value_or("");
  incident.domain = FindText(object, "domain").value_or("");
  incident.reason = FindText(object, "reason").value_or("");
  incident.evidence = FindText(object, "evidence").value_or("");
  incident.phase = Whole(object, "phase");
  incident.step = Whole(object, "step");
  incident.generation = Whole(object, "generation");
  incident.steps_lost = Whole(object, "steps_lost");
  const json::value* open = object.if_contains("open");
  incident.open = open != nullptr && open->is_bool() && open->get_bool();
  incident.exited_seconds = FindNumber(object, "exited_seconds");
  incident.formed_seconds = FindNumber(object, "formed_seconds");
  incident.resumed_seconds = FindNumber(object, "resumed_seconds");
  return incident;
}

std::string FormatTimeline(const Incident& incident) {
  struct Point {
    double seconds;
    std::string what;
  };
  std::vector<Point> points;
  const auto add = [&points](const std::optional<double>& seconds, const std::string& what) {
    if (seconds) points.push_back({*seconds, what});
  };
  add(incident.exited_seconds, "mpirun ended");
  add(incident.formed_seconds, "generation " + std::to_string(incident.generation) + " formed");
  add(incident.resumed_seconds, "next step");
  std::stable_sort(points.begin(), points.end(),
                   [](const Point& a, const Point& b) { return a.seconds < b.seconds; });
  std::string out = "0 ms noticed";
  for (const Point& point : points) out += ", " + Milliseconds(point.seconds) + " ms " + point.what;
  if (!incident.resumed_seconds) {
    out += incident.open ? "; not over yet" : "; the run ended before the next step";
  }
  return out;
}

std::string FormatIncident(const Incident& incident, const std::vector<std::string>& phases) {
  std::string out = FormatMoment(incident.unix_ms) + "  " + incident.kind +
                    (incident.domain.empty() ? "" : ", domain " + incident.domain) + ", " +
                    Place(incident, phases) + "\n";
  out += Indented(incident.reason, "    ");
  out += Indented(incident.evidence, "    | ");
  out += "    " + FormatTimeline(incident) + "\n";
  return out + "    steps lost: " + std::to_string(incident.steps_lost) + "\n";
}

std::string FormatMoment(std::int64_t unix_ms) {
  char milliseconds[8];
  std::snprintf(milliseconds, sizeof milliseconds, ".%03d", static_cast<int>(unix_ms % 1000));
  return FormatTime(unix_ms) + milliseconds;
}

Result<json::array> ReadIncidents(const std::filesystem::path& run) {
  const Result<std::string> text = RealFileSystem().Read(run / "incidents.jsonl");
  if (!text && text.error().code() == Code::kNotFound) return json::array();
  if (!text) return text.error();
  return ParseIncidentLines(*text);
}

}  // namespace dd2
