#include "cli/slurm_client.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <utility>

#include "cli/format.h"
#include "common/file.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;

// Times the memory of a node: what a plan can be off by, and more.
constexpr double kSurelyTooMuch = 1.25;

struct ReasonWords {
  std::string_view reason;  // or its beginning
  const char* words;
};
constexpr ReasonWords kReasons[] = {
    {"Resources", "waits for free nodes"},
    {"Priority", "waits: other jobs go first"},
    {"None", "waits: Slurm has not looked at it yet"},
    {"BeginTime", "Slurm holds it back for a while, as after each requeue"},
    {"Dependency", "waits for another job"},
    {"JobHeldUser", "is held by its user: scontrol release JOB"},
    {"JobHeldAdmin", "is held by an administrator"},
    {"job requeued in held state", "was queued again and held: scontrol release JOB"},
    {"launch failed requeued held",
     "could not be started on its nodes and is held: look at the "
     "nodes, then scontrol release JOB"},
    {"ReqNodeNotAvail", "waits: nodes that it could use are down, drained or reserved"},
    {"Nodes required for job are DOWN",
     "waits: nodes that it could use are down, drained or "
     "reserved"},
    {"PartitionNodeLimit", "cannot start: more nodes than the partition allows, or has"},
    {"PartitionTimeLimit", "cannot start: a longer time limit than the partition allows"},
    {"PartitionDown", "waits: the partition is down"},
    {"PartitionInactive", "waits: the partition is inactive"},
    {"Reservation", "waits for its reservation"},
    {"Licenses", "waits for licences"},
    {"QOS", "waits: a limit of its quality of service is reached"},
    {"Assoc", "waits: a limit of its account is reached"},
};

// "09:30" of today, else the date too.
std::string ShortTime(const std::string& start) {
  const std::size_t split = start.find('T');
  if (split == std::string::npos || start.size() < split + 6) return "";
  return start.substr(0, split) + " " + start.substr(split + 1, 5);
}

std::string WaitingWords(const SlurmJob& job) {
  std::string words = "waits (" + job.reason + ")";
  for (const ReasonWords& known : kReasons) {
    if (!job.reason.starts_with(known.reason)) continue;
    words = known.words + std::string(" (") + job.reason + ")";
    break;
  }
  const std::string time = ShortTime(job.start);
  return time.empty() ? words : words + ", not before " + time;
}

}  // namespace

Result<SlurmCall> SlurmCall::Start(std::vector<std::string> words, fs::path output) {
  DD2_TRY(RealFileSystem().Remove(output));
  SpawnOptions options;
  options.argv = words;
  options.output = output;
  Result<ChildProcess> child = ChildProcess::Spawn(options);
  if (!child) {
    return Error(
        child.error().code(),
        child.error().message() +
            ": Slurm's programs must be in PATH (on a login node of the cluster they are)");
  }
  return SlurmCall(std::move(*child), std::move(words), std::move(output));
}

Result<std::string> SlurmCall::Conclude(std::optional<int> status) {
  const Result<std::string> said = RealFileSystem().Read(output_);
  std::string text = said ? *said : "";
  static_cast<void>(RealFileSystem().Remove(output_));
  while (text.ends_with('\n')) text.pop_back();
  if (status == 0) return text;
  return Error(Code::kUnavailable,
               ShellLine(words_) + (status ? " failed: " : " does not answer: ") + text);
}

std::optional<Result<std::string>> SlurmCall::TryFinish() {
  const std::optional<int> status = process_.TryWait();
  if (!status) return std::nullopt;
  return Conclude(status);
}

Result<std::string> SlurmCall::Finish(std::chrono::milliseconds limit) {
  return Conclude(process_.Wait(limit));
}

Result<std::string> CallSlurm(const std::vector<std::string>& words,
                              std::chrono::milliseconds patience) {
  static std::atomic<int> calls{0};
  const fs::path output = fs::temp_directory_path() / ("dd2-slurm-" + std::to_string(::getpid()) +
                                                       "-" + std::to_string(++calls));
  DD2_TRY_ASSIGN(SlurmCall call, SlurmCall::Start(words, output));
  return call.Finish(patience);
}

std::vector<std::string> QueueWords() {
  return {"squeue", "--me", "--noheader",
          "--Format=JobID:|,State:|,Reason:|,NodeList:|,StartTime:|,RestartCnt:|"};
}

