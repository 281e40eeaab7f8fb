#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "common/json.h"
#include "common/result.h"
#include "common/run_config.h"

namespace dd2 {

// `dd2 doctor`: what a run needs of its machines, judged. Facts are gathered elsewhere
// (doctor_probes.h, doctor_slurm.h); here they become findings. Pure.

enum class Grade : std::uint8_t { kOk, kWarn, kFail };

struct Finding {
  Grade grade = Grade::kOk;
  std::string what;     // "open files"
  std::string finding;  // "limit 1024, 1300 connections of 1000 ranks"
  std::string advice;   // what to do; empty when it is fine
  std::string node;     // empty: this machine, or the cluster as a whole
};
using Findings = std::vector<Finding>;

// What one machine is like. An error stands for what could not be found out, or does not work.
struct MachineFacts {
  std::set<std::string> programs;               // those of ours that are beside dd2
  std::string version;                          // of dd2
  Result<std::string> mpirun = std::string();   // what `mpirun --version` says first
  Result<double> mpirun_start = 0.0;            // seconds for two processes that do nothing
  Result<std::string> address = std::string();  // api.host resolved, and listened on
  std::vector<std::string> interfaces;
  std::map<std::string, std::string> interface_variables;  // GLOO_SOCKET_IFNAME and the like
  std::string devices;                                     // "8 x NVIDIA H100"; empty: none
  std::int64_t port_range = 0;                             // ports for outgoing connections
  std::int64_t files_limit = 0;                            // -1: none
  std::int64_t processes_limit = 0;
  std::int64_t shared_memory_bytes = -1;  // free in /dev/shm; -1: there is none
  std::int64_t free_bytes = 0;            // of the run folder's disk
  Result<double> write_rate = 0.0;        // bytes a second, written and synced there
  Status lock;                            // a lock file there
  bool clock_synchronised = false;
};

// What is asked of it. Zero: not known, not judged.
struct Needs {
  int connections = 0;                // of a coordinator: two a rank, one an agent
  std::int64_t snapshot_bytes = 0;    // in the shared memory of one machine
  std::int64_t checkpoint_bytes = 0;  // on the disk, of those that are kept
};

Findings JudgeMachine(const MachineFacts& facts, const Needs& needs);

// Inequalities between the time-outs of a configuration.
Findings JudgeTimeouts(const Timeouts& timeouts);

// What Slurm says of itself (`scontrol show config`, `scontrol show partition`), by name.
struct SlurmFacts {
  std::map<std::string, std::string> config;
  std::map<std::string, std::string> partition;
  int nodes_up = 0;  // of the partition, that can be had now or later
};
std::map<std::string, std::string> ParseScontrol(std::string_view text);
Findings JudgeSlurm(const SlurmFacts& facts, int nodes_wanted, const Timeouts& timeouts);

// What a node saw in a step of its own, all of them at the same time.
struct NodeFacts {
  std::string node;
  Findings findings;        // of JudgeMachine
  std::string version;      // of dd2
  bool saw_folder = false;  // the file that was written where dd2 doctor was called
  Result<double> clock_ahead =
      0.0;  // seconds before the first node's clock, asked over the network
};
Findings JudgeNodes(const std::vector<NodeFacts>& nodes, int wanted, const std::string& version);

// Same findings of several nodes become one. Failures last, where they are read.
Findings Merge(Findings findings);
std::string FormatFindings(const Findings& findings);
boost::json::object FindingsDocument(const Findings& findings);
bool AnyFailed(const Findings& findings);

boost::json::object ToJson(const NodeFacts& facts);
Result<NodeFacts> NodeFactsFrom(std::string_view text);

}  // namespace dd2
