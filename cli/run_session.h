#pragma once

#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "cli/follower.h"
#include "cli/node_jobs.h"
#include "cli/run_agents.h"
#include "cli/run_coordinator.h"
#include "cli/run_files.h"
#include "cli/run_folder.h"
#include "cli/signals.h"
#include "common/clock.h"
#include "common/result.h"

namespace dd2 {

// The programs that a run on this machine consists of.
struct RunPrograms {
  std::filesystem::path coordinator;
  std::filesystem::path agent;
};

// Who works for a run.
struct RunWork {
  AgentPlaces places;    // of our own agents
  bool elastic = false;  // none of our own: domains join from elsewhere, and are waited for
  int node_jobs = 0;     // elastic, in a Slurm job: so many jobs of a node each are kept queued
  std::string command;   // the line as typed, for the record
};

// One `dd2 run` from a prepared folder to its end: starts coordinator and agents as children,
// starts again those that die, shows the run's progress, asks for a stop on a signal, and leaves no
// process behind. The children die with the thread that calls Run(), however it ends (kill -9 too).
// Main thread only.
class RunSession {
 public:
  // `live`: standard output is a terminal.
  RunSession(PreparedRun run, RunPrograms programs, RunWork work, const Clock& clock, bool live);

  // The exit code (common/exit_codes.h). Everything worth saying has been printed.
  int Run();

 private:
  // Starts the coordinator and waits until it can be asked.
  Status StartCoordinator();
  // Asked all the time while following: true ends it. Looks after the children.
  bool ShouldStop();
  void OnSignal();
  // Asks the coordinator to stop the run; again later if it is away.
  void AskToStop();
  // Domains that joined from elsewhere (dd2 agent join) go on without ours.
  bool OthersWork() const;
  bool AgentsAreLost();
  void CancelNodeJobs();
  void Note(const std::string& line);
  // Waits for the children to end by themselves, then ends what is left.
  void Gather();
  // What to tell and return when the run never got going. A new folder is emptied again.
  int Abandon(const std::string& message);
  int Conclude();
  int ConcludeFinished();
  // After the same failure again and again: what failed, where, the evidence, what to do.
  int ConcludeHopeless(const RunFiles& files, const std::string& reason);
  int ConcludeDead(const std::string& state);
  int Tell(int exit_code, const std::string& message) const;
  std::string HowToResume() const;
  // The last lines of a log of the run with its path; empty when there are none.
  std::string TailOf(const std::string& log) const;

  PreparedRun run_;
  const RunPrograms programs_;
  const bool elastic_;
  const Clock& clock_;
  const bool live_;
  SignalCounter signals_;
  RunCoordinator coordinator_;
  RunAgents agents_;
  std::optional<NodeJobs> node_jobs_;
  std::optional<Follower> follower_;
  int signals_seen_ = 0;
  bool stop_wanted_ = false;
  bool stop_noted_ = false;  // the user was told what came of the wish
  int stop_asked_in_ = 0;    // life of the coordinator that was asked; 0: none
  bool forced_ = false;
  std::optional<TimePoint> agents_lost_;  // the coordinator has had time to notice since then
};

// Prints the result table of a finished run and where its report lies; the exit code.
int PrintResult(const std::filesystem::path& folder);

}  // namespace dd2
