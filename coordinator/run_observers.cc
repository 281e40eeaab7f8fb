#include "coordinator/run_observers.h"

#include <string>

#include "common/log.h"
#include "coordinator/api.h"

namespace dd2 {

Status RecordObserver::OnPosition(std::int32_t phase, std::int64_t step) {
  RecordPosition position;
  // The start of a run lies before everything, also before an evaluation at step 0.
  if (phase > 0 || step > 0) {
    position.phase = phase;
    position.step = step;
  }
  return record_->Rewind(position);
}

Status RecordObserver::OnIncident(const IncidentState& incident) {
  return AppendLine(incidents_, IncidentJson(incident));
}

void LogObserver::OnChange(const RunState& state) {
  for (const RunEvent& event : state.events.After(logged_)) {
    logged_ = event.sequence;
    const std::string line = "[" + event.kind + "] " + event.message;
    Log(event.kind == "incident" ? LogLevel::kWarning : LogLevel::kInfo, line);
  }
}

Status LogObserver::OnStep(const StepRecord&) { return Status(); }

Status LogObserver::OnPosition(std::int32_t, std::int64_t) { return Status(); }

}  // namespace dd2
