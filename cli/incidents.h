#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/json.h"
#include "common/result.h"

namespace dd2 {

// Incidents of a run as the API (/api/v1/incidents) and RUN/incidents.jsonl give them: who was
// lost or arrived, with evidence and times. Pure, but for the reader at the end.

struct Incident {
  std::int64_t unix_ms = 0;
  std::string kind;
  std::string domain;  // empty: none in particular
  std::string reason;
  std::string evidence;
  std::int64_t phase = 0;
  std::int64_t step = 0;
  std::int64_t generation = 0;
  std::int64_t steps_lost = 0;
  bool open = false;
  std::optional<double> exited_seconds;  // since notice
  std::optional<double> formed_seconds;
  std::optional<double> resumed_seconds;
};

// The objects of a file with one incident a line; what is no JSON object is passed over.
boost::json::array ParseIncidentLines(std::string_view text);
// Adds those of the API's document that the file does not have (they are open, or about to be
// written).
void AddLiveIncidents(const boost::json::object& document, boost::json::array& incidents);
Incident IncidentOf(const boost::json::object& object);

// "0 ms noticed, 35 ms mpirun ended, 180 ms generation 3 formed, 210 ms next step".
std::string FormatTimeline(const Incident& incident);
// Who, where, evidence, timeline and steps lost, on several lines. `phases`: names of all phases.
std::string FormatIncident(const Incident& incident, const std::vector<std::string>& phases);
// "2026-11-24 10:11:12.345", local time.
std::string FormatMoment(std::int64_t unix_ms);

// What RUN/incidents.jsonl holds; nothing when there is no such file.
Result<boost::json::array> ReadIncidents(const std::filesystem::path& run);

}  // namespace dd2
