#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "common/ids.h"
#include "coordinator/phase_scheduler.h"
#include "coordinator/run_state.h"
#include "proto/records.pb.h"

namespace dd2 {

// What a journal says about a run when its coordinator starts again. Pure.
struct JournalView {
  bool started = false;  // work was handed out or a checkpoint committed
  std::string run_id;
  std::string config_digest;
  std::string command;          // that began the run, as typed; empty: not known
  std::string outcome;          // of the last life: finished, stopped, failed; empty: it died
  Generation last_generation;   // newest that was ever announced; 0: none
  Generation first_generation;  // of the last life
  std::vector<proto::CheckpointManifest> checkpoints;  // committed and not dropped, oldest first
  CheckpointTotals checkpoint_totals;                  // of all that were ever committed
  std::map<std::string, double> seconds_at;    // checkpoint id -> time its phase had taken there
  std::map<std::string, std::string> dropped;  // id -> reason, unless committed again
  std::vector<FinishedPhase> finished;         // after all rollbacks
  std::vector<proto::Evaluation> evaluations;  // the same, in the order in which they were made
  std::set<std::string> drained;               // domains that were to leave this life
  proto::Desired desired;                      // the newest wish; version 0: none
  Generation last_formed;                      // 0: none
  std::int64_t failures = 0;                   // losses, and lives that ended by a failure
  // For a coordinator that takes a living run over:
  std::vector<proto::GenerationMember> formed;  // of last_generation, by rank; empty: not formed
  RunPosition granted;                          // end of the newest lease
  struct PhaseBegin {
    std::int32_t phase = -1;
    std::int64_t unix_ms = 0;
    double seconds_before = 0;
  } phase_begin;  // the newest start of a phase
};

// Whether the last life, which is over, began to work and was not stopped or finished.
bool EndedByFailure(const JournalView& view);

JournalView ReplayJournal(std::span<const proto::JournalRecord> records);

}  // namespace dd2
