#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cli/doctor.h"
#include "common/result.h"

namespace dd2 {

// Of a run with this configuration on `nodes` machines, by its plan (plan.h).
Needs NeedsOf(const std::optional<RunConfig>& config, int nodes);
// kResourceExhausted: the disk cannot hold the checkpoints that the run keeps, besides those that
// the folder has.
Status CheckRoom(const RunConfig& config, const std::filesystem::path& folder);
// A warning when the disk cannot hold the scores of the run (what is not kept is computed again);
// else empty.
std::string CacheWarning(const RunConfig& config);
// Asks Slurm for the memory of the partition's nodes (empty: the default one's). A warning, or
// empty; kResourceExhausted: none of them has what the plan says that a node needs.
Result<std::string> CheckNodeMemory(const RunConfig& config, int nodes,
                                    const std::string& partition);

// Looks at this machine. `folder`: where run folders are made; a file of 64 MiB is written there,
// and nothing is left. `host`: api.host. Takes a few seconds; no probe waits for ever.
MachineFacts ProbeMachine(const std::filesystem::path& folder, const std::string& host);

// In a step on all nodes at once: looks at this one, meets the others over the network and in
// `meeting`, the folder that ProbeNodes made, and leaves its NodeFacts there as node-RANK.json.
// `rank` of `count`.
Status ReportNode(const std::filesystem::path& meeting, const std::string& host, int rank,
                  int count, const Needs& needs);

// Asks `nodes` nodes of Slurm through srun, with more words of its own, what they see. `folder`:
// as above. kUnavailable: srun failed.
Result<std::vector<NodeFacts>> ProbeNodes(const std::filesystem::path& folder,
                                          const std::string& host, int nodes,
                                          const std::vector<std::string>& srun);

// kUnavailable: Slurm does not answer. An empty partition means the default one.
Result<SlurmFacts> ProbeSlurm(const std::string& partition);

}  // namespace dd2
