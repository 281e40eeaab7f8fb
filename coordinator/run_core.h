#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/exit_codes.h"
#include "common/ids.h"
#include "common/result.h"
#include "common/run_config.h"
#include "coordinator/checkpoint_ledger.h"
#include "coordinator/core_actions.h"
#include "coordinator/membership.h"
#include "coordinator/phase_scheduler.h"
#include "coordinator/run_state.h"
#include "proto/records.pb.h"

namespace dd2 {

// The coordinator's mind: takes events and the time, keeps the run's state, returns actions. It
// holds no socket, file, thread or clock, so that a whole run can be played in a test.
//
// Owned by CoordinatorLoop; control thread. Stages: active -> finishing (workers are released) or
// stopping (checkpoint first) -> farewell (journalled as ended; the domains leave) -> ended. While
// active a generation is gathered (domains join, survivors report what they hold), formed, and
// broken when a member is lost, hangs or arrives (design 2).
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
  enum class Stage : std::uint8_t { kActive, kFinishing, kStopping, kFarewell, kEnded };

  // Messages (run_core.cc). Each appends to `out`.
  void OnProgress(WorkerMember& member, const proto::Progress& progress, Moment at, Actions& out);
  void OnPhaseFinished(const proto::Progress& progress, Moment at, Actions& out);
  void OnPartReport(const WorkerMember& member, const proto::PartReport& report, Moment at,
                    Actions& out);
  void OnPartFailed(const WorkerMember& member, const proto::PartFailed& failed, Moment at,
                    Actions& out);
  void OnCheckpointHeld(const WorkerMember& member, const proto::CheckpointHeld& held,
                        Actions& out);
  // What the ledger decided, apart from a commit, is told.
  void TellDecided(const WorkerMember& member, const std::string& id,
                   const CheckpointLedger::Outcome& outcome, Actions& out);
  CheckpointState& WritingView(const std::string& id);
  void OnFromWorker(WorkerMember& member, const proto::Envelope& envelope, Moment at, Actions& out);
  void OnFromAgent(ConnectionId from, const proto::Envelope& envelope, Moment at, Actions& out);
  void GrantLeases(Moment at, Actions& out);
  void Commit(const proto::CheckpointManifest& manifest, Moment at, Actions& out);
  void Expire(Moment at, Actions& out);

  // Generations (run_core_generation.cc).
  void OnAgentHello(ConnectionId from, const proto::AgentHello& hello, Moment at, Actions& out);
  void OnWorkerHello(ConnectionId from, const std::string& address, const proto::Envelope& envelope,
                     Moment at, Actions& out);
  void OnReturn(ConnectionId from, const std::string& address, const proto::Envelope& envelope,
                Moment at, Actions& out);
  void OnDomainExited(DomainMember& domain, const proto::DomainExited& exited, Moment at,
                      Actions& out);
  void OnWorkerFailed(const WorkerMember& member, const proto::WorkerFailed& failed, Moment at,
                      Actions& out);
  void StartDomain(DomainMember& domain, Moment at, Actions& out);
  void LoseDomain(DomainMember& domain, const std::string& reason, const std::string& kind,
                  Moment at, Actions& out);
  void QuarantineNewest(const std::string& reason, Moment at, Actions& out);
  void BreakGeneration(const std::string& reason, Moment at, Actions& out);
  void TryForm(Moment at, Actions& out);
  void Form(Moment at, Actions& out);
  void GoBack(RunPosition to, double seconds, const std::string& checkpoint, Moment at,
              Actions& out);
  void SendAssignments(const struct RegroupPlan& plan, Moment at, Actions& out);
  // The steps that were handed out and are not finished at `start`.
  void SendGrantedLease(ConnectionId to, const proto::Position& start, Actions& out) const;
  // The same failure at the same step for the third time: the run ends.
  bool StruckOut(const std::string& what, Moment at, Actions& out);
  // Progress up to here is in the record.
  proto::Position Recorded() const;

  // Silence, hangs, deadlines, and the incidents (run_core_watch.cc).
  void CheckGenerations(Moment at, Actions& out);
  void DropAbsent(Moment at, Actions& out);
  void CheckStall(Moment at, Actions& out);
  void OpenIncident(const std::string& kind, const std::string& domain, const std::string& reason,
                    Moment at);
  void CloseIncidents(Moment at, Actions& out);

  // Wishes and endings (run_core_ending.cc).
  Status CheckSteerable(const char* what) const;
  void ChangeDesired(const proto::Desired& wanted, const std::string& by, Moment at, Actions& out);
  void OnWorkerDone(WorkerMember& member, bool stopped, Moment at, Actions& out);
  void ReleaseWorkers(Moment at, Actions& out);
  bool AllWorkersDone() const;
  void CheckReleased(Moment at, Actions& out);
  void Fail(const std::string& reason, Moment at, Actions& out, ExitCode code = kExitRunFailed);
  void End(RunWord outcome, const std::string& message, Moment at, Actions& out);
  void CheckGone(Moment at, Actions& out);
  void CheckDeadlines(Moment at, Actions& out);
  void FailGathering(Moment at, Actions& out);
  std::string ResumeHint() const;

  // Start, messages and the view (run_core_view.cc).
  void Begin(Moment at, Actions& out);
  void TakeOver(Moment at, Actions& out);
  void Journal(proto::JournalRecord record, Actions& out) const;
  proto::Envelope NewEnvelope() const;
  void SendTo(ConnectionId to, proto::Envelope envelope, Actions& out) const;
  void SendToRanks(const proto::Envelope& envelope, Actions& out) const;
  void Refuse(ConnectionId to, const Error& error, Actions& out) const;
  void Event(Moment at, std::string kind, std::string message);
  void UpdateMembers(Moment at);
  void UpdatePhases(Moment at);
  void UpdateWord();
  CheckpointState& CheckpointView(const std::string& id);
  std::string PhaseLabel(std::int32_t phase) const;
  bool IsAtEnd(RunPosition position) const;  // of its phase

  const CoreOptions options_;
  const CoreStart start_;
  PhaseScheduler scheduler_;
  CheckpointLedger ledger_;
  Membership members_;
  proto::Desired desired_;
  Stage stage_ = Stage::kActive;
  RunWord outcome_ = RunWord::kFailed;  // meaningful from kFarewell on
  ExitCode exit_code_ = kExitOk;
  ExitCode fail_code_ = kExitRunFailed;
  bool journal_works_ = true;
  bool ever_formed_ = false;  // in this life or, when it was recovered, before
  Generation last_formed_;
  std::uint64_t attempts_ = 0;
  std::string restore_checkpoint_;  // what a generation without survivors starts from
  std::map<std::string, RunPosition> checkpoint_positions_;
  std::map<std::string, double> checkpoint_seconds_;  // of its phase, at the commit
  std::string last_failure_;                     // of a domain or worker, for the message of an end
  std::map<std::string, std::int32_t> strikes_;  // failure -> times, since the last progress
  std::set<std::int32_t> awaited_;               // ranks of an orphan generation that are not back
  std::optional<TimePoint> gather_deadline_;     // of the generation that is being gathered
  std::optional<TimePoint> trouble_deadline_;    // a rank's collective failed
  std::string trouble_;
  std::vector<IncidentState> open_incidents_;
  std::optional<TimePoint> deadline_;  // of the stage
  std::optional<TimePoint> tell_domain_at_;
  bool domains_told_ = false;  // StopDomain was sent
  std::optional<TimePoint> last_tick_;
  std::optional<TimePoint> view_updated_;
  std::map<std::int32_t, RunCounters> rank_counters_;
  RunState state_;
};

}  // namespace dd2
