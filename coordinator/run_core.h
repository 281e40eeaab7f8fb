#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "common/clock.h"
#include "common/exit_codes.h"
#include "common/ids.h"
#include "common/result.h"
#include "common/run_config.h"
#include "coordinator/checkpoint_ledger.h"
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
struct PositionAction {
  RunPosition position;
};  // the record goes on from here
struct RecordAction {
  StepRecord step;
};
struct ResultAction {};  // write result.json from the state as it is then
struct EndAction {
  ExitCode exit_code = kExitOk;
};
using Action = std::variant<JournalAction, SendAction, CloseAction, GenerationAction, PublishAction,
                            DeleteAction, PositionAction, RecordAction, ResultAction, EndAction>;
using Actions = std::vector<Action>;

struct CoreOptions {
  RunConfig config;
  std::string run_id;
  std::string run_folder;  // for messages
  std::string code_version;
  std::string config_digest;
  std::string command;  // that started this life, as typed; may be empty
};

// Where this life of the run begins; all default for a new run.
struct CoreStart {
  bool resumed = false;
  Generation generation{1};  // larger than any announced before
  RunPosition position;
  double seconds_before = 0;       // of phase position.phase, at the checkpoint
  std::string restore_checkpoint;  // verified; empty: from the beginning
  RunCounters counters;
  std::vector<FinishedPhase> finished;
  std::vector<proto::CheckpointManifest> checkpoints;
  CheckpointTotals checkpoint_totals;
  std::vector<CheckpointState> quarantined;  // to be shown
  std::uint64_t desired_version = 0;
  std::string command;  // of the life that began the run
};

// The coordinator's mind: takes events and the time, keeps the run's state, returns actions. It
// holds no socket, file, thread or clock, so that a whole run can be played in a test.
//
// Owned by CoordinatorLoop; control thread. Stages: joining (agent, then workers) -> running ->
// finishing (workers are released) or stopping (checkpoint first) -> farewell (journalled as ended;
// the domain leaves) -> ended. In this version a lost member ends the run as failed; it is resumed
// from the newest checkpoint.
class RunCore {
 public:
  RunCore(CoreOptions options, CoreStart start);

  Actions Start(Moment at);
  // `address`: of the sender, as we see it. The connection has shown the secret.
  Actions OnMessage(ConnectionId from, const std::string& address, const proto::Envelope& envelope,
                    Moment at);
  Actions OnClosed(ConnectionId connection, const std::string& reason, Moment at);
  Actions OnTick(Moment at);
  // An action failed: the run ends. `journal_works` is false when it was the journal.
  Actions OnEffectFailed(const Error& error, bool journal_works, Moment at);

  // Wishes of people. kFailedPrecondition with a reason.
  Result<Actions> Pause(const std::string& by, Moment at);
  Result<Actions> Resume(const std::string& by, Moment at);
  Result<Actions> RequestCheckpoint(const std::string& by, Moment at);
  // Checkpoint, then end. Again: nothing more happens.
  Result<Actions> Stop(const std::string& by, Moment at);
  // Ends without waiting for a checkpoint (second signal).
  Actions StopNow(const std::string& by, Moment at);

  const RunState& state() const { return state_; }

 private:
  enum class Stage : std::uint8_t { kJoining, kRunning, kFinishing, kStopping, kFarewell, kEnded };
  // Why a member is gone, while a better reason may still arrive.
  struct Loss {
    int weight = 0;  // a heavier reason replaces a lighter one
    std::string reason;
    TimePoint deadline;
  };

  // Messages (run_core.cc). Each appends to `out`.
  void OnAgentHello(ConnectionId from, const proto::AgentHello& hello, Moment at, Actions& out);
  void OnWorkerHello(ConnectionId from, const std::string& address, const proto::Envelope& envelope,
                     Moment at, Actions& out);
  void OnProgress(WorkerMember& member, const proto::Progress& progress, Moment at, Actions& out);
  void OnPartReport(const WorkerMember& member, const proto::PartReport& report, Moment at,
                    Actions& out);
  void OnCheckpointHeld(const WorkerMember& member, const proto::CheckpointHeld& held,
                        Actions& out);
  void OnLeaseRequest(const WorkerMember& member, const proto::LeaseRequest& request, Actions& out);
  void OnFromWorker(WorkerMember& member, const proto::Envelope& envelope, Moment at, Actions& out);
  void OnFromAgent(const proto::Envelope& envelope, Moment at, Actions& out);
  void FormGeneration(Moment at, Actions& out);
  void GrantLeases(Moment at, Actions& out);
  void Commit(const proto::CheckpointManifest& manifest, Moment at, Actions& out);
  void Expire(Moment at, Actions& out);

  // Wishes and endings (run_core_ending.cc).
  Status CheckSteerable(const char* what) const;
  void ChangeDesired(const proto::Desired& wanted, const std::string& by, Moment at, Actions& out);
  void OnWorkerFailed(const WorkerMember& member, const proto::WorkerFailed& failed, Moment at,
                      Actions& out);
  void OnWorkerDone(WorkerMember& member, bool stopped, Moment at, Actions& out);
  void OnDomainExited(const proto::DomainExited& exited, Moment at, Actions& out);
  void NoteLoss(int weight, std::string reason, TimePoint deadline);
  void ReleaseWorkers(Moment at, Actions& out);
  bool AllWorkersDone() const;
  void CheckReleased(Moment at, Actions& out);
  void Fail(const std::string& reason, Moment at, Actions& out);
  void End(RunWord outcome, const std::string& message, Moment at, Actions& out);
  void CheckGone(Moment at, Actions& out);
  void CheckDeadlines(Moment at, Actions& out);
  std::string ResumeHint() const;

  // Messages and the view (run_core_view.cc).
  void Journal(proto::JournalRecord record, Actions& out) const;
  proto::Envelope NewEnvelope() const;
  void SendTo(ConnectionId to, proto::Envelope envelope, Actions& out) const;
  void SendToWorkers(const proto::Envelope& envelope, Actions& out) const;
  void Refuse(ConnectionId to, const Error& error, Actions& out) const;
  void Event(Moment at, std::string kind, std::string message);
  void UpdateMembers(Moment at);
  void UpdatePhases(Moment at);
  void UpdateWord();
  CheckpointState& CheckpointView(const std::string& id);
  std::string PhaseLabel(std::int32_t phase) const;

  const CoreOptions options_;
  const CoreStart start_;
  PhaseScheduler scheduler_;
  CheckpointLedger ledger_;
  Membership members_;
  proto::Desired desired_;
  Stage stage_ = Stage::kJoining;
  RunWord outcome_ = RunWord::kFailed;  // meaningful from kFarewell on
  ExitCode exit_code_ = kExitOk;
  bool journal_works_ = true;
  bool domain_gone_ = false;  // the agent said that its mpirun has ended
  bool domain_told_ = false;  // StopDomain was sent
  std::optional<Loss> loss_;
  std::optional<TimePoint> deadline_;  // of the stage
  std::optional<TimePoint> tell_domain_at_;
  std::optional<TimePoint> last_tick_;
  std::optional<TimePoint> view_updated_;
  std::map<std::int32_t, RunCounters> rank_counters_;
  RunState state_;
};

}  // namespace dd2
