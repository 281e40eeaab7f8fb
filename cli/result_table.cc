#include "cli/result_table.h"

#include <array>
#include <cstdio>
#include <optional>

#include "cli/format.h"
#include "cli/report_data.h"
#include "common/json.h"

namespace dd2 {
namespace {

namespace json = boost::json;

void AddRow(std::string& out, std::string_view label, const std::string& value) {
  out += "  " + PadRight(label, 34) + value + "\n";
}

std::string WithFormat(const char* format, double value) {
  std::array<char, 64> buffer{};
  std::snprintf(buffer.data(), buffer.size(), format, value);
  return buffer.data();
}

void AddFigure(std::string& out, const json::object& result, std::string_view key,
               std::string_view label, const char* format) {
  if (const auto value = FindNumber(result, key)) AddRow(out, label, WithFormat(format, *value));
}

void AddTimes(std::string& out, const json::object& result) {
  const json::object* seconds = FindObject(result, "seconds");
  if (seconds == nullptr) return;
  double total = 0;
  std::string parts;
  for (const auto& [phase, ignored] : *seconds) {
    const auto value = FindNumber(*seconds, phase);
    if (!value) continue;
    total += *value;
    parts += (parts.empty() ? "" : ", ") + std::string(phase) + " " + FormatDuration(*value);
  }
  AddRow(out, "time", FormatDuration(total) + "  (" + parts + ")");
}

void AddCache(std::string& out, const json::object& result) {
  const auto hits = FindNumber(result, "cache.hits");
  const auto misses = FindNumber(result, "cache.misses");
  if (!hits || !misses) return;
  AddRow(out, "teacher score cache",
         WithFormat("%.0f hits, ", *hits) + WithFormat("%.0f misses", *misses) +
             " (sequences with their scores)");
}

void AddCheckpoints(std::string& out, const json::object& result) {
  const auto count = FindNumber(result, "checkpoints.count");
  const auto bytes = FindNumber(result, "checkpoints.bytes");
  const auto stall = FindNumber(result, "checkpoints.stall_seconds");
  if (!count || !bytes || !stall) return;
  AddRow(out, "checkpoints",
         WithFormat("%.0f, ", *count) + FormatBytes(static_cast<std::int64_t>(*bytes)) +
             WithFormat("; training stood still for %.2f s", *stall));
}

}  // namespace

Result<std::string> FormatResultTable(std::string_view result_json) {
  std::error_code code;
  const json::value value = json::parse(json::string_view(result_json), code);
  if (code || !value.is_object()) {
    return Error(Code::kCorruption, "result.json is not a JSON object");
  }
  const json::object& result = value.get_object();
  std::string out;
  AddFigure(out, result, "fdr_teacher", "FDr teacher", "%.2f");
  AddFigure(out, result, "fdr_start", "FDr one step, before training", "%.2f");
  AddFigure(out, result, "fdr_end", "FDr one step, after training", "%.2f");
  AddFigure(out, result, "accuracy", "class accuracy, after training", "%.3f");
  AddFigure(out, result, "fid_teacher", "FID teacher", "%.2f");
  AddFigure(out, result, "fid_start", "FID one step, before training", "%.2f");
  AddFigure(out, result, "fid_end", "FID one step, after training", "%.2f");
  AddFigure(out, result, "inception_score_end", "Inception Score, after training", "%.1f");
  AddFigure(out, result, "precision_end", "precision, after training", "%.3f");
  AddFigure(out, result, "recall_end", "recall, after training", "%.3f");
  AddFigure(out, result, "speedup_batch1", "sampling speed-up at batch 1", "%.1fx");
  AddFigure(out, result, "speedup_batch64", "sampling speed-up at batch 64", "%.1fx");
  AddTimes(out, result);
  AddCache(out, result);
  AddCheckpoints(out, result);
  return out;
}

}  // namespace dd2
