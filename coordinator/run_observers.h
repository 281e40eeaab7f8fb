#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <utility>

#include "coordinator/http_server.h"
#include "coordinator/run_record.h"
#include "coordinator/run_state.h"

namespace dd2 {

// Writes each step's numbers into the record files and rewinds them.
class RecordObserver final : public RunObserver {
 public:
  // `incidents`: RUN/incidents.jsonl, one line for each incident; the API's fields.
  RecordObserver(std::unique_ptr<RunRecord> record, std::filesystem::path incidents)
      : record_(std::move(record)), incidents_(std::move(incidents)) {}
  void OnChange(const RunState&) override {}
  Status OnStep(const StepRecord& record) override { return record_->Append(record); }
  Status OnPosition(std::int32_t phase, std::int64_t step) override;
  Status OnIncident(const IncidentState& incident) override;

 private:
  const std::unique_ptr<RunRecord> record_;
  const std::filesystem::path incidents_;
};

// One line in the coordinator's log for each event of the run.
class LogObserver final : public RunObserver {
 public:
  void OnChange(const RunState& state) override;
  Status OnStep(const StepRecord& record) override;
  Status OnPosition(std::int32_t phase, std::int64_t step) override;

 private:
  std::uint64_t logged_ = 0;
};

// Wakes the subscribers of the HTTP API.
class HttpObserver final : public RunObserver {
 public:
  explicit HttpObserver(HttpServer& server) : server_(server) {}
  void OnChange(const RunState&) override { server_.Notify(); }
  Status OnStep(const StepRecord&) override { return Status(); }
  Status OnPosition(std::int32_t, std::int64_t) override { return Status(); }

 private:
  HttpServer& server_;
};

}  // namespace dd2
