// The part of RunCore that deals with wishes of people, losses and endings.

#include <algorithm>
#include <utility>

#include "common/timeouts.h"
#include "coordinator/run_core.h"

namespace dd2 {

Status RunCore::CheckSteerable(const char* what) const {
  if (stage_ == Stage::kActive) return Status();
  return Error(Code::kFailedPrecondition,
               std::string("cannot ") + what + ": the run is " +
                   (stage_ == Stage::kFinishing ? "finishing" : RunWordName(state_.word)));
}

void RunCore::ChangeDesired(const proto::Desired& wanted, const std::string& by, Moment at,
                            Actions& out) {
  desired_ = wanted;
  desired_.set_version(state_.desired_version + 1);
  state_.desired_version = desired_.version();
  state_.desired_paused = desired_.paused();
  state_.desired_stop = desired_.stop();
  state_.checkpoint_requests = desired_.checkpoint_requests();
  proto::JournalRecord record;
  *record.mutable_desired_changed()->mutable_desired() = desired_;
  record.mutable_desired_changed()->set_by(by);
  Journal(std::move(record), out);
  proto::Envelope envelope = NewEnvelope();
  *envelope.mutable_desired() = desired_;
  if (members_.formed()) SendToRanks(envelope, out);
  scheduler_.SetPaused(desired_.paused(), at.now);
  UpdatePhases(at);
  UpdateWord();
  Changed();
}

Result<Actions> RunCore::Pause(const std::string& by, Moment at) {
  DD2_TRY(CheckSteerable("pause"));
  Actions out;
  if (desired_.paused()) return out;
  proto::Desired wanted = desired_;
  wanted.set_paused(true);
  Event(at, "desired", "pause asked for by " + by);
  ChangeDesired(wanted, by, at, out);
  return out;
}

Result<Actions> RunCore::Resume(const std::string& by, Moment at) {
  DD2_TRY(CheckSteerable("resume"));
  Actions out;
  if (!desired_.paused()) return out;
  proto::Desired wanted = desired_;
  wanted.set_paused(false);
  Event(at, "desired", "resume asked for by " + by);
  ChangeDesired(wanted, by, at, out);
  return out;
}

Result<Actions> RunCore::RequestCheckpoint(const std::string& by, Moment at) {
  DD2_TRY(CheckSteerable("checkpoint"));
  if (!ever_formed_) {
    return Error(Code::kFailedPrecondition,
                 "cannot checkpoint: the run waits for its workers, nothing has changed since " +
                     (ledger_.newest().empty() ? std::string("its start") : ledger_.newest()));
  }
  Actions out;
  proto::Desired wanted = desired_;
  wanted.set_checkpoint_requests(desired_.checkpoint_requests() + 1);
  Event(at, "desired", "checkpoint asked for by " + by);
  ChangeDesired(wanted, by, at, out);
  return out;
}

Result<Actions> RunCore::Stop(const std::string& by, Moment at) {
  Actions out;
  if (stage_ == Stage::kStopping) return out;
  DD2_TRY(CheckSteerable("stop"));
  Event(at, "desired", "stop asked for by " + by);
  if (!ever_formed_) {
    End(RunWord::kStopped, "stopped by " + by + " before its workers had joined", at, out);
    return out;
  }
  stage_ = Stage::kStopping;
  deadline_ = at.now + times().stop;
  proto::Desired wanted = desired_;
  wanted.set_stop(true);
  wanted.set_paused(false);
  ChangeDesired(wanted, by, at, out);
  return out;
}

Actions RunCore::StopNow(const std::string& by, Moment at) {
  Actions out;
  if (stage_ == Stage::kEnded || stage_ == Stage::kFarewell) return out;
  End(RunWord::kStopped, "stopped at once by " + by + ", without a new checkpoint", at, out);
  return out;
}

void RunCore::OnWorkerDone(WorkerMember& member, bool stopped, Moment at, Actions& out) {
  member.done = true;
  if (stage_ == Stage::kActive) {
    Fail("rank " + std::to_string(member.rank->value()) +
             (stopped ? " stopped although nobody asked for it" : " left before the run was done"),
         at, out);
    return;
  }
  CheckReleased(at, out);
}

bool RunCore::AllWorkersDone() const {
  const std::vector<const WorkerMember*> workers = members_.ranks();
  return std::all_of(workers.begin(), workers.end(),
                     [](const WorkerMember* worker) { return worker->done; });
}

// Every phase is done: the workers may go, and send what is still on its way before.
void RunCore::ReleaseWorkers(Moment at, Actions& out) {
  stage_ = Stage::kFinishing;
  deadline_ = at.now + times().checkpoint_parts;
  proto::Envelope envelope = NewEnvelope();
  envelope.mutable_run_finished()->set_outcome(RunWordName(RunWord::kFinished));
  SendToRanks(envelope, out);
  CheckReleased(at, out);
}

std::string RunCore::HowItStopped() const {
  const auto newest = checkpoint_positions_.find(ledger_.newest());
  if (newest != checkpoint_positions_.end()) {
    RunPosition held = newest->second;
    if (IsAtEnd(held)) held = RunPosition{held.phase + 1, 0};  // as the scheduler calls it
    if (held >= scheduler_.position()) {
      return "stopped on request after checkpoint " + newest->first;
    }
  }
  std::string text = "stopped on request, but the checkpoint before it failed";
  if (!state_.checkpoints.empty() && !state_.checkpoints.back().reason.empty()) {
    text += " (" + state_.checkpoints.back().reason + ")";
  }
  return text + (newest == checkpoint_positions_.end()
                     ? ": there is none, a resumed run begins anew"
                     : ": the newest is " + newest->first + ", what came after is done again");
}

void RunCore::CheckReleased(Moment at, Actions& out) {
  if (!AllWorkersDone()) return;
  if (stage_ == Stage::kFinishing) {
    End(RunWord::kFinished, "", at, out);
  } else if (stage_ == Stage::kStopping && members_.formed()) {
    End(RunWord::kStopped, HowItStopped(), at, out);
  }
}

void RunCore::Fail(const std::string& reason, Moment at, Actions& out, ExitCode code) {
  // Who never came to work could not be started; that is another exit code.
  fail_code_ = ever_formed_ || code == kExitDoNotRestart ? code : kExitCannotStart;
  End(RunWord::kFailed, reason, at, out);
}

void RunCore::End(RunWord outcome, const std::string& message, Moment at, Actions& out) {
  if (stage_ == Stage::kFarewell || stage_ == Stage::kEnded) return;
  UpdatePhases(at);
  stage_ = Stage::kFarewell;
  CloseIncidents(true, at, out);
  outcome_ = outcome;
  exit_code_ = outcome == RunWord::kFinished  ? kExitOk
               : outcome == RunWord::kStopped ? kExitStopped
                                              : fail_code_;
  state_.message = outcome == RunWord::kFinished ? message : message + ". " + ResumeHint();
  UpdateWord();
  if (outcome == RunWord::kFinished) out.emplace_back(ResultAction{});
  proto::JournalRecord record;
  record.mutable_run_ended()->set_outcome(RunWordName(outcome));
  record.mutable_run_ended()->set_message(message);
  Journal(std::move(record), out);
  Event(at, outcome == RunWord::kFailed ? "incident" : "run",
        std::string("run ") + RunWordName(outcome) +
            (state_.message.empty() ? "" : ": " + state_.message));
  if (outcome != RunWord::kFinished) {
    proto::Envelope envelope = NewEnvelope();
    envelope.mutable_run_finished()->set_outcome(RunWordName(outcome));
    SendToRanks(envelope, out);
  }
  deadline_ = at.now + timeouts::kFarewell;
  // Workers that were released leave by themselves; those of a failed run may hang.
  tell_domain_at_ = outcome == RunWord::kFailed ? at.now : at.now + timeouts::kFarewell / 2;
  CheckGone(at, out);
  Changed();
}

// Taken over only to be ended: the agents of the coordinator before are about to come, and would
// wait for a long time for one that has gone.
bool RunCore::AgentsMayCome() const {
  if (!ended_at_start_ || !start_.orphan) return false;
  return std::any_of(start_.orphan->members.begin(), start_.orphan->members.end(),
                     [this](const proto::GenerationMember& member) {
                       return !members_.domains().contains(member.domain());
                     });
}

// In the farewell: tells the agents to clear up when it is time, and ends when everybody is gone.
void RunCore::CheckGone(Moment at, Actions& out) {
  if (stage_ != Stage::kFarewell) return;
  bool running = false;
  bool agents = false;
  for (const auto& [name, domain] : members_.domains()) {
    running = running || (domain.agent && domain.running);
    agents = agents || domain.agent;
  }
  if (agents && !domains_told_ && (!running || at.now >= *tell_domain_at_)) {
    domains_told_ = true;
    for (const auto& [name, domain] : members_.domains()) {
      if (!domain.agent) continue;
      proto::Envelope envelope = NewEnvelope();
      envelope.mutable_stop_domain()->set_reason(std::string("run ") + RunWordName(outcome_));
      SendTo(domain.agent->connection, std::move(envelope), out);
      if (!domain.running) out.emplace_back(CloseAction{domain.agent->connection});
    }
  }
  const bool everybody_gone = !running && members_.worker_count() == 0 && !AgentsMayCome();
  if (!everybody_gone && at.now < *deadline_) return;
  stage_ = Stage::kEnded;
  EndAction end;
  end.exit_code = exit_code_;
  out.emplace_back(end);
}

Actions RunCore::OnEffectFailed(const Error& error, bool journal_works, Moment at) {
  Actions out;
  journal_works_ = journal_works_ && journal_works;
  Changed();
  const bool ending = stage_ == Stage::kFarewell || stage_ == Stage::kEnded;
  // A life whose beginning is not in the journal cannot be taken over.
  const bool begun = start_.recovered || begun_;
  if (!ending && begun && error.code() == Code::kResourceExhausted) {
    // As after kill -9: what was decided is in the journal, the workers train on, and nobody is
    // told of anything that could not be written.
    stage_ = Stage::kEnded;
    state_.message = error.message();
    Event(at, "incident", "the coordinator ends, the next one waits for space: " + error.message());
    EndAction end;
    end.exit_code = kExitDiskFull;
    out.emplace_back(end);
    return out;
  }
  if (!ending) {
    Fail(error.message(), at, out);
    return out;
  }
  // It had ended; what could not be written makes it a failure. Actions behind the failed one were
  // dropped, so what matters of them is asked for again.
  exit_code_ = kExitRunFailed;
  outcome_ = RunWord::kFailed;
  state_.message = error.message();
  UpdateWord();
  Event(at, "incident", error.message());
  stage_ = Stage::kFarewell;
  domains_told_ = false;
  tell_domain_at_ = at.now;
  CheckGone(at, out);
  return out;
}

void RunCore::CheckDeadlines(Moment at, Actions& out) {
  const bool over = deadline_ && at.now >= *deadline_;
  switch (stage_) {
    case Stage::kActive:
      if (!over || members_.formed()) break;
      if (options_.elastic) {
        deadline_ = at.now + times().workers_join;
      } else {
        FailGathering(at, out);
      }
      break;
    case Stage::kFinishing:
      if (over) End(RunWord::kFinished, "", at, out);
      break;
    case Stage::kStopping:
      if (over) {
        End(RunWord::kStopped, "stopped on request, but the current step did not end in time", at,
            out);
      } else if (!members_.formed() && members_.worker_count() == 0) {
        End(RunWord::kStopped,
            "stopped on request, but without a new checkpoint: every worker is lost" +
                (last_failure_.empty() ? "" : " (" + last_failure_ + ")"),
            at, out);
      }
      break;
    case Stage::kFarewell: CheckGone(at, out); break;
    case Stage::kEnded: break;
  }
}

// Nobody came, or came back, in time.
void RunCore::FailGathering(Moment at, Actions& out) {
  std::size_t agents = 0;
  for (const auto& [name, domain] : members_.domains()) agents += domain.agent ? 1 : 0;
  std::string reason = "no agent joined in time";
  if (ever_formed_) {
    reason = "no domain came back in time" +
             (last_failure_.empty() ? std::string() : ": " + last_failure_);
  } else if (agents > 0) {
    reason = "only " + std::to_string(members_.worker_count()) + " of " +
             std::to_string(options_.config.ranks * options_.config.domains) +
             " workers joined in time; see the logs in " + options_.run_folder + "/logs";
  }
  Fail(reason, at, out);
}

std::string RunCore::ResumeHint() const {
  const std::string from = ledger_.newest().empty()
                               ? "from its beginning (there is no checkpoint yet)"
                               : "from checkpoint " + ledger_.newest();
  return "To go on " + from + ": dd2 run " + options_.run_folder + "/config.yaml --run " +
         options_.run_folder + " --resume";
}

}  // namespace dd2
