// The part of RunCore that deals with wishes of people, losses and endings.

#include <algorithm>
#include <utility>

#include "common/timeouts.h"
#include "coordinator/run_core.h"

namespace dd2 {

namespace {

// How much a reason explains: a heavier one replaces a lighter one.
constexpr int kConnectionLost = 1;
constexpr int kPeerTrouble = 2;  // a rank that only felt another one go
constexpr int kDomainEnded = 3;

// A rank saw another one go: the cause is elsewhere.
bool IsEcho(const std::string& code) {
  return code == CodeName(Code::kUnavailable) || code == CodeName(Code::kAborted) ||
         code == CodeName(Code::kDeadlineExceeded);
}

std::string DescribeExit(int status) {
  if (status == 0) return "ended although the run was not finished";
  if (status > 128 && status < 128 + 65) {
    return "was killed by signal " + std::to_string(status - 128);
  }
  return "ended with status " + std::to_string(status);
}

}  // namespace

Status RunCore::CheckSteerable(const char* what) const {
  if (stage_ == Stage::kJoining || stage_ == Stage::kRunning) return Status();
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
  if (members_.formed()) SendToWorkers(envelope, out);
  scheduler_.SetPaused(desired_.paused(), at.now);
  UpdatePhases(at);
  UpdateWord();
  ++state_.version;
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
  if (stage_ == Stage::kJoining) {
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
  if (stage_ == Stage::kJoining) {
    End(RunWord::kStopped, "stopped by " + by + " before its workers had joined", at, out);
    return out;
  }
  stage_ = Stage::kStopping;
  deadline_ = at.now + timeouts::kStop;
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

void RunCore::OnWorkerFailed(const WorkerMember& member, const proto::WorkerFailed& failed,
                             Moment at, Actions& out) {
  if (stage_ == Stage::kFinishing) return;
  const RunPosition position = scheduler_.position();
  const std::string where = member.phase < 0 ? "before its first step"
                                             : "in phase " + PhaseLabel(position.phase) +
                                                   " after step " + std::to_string(member.step);
  const std::string reason = "rank " + std::to_string(member.rank->value()) + " failed " + where +
                             ": " + failed.message() + " (" + failed.code() + ")";
  Event(at, "incident", reason);
  if (IsEcho(failed.code())) {
    NoteLoss(kPeerTrouble, reason, at.now + timeouts::kLossReason);
  } else {
    Fail(reason, at, out);
  }
}

void RunCore::OnWorkerDone(WorkerMember& member, bool stopped, Moment at, Actions& out) {
  member.done = true;
  if (stage_ == Stage::kRunning) {
    Fail("rank " + std::to_string(member.rank->value()) +
             (stopped ? " stopped although nobody asked for it" : " left before the run was done"),
         at, out);
    return;
  }
  CheckReleased(at, out);
}

void RunCore::OnDomainExited(const proto::DomainExited& exited, Moment at, Actions& out) {
  domain_gone_ = true;
  if (stage_ == Stage::kFarewell) {
    CheckGone(at, out);
    return;
  }
  if (stage_ == Stage::kFinishing || (stage_ == Stage::kStopping && AllWorkersDone())) return;
  std::string reason =
      "mpirun of domain '" + exited.domain() + "' " + DescribeExit(exited.exit_status());
  if (!exited.log_tail().empty()) reason += ". The end of its log:\n" + exited.log_tail();
  Event(at, "incident", reason);
  // What its workers said last may still be on its way to us.
  const TimePoint soon = at.now + 2 * timeouts::kTick;
  NoteLoss(kDomainEnded, std::move(reason), soon);
  loss_->deadline = std::min(loss_->deadline, soon);
}

Actions RunCore::OnClosed(ConnectionId connection, const std::string& reason, Moment at) {
  Actions out;
  const bool agent = members_.IsAgent(connection);
  const WorkerMember* member = members_.worker(connection);
  if (!agent && member == nullptr) return out;
  const bool done = member != nullptr && member->done;
  const std::string who =
      agent ? "the agent of domain '" + members_.agent()->hello.domain() + "'"
            : (member->rank ? "rank " + std::to_string(member->rank->value())
                            : "worker " + std::to_string(member->hello.local_rank())) +
                  " (pid " + std::to_string(member->hello.pid()) + ")";
  members_.Remove(connection);
  switch (stage_) {
    case Stage::kJoining:
    case Stage::kRunning:
    case Stage::kStopping:
      if (done) break;
      Event(at, "incident", who + " is lost: " + reason);
      NoteLoss(kConnectionLost, who + " is lost: " + reason, at.now + timeouts::kLossReason);
      // Without its agent a domain dies, and nobody is left who could say more.
      if (agent) loss_->deadline = at.now;
      break;
    case Stage::kFinishing: break;
    case Stage::kFarewell: CheckGone(at, out); break;
    case Stage::kEnded: return out;
  }
  UpdateMembers(at);
  CheckReleased(at, out);
  ++state_.version;
  return out;
}

void RunCore::NoteLoss(int weight, std::string reason, TimePoint deadline) {
  if (!loss_) {
    loss_ = Loss{.weight = 0, .reason = {}, .deadline = deadline};
  }
  if (weight > loss_->weight) {
    loss_->weight = weight;
    loss_->reason = std::move(reason);
  }
}

bool RunCore::AllWorkersDone() const {
  const std::vector<const WorkerMember*> workers = members_.workers();
  return std::all_of(workers.begin(), workers.end(),
                     [](const WorkerMember* worker) { return worker->done; });
}

// Every phase is done: the workers may go, and send what is still on its way before.
void RunCore::ReleaseWorkers(Moment at, Actions& out) {
  stage_ = Stage::kFinishing;
  deadline_ = at.now + timeouts::kCheckpointParts;
  loss_.reset();
  proto::Envelope envelope = NewEnvelope();
  envelope.mutable_run_finished()->set_outcome(RunWordName(RunWord::kFinished));
  SendToWorkers(envelope, out);
  CheckReleased(at, out);
}

void RunCore::CheckReleased(Moment at, Actions& out) {
  if (!AllWorkersDone()) return;
  if (stage_ == Stage::kFinishing) {
    End(RunWord::kFinished, "", at, out);
  } else if (stage_ == Stage::kStopping && !loss_) {
    End(RunWord::kStopped, "stopped on request after checkpoint " + ledger_.newest(), at, out);
  }
}

void RunCore::Fail(const std::string& reason, Moment at, Actions& out) {
  // Who never came to work could not be started; that is another exit code.
  const bool worked = members_.formed();
  End(RunWord::kFailed, reason, at, out);
  if (stage_ == Stage::kFarewell || stage_ == Stage::kEnded) {
    exit_code_ = worked ? kExitRunFailed : kExitCannotStart;
  }
}

void RunCore::End(RunWord outcome, const std::string& message, Moment at, Actions& out) {
  if (stage_ == Stage::kFarewell || stage_ == Stage::kEnded) return;
  UpdatePhases(at);
  stage_ = Stage::kFarewell;
  outcome_ = outcome;
  exit_code_ = outcome == RunWord::kFinished  ? kExitOk
               : outcome == RunWord::kStopped ? kExitStopped
                                              : kExitRunFailed;
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
    SendToWorkers(envelope, out);
  }
  deadline_ = at.now + timeouts::kFarewell;
  // Workers that were released leave by themselves; those of a failed run may hang.
  tell_domain_at_ = outcome == RunWord::kFailed ? at.now : at.now + timeouts::kFarewell / 2;
  CheckGone(at, out);
  ++state_.version;
}

// In the farewell: tells the agent to clear up when it is time, and ends when everybody is gone.
void RunCore::CheckGone(Moment at, Actions& out) {
  if (stage_ != Stage::kFarewell) return;
  const std::optional<AgentMember>& agent = members_.agent();
  if (agent && !domain_told_ && (domain_gone_ || at.now >= *tell_domain_at_)) {
    domain_told_ = true;
    proto::Envelope envelope = NewEnvelope();
    envelope.mutable_stop_domain()->set_reason(std::string("run ") + RunWordName(outcome_));
    SendTo(agent->connection, std::move(envelope), out);
    if (domain_gone_) out.emplace_back(CloseAction{agent->connection});
  }
  const bool domain_over = !agent || domain_gone_;
  const bool everybody_gone = domain_over && members_.worker_count() == 0;
  if (!everybody_gone && at.now < *deadline_) return;
  stage_ = Stage::kEnded;
  EndAction end;
  end.exit_code = exit_code_;
  out.emplace_back(end);
}

Actions RunCore::OnEffectFailed(const Error& error, bool journal_works, Moment at) {
  Actions out;
  journal_works_ = journal_works_ && journal_works;
  ++state_.version;
  if (stage_ != Stage::kFarewell && stage_ != Stage::kEnded) {
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
  domain_told_ = false;
  tell_domain_at_ = at.now;
  CheckGone(at, out);
  return out;
}

Actions RunCore::OnTick(Moment at) {
  Actions out;
  if (stage_ == Stage::kEnded) return out;
  // A gap means that we were stopped or starved: what others sent meanwhile is still unread.
  if (last_tick_ && at.now - *last_tick_ > timeouts::kHeartbeatExpiry / 3) {
    members_.ForgiveSilence(at.now);
  }
  last_tick_ = at.now;
  for (const ConnectionId connection : members_.Expired(at.now)) {
    out.emplace_back(CloseAction{connection});
    const std::string reason =
        "no sign of life for " +
        std::to_string(
            std::chrono::duration_cast<std::chrono::seconds>(timeouts::kHeartbeatExpiry).count()) +
        " s";
    for (Action& action : OnClosed(connection, reason, at)) out.emplace_back(std::move(action));
  }
  CheckDeadlines(at, out);
  if (!view_updated_ || at.now - *view_updated_ >= std::chrono::seconds(1)) {
    view_updated_ = at.now;
    UpdatePhases(at);
    ++state_.version;
  }
  return out;
}

void RunCore::CheckDeadlines(Moment at, Actions& out) {
  if (loss_ && at.now >= loss_->deadline) {
    const std::string reason = loss_->reason;
    loss_.reset();
    if (stage_ == Stage::kStopping) {
      End(RunWord::kStopped, "stopped on request, but without a new checkpoint: " + reason, at,
          out);
    } else {
      Fail(reason, at, out);
    }
  }
  const bool over = deadline_ && at.now >= *deadline_;
  switch (stage_) {
    case Stage::kJoining:
      if (!over) break;
      Fail(members_.agent()
               ? "only " + std::to_string(members_.worker_count()) + " of " +
                     std::to_string(options_.config.ranks) +
                     " workers joined in time; see the logs in " + options_.run_folder + "/logs"
               : "no agent joined in time",
           at, out);
      break;
    case Stage::kRunning: break;
    case Stage::kFinishing:
      if (over) End(RunWord::kFinished, "", at, out);
      break;
    case Stage::kStopping:
      if (over) {
        End(RunWord::kStopped, "stopped on request, but the current step did not end in time", at,
            out);
      }
      break;
    case Stage::kFarewell: CheckGone(at, out); break;
    case Stage::kEnded: break;
  }
}

std::string RunCore::ResumeHint() const {
  const std::string from = ledger_.newest().empty()
                               ? "from its beginning (there is no checkpoint yet)"
                               : "from checkpoint " + ledger_.newest();
  return "To go on " + from + ": dd2 run " + options_.run_folder + "/config.yaml --run " +
         options_.run_folder + " --resume";
}

}  // namespace dd2
