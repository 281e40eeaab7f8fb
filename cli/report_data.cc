#include "cli/report_data.h"

#include <array>
#include <cmath>
#include <string_view>
#include <system_error>

#include "common/file.h"

namespace dd2 {
namespace {

namespace json = boost::json;

constexpr std::array<std::string_view, 5> kPictures = {"teacher", "generator", "start", "real",
                                                       "reconstruction"};

// Reads a file that may be missing: empty then.
Result<std::string> ReadOptional(const std::filesystem::path& path, bool* found) {
  Result<std::string> text = RealFileSystem().Read(path);
  *found = text.has_value();
  if (!text && text.error().code() == Code::kNotFound) return std::string();
  return text;
}

std::optional<double> AsNumber(const json::value& value) {
  if (value.is_double()) return value.get_double();
  if (value.is_int64()) return static_cast<double>(value.get_int64());
  if (value.is_uint64()) return static_cast<double>(value.get_uint64());
  return std::nullopt;
}

const json::value* FindValue(const json::object& object, std::string_view path) {
  const json::object* here = &object;
  while (true) {
    const std::size_t dot = path.find('.');
    const json::value* value = here->if_contains(path.substr(0, dot));
    if (value == nullptr || dot == std::string_view::npos) return value;
    here = value->if_object();
    if (here == nullptr) return nullptr;
    path.remove_prefix(dot + 1);
  }
}

void AddMetricLine(const json::object& line, ReportData& data) {
  const auto phase = static_cast<std::int64_t>(FindNumber(line, "phase").value_or(0));
  const auto step = static_cast<std::int64_t>(FindNumber(line, "step").value_or(0));
  if (const auto kind = FindText(line, "kind")) data.phase_kinds[phase] = *kind;
  for (const auto& [key, value] : line) {
    const std::string name(key);
    if (name.find('/') == std::string::npos) continue;  // phase, kind, step, time
    const std::optional<double> number = AsNumber(value);
    if (number && std::isfinite(*number)) {
      data.metrics[name].push_back({.phase = phase, .step = step, .value = *number});
    }
  }
}

void AddMetrics(std::string_view text, ReportData& data) {
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    std::error_code error;
    const json::value value = json::parse(json::string_view(text.substr(0, end)), error);
    if (!error && value.is_object()) AddMetricLine(value.get_object(), data);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
}

int BigEndian(std::string_view bytes, std::size_t at) {
  int value = 0;
  for (std::size_t i = 0; i < 4; ++i)
    value = value << 8 | static_cast<unsigned char>(bytes[at + i]);
  return value;
}

// Width and height from the IHDR chunk, which always comes first.
std::optional<ReportPicture> AsPicture(std::string bytes) {
  constexpr std::string_view kSignature = "\x89PNG\r\n\x1a\n";
  if (bytes.size() < 33 || !bytes.starts_with(kSignature)) return std::nullopt;
  ReportPicture picture;
  picture.width = BigEndian(bytes, 16);
  picture.height = BigEndian(bytes, 20);
  picture.bytes = std::move(bytes);
  if (picture.width <= 0 || picture.height <= 0) return std::nullopt;
  return picture;
}

}  // namespace

std::optional<double> FindNumber(const json::object& object, std::string_view path) {
  const json::value* value = FindValue(object, path);
  return value == nullptr ? std::nullopt : AsNumber(*value);
}

std::optional<std::string> FindText(const json::object& object, std::string_view path) {
  const json::value* value = FindValue(object, path);
  if (value == nullptr || !value->is_string()) return std::nullopt;
  return std::string(value->get_string());
}

const json::object* FindObject(const json::object& object, std::string_view path) {
  const json::value* value = FindValue(object, path);
  return value == nullptr ? nullptr : value->if_object();
}

Result<ReportData> LoadReportData(const std::filesystem::path& run) {
  ReportData data;
  std::error_code ignored;
  data.folder_name = std::filesystem::absolute(run, ignored).lexically_normal().filename().string();
  if (data.folder_name.empty()) {
    data.folder_name = std::filesystem::absolute(run, ignored)
                           .lexically_normal()
                           .parent_path()
                           .filename()
                           .string();
  }
  bool has_metrics = false;
  bool has_config = false;
  DD2_TRY_ASSIGN(const std::string result, ReadOptional(run / "result.json", &data.finished));
  DD2_TRY_ASSIGN(const std::string metrics, ReadOptional(run / "metrics.jsonl", &has_metrics));
  DD2_TRY_ASSIGN(data.config_yaml, ReadOptional(run / "config.yaml", &has_config));
  if (!data.finished && !has_metrics) {
    return Error(Code::kNotFound, run.string() +
                                      " has neither result.json nor metrics.jsonl: nothing to "
                                      "report. Is it the folder of a run?");
  }
  if (data.finished) {
    std::error_code error;
    json::value value = json::parse(result, error);
    if (error || !value.is_object()) {
      return Error(Code::kCorruption, (run / "result.json").string() + " is not a JSON object" +
                                          (error ? ": " + error.message() : std::string()));
    }
    data.result = std::move(value.get_object());
  }
  AddMetrics(metrics, data);
  DD2_TRY_ASSIGN(const json::array incidents, ReadIncidents(run));
  for (const json::value& value : incidents) {
    data.incidents.push_back(IncidentOf(value.get_object()));
  }
  for (const std::string_view name : kPictures) {
    bool found = false;
    const auto path = run / "samples" / (std::string(name) + ".png");
    DD2_TRY_ASSIGN(std::string bytes, ReadOptional(path, &found));
    std::optional<ReportPicture> picture = AsPicture(std::move(bytes));
    if (picture) data.pictures.emplace(name, std::move(*picture));
  }
  return data;
}

}  // namespace dd2
