#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/limits.h"
#include "common/result.h"
#include "common/run_config.h"

namespace dd2 {

// What a run looks like from outside: plain data, kept up to date by the coordinator's core
// (run_core.h), read by the HTTP API, the record files and the command line. No proto, no sockets.
// Owned by the coordinator loop; control thread only, so a reader there sees one consistent state.

enum class RunWord : std::uint8_t {
  kWaiting,  // for its agent and workers
  kRunning,
  kRecovering,  // members were lost or arrived: the next generation is being gathered
  kPaused,
  kStopping,  // a stop was asked for; the checkpoint is on its way
  kFinished,  // every phase is done
  kStopped,   // on request; can be resumed
  kFailed,    // can be resumed from the last checkpoint
};
const char* RunWordName(RunWord word);  // "waiting", "running", ...

enum class PhaseWord : std::uint8_t { kPending, kRunning, kDone };
const char* PhaseWordName(PhaseWord word);

enum class CheckpointWord : std::uint8_t {
  kWriting,      // some ranks have reported their part
  kCommitted,    // its manifest is published
  kDeleted,      // by retention
  kQuarantined,  // failed its check; moved away
  kFailed,       // some rank could not write its part; what was written is removed
};
const char* CheckpointWordName(CheckpointWord word);

// Counters of proto::Counters, as the newest progress of rank 0 gave them; cache hits and misses
// are summed over the ranks of this generation.
struct RunCounters {
  std::int64_t outer_cycles = 0;
  std::int64_t generator_updates = 0;
  std::int64_t guidance_updates = 0;
  std::int64_t skipped_updates = 0;
  std::int64_t phase_generator_updates = 0;
  std::int64_t phase_guidance_updates = 0;
  std::int64_t cache_hits = 0;
  std::int64_t cache_misses = 0;
};

struct PhaseState {
  PhaseKind kind = PhaseKind::kEval;
  std::string name;  // unique in the run: "csd", "csd-2"
  PhaseWord word = PhaseWord::kPending;
  std::int64_t steps = 0;   // of the whole phase
  std::int64_t done = 0;    // finished steps
  double seconds = 0;       // wall time spent in it, pauses not counted
  std::string result_json;  // outcome of a finished phase, a JSON object or empty
};

struct MemberState {
  std::int32_t rank = -1;  // -1: an agent, or a worker that has no rank yet
  bool agent = false;
  bool connected = true;
  std::string_view domain;  // texts are those of the member itself
  std::string_view host;
  std::int64_t pid = 0;
  std::int32_t local_rank = 0;
  std::string_view numeric_mode;
  std::int32_t phase = -1;
  std::int64_t step = 0;
  std::int64_t last_seen_unix_ms = 0;
};

struct DomainState {
  std::string name;
  std::string word;  // starting, working, waiting, leaving, given up, agent away
  int workers = 0;   // that are connected
};

struct CheckpointState {
  std::string id;
  CheckpointWord word = CheckpointWord::kWriting;
  std::int32_t phase = 0;
  std::int64_t step = 0;
  std::int64_t bytes = 0;    // of all parts
  std::int32_t parts = 0;    // reported so far
  double hold_seconds = 0;   // that training stood still for it
  double write_seconds = 0;  // until the slowest part so far was on its disk
  std::int64_t committed_unix_ms = 0;
  std::string reason;  // of deletion, quarantine or failure
};

// Checkpoints that were committed in the whole run, its earlier lives included; also those that
// were deleted since, or lie behind a rollback.
struct CheckpointTotals {
  std::int64_t count = 0;
  std::int64_t bytes = 0;
  double stall_seconds = 0;  // time that training stood still for them
};

// How often checkpoints are made besides those that the phases set (common/checkpoint_interval.h).
struct CheckpointIntervalState {
  std::string setting;         // checkpoint.interval
  double seconds = -1;         // now; -1: none are asked for
  double stall_seconds = 0;    // what one costs, on average
  double failure_seconds = 0;  // mean time to a failure
};

struct MetricValue {
  std::string name;  // "gts/loss", "csd/sid", "eval/fdr"
  double value = 0;
};

// What made the members stop and form again (a loss, an arrival, a departure), or a save that
// failed: who, why, and how long.
struct IncidentState {
  std::int64_t unix_ms = 0;  // when it was noticed
  std::string kind;          // lost, hang, failed, joined, drained, communication, coordinator,
                             // checkpoint
  std::string domain;        // empty: none in particular
  std::string reason;        // one sentence
  std::string evidence;      // how the domain's mpirun ended, with the end of its log; may be empty
  std::int32_t phase = 0;    // where the run stood
  std::int64_t step = 0;
  std::uint64_t generation = 0;  // that was formed after it
  double exited_seconds = -1;    // from notice until the end of the domain's mpirun; -1: not told
  double formed_seconds = -1;    // from notice until that generation; -1: not yet
  double resumed_seconds = -1;   // from notice until the next finished step; -1: not yet
  std::int64_t steps_lost = 0;   // finished steps that had to be done again
};

// Something that a person would want to know happened.
struct RunEvent {
  std::uint64_t sequence = 0;  // 1, 2, 3 ... in this process
  std::int64_t unix_ms = 0;
  std::string kind;     // run, phase, checkpoint, member, desired, incident
  std::string message;  // one sentence with its values
};

// The newest kEventRingMax events.
class EventRing {
 public:
  const RunEvent& Add(std::int64_t unix_ms, std::string kind, std::string message);
  // Events after `sequence`, oldest first; all that are left when older ones have been dropped.
  std::vector<RunEvent> After(std::uint64_t sequence) const;
  std::uint64_t last_sequence() const { return next_ - 1; }

