#pragma once

#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "cli/follower.h"
#include "cli/run_folder.h"
#include "cli/signals.h"
#include "common/clock.h"
#include "common/process.h"
#include "common/result.h"

namespace dd2 {

// The programs that a run on this machine consists of.
struct RunPrograms {
  std::filesystem::path coordinator;
  std::filesystem::path agent;
};

// One `dd2 run` from a prepared folder to its end: starts coordinator and agent as children, shows
// their progress, asks for a stop on a signal, and leaves no process behind. The children die with
// the thread that calls Run(), however it ends (kill -9 too). Main thread only.
class RunSession {
 public:
  // `live`: standard output is a terminal.
  // `command`: the line as typed, for the record.
  RunSession(PreparedRun run, RunPrograms programs, std::string command, const Clock& clock,
             bool live);

  // The exit code (common/exit_codes.h). Everything worth saying has been printed.
  int Run();

 private:
  // Starts the coordinator and waits until it can be asked; its control address.
  Result<std::string> StartCoordinator();
  Status StartAgent(const std::string& address);
  // Asked all the time while following: true ends it.
  bool ShouldStop();
  void OnSignal();
  bool AgentIsLost();
  // Waits for both children to end by themselves, then ends what is left.
  void Gather();
  // What to tell and return when the run never got going. A new folder is emptied again.
  int Abandon(const std::string& message);
  int Conclude();
  int ConcludeFinished();
  int ConcludeDead(const std::string& state);
  int Tell(int exit_code, const std::string& message) const;
  std::string HowToResume() const;
  // The last lines of a log of the run with its path; empty when there are none.
  std::string TailOf(const std::string& log) const;

  PreparedRun run_;
  const RunPrograms programs_;
  const std::string command_;
  const Clock& clock_;
  const bool live_;
  SignalCounter signals_;
  std::optional<ChildProcess> coordinator_;
  std::optional<ChildProcess> agent_;
  std::optional<int> coordinator_status_;
  std::optional<int> agent_status_;
  std::optional<Follower> follower_;
  int signals_seen_ = 0;
  bool forced_ = false;
  std::optional<TimePoint> agent_lost_;  // the coordinator has had time to notice since then
};

// Prints the result table of a finished run and where its report lies; the exit code.
int PrintResult(const std::filesystem::path& folder);

}  // namespace dd2
