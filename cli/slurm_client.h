#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/clock.h"
#include "common/process.h"
#include "common/result.h"

namespace dd2 {

// The home of Slurm's programs on the command line's side: what is asked, and what the answers
// mean.

// One call of a program of Slurm, which may take its time (slurmctld is busy, or away).
//
// Main thread only (common/process.h). The destructor kills it.
class SlurmCall {
 public:
  // `output`: a file of our own for its words. kNotFound: Slurm is not in PATH.
  static Result<SlurmCall> Start(std::vector<std::string> words, std::filesystem::path output);

  // Once it has ended, what it said; kUnavailable with its words: it failed. Removes the file.
  std::optional<Result<std::string>> TryFinish();
  // The same, waiting at most `limit`.
  Result<std::string> Finish(std::chrono::milliseconds limit);

 private:
  SlurmCall(ChildProcess process, std::vector<std::string> words, std::filesystem::path output)
      : process_(std::move(process)), words_(std::move(words)), output_(std::move(output)) {}
  Result<std::string> Conclude(std::optional<int> status);

  ChildProcess process_;
  std::vector<std::string> words_;
  std::filesystem::path output_;
};

// Starts it and waits for its end; its words lie in the folder for temporary files meanwhile.
Result<std::string> CallSlurm(const std::vector<std::string>& words,
                              std::chrono::milliseconds patience = std::chrono::seconds(60));

// A job as squeue lists it: it waits, works or ends. One that is over is not listed.
struct SlurmJob {
  std::string id;
  std::string state;   // PENDING, CONFIGURING, RUNNING, COMPLETING, ...
  std::string reason;  // why it waits, in Slurm's word: Resources, Priority, BeginTime, ...
  std::string nodes;   // "n[1-2]"; empty while it has none
  std::string start;   // expected or true: "2026-11-24T09:30:00", or "N/A"
  int restarts = 0;
};

// Asks for all jobs of this user.
std::vector<std::string> QueueWords();
// kCorruption: no listing as QueueWords() asks for.
Result<std::vector<SlurmJob>> ParseQueue(std::string_view text);

// Asks for the memory of the nodes of `partition`, or of all partitions when it is empty.
std::vector<std::string> NodeMemoryWords(const std::string& partition);
// In bytes. Both 0: Slurm was not told how much they have.
struct NodeMemory {
  std::int64_t least = 0;
  std::int64_t most = 0;
};
// `text`: the answer. Of all partitions (none was named) the default one counts.
NodeMemory ParseNodeMemory(std::string_view text, bool named);
// A run that needs about `needed` bytes on each of its nodes: a warning when some nodes have less,
// or all have a little less, empty when none has. kResourceExhausted: all have far less (a plan is
// an estimate).
Result<std::string> JudgeNodeMemory(const NodeMemory& memory, std::int64_t needed);
// The partition of a job: $SBATCH_PARTITION overrules the options of its script, of which the last
// counts (--partition=P, --partition P, -p P, -pP). Empty: Slurm's default.
std::string PartitionOf(const std::vector<std::string>& options, const char* environment);

// "waits for free nodes (Slurm expects them at 09:30)": for people.
std::string DescribeJob(const SlurmJob& job);

// The number in what `sbatch --parsable` says ("12" or "12;cluster"). kCorruption: none.
Result<std::string> ParseSubmitted(std::string_view text);

}  // namespace dd2
