#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cli/restart_policy.h"
#include "cli/slurm_client.h"
#include "common/clock.h"

namespace dd2 {

// How many Slurm jobs of one node each a run should have, and which it has: one that ends is
// replaced, however it ended (lost node, preemption, time limit, drain), but not for ever when
// they end at once each time. Pure; owned by NodeJobs.
class NodeJobPlan {
 public:
  // `known`: jobs of an earlier life of the coordinator, which may still be there.
  NodeJobPlan(int wanted, RestartLimits limits, const std::vector<std::string>& known,
              TimePoint now);

  // What Slurm has, asked after everything told here. What has changed, for people.
  std::vector<std::string> OnQueue(const std::vector<SlurmJob>& queue, TimePoint now);
  // One is missing, and it is time to submit it.
  bool WantsSubmit(TimePoint now) const;
  void OnSubmitted(const std::string& id, TimePoint now);
  // For people; tried again later.
  std::string OnSubmitFailed(const std::string& reason, TimePoint now);

  // None is there and none will come.
  bool Hopeless() const;
  std::vector<std::string> ids() const;

 private:
  struct Slot {
    RestartPolicy policy;
    std::string id;  // empty: none
    bool running = false;
    std::optional<TimePoint> submit_at;  // if it has none; nothing: given up
  };
  std::size_t NextToSubmit(TimePoint now) const;  // the number of slots: none
  std::string OnEnded(Slot& slot, const std::string& what, TimePoint now) const;

  std::vector<Slot> slots_;
};

// Keeps the jobs of a NodeJobPlan in Slurm's queue: one call of Slurm's programs at a time, none of
// which holds anybody up. While Slurm does not answer, nothing is changed.
//
// Owned by RunSession; main thread only.
class NodeJobs {
 public:
  NodeJobs(std::filesystem::path run, int wanted, const Clock& clock,
           std::chrono::milliseconds long_life);

  // Call it often. What happened, a line each, for people.
  std::vector<std::string> Watch();
  bool Hopeless() const { return plan_.Hopeless(); }
  // The run is over: none of them is needed. Blocks, at most for half a minute.
  Status CancelAll();

 private:
  Status StartCall();
  std::vector<std::string> OnAnswer(const Result<std::string>& answer);
  std::vector<std::string> OnSubmitted(const Result<std::string>& answer);
  Status Remember() const;

  const std::filesystem::path run_;
  const Clock& clock_;
  NodeJobPlan plan_;
  std::optional<SlurmCall> call_;
  bool submitting_ = false;  // what call_ is; else it asks for the queue
  bool known_ = false;       // Slurm has answered since the last submission
  bool silent_ = false;      // it does not answer: told once
  TimePoint ask_at_{};
  TimePoint give_up_at_{};  // on call_
};

}  // namespace dd2
