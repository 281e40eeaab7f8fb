#include "coordinator/core_start.h"

#include <algorithm>
#include <utility>

namespace dd2 {

namespace {

void Fill(const JournalView& view, CoreStart& start) {
  start.finished = view.finished;
  start.checkpoints = view.checkpoints;
  start.checkpoint_seconds = view.seconds_at;
  start.checkpoint_totals = view.checkpoint_totals;
  start.evaluations = view.evaluations;
  start.failures = view.failures;
  start.command = view.command;
  start.desired_version = view.desired.version();
  if (!view.checkpoints.empty()) {
    start.restore_checkpoint = view.checkpoints.back().checkpoint_id();
  }
}

}  // namespace

void StartFromCheckpoint(const JournalView& view, CoreStart& start) {
  Fill(view, start);
  start.resumed = view.started;
  start.failures += EndedByFailure(view) ? 1 : 0;
  start.generation = Generation(view.last_generation.value() + 1);
  start.first_generation = start.generation;
  if (view.checkpoints.empty()) return;
  const proto::CheckpointHeader& header = view.checkpoints.back().header();
  start.position = RunPosition{header.phase(), header.step()};
  const auto seconds = view.seconds_at.find(start.restore_checkpoint);
  start.seconds_before = seconds == view.seconds_at.end() ? 0 : seconds->second;
  start.counters.outer_cycles = header.counters().outer_cycles();
  start.counters.generator_updates = header.counters().generator_updates();
  start.counters.guidance_updates = header.counters().guidance_updates();
  start.counters.skipped_updates = header.counters().skipped_updates();
  start.counters.phase_generator_updates = header.counters().phase_generator_updates();
  start.counters.phase_guidance_updates = header.counters().phase_guidance_updates();
}

void StartTakingOver(const JournalView& view, const std::vector<PhaseConfig>& phases,
                     RunPosition recorded, std::int64_t unix_ms, CoreStart& start) {
  Fill(view, start);
  start.recovered = true;
  start.first_generation = view.first_generation;
  start.worked = view.started;
  start.last_formed = view.last_formed;
  start.desired = view.desired;
  start.drained = view.drained;
  // The end of a phase is journalled right after its last step was recorded.
  RunPosition position = std::max(recorded, RunPosition());
  for (const FinishedPhase& finished : view.finished) {
    position = std::max(position, RunPosition{finished.phase + 1, 0});
  }
  if (static_cast<std::size_t>(position.phase) < phases.size()) {
    const std::int64_t steps = phases[static_cast<std::size_t>(position.phase)].steps;
    position.step = std::min(position.step, steps - 1);
  }
  start.position = position;
  start.generation = Generation(view.last_generation.value() + (view.formed.empty() ? 1 : 0));
  if (view.phase_begin.phase == position.phase) {
    const double since = static_cast<double>(unix_ms - view.phase_begin.unix_ms) / 1000.0;
    start.seconds_before = view.phase_begin.seconds_before + std::max(since, 0.0);
  }
  if (view.formed.empty()) return;
  OrphanGeneration orphan;
  orphan.generation = start.generation;
  orphan.members = view.formed;
  if (view.granted.phase == position.phase) orphan.granted_end = view.granted.step;
  start.orphan = std::move(orphan);
}

}  // namespace dd2
