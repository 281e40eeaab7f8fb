#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace dd2 {

// The scripts in slurm/.
enum class SlurmScriptKind : std::uint8_t {
  kOneAllocation,  // coordinator, and an agent on each node
  kCoordinator,    // job-per-node: the coordinator, which submits the next one
  kNode,           // job-per-node: an agent that joins
};

// What the batch script of a job says. Every path is absolute.
struct SlurmScript {
  SlurmScriptKind kind = SlurmScriptKind::kOneAllocation;
  std::string name;         // of the run
  std::string run;          // its folder
  std::string script;       // the file that the script becomes
  std::string dd2;          // the program
  std::string nodes;        // "4", or "2-4": as many as there are, at least the first number
  int grace_seconds = 180;  // before the time limit: for a step and a checkpoint
  int wait_seconds = 900;   // kNode: for a coordinator that is away
  std::vector<std::string> run_options;  // words: more options of `dd2 run`
  std::vector<std::string> launch;       // kNode: words, more of srun's and what runs the agent
  std::vector<std::string> sbatch;       // further options, as typed
  std::vector<std::string> prolog;       // lines of the site, before anything of ours
};

// kInvalidArgument: a value that would break a line of it, or a path that Slurm would read as a
// pattern.
Result<std::string> RenderSlurmScript(const SlurmScript& values);

// The text of a script in slurm/, built into the program.
std::string_view SlurmScriptText(SlurmScriptKind kind);
// What the scripts with `dd2 run` have in common: "stop", "begin", "end" of slurm/parts.
std::string_view SlurmScriptPart(std::string_view name);

// `text` with each @NAME@ replaced by its value. kInternal: a name without a value.
Result<std::string> FillIn(std::string_view text, const std::map<std::string, std::string>& values);

// Adds the option of sbatch that gives each of a node's `ranks` a GPU, unless `options` say already
// which devices are wanted.
void AddGpus(int ranks, std::vector<std::string>& options);

// "4" or "2-4". kInvalidArgument: anything else.
struct NodeRange {
  int min = 1;
  int max = 1;
};
Result<NodeRange> ParseNodes(const std::string& text);

}  // namespace dd2
