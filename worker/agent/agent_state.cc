#include "worker/agent/agent_state.h"

#include "common/check.h"
#include "common/timeouts.h"

namespace dd2 {

namespace {

// mpirun's status when there was no mpirun, as a shell says it.
constexpr int kStatusNotStarted = 127;

}  // namespace

AgentActions AgentState::OnStartDomain(const DomainSpec& spec) {
  AgentActions actions;
  if (leaving_) {
    actions.refused = "this agent is ending";
  } else if (running_) {
    actions.refused = "attempt " + std::to_string(attempt_) + " is still running";
  } else if (spec.attempt <= attempt_) {
    actions.refused = "attempt " + std::to_string(spec.attempt) + " is not newer than " +
                      std::to_string(attempt_);
  } else if (spec.local_size < 1 || spec.threads_per_rank < 1) {
    actions.refused = "a domain needs at least one rank with one thread";
  }
  if (!actions.refused.empty()) return actions;
  running_ = true;
  killed_ = false;
  exit_code_.reset();  // that of an earlier start that failed
  attempt_ = spec.attempt;
  actions.start = spec;
  return actions;
}

AgentActions AgentState::OnStartFailed(int exit_code) {
  DD2_CHECK(running_);
  if (!exit_code_) exit_code_ = exit_code;
  return OnExited(kStatusNotStarted);
}

AgentActions AgentState::OnExited(int status) {
  DD2_CHECK(running_);
  running_ = false;
  kill_at_.reset();
  AgentActions actions;
  actions.kill = true;  // what mpirun left behind
  actions.report = status;
  if (leaving_) actions.quit = exit_code_;
  return actions;
}

AgentActions AgentState::OnKillDomain() {
  AgentActions actions;
  actions.kill = running_ && !killed_;
  if (running_) killed_ = true;
  return actions;
}

AgentActions AgentState::OnLeave(int exit_code, TimePoint now) {
  AgentActions actions;
  if (leaving_) return actions;
  leaving_ = true;
  if (!exit_code_) exit_code_ = exit_code;
  if (running_) {
    actions.terminate = true;
    kill_at_ = now + timeouts::kDomainKill;
  } else {
    actions.quit = exit_code_;
  }
  return actions;
}

AgentActions AgentState::OnTick(TimePoint now) {
  AgentActions actions;
  if (!running_ || killed_ || !kill_at_ || now < *kill_at_) return actions;
  killed_ = true;
  actions.kill = true;
  return actions;
}

}  // namespace dd2
