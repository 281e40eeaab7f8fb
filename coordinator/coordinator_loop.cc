#include "coordinator/coordinator_loop.h"

#include <type_traits>
#include <utility>
#include <variant>

#include "common/timeouts.h"
#include "coordinator/recovery.h"
#include "coordinator/result_json.h"
#include "storage/checkpoint_store.h"

namespace dd2 {

CoordinatorLoop::CoordinatorLoop(asio::io_context& context, FileSystem& files, const Clock& clock,
                                 Journal& journal, CoreOptions core, CoreStart start,
                                 LoopOptions options)
    : files_(files),
      clock_(clock),
      journal_(journal),
      options_(std::move(options)),
      core_(core, std::move(start)),
      store_(core.run_id, clock),
      control_(context.get_executor(), core.run_id, options_.secret, store_, Handlers()),
      tick_(context.get_executor()) {}

ControlHandlers CoordinatorLoop::Handlers() {
  ControlHandlers handlers;
  handlers.on_message = [this](ConnectionId from, const std::string& address,
                               const proto::Envelope& envelope) {
    static_cast<void>(Perform(core_.OnMessage(from, address, envelope, Now())));
  };
  handlers.on_closed = [this](ConnectionId connection, const std::string& reason) {
    static_cast<void>(Perform(core_.OnClosed(connection, reason, Now())));
  };
  return handlers;
}

void CoordinatorLoop::AddObserver(RunObserver& observer) { observers_.push_back(&observer); }

Result<std::uint16_t> CoordinatorLoop::Listen() {
  return control_.Listen(options_.host, options_.port);
}

Task<ExitCode> CoordinatorLoop::Run() {
  static_cast<void>(Perform(core_.Start(Now())));
  error_code code;
  while (!ended_) {
    tick_.expires_after(timeouts::kTick);
    co_await tick_.async_wait(asio::redirect_error(asio::use_awaitable, code));
    if (ended_) break;
    store_.OnTick();
    static_cast<void>(Perform(core_.OnTick(Now())));
  }
  co_await control_.Stop();
  co_return exit_code_;
}

void CoordinatorLoop::OnSignal(const std::string& name) {
  if (++signals_ > 1) {
    static_cast<void>(Perform(core_.StopNow(name, Now())));
    return;
  }
  // A run that is ending already ends.
  static_cast<void>(PerformWish(core_.Stop(name, Now())));
}

Status CoordinatorLoop::Pause(const std::string& by) { return PerformWish(core_.Pause(by, Now())); }

Status CoordinatorLoop::Resume(const std::string& by) {
  return PerformWish(core_.Resume(by, Now()));
}

Status CoordinatorLoop::RequestCheckpoint(const std::string& by) {
  return PerformWish(core_.RequestCheckpoint(by, Now()));
}

Status CoordinatorLoop::Cancel(const std::string& by) { return PerformWish(core_.Stop(by, Now())); }

Status CoordinatorLoop::Drain(const std::string& domain, const std::string& by) {
  return PerformWish(core_.Drain(domain, by, Now()));
}

Status CoordinatorLoop::PerformWish(Result<Actions> actions) {
  if (!actions) return actions.error();
  return Perform(std::move(*actions));
}

Moment CoordinatorLoop::Now() const {
  Moment moment;
  moment.now = clock_.Now();
  moment.unix_ms = clock_.UnixMs();
  return moment;
}

Status CoordinatorLoop::Perform(Actions actions) {
  std::size_t i = 0;
  while (i < actions.size()) {
    std::vector<proto::JournalRecord> records;
    while (i < actions.size() && std::holds_alternative<JournalAction>(actions[i])) {
      records.push_back(std::move(std::get<JournalAction>(actions[i++]).record));
    }
    const bool journal = !records.empty();
    const Status done =
        journal ? journal_.Append(std::move(records), clock_.UnixMs()) : Do(actions[i++]);
    if (!done) {
      // Nothing behind the failed action may happen; the core says how it ends.
      const Error error = done.error().Wrap(journal ? "the journal" : "the run folder");
      static_cast<void>(Perform(core_.OnEffectFailed(error, !journal, Now())));
      return error;
    }
  }
  Notify();
  return Status();
}

Status CoordinatorLoop::Do(const Action& action) {
  if (const auto* send = std::get_if<SendAction>(&action)) {
    control_.Send(send->to, send->envelope);
  } else if (const auto* close = std::get_if<CloseAction>(&action)) {
    control_.Close(close->connection);
  } else if (const auto* generation = std::get_if<GenerationAction>(&action)) {
    store_.StartGeneration(generation->generation);
  } else if (const auto* publish = std::get_if<PublishAction>(&action)) {
    const auto checkpoints = options_.run_folder / "checkpoints";
    DD2_TRY(PublishManifest(files_, checkpoints, publish->manifest));
    // Nobody writes an older one any more: parts that were lost with their generation would only
    // take space. What stays behind is removed at the next start.
    static_cast<void>(RemoveUncommitted(files_, checkpoints, publish->manifest.checkpoint_id()));
  } else if (const auto* removal = std::get_if<DeleteAction>(&action)) {
    // It is journalled as dropped: what stays behind is removed at the next start. Parts of older
    // ones are void, and might take the space that the next save needs.
    const auto checkpoints = options_.run_folder / "checkpoints";
    static_cast<void>(DeleteCheckpoint(files_, checkpoints, removal->checkpoint_id));
    static_cast<void>(RemoveUncommitted(files_, checkpoints, removal->checkpoint_id));
  } else if (const auto* bad = std::get_if<QuarantineAction>(&action)) {
    return QuarantineCheckpoint(files_, options_.run_folder, bad->checkpoint_id, bad->reason,
                                clock_.UnixMs());
  } else if (const auto* incident = std::get_if<IncidentAction>(&action)) {
    for (RunObserver* observer : observers_) DD2_TRY(observer->OnIncident(incident->incident));
  } else if (const auto* position = std::get_if<PositionAction>(&action)) {
    for (RunObserver* observer : observers_) {
      DD2_TRY(observer->OnPosition(position->position.phase, position->position.step));
    }
  } else if (const auto* record = std::get_if<RecordAction>(&action)) {
    for (RunObserver* observer : observers_) DD2_TRY(observer->OnStep(record->step));
  } else if (std::holds_alternative<ResultAction>(action)) {
    return WriteResult();
  } else if (const auto* end = std::get_if<EndAction>(&action)) {
    ended_ = true;
    exit_code_ = end->exit_code;
    tick_.cancel();
  }
  return Status();
}

Status CoordinatorLoop::WriteResult() {
  return WriteFileAtomically(files_, options_.run_folder / "result.json",
                             BuildResultJson(core_.state()));
}

void CoordinatorLoop::Notify() {
  if (core_.state().version == notified_version_) return;
  notified_version_ = core_.state().version;
  for (RunObserver* observer : observers_) observer->OnChange(core_.state());
}

}  // namespace dd2
