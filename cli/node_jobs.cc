#include "cli/node_jobs.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string_view>

#include "cli/slurm_jobs.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::seconds;

// Slurm's controller serves the whole site: not more often than this.
constexpr milliseconds kAskInterval = seconds(10);
constexpr milliseconds kCancelLimit = seconds(30);
constexpr milliseconds kCallLimit = std::chrono::minutes(2);

RestartLimits LimitsWith(milliseconds long_life) {
  return {.first_delay = seconds(1),
          .longest_delay = std::chrono::minutes(5),
          .in_a_row = 8,
          .long_life = long_life};
}

std::vector<std::string> KnownJobs(const fs::path& run) {
  const Result<RunJobs> jobs = ReadRunJobs(run);
  return jobs ? jobs->nodes : std::vector<std::string>();
}

// A job that is submitted from within another one would inherit what Slurm said to that one (its
// numbers of tasks and processors among it), and its srun would take it for its own.
std::vector<std::string> SubmitWords(const fs::path& script) {
  std::vector<std::string> words = {"env"};
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const std::string_view name = text.substr(0, text.find('='));
    if (!name.starts_with("SLURM") || name == "SLURM_CONF") continue;
    words.insert(words.end(), {"-u", std::string(name)});
  }
  words.insert(words.end(), {"sbatch", "--parsable", script.string()});
  return words;
}

}  // namespace

NodeJobPlan::NodeJobPlan(int wanted, RestartLimits limits, const std::vector<std::string>& known,
                         TimePoint now) {
  for (int i = 0; i < wanted; ++i) {
    Slot slot{RestartPolicy(limits), "", false, now};
    if (static_cast<std::size_t>(i) < known.size()) {
      slot.id = known[static_cast<std::size_t>(i)];
      slot.policy.OnStarted(now);
      slot.submit_at.reset();
    }
    slots_.push_back(std::move(slot));
  }
}

std::string NodeJobPlan::OnEnded(Slot& slot, const std::string& what, TimePoint now) const {
  slot.id.clear();
  slot.running = false;
  slot.submit_at = slot.policy.OnEnded(now);
  if (!slot.submit_at) return what + ", again; no other one is submitted in its place";
  char delay[16];
  std::snprintf(delay, sizeof delay, "%.0f", SecondsBetween(now, *slot.submit_at));
  return what + "; another one is submitted in " + delay + " s";
}

std::vector<std::string> NodeJobPlan::OnQueue(const std::vector<SlurmJob>& queue, TimePoint now) {
  std::vector<std::string> lines;
  for (Slot& slot : slots_) {
    if (slot.id.empty()) continue;
    const auto found = std::find_if(queue.begin(), queue.end(),
                                    [&slot](const SlurmJob& job) { return job.id == slot.id; });
    if (found == queue.end()) {
      lines.push_back(OnEnded(slot, "slurm job " + slot.id + " has ended", now));
    } else if (found->state == "RUNNING" && !slot.running) {
      slot.running = true;
      slot.policy.OnStarted(now);
      lines.push_back("slurm job " + slot.id + " runs on " + found->nodes);
    } else if (found->state == "PENDING") {
      slot.running = false;
    }
  }
  return lines;
}

std::size_t NodeJobPlan::NextToSubmit(TimePoint now) const {
  const auto found = std::find_if(slots_.begin(), slots_.end(), [now](const Slot& slot) {
    return slot.id.empty() && slot.submit_at && now >= *slot.submit_at;
  });
  return static_cast<std::size_t>(found - slots_.begin());
}

bool NodeJobPlan::WantsSubmit(TimePoint now) const { return NextToSubmit(now) < slots_.size(); }

void NodeJobPlan::OnSubmitted(const std::string& id, TimePoint now) {
  const std::size_t next = NextToSubmit(now);
  if (next == slots_.size()) return;
  slots_[next].id = id;
  slots_[next].submit_at.reset();
  slots_[next].policy.OnStarted(now);
}

std::string NodeJobPlan::OnSubmitFailed(const std::string& reason, TimePoint now) {
  const std::size_t next = NextToSubmit(now);
  return next == slots_.size() ? reason : OnEnded(slots_[next], reason, now);
}

