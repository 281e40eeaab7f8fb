#include "cli/run_coordinator.h"

#include <signal.h>

#include <utility>

#include "cli/control_file.h"
#include "common/exit_codes.h"
#include "common/file.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;

// "127.0.0.1:4711" for workers and agents, once `pid` has written it.
std::optional<std::string> ControlAddress(const fs::path& folder, pid_t pid) {
  const Result<ControlFile> file = ReadControlFile(folder);
  if (!file || static_cast<pid_t>(file->pid) != pid) return std::nullopt;
  return file->Address();
}

}  // namespace

RunCoordinator::RunCoordinator(fs::path program, fs::path run, std::vector<std::string> words,
                               const Clock& clock, std::chrono::milliseconds long_life)
    : program_(std::move(program)),
      run_(std::move(run)),
      words_(std::move(words)),
      clock_(clock),
      policy_(RestartLimits{.long_life = long_life}) {}

Status RunCoordinator::Spawn(const std::vector<std::string>& more) {
  SpawnOptions options;
  options.argv = {program_.string(), "--run", run_.string()};
  options.argv.insert(options.argv.end(), more.begin(), more.end());
  options.argv.insert(options.argv.end(), words_.begin(), words_.end());
  options.output = run_ / "logs" / "coordinator.out";
  DD2_TRY_ASSIGN(process_, ChildProcess::Spawn(options));
  started_ = clock_.Now();
  policy_.OnStarted(started_);
  return {};
}

Status RunCoordinator::Start(bool resume) {
  DD2_TRY(RealFileSystem().MakeDirectories(run_ / "logs"));
  // What it says now is what a failure is told with.
  DD2_TRY(RealFileSystem().Remove(run_ / "logs" / "coordinator.out"));
  return Spawn(resume ? std::vector<std::string>{"--resume"} : std::vector<std::string>{});
}

std::string RunCoordinator::Watch() {
  if (status_ || !process_) return "";
  if (const std::optional<int> status = process_->TryWait()) return OnEnded(*status);
  if (up()) return "";
  address_ = ControlAddress(run_, process_->pid());
  if (up()) {
    ++lives_;
    if (lives_ == 1) return "";
    return died_ + "; restarted, the workers kept training";
  }
  // The end that follows is seen like any other.
  if (clock_.Now() - started_ > kCoordinatorStart) static_cast<void>(process_->Signal(SIGKILL));
  return "";
}

std::string RunCoordinator::OnEnded(int status) {
  address_.reset();
  const bool full = status == kExitDiskFull;
  const bool died = full || status > 128;
  if (!died || !restarting_ || lives_ == 0) {
    status_ = status;
    return "";
  }
  died_ = full ? "the coordinator found the disk of " + run_.string() + " full"
               : "the coordinator died (signal " + std::to_string(status - 128) + ")";
  if (!policy_.OnEnded(clock_.Now())) {
    status_ = status;
    return died_ + " again and is not started any more";
  }
  const Status spawned = Spawn({"--recover"});
  if (!spawned) {
    status_ = status;
    return died_ + " and cannot be started: " + spawned.error().message();
  }
  // One that died is told of when the next is up; space has to be made by somebody.
  return full ? died_ + ": free some space; it waits for that, the workers train on" : "";
}

void RunCoordinator::Terminate(std::chrono::milliseconds grace) {
  restarting_ = false;
  static_cast<void>(Watch());
  if (!process_ || status_) return;
  terminated_ = true;
  if (const auto status = process_->Terminate(grace)) status_ = *status;
}

}  // namespace dd2
