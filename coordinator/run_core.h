#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/checkpoint_interval.h"
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
  // An action failed. A full disk ends this process, not the run: whoever takes it over (--recover)
  // waits for space. Anything else ends the run. `journal_works` is false when it was the journal.
  Actions OnEffectFailed(const Error& error, bool journal_works, Moment at);

  // Wishes of people. kFailedPrecondition with a reason.
  Result<Actions> Pause(const std::string& by, Moment at);
  Result<Actions> Resume(const std::string& by, Moment at);
  Result<Actions> RequestCheckpoint(const std::string& by, Moment at);
  // Checkpoint, then end. Again: nothing more happens.
  Result<Actions> Stop(const std::string& by, Moment at);
  // The domain leaves the run at the end of a step; the others go on with what they hold, and it is
  // not waited for nor started again. kNotFound: no such domain.
  Result<Actions> Drain(const std::string& domain, const std::string& by, Moment at);
  // Ends without waiting for a checkpoint (second signal).
  Actions StopNow(const std::string& by, Moment at);

  const RunState& state() const { return state_; }
  // The same with members and domains as they are now.
  const RunState& ListMembers(Moment at);

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

  // Checkpoints beside the messages about them (run_core_checkpoint.cc).
  void OnEvaluation(RunPosition position, const proto::Metric& metric, Actions& out);
  // Why the disk cannot hold the next checkpoints; empty: it can, or nobody knows.
  std::string LackOfSpace() const;
  void RequestDueCheckpoint(Moment at, Actions& out);
  IntervalEvidence Evidence(TimePoint now) const;
  void UpdateInterval(Moment at);

  // Generations (run_core_generation.cc).
  void OnAgentHello(ConnectionId from, const proto::AgentHello& hello, Moment at, Actions& out);
  void OnWorkerHello(ConnectionId from, const std::string& address, const proto::Envelope& envelope,
                     Moment at, Actions& out);
  void OnReturn(ConnectionId from, const std::string& address, const proto::Envelope& envelope,
                Moment at, Actions& out);
  bool IsAwaited(const proto::WorkerHello& hello) const;
  // A worker of the last generation is welcome with the state that it holds.
  bool MayReturn(const proto::WorkerHello& hello, Generation said) const;
  void OnDomainExited(DomainMember& domain, const proto::DomainExited& exited, Moment at,
                      Actions& out);
  void OnWorkerFailed(const WorkerMember& member, const proto::WorkerFailed& failed, Moment at,
                      Actions& out);
  void StartDomain(DomainMember& domain, Moment at, Actions& out);
  void LoseDomain(DomainMember& domain, const std::string& reason, const std::string& kind,
                  Moment at, Actions& out);
  void QuarantineNewest(const std::string& reason, Moment at, Actions& out);
  // `failure`: not because somebody joins or leaves.
  void BreakGeneration(const std::string& reason, bool failure, Moment at, Actions& out);
  void TryForm(Moment at, Actions& out);
  // Domains that are whole, with those of their states and snapshots that can be used.
  std::vector<struct CandidateDomain> Candidates() const;
  // A state that comes with the progress after `recorded` leaves no hole in the record.
  bool RecordReaches(const proto::Position& recorded) const;
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

  // Domains that join and leave (run_core_drain.cc).
  // It is part of the run and not about to leave.
  bool Stays(const DomainMember& domain) const;
  // So many are waited for where no survivor is.
  std::int32_t WantedDomains() const;
  Status CheckRoom(const proto::AgentHello& hello) const;
  // Breaks the generation if others can go on, and sends away who has no part in it.
  void LetDrainedGo(Moment at, Actions& out);
  struct RegroupPlan PlanForStaying(const std::vector<struct CandidateDomain>& candidates) const;
  void DismissLeftOut(Moment at, Actions& out);
  void Dismiss(DomainMember& domain, Moment at, Actions& out);
  std::string DomainWord(const DomainMember& domain) const;

  // Silence, hangs, deadlines, and the incidents (run_core_watch.cc).
  void CheckGenerations(Moment at, Actions& out);
  void DropAbsent(Moment at, Actions& out);
  void CheckStall(Moment at, Actions& out);
  void OpenIncident(const std::string& kind, const std::string& domain, const std::string& reason,
                    Moment at);
  // How the domain's mpirun ended: of the incidents that wait for it, or of one of its own.
  void KeepLastWords(const std::string& domain, const std::string& end, const std::string& evidence,
                     Moment at);
  // A step was finished.
  void ResumeIncidents(Moment at, Actions& out);
  // What is over goes into the record; `all`: what is not as well.
  void CloseIncidents(bool all, Moment at, Actions& out);

  // Wishes and endings (run_core_ending.cc).
  Status CheckSteerable(const char* what) const;
  void ChangeDesired(const proto::Desired& wanted, const std::string& by, Moment at, Actions& out);
  void OnWorkerDone(WorkerMember& member, bool stopped, Moment at, Actions& out);
  void ReleaseWorkers(Moment at, Actions& out);
  bool AllWorkersDone() const;
  std::string HowItStopped() const;
  void CheckReleased(Moment at, Actions& out);
  void Fail(const std::string& reason, Moment at, Actions& out, ExitCode code = kExitRunFailed);
  void End(RunWord outcome, const std::string& message, Moment at, Actions& out);
  bool AgentsMayCome() const;
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
  void Changed();  // what readers see
  void KeepCounters(std::int32_t rank, const RunCounters& counters);
  void UpdatePhases(Moment at);
  void UpdateWord();
  CheckpointState& CheckpointView(const std::string& id);
  std::string PhaseLabel(std::int32_t phase) const;
  bool IsAtEnd(RunPosition position) const;  // of its phase
  const Timeouts& times() const { return options_.config.timeouts; }

  const CoreOptions options_;
  const CoreStart start_;
  PhaseScheduler scheduler_;
  CheckpointLedger ledger_;
  CheckpointTimer timer_;
  std::int64_t failures_ = 0;
  Membership members_;
  proto::Desired desired_;
  Stage stage_ = Stage::kActive;
  RunWord outcome_ = RunWord::kFailed;  // meaningful from kFarewell on
  ExitCode exit_code_ = kExitOk;
  ExitCode fail_code_ = kExitRunFailed;
  bool journal_works_ = true;
  bool ever_formed_ = false;  // in this life or, when it was recovered, before
  bool all_lost_ = false;     // everybody of the last generation, which may be our own fault
  Generation last_formed_;
  std::vector<std::string> last_domains_;  // of that generation, if it was formed in this process
  std::uint64_t attempts_ = 0;
  std::string restore_checkpoint_;  // what a generation without survivors starts from
  std::map<std::string, RunPosition> checkpoint_positions_;
  std::map<std::string, double> checkpoint_seconds_;  // of its phase, at the commit
  std::string last_failure_;                     // of a domain or worker, for the message of an end
  std::map<std::string, std::int32_t> strikes_;  // failure -> times, since the last progress
  std::int32_t space_failures_ = 0;              // of workers, since the last progress
  std::set<std::string> drained_;                // domains that are to leave, or have left
  std::set<std::int32_t> awaited_;               // ranks of an orphan generation that are not back
  std::optional<TimePoint> gather_deadline_;     // of the generation that is being gathered
  TimePoint broken_at_{};                        // when the last generation ended
  std::optional<TimePoint> trouble_deadline_;    // a rank's collective failed
  std::string trouble_;
  std::optional<TimePoint> deadline_;  // of the stage
  std::optional<TimePoint> tell_domain_at_;
  bool domains_told_ = false;  // StopDomain was sent
  std::optional<TimePoint> last_tick_;
  bool begun_ = false;  // what Start decided was done
  bool ended_at_start_ = false;
  std::optional<TimePoint> view_updated_;
  std::map<std::int32_t, RunCounters> rank_counters_;
  RunState state_;
};

}  // namespace dd2
