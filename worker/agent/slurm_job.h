#pragma once

#include <string>
#include <vector>

namespace dd2 {

// Commands for a step of a Slurm job that has something to say to it. They succeed (exit status 0)
// when Slurm took it.

// The job's script hears SIGUSR1: a preemption. Fails for a job that is being cancelled.
std::vector<std::string> TellScript(const std::string& job);

// Queues the job again if the node that its script works on is down. Under --no-kill Slurm (22.05)
// leaves such a job running, without its script, until its time is over.
std::vector<std::string> RequeueOrphan(const std::string& job);

}  // namespace dd2
