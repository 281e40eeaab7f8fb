#pragma once

#include <chrono>
#include <filesystem>
#include <optional>
#include <string>

#include "cli/run_agents.h"
#include "cli/signals.h"
#include "common/clock.h"
#include "common/result.h"

namespace dd2 {

struct JoinOptions {
  std::filesystem::path run;
  std::string domain;
  std::filesystem::path agent;          // program
  std::chrono::milliseconds long_life;  // of an agent: earlier ends are forgotten
  // For a coordinator that is not there, at the beginning and whenever it is away: a run in Slurm
  // comes back. 0: not at all.
  std::chrono::milliseconds wait{0};
  int first_device = 0;  // GPU of its first rank
};

// One `dd2 agent join`: a domain more for a running run, from its agent's start to its end, again
// for each life of the run where it waits for the next one. The agent dies with the thread that
// calls Run(). Main thread only.
class JoinSession {
 public:
  JoinSession(JoinOptions options, const Clock& clock)
      : options_(std::move(options)), clock_(clock) {}

  // The exit code (common/exit_codes.h). Everything worth saying has been printed.
  int Run();

 private:
  // What came of one life of the run.
  struct Outcome {
    int exit_code = 0;
    bool comes_back = false;  // the run is not over, or was stopped by what will start it again
  };

  // The coordinator's control address once it can be asked; kUnavailable: it did not come in time,
  // or we were told to leave.
  Result<std::string> AwaitCoordinator();
  Outcome Work(const std::string& address);
  // How the coordinator calls the state of our domain; empty: it does not know it.
  Result<std::string> AskState() const;
  // Tells what has changed; true: the coordinator has given the domain up.
  bool IsGivenUp();
  // It ended, or goes on at another address, while our agent could not be told.
  bool RunHasMoved(const std::string& address);
  // Asks for the drain; again later if nobody answers.
  void AskToLeave();
  // We are the last domain: a checkpoint is asked for, and waited for before we leave.
  void AskForCheckpoint();
  bool CheckpointIsThere();
  Outcome Leave(const std::string& why);
  Outcome Conclude();
  // No domain of ours is wanted any more.
  bool RunIsOver() const;
  // The last lines of a log of the run, with its path; empty when there are none.
  std::string TailOf(const std::string& log, std::size_t tail_bytes = 2000) const;

  const JoinOptions options_;
  const Clock& clock_;
  SignalCounter signals_;
  std::optional<RunAgents> agents_;
  std::string state_;  // as it was told last
  std::optional<TimePoint> no_coordinator_since_;
  bool leave_answered_ = false;
  std::optional<std::string> newest_;  // checkpoint before the one that we wait for
  std::optional<TimePoint> leave_by_;
};

}  // namespace dd2
