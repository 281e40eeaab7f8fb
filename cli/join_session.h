#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "cli/run_agents.h"
#include "cli/signals.h"
#include "common/clock.h"
#include "common/result.h"

namespace dd2 {

// One `dd2 agent join`: a domain more for a running run, from its agent's start to its end. The
// agent dies with the thread that calls Run(). Main thread only.
class JoinSession {
 public:
  // `address`: the coordinator's control address, HOST:PORT.
  JoinSession(std::filesystem::path run, std::string domain, std::filesystem::path agent,
              std::string address, const Clock& clock, std::chrono::milliseconds long_life);

  // The exit code (common/exit_codes.h). Everything worth saying has been printed.
  int Run();

 private:
  // How the coordinator calls the state of our domain; empty: it does not know it.
  Result<std::string> AskState() const;
  // Tells what has changed; true: the coordinator has given the domain up.
  bool IsGivenUp();
  // It ended while our agent could not be told.
  bool RunHasEnded();
  // Asks for the drain; again later if nobody answers.
  void AskToLeave();
  int Conclude();
  // The last lines of a log of the run, with its path; empty when there are none.
  std::string TailOf(const std::string& log, std::size_t tail_bytes = 2000) const;

  const std::filesystem::path run_;
  const std::string domain_;
  const std::string address_;
  const Clock& clock_;
  SignalCounter signals_;
  RunAgents agents_;
  std::string state_;  // as it was told last
  std::optional<TimePoint> no_coordinator_since_;
  bool leave_wanted_ = false;
  bool leave_answered_ = false;
};

}  // namespace dd2