 private:
  std::deque<RunEvent> events_;
  std::uint64_t next_ = 1;
};

struct RunState {
  // Constant after start.
  std::string run_id;
  std::string name;
  std::string code_version;
  std::string config_digest;
  std::uint64_t seed = 0;
  std::int32_t ranks = 0;
  bool resumed = false;
  std::string command;  // that started the run, as typed; not that of a resume; empty: not known
  std::int64_t started_unix_ms = 0;

  // Grows with every change below: a reader that has seen it need not look again.
  std::uint64_t version = 0;
  RunWord word = RunWord::kWaiting;
  std::string message;           // why it stopped or failed; empty while all is well
  std::uint64_t generation = 0;  // 0: none formed yet
  std::string numeric_mode;      // of all ranks; empty: no generation yet
  std::vector<PhaseState> phases;
  std::int32_t phase = 0;    // current index; phases.size() when all are done
  std::int32_t agents = 0;   // that are connected
  std::int32_t workers = 0;  // likewise
  // There from RunControl::ListMembers() until the next change: they are many, and each of their
  // messages changes one.
  std::vector<MemberState> members;          // agents first, then by rank
  std::vector<DomainState> domains;          // that are connected, by name
  std::vector<CheckpointState> checkpoints;  // by position; deleted ones stay listed
  CheckpointTotals checkpoint_totals;
  CheckpointIntervalState checkpoint_interval;
  RunCounters counters;
  std::vector<MetricValue> metrics;  // newest value of each name, in order of first appearance
  std::int64_t metrics_unix_ms = 0;
  double steps_per_second = 0;    // of the current phase, moving average; 0: not known yet
  double phase_eta_seconds = -1;  // of the current phase; -1: not known
  std::uint64_t desired_version = 0;
  bool desired_paused = false;
  bool desired_stop = false;
  std::uint64_t checkpoint_requests = 0;
  std::vector<IncidentState> incidents;       // over, the newest kIncidentsMax, oldest first
  std::vector<IncidentState> open_incidents;  // those that are not
  EventRing events;
};

// One finished step with numbers in it, for metrics.jsonl and TensorBoard.
struct StepRecord {
  std::int32_t phase = 0;
  PhaseKind kind = PhaseKind::kEval;
  std::int64_t step = 0;  // finished steps of the phase
  std::int64_t unix_ms = 0;
  double step_seconds = 0;
  RunCounters counters;
  std::vector<MetricValue> metrics;
};

// Told of what happens, after it was journalled and acted on. On the control thread; must not block
// for long. An error ends the run as failed (a full disk under the record files, for example).
class RunObserver {
 public:
  virtual ~RunObserver() = default;
  // Any change of the state; at most once per handled message.
  virtual void OnChange(const RunState& state) = 0;
  virtual Status OnStep(const StepRecord& record) = 0;
  // The run goes on from `step` finished steps of `phase`: what was recorded later is void. Called
  // once at start (phase 0, step 0 for a new run) before the first OnStep.
  virtual Status OnPosition(std::int32_t phase, std::int64_t step) = 0;
  // An incident is over.
  virtual Status OnIncident(const IncidentState&) { return Status(); }
};

// What the API and signals may ask of the run. Control thread. Each is journalled before it returns
// and reaches every rank at the same step. kFailedPrecondition: the run is in a state that does not
// allow it (message says which); asking for what is already so is not an error.
class RunControl {
 public:
  virtual ~RunControl() = default;
  virtual Status Pause(const std::string& by) = 0;
  virtual Status Resume(const std::string& by) = 0;
  virtual Status RequestCheckpoint(const std::string& by) = 0;
  // Checkpoint, then end the run so that it can be resumed.
  virtual Status Cancel(const std::string& by) = 0;
  // Lets a domain leave. kNotFound: the run has no such domain.
  virtual Status Drain(const std::string& domain, const std::string& by) = 0;
  virtual const RunState& state() const = 0;
  // The same with members and domains as they are now; a pass over all of them.
  virtual const RunState& ListMembers() = 0;
};

}  // namespace dd2
