// The part of RunCore that decides about checkpoints: which to keep, when to ask for one, and
// whether there is room for them.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

#include "coordinator/run_core.h"

namespace dd2 {

namespace {

// "12.3 MB"
std::string BytesText(double bytes) {
  static constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB", "PB", "EB"};
  std::size_t unit = 0;
  while (bytes >= 1000 && unit + 1 < std::size(kUnits)) {
    bytes /= 1000;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof(text), unit == 0 ? "%.0f %s" : "%.1f %s", bytes, kUnits[unit]);
  return text;
}

// Its steps change what a checkpoint holds.
bool Trains(PhaseKind kind) {
  return kind != PhaseKind::kTeacherCheck && kind != PhaseKind::kEval && kind != PhaseKind::kExport;
}

}  // namespace

// Journalled, so that a restarted coordinator gives the same checkpoints up. The final evaluation
// has more samples than the points of the curve and is not compared with them.
void RunCore::OnEvaluation(RunPosition position, const proto::Metric& metric, Actions& out) {
  if (metric.name() != "eval/fdr" && metric.name() != "eval/fid") return;
  const auto phase = static_cast<std::size_t>(position.phase);
  const bool of_curve = options_.config.phases.at(phase).kind != PhaseKind::kEval;
  if (!of_curve || !std::isfinite(metric.value())) return;
  proto::JournalRecord record;
  proto::Evaluation& evaluation = *record.mutable_evaluated();
  evaluation.set_phase(position.phase);
  evaluation.set_step(position.step);
  if (metric.name() == "eval/fid") {
    evaluation.set_fid(metric.value());
  } else {
    evaluation.set_fdr(metric.value());
  }
  ledger_.OnEvaluation(evaluation);
  Journal(std::move(record), out);
}

std::string RunCore::LackOfSpace() const {
  std::int64_t bytes = 0;
  for (const auto& [name, domain] : members_.domains()) {
    for (const auto& [rank, member] : domain.workers) {
      bytes = std::max(bytes, member.hello.checkpoint_bytes());
    }
  }
  if (!start_.free_bytes || bytes == 0) return "";
  // Those that turn up and go, and the one that is written before the oldest of them is deleted.
  const CheckpointConfig& rule = options_.config.checkpoint;
  const std::int64_t kept = std::int64_t{rule.keep_last} + rule.keep_best;
  const auto present = static_cast<std::int64_t>(ledger_.committed().size());
  const std::int64_t more = kept + 1 - std::min(present, kept);
  const double need = static_cast<double>(more) * static_cast<double>(bytes);
  const auto free = static_cast<double>(*start_.free_bytes);
  if (need <= free) return "";
  return "not enough space for the next checkpoints: " + BytesText(need) + " are needed in " +
         options_.run_folder + " (" + std::to_string(more) + " of " +
         BytesText(static_cast<double>(bytes)) + " each; " + RetentionText(rule) +
         ", and the one being written), " + BytesText(free) +
         " are free on that disk. Free some, lower checkpoint.keep_last, or choose a folder on "
         "another disk with --run";
}

// As if a person had asked: every rank does it after the same step.
void RunCore::RequestDueCheckpoint(Moment at, Actions& out) {
  if (stage_ != Stage::kActive || !members_.formed() || !awaited_.empty()) return;
  if (desired_.paused() || scheduler_.finished()) return;
  const RunPosition position = scheduler_.position();
  const auto phase = static_cast<std::size_t>(position.phase);
  if (!Trains(options_.config.phases.at(phase).kind) || !scheduler_.phase_started()) return;
  const IntervalEvidence evidence = Evidence(at.now);
  if (!timer_.Due(evidence, at.now)) return;
  timer_.Restart(at.now);
  // Nothing is lost as long as nothing was done.
  const auto newest = checkpoint_positions_.find(ledger_.newest());
  if (newest != checkpoint_positions_.end() && position <= newest->second) return;
  Event(at, "checkpoint",
        "checkpoint asked for: the last one is " +
            std::to_string(static_cast<std::int64_t>(*timer_.Seconds(evidence))) +
            " s old (checkpoint.interval = " + options_.config.checkpoint.interval + ")");
  proto::Desired wanted = desired_;
  wanted.set_checkpoint_requests(desired_.checkpoint_requests() + 1);
  ChangeDesired(wanted, "checkpoint.interval", at, out);
}

IntervalEvidence RunCore::Evidence(TimePoint now) const {
  IntervalEvidence evidence;
  evidence.checkpoints = state_.checkpoint_totals.count;
  evidence.stall_seconds = state_.checkpoint_totals.stall_seconds;
  evidence.failures = failures_;
  for (std::size_t i = 0; i < options_.config.phases.size(); ++i) {
    evidence.trained_seconds += scheduler_.PhaseSeconds(static_cast<std::int32_t>(i), now);
  }
  return evidence;
}

void RunCore::UpdateInterval(Moment at) {
  const IntervalEvidence evidence = Evidence(at.now);
  CheckpointIntervalState& view = state_.checkpoint_interval;
  view.setting = options_.config.checkpoint.interval;
  view.seconds = timer_.Seconds(evidence).value_or(-1);
  view.stall_seconds = MeanStallSeconds(evidence);
  view.failure_seconds = MeanSecondsToFailure(evidence);
}

}  // namespace dd2
