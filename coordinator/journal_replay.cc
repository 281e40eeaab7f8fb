#include "coordinator/journal_replay.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace dd2 {

namespace {

using PhaseBegin = JournalView::PhaseBegin;

void Commit(JournalView& view, const proto::CheckpointManifest& manifest, const PhaseBegin& begin,
            std::int64_t unix_ms) {
  const std::string& id = manifest.checkpoint_id();
  std::erase_if(view.checkpoints, [&id](const auto& other) { return other.checkpoint_id() == id; });
  view.checkpoints.push_back(manifest);
  view.dropped.erase(id);
  view.checkpoint_totals.count += 1;
  for (const proto::CheckpointPart& part : manifest.parts()) {
    view.checkpoint_totals.bytes += part.size_bytes();
  }
  view.seconds_at[id] = 0;
  if (manifest.header().phase() == begin.phase) {
    const double since = static_cast<double>(unix_ms - begin.unix_ms) / 1000.0;
    view.seconds_at[id] = begin.seconds_before + std::max(since, 0.0);
  }
}

void Form(JournalView& view, const proto::GenerationFormed& formed) {
  view.last_formed = Generation(formed.generation());
  view.formed.assign(formed.members().begin(), formed.members().end());
}

void Finish(JournalView& view, const proto::PhaseFinished& record) {
  std::erase_if(view.finished,
                [&record](const auto& other) { return other.phase == record.phase(); });
  FinishedPhase finished;
  finished.phase = record.phase();
  finished.seconds = record.seconds();
  finished.result_json = record.result_json();
  view.finished.push_back(std::move(finished));
}

void Drop(JournalView& view, const proto::CheckpointDropped& dropped) {
  const std::string& id = dropped.checkpoint_id();
  std::erase_if(view.checkpoints, [&id](const auto& other) { return other.checkpoint_id() == id; });
  view.dropped[id] = dropped.reason();
}

void GoBack(JournalView& view, const proto::RolledBack& back) {
  const RunPosition to{back.phase(), back.step()};
  const std::int32_t kept = back.at_end() ? to.phase : to.phase - 1;
  std::erase_if(view.finished, [kept](const auto& other) { return other.phase > kept; });
  std::erase_if(view.evaluations, [&to](const auto& evaluation) {
    return to < RunPosition{evaluation.phase(), evaluation.step()};
  });
  view.granted = to;
}

}  // namespace

bool EndedByFailure(const JournalView& view) {
  return view.started && (view.outcome.empty() || view.outcome == RunWordName(RunWord::kFailed));
}

JournalView ReplayJournal(std::span<const proto::JournalRecord> records) {
  JournalView view;
  PhaseBegin& begin = view.phase_begin;
  const auto saw_generation = [&view](std::uint64_t number) {
    view.last_generation = std::max(view.last_generation, Generation(number));
  };
  for (const proto::JournalRecord& record : records) {
    switch (record.event_case()) {
      case proto::JournalRecord::kRunStarted:
        if (EndedByFailure(view)) ++view.failures;
        view.run_id = record.run_started().run_id();
        view.config_digest = record.run_started().config_digest();
        if (!record.run_started().resumed()) view.command = record.run_started().command();
        view.outcome.clear();
        view.formed.clear();
        view.drained.clear();
        saw_generation(record.run_started().generation());
        view.first_generation = Generation(record.run_started().generation());
        break;
      case proto::JournalRecord::kGenerationFormed:
        saw_generation(record.generation_formed().generation());
        Form(view, record.generation_formed());
        break;
      case proto::JournalRecord::kGenerationBroken:
        saw_generation(record.generation_broken().generation());
        view.formed.clear();
        view.failures += record.generation_broken().failure() ? 1 : 0;
        break;
      case proto::JournalRecord::kLeaseGranted:
        view.started = true;
        view.granted =
            RunPosition{record.lease_granted().phase(),
                        record.lease_granted().first_step() + record.lease_granted().count()};
        break;
      case proto::JournalRecord::kPhaseStarted:
        begin.phase = record.phase_started().phase();
        begin.unix_ms = record.unix_ms();
        begin.seconds_before = record.phase_started().seconds_before();
        break;
      case proto::JournalRecord::kPhaseFinished: Finish(view, record.phase_finished()); break;
      case proto::JournalRecord::kCheckpointCommitted:
        view.started = true;
        Commit(view, record.checkpoint_committed(), begin, record.unix_ms());
        break;
      case proto::JournalRecord::kCheckpointHeld:
        view.checkpoint_totals.stall_seconds += record.checkpoint_held().seconds();
        break;
      case proto::JournalRecord::kCheckpointDropped: Drop(view, record.checkpoint_dropped()); break;
      case proto::JournalRecord::kDesiredChanged:
        view.desired = record.desired_changed().desired();
        break;
      case proto::JournalRecord::kDomainDrained:
        view.drained.insert(record.domain_drained().domain());
        break;
      case proto::JournalRecord::kRunEnded: view.outcome = record.run_ended().outcome(); break;
      case proto::JournalRecord::kRolledBack: GoBack(view, record.rolled_back()); break;
      case proto::JournalRecord::kEvaluated: view.evaluations.push_back(record.evaluated()); break;
      case proto::JournalRecord::EVENT_NOT_SET: break;
    }
  }
  std::sort(view.checkpoints.begin(), view.checkpoints.end(), [](const auto& a, const auto& b) {
    return std::make_tuple(a.header().phase(), a.header().step()) <
           std::make_tuple(b.header().phase(), b.header().step());
  });
  return view;
}

}  // namespace dd2
