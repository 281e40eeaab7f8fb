#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cli/incidents.h"
#include "common/json.h"
#include "common/result.h"

namespace dd2 {

// One value of a metric as metrics.jsonl has it.
struct MetricPoint {
  std::int64_t phase = 0;
  std::int64_t step = 0;  // inside the phase
  double value = 0;
};

// A grid of the eval phase: rows = classes.
struct ReportPicture {
  std::string bytes;  // PNG file
  int width = 0;      // pixels
  int height = 0;
};

// What a report is made of. Everything may be missing except that one of result and metrics is
// there.
struct ReportData {
  std::string folder_name;
  boost::json::object result;
  bool finished = false;                                    // there is a result.json
  std::map<std::string, std::vector<MetricPoint>> metrics;  // by name, in the order of the file
  std::map<std::int64_t, std::string> phase_kinds;          // phase index -> "csd"
  std::string config_yaml;
  std::vector<Incident> incidents;
  std::map<std::string, ReportPicture> pictures;  // by file name without ".png"
};

// Errors as WriteReport. Damaged lines of metrics.jsonl (the last one of a killed run) and files
// that are no PNG are passed over.
Result<ReportData> LoadReportData(const std::filesystem::path& run);

// Members of nested objects by path, "latency.batch1.teacher_ms"; nothing when absent or of another
// type.
std::optional<double> FindNumber(const boost::json::object& object, std::string_view path);
std::optional<std::string> FindText(const boost::json::object& object, std::string_view path);
const boost::json::object* FindObject(const boost::json::object& object, std::string_view path);

}  // namespace dd2
