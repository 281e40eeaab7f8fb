#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/slurm_client.h"
#include "common/json.h"
#include "common/result.h"

namespace dd2 {

// RUN/slurm: the scripts of a run's jobs, and which jobs it has.
std::filesystem::path SlurmFolder(const std::filesystem::path& run);
std::filesystem::path MainScript(const std::filesystem::path& run);  // of the one with `dd2 run`
std::filesystem::path NodeScript(const std::filesystem::path& run);  // job-per-node
// Stands there once somebody has cancelled the run: its jobs do not queue again.
std::filesystem::path CancelMark(const std::filesystem::path& run);

// The jobs of a run, as RUN/slurm/jobs.json has them. Those that are over may be among them.
struct RunJobs {
  std::string main;                // with `dd2 run`: coordinator, and all agents in one allocation
  std::vector<std::string> nodes;  // job-per-node: one for each node
};

// kNotFound: the run was not submitted to Slurm.
Result<RunJobs> ReadRunJobs(const std::filesystem::path& run);
Status WriteRunJobs(const std::filesystem::path& run, const RunJobs& jobs);
// We are in the main job of a run that was submitted, whoever has started it.
Status RememberOwnJob(const std::filesystem::path& run);

// Those of `jobs` that Slurm still has, the main one first.
struct LiveJobs {
  std::optional<SlurmJob> main;
  std::vector<SlurmJob> nodes;
  bool preempted = false;  // what the main job's script says of its last end
};
LiveJobs PickJobs(const RunJobs& jobs, const std::vector<SlurmJob>& queue);

// Asks Slurm for the run's jobs. kNotFound: it was not submitted.
Result<LiveJobs> AskForJobs(const std::filesystem::path& run);

// How a run stands that has no coordinator: `state` as its files have it, unless a job of it will
// go on with it: "queued", "preempted", "requeued", "starting".
std::string StateWithJobs(const std::string& state, const LiveJobs& jobs);

// A line for each job: "  slurm job 12 (coordinator) runs on n1".
std::string FormatJobs(const LiveJobs& jobs);
boost::json::array JobsDocument(const LiveJobs& jobs);

}  // namespace dd2
