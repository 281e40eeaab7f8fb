#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace dd2 {

// What a batch script of a run says. Every path is absolute.
struct SlurmScript {
  std::string name;         // of the run
  std::string run;          // its folder
  std::string script;       // the file that the script becomes
  std::string dd2;          // the program
  std::string nodes;        // "4", or "2-4": as many as there are, at least the first number
  std::string host;         // shell word: address at which the coordinator listens
  int grace_seconds = 180;  // before the time limit: for a step and a checkpoint
  std::vector<std::string> sbatch;  // further options, as typed
  std::vector<std::string> prolog;  // lines of the site, before anything of ours
};

// The batch script of `slurm/one-allocation.sh`. kInvalidArgument: a value that would break a line
// of it, or a path that Slurm would read as a pattern.
Result<std::string> RenderSlurmScript(const SlurmScript& values);

// The text of slurm/one-allocation.sh, built into the program.
std::string_view OneAllocationScript();

// `text` with each @NAME@ replaced by its value. kInternal: a name without a value.
Result<std::string> FillIn(std::string_view text, const std::map<std::string, std::string>& values);

// "4" or "2-4". kInvalidArgument: anything else.
struct NodeRange {
  int min = 1;
  int max = 1;
};
Result<NodeRange> ParseNodes(const std::string& text);

}  // namespace dd2
