#pragma once

#include <signal.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cli/restart_policy.h"
#include "common/clock.h"
#include "common/process.h"
#include "common/result.h"

namespace dd2 {

// Where the agents of a run are started.
struct AgentPlaces {
  std::vector<std::string> domains;  // names
  // Words in front of an agent's own; "%d" stands for the name of its domain.
  std::vector<std::string> launcher;
  std::vector<std::string> options;  // more of the agent's own
  int devices_each = 0;              // GPUs: those of a domain begin so many behind the one before
  int stop_signal = SIGTERM;         // asks one to end
};
// Domain "local", or "local-1" ... "local-N" where a run has several; `ranks` work in each.
AgentPlaces OnThisMachine(int domains, int ranks);
// Nodes of the Slurm job that we are in: each is a domain and gives it its name.
// `srun`: more words of its own; `container`: words in front of the agent's.
AgentPlaces OnSlurmNodes(std::vector<std::string> nodes, const std::string& job,
                         const std::vector<std::string>& srun,
                         const std::vector<std::string>& container);

// The agents of a run that this process started, one for each failure domain. One that dies takes
// its domain along and is started again; what the others do meanwhile is the coordinator's affair.
//
// Owned by RunSession; main thread only: agents die with the thread that started them. The
// destructor kills them.
class RunAgents {
 public:
  // Which ends are followed by a new start: all but those on the coordinator's word, or those by a
  // signal, as an agent that ended by itself had a reason.
  enum class Restarts : std::uint8_t { kAll, kKilledOnly };
  // `long_life`: earlier ends of an agent that has lived for this long are forgotten.
  RunAgents(std::filesystem::path program, std::filesystem::path run, AgentPlaces places,
            const Clock& clock, std::chrono::milliseconds long_life,
            Restarts restarts = Restarts::kAll);

  // Starts all of them; `address` is the coordinator's control address, HOST:PORT.
  Status Start(std::string address);
  // Looks after them; call it often. With `may_start` those whose time has come are started again.
  // What happened, a line each, for people.
  std::vector<std::string> Watch(bool may_start);
  // Lets those that end now rest.
  void StopRestarting() { restarting_ = false; }
  // None runs and none will be started again.
  bool AllEnded() const;
  // The stop signal to all, SIGKILL to those that still run after `grace`. Blocks.
  void Terminate(std::chrono::milliseconds grace);

  // Name and last exit status of one that ended for good, a failed one first. Only if AllEnded(),
  // and there are some.
  struct Ended {
    std::string domain;
    int status = 0;
  };
  Ended FirstEnded() const;

 private:
  struct Agent {
    std::string domain;
    int first_device = 0;
    RestartPolicy policy;
    std::optional<ChildProcess> process;
    std::optional<int> status;           // of the last process, once it has ended
    std::optional<TimePoint> starts_at;  // it has ended and will be started again
  };
  Status Spawn(Agent& agent);
  std::string OnEnded(Agent& agent);

  const std::filesystem::path program_;
  const std::filesystem::path run_;
  const AgentPlaces places_;
  const Clock& clock_;
  std::string address_;
  std::vector<Agent> agents_;
  const Restarts restarts_;
  bool restarting_ = true;
};

// "status 3", "status 137 (killed by signal 9)".
std::string DescribeStatus(int status);

}  // namespace dd2
