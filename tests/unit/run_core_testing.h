#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "coordinator/core_start.h"
#include "coordinator/journal_replay.h"
#include "coordinator/run_core.h"

namespace dd2 {

// A phase with nothing else set.
inline PhaseConfig Phase(PhaseKind kind, std::int64_t steps) {
  PhaseConfig phase;
  phase.kind = kind;
  phase.steps = steps;
  return phase;
}

// Domains of one rank each, called by a letter.
class DomainsTest : public testing::Test {
 protected:
  DomainsTest() {
    options_.config.ranks = 1;
    options_.config.domains = 2;
    options_.config.phases = {Phase(PhaseKind::kGts, 20), Phase(PhaseKind::kEval, 1)};
    options_.run_id = "run-1";
    options_.run_folder = "runs/x";
  }

  static ConnectionId Agent(char domain) { return ConnectionId(static_cast<unsigned>(domain)); }
  static ConnectionId Worker(char domain) {
    return ConnectionId(1000 + static_cast<unsigned>(domain));
  }
  void Begin(CoreStart start = CoreStart()) {
    core_ = std::make_unique<RunCore>(options_, std::move(start));
    Take(core_->Start(at_));
  }
  void Take(Actions actions) {
    log_.clear();
    for (Action& action : actions) log_.push_back(std::move(action));
    for (const Action& action : log_) {
      if (const auto* journal = std::get_if<JournalAction>(&action)) {
        journal_.push_back(journal->record);
        journal_.back().set_unix_ms(at_.unix_ms);
      }
    }
  }
  void Say(ConnectionId from, proto::Envelope envelope, std::uint64_t generation) {
    envelope.set_run_id("run-1");
    envelope.set_generation(generation);
    Take(core_->OnMessage(from, "127.0.0.1", envelope, at_));
  }
  void Tick(std::chrono::milliseconds time) {
    at_.now += time;
    at_.unix_ms += time.count();
    Take(core_->OnTick(at_));
  }
  void SayAgentHello(char domain, bool running = false) {
    proto::Envelope envelope;
    envelope.mutable_agent_hello()->set_domain(std::string(1, domain));
    envelope.mutable_agent_hello()->set_running(running);
    Say(Agent(domain), envelope, 0);
  }
  void SayWorkerHello(char domain, const std::string& teacher = "t") {
    proto::Envelope envelope;
    envelope.mutable_worker_hello()->set_domain(std::string(1, domain));
    envelope.mutable_worker_hello()->set_local_size(1);
    envelope.mutable_worker_hello()->set_numeric_mode("cpu");
    envelope.mutable_worker_hello()->set_teacher_digest(teacher);
    Say(Worker(domain), envelope, 0);
  }
  void Join(char domain) {
    SayAgentHello(domain);
    SayWorkerHello(domain);
  }
  // Its agent's and its worker's connections break.
  void Cut(char domain) {
    Take(core_->OnClosed(Agent(domain), "reset", at_));
    Take(core_->OnClosed(Worker(domain), "reset", at_));
  }
  // Its connection broke, and it is back.
  void SayReturns(char domain, std::uint64_t generation) {
    proto::Envelope envelope;
    proto::WorkerHello& hello = *envelope.mutable_worker_hello();
    hello.set_domain(std::string(1, domain));
    hello.set_local_size(1);
    hello.set_resumes(true);
    hello.set_rank(domain - 'a');
    hello.set_numeric_mode("cpu");
    hello.set_teacher_digest("t");
    Say(Worker(domain), envelope, generation);
  }
  void SayRegrouped(char domain, std::int64_t step, bool has_state = true) {
    proto::Envelope envelope;
    proto::HeldState& held = *envelope.mutable_regrouped()->mutable_held();
    held.set_has_state(has_state);
    held.mutable_position()->set_step(step);
    Say(Worker(domain), envelope, Gathered());
  }
  // By the worker that has rank 0.
  void SayProgress(char domain, std::int64_t step) {
    proto::Envelope envelope;
    envelope.mutable_progress()->set_step(step);
    Say(Worker(domain), envelope, state().generation);
  }
  void SayExited(char domain, std::int32_t status, std::uint64_t attempt) {
    proto::Envelope envelope;
    envelope.mutable_domain_exited()->set_domain(std::string(1, domain));
    envelope.mutable_domain_exited()->set_exit_status(status);
    envelope.mutable_domain_exited()->set_attempt(attempt);
    Say(Agent(domain), envelope, 0);
  }
  std::vector<proto::Envelope> SentTo(ConnectionId to) const {
    std::vector<proto::Envelope> sent;
    for (const Action& action : log_) {
      const auto* send = std::get_if<SendAction>(&action);
      if (send != nullptr && send->to == to) sent.push_back(send->envelope);
    }
    return sent;
  }
  bool Regroups(char domain) const {
    const auto sent = SentTo(Worker(domain));
    return std::any_of(sent.begin(), sent.end(), [](const auto& e) { return e.has_regroup(); });
  }
  // The generation that is being gathered.
  std::uint64_t Gathered() const { return ReplayJournal(journal_).last_generation.value(); }
  // Names of the domains of the newest generation.
  std::string Formed() const {
    std::string names;
    for (const proto::GenerationMember& member : ReplayJournal(journal_).formed) {
      names += member.domain();
    }
    return names;
  }
  const RunState& state() const { return core_->state(); }
  Status Drain(char domain) {
    Result<Actions> actions = core_->Drain(std::string(1, domain), "a test", at_);
    if (!actions) return actions.error();
    Take(std::move(*actions));
    return {};
  }

  CoreOptions options_;
  std::unique_ptr<RunCore> core_;
  Moment at_;
  std::vector<Action> log_;
  std::vector<proto::JournalRecord> journal_;
};

}  // namespace dd2
