#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "common/clock.h"

namespace dd2 {

// What a domain is started with.
struct DomainSpec {
  int local_size = 0;
  int threads_per_rank = 0;
  std::uint64_t attempt = 0;  // grows with every start
  std::string run_id;
};

// What the agent must do now; several may be set, to be done in this order.
struct AgentActions {
  std::optional<DomainSpec> start;  // then OnStartFailed if it did not work
  bool terminate = false;           // SIGTERM to mpirun
  bool kill = false;                // SIGKILL to mpirun and everything below it, or what it left
  std::optional<int> report;        // DomainExited with this status
  std::optional<int> quit;          // end with this exit code
  std::string refused;              // why a StartDomain was not followed; for the log
};

// Decides when the node's domain is started and ended, and when the agent itself ends. A domain
// that ended is never started again by itself: that is the coordinator's decision.
//
// Pure: no process, socket or clock. Owned by Agent; control thread.
class AgentState {
 public:
  // The coordinator asks for a domain. Refused while one runs, while leaving, and for an attempt
  // that is not newer than the last one.
  AgentActions OnStartDomain(const DomainSpec& spec);
  // mpirun could not be started; the agent will end with `exit_code` whatever else comes, unless a
  // later start works.
  AgentActions OnStartFailed(int exit_code);
  // mpirun has ended.
  AgentActions OnExited(int status);
  // The coordinator wants the domain dead at once. Nothing to do while none runs: its end has been
  // reported.
  AgentActions OnKillDomain();
  // StopDomain, a signal, a coordinator that stays away: end the domain, then this process. The
  // first exit code that is given counts.
  AgentActions OnLeave(int exit_code, TimePoint now);
  // Escalates from SIGTERM to SIGKILL when the grace is over.
  AgentActions OnTick(TimePoint now);

  bool running() const { return running_; }
  bool leaving() const { return leaving_; }
  // Of the last domain; 0: there was none.
  std::uint64_t attempt() const { return attempt_; }

 private:
  bool running_ = false;
  bool leaving_ = false;
  bool killed_ = false;  // the domain that runs
  std::optional<int> exit_code_;
  std::uint64_t attempt_ = 0;
  std::optional<TimePoint> kill_at_;
};

}  // namespace dd2