bool NodeJobPlan::Hopeless() const {
  return std::all_of(slots_.begin(), slots_.end(),
                     [](const Slot& slot) { return slot.id.empty() && !slot.submit_at; });
}

std::vector<std::string> NodeJobPlan::ids() const {
  std::vector<std::string> ids;
  for (const Slot& slot : slots_) {
    if (!slot.id.empty()) ids.push_back(slot.id);
  }
  return ids;
}

NodeJobs::NodeJobs(fs::path run, int wanted, const Clock& clock, milliseconds long_life)
    : run_(std::move(run)),
      clock_(clock),
      plan_(wanted, LimitsWith(long_life), KnownJobs(run_), clock.Now()) {}

Status NodeJobs::Remember() const {
  RunJobs jobs;
  if (auto before = ReadRunJobs(run_)) jobs = std::move(*before);
  jobs.nodes = plan_.ids();
  return WriteRunJobs(run_, jobs);
}

Status NodeJobs::StartCall() {
  const TimePoint now = clock_.Now();
  // Those of an earlier life first: what is still there needs no other in its place.
  submitting_ = known_ && !silent_ && plan_.WantsSubmit(now);
  if (!submitting_ && now < ask_at_) return {};
  ask_at_ = now + kAskInterval;
  give_up_at_ = now + kCallLimit;
  auto call = SlurmCall::Start(submitting_ ? SubmitWords(NodeScript(run_)) : QueueWords(),
                               SlurmFolder(run_) / (submitting_ ? "sbatch.out" : "squeue.out"));
  if (!call) return call.error();
  call_.emplace(std::move(*call));
  return {};
}

std::vector<std::string> NodeJobs::OnSubmitted(const Result<std::string>& answer) {
  const Result<std::string> id = answer ? ParseSubmitted(*answer) : answer;
  if (!id) {
    // Slurm may be away, which is no fault of the job.
    known_ = false;
    return {plan_.OnSubmitFailed(id.error().message(), clock_.Now())};
  }
  plan_.OnSubmitted(*id, clock_.Now());
  std::vector<std::string> lines = {"slurm job " + *id + " is submitted for a node"};
  if (const Status kept = Remember(); !kept) lines.push_back(kept.error().message());
  return lines;
}

std::vector<std::string> NodeJobs::OnAnswer(const Result<std::string>& answer) {
  if (submitting_) return OnSubmitted(answer);
  const auto queue = answer ? ParseQueue(*answer) : Result<std::vector<SlurmJob>>(answer.error());
  std::vector<std::string> lines;
  if (!queue) {
    if (!silent_) lines.push_back("Slurm is asked again later: " + queue.error().message());
    silent_ = true;
    return lines;
  }
  if (silent_) lines.emplace_back("Slurm answers again");
  silent_ = false;
  known_ = true;
  for (std::string& line : plan_.OnQueue(*queue, clock_.Now())) lines.push_back(std::move(line));
  return lines;
}

std::vector<std::string> NodeJobs::Watch() {
  if (!call_) {
    const Status started = StartCall();
    if (!started) return OnAnswer(started.error());
  }
  if (!call_) return {};
  std::optional<Result<std::string>> answer = call_->TryFinish();
  if (!answer && clock_.Now() >= give_up_at_) answer = call_->Finish(milliseconds(0));
  if (!answer) return {};
  call_.reset();
  return OnAnswer(*answer);
}

Status NodeJobs::CancelAll() {
  if (call_) {
    // A submission under way would leave a job that nobody knows.
    const Result<std::string> answer = call_->Finish(kCancelLimit);
    call_.reset();
    static_cast<void>(OnAnswer(answer));
  }
  const std::vector<std::string> ids = plan_.ids();
  if (ids.empty()) return {};
  std::vector<std::string> words = {"scancel", "--quiet"};
  words.insert(words.end(), ids.begin(), ids.end());
  DD2_TRY_ASSIGN(SlurmCall call, SlurmCall::Start(words, SlurmFolder(run_) / "scancel.out"));
  DD2_TRY(call.Finish(kCancelLimit));
  return {};
}

}  // namespace dd2
