#include "cli/run_files.h"

#include <map>
#include <system_error>

#include "common/config.h"
#include "common/file.h"
#include "proto/records.pb.h"
#include "storage/checkpoint_store.h"
#include "storage/journal.h"
#include "storage/kv_store.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

// Step and newest values of a metrics.jsonl. A torn last line (kill -9) is passed over.
struct RecordTail {
  std::int64_t phase = -1;
  std::int64_t step = 0;
  json::object metrics;
};

void AddLine(const json::object& line, RecordTail& tail) {
  const json::value* phase = line.if_contains("phase");
  const json::value* step = line.if_contains("step");
  if (phase == nullptr || step == nullptr || !phase->is_int64() || !step->is_int64()) return;
  tail.phase = phase->get_int64();
  tail.step = step->get_int64();
  for (const auto& [key, value] : line) {
    if (key.find('/') != json::string_view::npos && value.is_number()) tail.metrics[key] = value;
  }
}

RecordTail ReadTail(std::string_view text) {
  RecordTail tail;
  while (!text.empty()) {
    const auto end = text.find('\n');
    if (end == std::string_view::npos) break;
    boost::system::error_code code;
    const json::value value = json::parse(json::string_view(text.substr(0, end)), code);
    if (!code && value.is_object()) AddLine(value.get_object(), tail);
    text.remove_prefix(end + 1);
  }
  return tail;
}

void ApplyRecord(const proto::JournalRecord& record, RunFiles& files) {
  const auto forget_from = [&files](std::size_t first) {
    for (std::size_t i = first; i < files.finished.size(); ++i) files.finished[i].reset();
  };
  switch (record.event_case()) {
    case proto::JournalRecord::kRunStarted:
      files.run_id = record.run_started().run_id();
      files.started_unix_ms = record.unix_ms();
      files.outcome.clear();
      files.message.clear();
      break;
    case proto::JournalRecord::kGenerationFormed:
      files.generation = record.generation_formed().generation();
      files.members.clear();
      for (const proto::GenerationMember& member : record.generation_formed().members()) {
        files.members.push_back({member.domain(), member.local_rank()});
      }
      break;
    case proto::JournalRecord::kPhaseFinished: {
      const auto index = static_cast<std::size_t>(record.phase_finished().phase());
      if (index < files.finished.size()) {
        files.finished[index] = record.phase_finished().seconds();
      }
      break;
    }
    case proto::JournalRecord::kRolledBack: {
      const auto index = static_cast<std::size_t>(record.rolled_back().phase());
      if (index >= files.finished.size()) break;
      const bool at_end = record.rolled_back().step() >= files.config.phases[index].steps;
      forget_from(at_end ? index + 1 : index);
      break;
    }
    case proto::JournalRecord::kRunEnded:
      files.outcome = record.run_ended().outcome();
      files.message = record.run_ended().message();
      break;
    default: break;
  }
}

Status ReadJournal(const fs::path& folder, RunFiles& files) {
  std::error_code ignored;
  if (!fs::exists(folder / "journal" / "CURRENT", ignored)) return {};
  DD2_TRY_ASSIGN(auto store, OpenRocksFollower(folder / "journal"));
  DD2_TRY_ASSIGN(const auto journal, Journal::Open(std::move(store)));
  for (const auto& record : journal->records()) ApplyRecord(record, files);
  return {};
}

json::object PhaseObject(const RunFiles& files, const std::vector<std::string>& names,
                         std::size_t index, std::size_t current, const RecordTail& tail) {
  const PhaseConfig& phase = files.config.phases[index];
  const bool done = index < current;
  json::object object;
  object["index"] = index;
  object["name"] = names[index];
  object["kind"] = PhaseKindName(phase.kind);
  object["state"] = done ? "done" : index == current && tail.phase >= 0 ? "running" : "pending";
  const bool has_tail = static_cast<std::int64_t>(index) == tail.phase;
  object["step"] = done ? phase.steps : has_tail ? tail.step : 0;
  object["steps"] = phase.steps;
  object["seconds"] = files.finished[index].value_or(0);
  return object;
}

}  // namespace

std::vector<std::string> PhaseNames(const std::vector<PhaseConfig>& phases) {
  std::map<PhaseKind, int> seen;
  std::vector<std::string> names;
  for (const auto& phase : phases) {
    const int number = ++seen[phase.kind];
    std::string name = PhaseKindName(phase.kind);
    if (number > 1) name += "-" + std::to_string(number);
    names.push_back(std::move(name));
  }
  return names;
}

json::object FilesDocument(const RunFiles& files) {
  const RecordTail tail = ReadTail(files.metrics_jsonl);
  const auto names = PhaseNames(files.config.phases);
  std::size_t current = 0;
  while (current < files.finished.size() && files.finished[current]) ++current;
  json::array phases;
  for (std::size_t i = 0; i < files.config.phases.size(); ++i) {
    phases.push_back(PhaseObject(files, names, i, current, tail));
  }
  json::object document;
  document["run_id"] = files.run_id;
  document["name"] = files.config.name;
  document["state"] = files.outcome.empty() ? "interrupted" : files.outcome;
  document["message"] = files.message;
  document["generation"] = files.generation;
  document["ranks"] = files.config.ranks;
  document["seed"] = files.config.seed;
  document["config_digest"] = ConfigDigest(files.config).Hex();
  document["phase"] = current < phases.size() ? phases[current] : json::value(nullptr);
  document["phase_count"] = phases.size();
  document["phases"] = std::move(phases);
  document["metrics"] = tail.metrics;
  json::array checkpoints;
  for (const auto& id : files.checkpoints) {
    json::object checkpoint;
    checkpoint["id"] = id;
    checkpoint["state"] = "committed";
    checkpoints.push_back(std::move(checkpoint));
  }
  document["checkpoints"] = std::move(checkpoints);
  return document;
}

Result<RunFiles> ReadRunFiles(const fs::path& folder) {
  std::error_code ignored;
  if (!fs::is_directory(folder, ignored)) {
    return Error(Code::kNotFound, folder.string() + ": no such run folder");
  }
  if (!fs::exists(folder / "config.yaml", ignored)) {
    return Error(Code::kNotFound, folder.string() + " holds no run (it has no config.yaml)");
  }
  RunFiles files;
  DD2_TRY_ASSIGN(files.config, LoadRunConfig(folder / "config.yaml"));
  files.finished.resize(files.config.phases.size());
  if (const Status read = ReadJournal(folder, files); !read) {
    files.message = read.error().message();
  }
  if (auto text = RealFileSystem().Read(folder / "metrics.jsonl")) {
    files.metrics_jsonl = std::move(*text);
  }
  if (auto ids = ListCheckpoints(RealFileSystem(), folder / "checkpoints")) {
    files.checkpoints = std::move(*ids);
  }
  return files;
}

}  // namespace dd2
