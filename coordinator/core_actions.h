#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "common/clock.h"
#include "common/exit_codes.h"
#include "common/ids.h"
#include "common/run_config.h"
#include "coordinator/membership.h"
#include "coordinator/phase_scheduler.h"
#include "coordinator/run_state.h"
#include "proto/records.pb.h"

namespace dd2 {

// Both clocks at the moment of an event.
struct Moment {
  TimePoint now;
  std::int64_t unix_ms = 0;
};

// What the core wants done, in this order. An action is performed only after all before it have
// succeeded; so a decision is journalled before it is acted on simply by standing earlier.
struct JournalAction {
  proto::JournalRecord record;
};
struct SendAction {
  ConnectionId to;
  proto::Envelope envelope;
};
struct CloseAction {
  ConnectionId connection;
};  // after what was sent to it
struct GenerationAction {
  Generation generation;
};  // the rendezvous store starts afresh
struct PublishAction {
  proto::CheckpointManifest manifest;
};
struct DeleteAction {
  std::string checkpoint_id;
};
struct QuarantineAction {
  std::string checkpoint_id;
  std::string reason;
};
struct PositionAction {
  RunPosition position;
};  // the record goes on from here
struct RecordAction {
  StepRecord step;
};
struct IncidentAction {
  IncidentState incident;
};                       // it is over: keep it
struct ResultAction {};  // write result.json from the state as it is then
struct EndAction {
  ExitCode exit_code = kExitOk;
};
using Action = std::variant<JournalAction, SendAction, CloseAction, GenerationAction, PublishAction,
                            DeleteAction, QuarantineAction, PositionAction, RecordAction,
                            IncidentAction, ResultAction, EndAction>;
using Actions = std::vector<Action>;

struct CoreOptions {
  RunConfig config;
  std::string run_id;
  std::string run_folder;  // for messages
  std::string code_version;
  std::string config_digest;
  std::string command;  // that started this life, as typed; may be empty
  // Domains come and go as machines are given to the run: it begins with `config.domains` of them,
  // goes on with those that are there, and waits while there is none, as long as it takes.
  bool elastic = false;
};

// The generation that a coordinator which died has left behind; its workers train on.
struct OrphanGeneration {
  Generation generation;
  std::vector<proto::GenerationMember> members;  // by rank
  std::int64_t granted_end = 0;                  // of phase position.phase
};

// Where this life of the run begins; all default for a new run.
struct CoreStart {
  bool resumed = false;
  Generation generation{1};        // larger than any announced before
  Generation first_generation{1};  // of this life of the run
  RunPosition position;
  double seconds_before = 0;       // of phase position.phase, at the checkpoint
  std::string restore_checkpoint;  // verified; empty: from the beginning
  RunCounters counters;
  std::vector<FinishedPhase> finished;
  std::vector<proto::CheckpointManifest> checkpoints;
  std::map<std::string, double> checkpoint_seconds;  // that its phase had taken there
  CheckpointTotals checkpoint_totals;
  std::vector<proto::Evaluation> evaluations;
  std::int64_t failures = 0;                 // losses so far, and lives that ended by a failure
  std::optional<std::uint64_t> free_bytes;   // on the run folder's disk; nothing: not known
  std::vector<CheckpointState> quarantined;  // to be shown
  std::uint64_t desired_version = 0;
  std::string command;  // of the life that began the run
  // The coordinator died and takes its run over again: position is that of the record, the wishes
  // of people hold, and so does the generation if one was formed.
  bool recovered = false;
  bool worked = false;     // a generation was formed before
  Generation last_formed;  // the newest of them
  std::optional<OrphanGeneration> orphan;
  proto::Desired desired;
  std::set<std::string> drained;  // domains that are to leave, or have left
};

}  // namespace dd2
