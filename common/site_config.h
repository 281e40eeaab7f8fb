#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dd2 {

// What holds for every run of a Slurm site, from its file (slurm/site.yaml; common/config_site.h
// reads it). Plain data; an empty string: not said, Slurm's own default holds.
struct SiteConfig {
  // one-allocation: one job for all nodes. job-per-node: a small job for the coordinator and one
  // for each node.
  std::string shape = "one-allocation";
  std::string partition;
  std::string account;
  std::string qos;
  std::string constraint;
  std::string gres;
  std::string time;
  int grace = 180;      // seconds before the time limit: for a step and a checkpoint
  std::string host;     // api.host of runs on several nodes; empty: by rule
  std::string scratch;  // run folders are made in it; empty: runs/ in the working folder
  std::string
      coordinator_partition;  // job-per-node: of the coordinator's job; empty: as the nodes'
  std::string coordinator_time;
  std::vector<std::string> sbatch;              // more options of jobs with workers
  std::vector<std::string> coordinator_sbatch;  // more options of the coordinator's own job
  std::vector<std::string> modules;             // loaded at the start of each script
  std::vector<std::string> prolog;              // lines of the shell after that
  std::vector<std::string> srun;                // more options of the srun that starts an agent
  std::vector<std::string> container;           // words in front of an agent: what runs it inside
};

inline constexpr const char* kOneAllocation = "one-allocation";
inline constexpr const char* kJobPerNode = "job-per-node";

}  // namespace dd2