Result<std::vector<SlurmJob>> ParseQueue(std::string_view text) {
  std::vector<SlurmJob> jobs;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.empty()) continue;
    std::vector<std::string> fields;
    for (std::size_t bar = line.find('|'); bar != std::string_view::npos; bar = line.find('|')) {
      fields.emplace_back(line.substr(0, bar));
      line.remove_prefix(bar + 1);
    }
    if (fields.empty()) continue;  // a warning
    SlurmJob job;
    const std::string last = fields.size() == 6 ? fields[5] : "";
    const auto parsed = std::from_chars(last.data(), last.data() + last.size(), job.restarts);
    if (fields.size() != 6 || parsed.ec != std::errc()) {
      return Error(Code::kCorruption, "squeue said what is no line of jobs: " + std::string(line));
    }
    job.id = fields[0];
    job.state = fields[1];
    job.reason = fields[2];
    job.nodes = fields[3];
    job.start = fields[4];
    jobs.push_back(std::move(job));
  }
  return jobs;
}

std::vector<std::string> NodeMemoryWords(const std::string& partition) {
  std::vector<std::string> words = {"sinfo", "--noheader", "--exact", "--format=%P|%m"};
  if (!partition.empty()) words.push_back("--partition=" + partition);
  return words;
}

NodeMemory ParseNodeMemory(std::string_view text, bool named) {
  constexpr std::int64_t kMegabyte = std::int64_t{1} << 20;
  NodeMemory of_default, of_all;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const std::size_t bar = line.find('|');
    if (bar == std::string_view::npos) continue;  // a warning
    const std::string_view partition = line.substr(0, bar);
    std::int64_t megabytes = 0;
    std::from_chars(line.data() + bar + 1, line.data() + line.size(), megabytes);
    // 1 is what Slurm takes a node to have that its configuration says nothing of.
    if (megabytes <= 1) continue;
    const auto add = [bytes = megabytes * kMegabyte](NodeMemory& memory) {
      memory.least = memory.least == 0 ? bytes : std::min(memory.least, bytes);
      memory.most = std::max(memory.most, bytes);
    };
    add(of_all);
    if (partition.ends_with('*')) add(of_default);
  }
  return named ? of_all : of_default;
}

Result<std::string> JudgeNodeMemory(const NodeMemory& memory, std::int64_t needed) {
  if (memory.least == 0 || needed <= memory.least) return std::string();
  const std::string needs = "a node of this run needs about " + FormatBytes(needed) + " of memory";
  if (needed <= memory.most) {
    return needs + ", some of the partition's have " + FormatBytes(memory.least) +
           ": choose others with --constraint, or -- --mem=" + std::to_string((needed >> 20) + 1) +
           "M";
  }
  const std::string most = needs + ", the partition's have at most " + FormatBytes(memory.most);
  if (static_cast<double>(needed) <= kSurelyTooMuch * static_cast<double>(memory.most)) {
    return most + ": it may not fit (`dd2 plan` shows what takes it)";
  }
  return Error(Code::kResourceExhausted,
               most +
                   ": take another partition or fewer ranks a node (--ranks), or set "
                   "checkpoint.memory_every: 0; `dd2 plan` shows what takes it");
}

std::string PartitionOf(const std::vector<std::string>& options, const char* environment) {
  if (environment != nullptr && *environment != '\0') return environment;
  constexpr std::string_view kLong = "--partition", kShort = "-p";
  std::string partition;
  for (std::size_t i = 0; i < options.size(); ++i) {
    const std::string_view word = options[i];
    if ((word == kLong || word == kShort) && i + 1 < options.size()) {
      partition = options[++i];
    } else if (word.starts_with(kLong) && word.substr(kLong.size()).starts_with('=')) {
      partition = word.substr(kLong.size() + 1);
    } else if (word.starts_with(kShort) && !word.starts_with("--")) {
      partition = word.substr(kShort.size());
    }
  }
  return partition;
}

std::string DescribeJob(const SlurmJob& job) {
  const std::string again =
      job.restarts == 0 ? "" : ", started again " + std::to_string(job.restarts) + " times so far";
  if (job.state == "PENDING") return WaitingWords(job) + again;
  if (job.state == "RUNNING") return "runs on " + job.nodes + again;
  if (job.state == "CONFIGURING") return "is given " + job.nodes + ", which get ready" + again;
  if (job.state == "COMPLETING") return "ends on " + job.nodes + again;
  if (job.state == "SUSPENDED") return "is suspended by Slurm on " + job.nodes + again;
  return job.state + (job.nodes.empty() ? "" : " on " + job.nodes) + again;
}

Result<std::string> ParseSubmitted(std::string_view text) {
  // Warnings of the site may stand in front of it.
  const std::size_t begin = text.rfind('\n') == std::string_view::npos ? 0 : text.rfind('\n') + 1;
  const std::string_view line = text.substr(begin);
  const std::size_t digits = std::min(line.find_first_not_of("0123456789"), line.size());
  if (digits == 0 || (digits < line.size() && line[digits] != ';')) {
    return Error(Code::kCorruption, "sbatch did not say a job's number: " + std::string(text));
  }
  return std::string(line.substr(0, digits));
}

}  // namespace dd2
