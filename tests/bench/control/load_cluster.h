#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "common/clock.h"
#include "common/run_config.h"
#include "common/task_group.h"
#include "tests/bench/control/load_domain.h"
#include "tests/bench/control/load_link.h"

namespace dd2::load {

// When the members heard of one generation.
struct GenerationTimes {
  TimePoint first_regroup, last_regroup;
  std::int32_t regroups = 0;
  TimePoint first_assignment, last_assignment;
  std::int32_t assignments = 0;
  std::int32_t world_size = 0;  // by its Assignments

  bool formed() const { return world_size > 0 && assignments == world_size; }
};

// When the ranks reported and heard of the checkpoint that was asked for last.
struct CheckpointTimes {
  std::string id;
  TimePoint first_part, last_part;
  TimePoint last_committed;
  std::int32_t committed = 0;
};

struct ClusterOptions {
  std::int32_t domains = 8;
  std::string secret;
  RunConfig config;
  std::filesystem::path run_folder;
  std::chrono::milliseconds pace = std::chrono::seconds(1);  // of one training step
};

// All agents and workers of a run, which compute nothing: they join, beat, take leases, finish a
// step together every `pace`, report it, write the parts of a checkpoint, and regroup. Where a real
// rank would be held up by another one (a collective), these are too: a step ends only when every
// rank of the newest generation is there, has a lease for it, and is not stopped.
//
// Owned by the program; one thread. Destroy it only after Stop().
class Cluster {
 public:
  Cluster(asio::io_context& context, std::uint16_t port, ClusterOptions options);

  // Every agent connects at once.
  void Start();
  Task<void> Stop();

  Domain& domain(std::int32_t index) { return *domains_.at(static_cast<std::size_t>(index)); }
  // Its processes are killed: its connections close, and the collectives of all others fail, which
  // they report as real ranks do.
  void Crash(std::int32_t index);

  const Traffic& traffic() const { return links_.traffic; }
  // Of the newest generation that anybody heard of.
  std::uint64_t generation() const {
    return generations_.empty() ? 0 : generations_.rbegin()->first;
  }
  const GenerationTimes& times(std::uint64_t generation) { return generations_[generation]; }
  // Everybody who is not gone is in the newest generation.
  bool Formed() const { return !generations_.empty() && generations_.rbegin()->second.formed(); }
  const CheckpointTimes& checkpoint() const { return checkpoint_; }
  std::int64_t steps() const { return steps_; }  // finished, of all phases
  TimePoint last_hello() const { return last_hello_; }
  // What a coordinator should not have done; empty: nothing.
  const std::string& problem() const { return problem_; }

  // Of domains and workers.
  LinkContext& links() { return links_; }
  const ClusterOptions& options() const { return options_; }
  const RunConfig& config() const { return options_.config; }
  const std::string& run_id() const { return run_id_; }
  void Heard(const proto::Envelope& envelope) { run_id_ = envelope.run_id(); }
  void OnHello() { last_hello_ = SystemClock().Now(); }
  void OnRegroup(std::uint64_t generation);
  void OnAssignment(Worker& worker);
  void OnCommitted(const std::string& id);
  void Problem(const std::string& what);

 private:
  Task<void> BeatLoop();
  Task<void> StepLoop();
  void Step();
  // False: somebody is missing.
  bool CanStep();
  void BeginCheckpoint();
  void ReportParts(const std::vector<proto::PartReport>& parts);

  ClusterOptions options_;
  asio::io_context& context_;
  TaskGroup tasks_;
  LinkContext links_;
  bool stopping_ = false;
  std::vector<std::unique_ptr<Domain>> domains_;
  std::vector<Worker*> ranks_;  // of the newest generation, in no order
  std::map<std::uint64_t, GenerationTimes> generations_;
  std::string run_id_;
  std::int64_t steps_ = 0;
  std::uint64_t requests_served_ = 0;
  CheckpointTimes checkpoint_;
  std::thread part_writer_;
  TimePoint last_hello_;
  std::string problem_;
};

}  // namespace dd2::load
