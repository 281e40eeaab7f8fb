#include "cli/run_agents.h"

#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "common/exit_codes.h"

namespace dd2 {

using std::chrono::milliseconds;
using std::chrono::seconds;

AgentPlaces OnThisMachine(int domains, int ranks) {
  AgentPlaces places;
  places.devices_each = ranks;
  if (domains == 1) {
    places.domains = {"local"};
    return places;
  }
  for (int i = 1; i <= domains; ++i) places.domains.push_back("local-" + std::to_string(i));
  return places;
}

AgentPlaces OnSlurmNodes(std::vector<std::string> nodes, const std::string& job,
                         const std::vector<std::string>& srun,
                         const std::vector<std::string>& container) {
  AgentPlaces places;
  places.domains = std::move(nodes);
  // A step of its own for each node: the end of one is nothing to the others.
  places.launcher = {"srun",           "--nodes=1",    "--ntasks=1",
                     "--nodelist=%d",  "--overlap",    "--mpi=none",
                     "--no-kill",      "--wait=0",     "--kill-on-bad-exit=0",
                     "--job-name=dd2", "--unbuffered", "--quiet"};
  places.launcher.insert(places.launcher.end(), srun.begin(), srun.end());
  places.launcher.insert(places.launcher.end(), container.begin(), container.end());
  places.options = {"--slurm-job", job};
  return places;
}

std::string DescribeStatus(int status) {
  std::string text = "status " + std::to_string(status);
  if (status > 128) text += " (killed by signal " + std::to_string(status - 128) + ")";
  return text;
}

RunAgents::RunAgents(std::filesystem::path program, std::filesystem::path run, AgentPlaces places,
                     const Clock& clock, milliseconds long_life, Restarts restarts)
    : program_(std::move(program)),
      run_(std::move(run)),
      places_(std::move(places)),
      clock_(clock),
      restarts_(restarts) {
  const RestartLimits limits{.first_delay = milliseconds(500),
                             .longest_delay = seconds(10),
                             .in_a_row = 5,
                             .long_life = long_life};
  for (const std::string& name : places_.domains) {
    const int first_device = static_cast<int>(agents_.size()) * places_.devices_each;
    agents_.push_back(Agent{name, first_device, RestartPolicy(limits), {}, {}, {}});
  }
}

Status RunAgents::Spawn(Agent& agent) {
  SpawnOptions options;
  for (std::string word : places_.launcher) {
    if (const std::size_t at = word.find("%d"); at != std::string::npos) {
      word.replace(at, 2, agent.domain);
    }
    options.argv.push_back(std::move(word));
  }
  options.argv.insert(options.argv.end(), {program_.string(), "--run", run_.string(), "--domain",
                                           agent.domain, "--coordinator", address_});
  if (agent.first_device > 0) {
    options.argv.insert(options.argv.end(), {"--first-device", std::to_string(agent.first_device)});
  }
  options.argv.insert(options.argv.end(), places_.options.begin(), places_.options.end());
  options.output = run_ / "logs" / ("agent-" + agent.domain + ".out");
  DD2_TRY_ASSIGN(agent.process, ChildProcess::Spawn(options));
  agent.status.reset();
  agent.starts_at.reset();
  agent.policy.OnStarted(clock_.Now());
  return {};
}

Status RunAgents::Start(std::string address) {
  address_ = std::move(address);
  for (Agent& agent : agents_) DD2_TRY(Spawn(agent));
  return {};
}

// What is to be said about it; empty when there is nothing.
std::string RunAgents::OnEnded(Agent& agent) {
  // 0: the coordinator ended this domain, with the run or because it was drained.
  if (*agent.status == kExitOk || !restarting_) return "";
  if (restarts_ == Restarts::kKilledOnly && *agent.status <= 128) return "";
  const std::string what =
      "dd2-agent of domain " + agent.domain + " ended with " + DescribeStatus(*agent.status);
  agent.starts_at = agent.policy.OnEnded(clock_.Now());
  if (!agent.starts_at) return what + ", again; it is not started any more";
  char delay[16];
  std::snprintf(delay, sizeof delay, "%.1f", SecondsBetween(clock_.Now(), *agent.starts_at));
  return what + "; it is started again in " + delay + " s";
}

std::vector<std::string> RunAgents::Watch(bool may_start) {
  std::vector<std::string> lines;
  for (Agent& agent : agents_) {
    if (agent.process && !agent.status) {
      agent.status = agent.process->TryWait();
      if (agent.status) lines.push_back(OnEnded(agent));
    } else if (agent.starts_at && !restarting_) {
      agent.starts_at.reset();
    } else if (agent.starts_at && may_start && clock_.Now() >= *agent.starts_at) {
      if (const Status started = Spawn(agent); !started) {
        lines.push_back("domain " + agent.domain + ": " + started.error().message());
        agent.starts_at = agent.policy.OnEnded(clock_.Now());
      }
    }
  }
  std::erase(lines, "");
  return lines;
}

bool RunAgents::AllEnded() const {
  return std::all_of(agents_.begin(), agents_.end(), [](const Agent& agent) {
    return (!agent.process || agent.status) && !agent.starts_at;
  });
}

RunAgents::Ended RunAgents::FirstEnded() const {
  const auto failed = std::find_if(agents_.begin(), agents_.end(), [](const Agent& agent) {
    return agent.status.value_or(0) != 0;
  });
  const Agent& agent = failed != agents_.end() ? *failed : agents_.front();
  return {agent.domain, agent.status.value_or(0)};
}

void RunAgents::Terminate(milliseconds grace) {
  restarting_ = false;
  static_cast<void>(Watch(false));
  // All are asked before the first is waited for: together they need no longer than one. They take
  // mpirun and the workers along.
  for (Agent& agent : agents_) {
    if (agent.process && !agent.status)
      static_cast<void>(agent.process->Signal(places_.stop_signal));
  }
  const TimePoint deadline = clock_.Now() + grace;
  for (Agent& agent : agents_) {
    if (!agent.process || agent.status) continue;
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - clock_.Now());
    agent.status = agent.process->Wait(std::max(left, milliseconds(0)));
    if (agent.status) continue;
    static_cast<void>(agent.process->Signal(SIGKILL));
    agent.status = agent.process->Wait(seconds(10));
  }
}

}  // namespace dd2
