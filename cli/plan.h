#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/hardware_catalog.h"
#include "cli/model_sizes.h"
#include "common/json.h"
#include "common/result.h"
#include "common/run_config.h"

namespace dd2 {

// `dd2 plan`: what a run needs and how long it takes, before it is started. Memory follows what a
// worker allocates (worker/parallel/exact_update.h, worker/engine); time is a roofline. Pure.

struct PlanInput {
  RunConfig config;
  ModelSizes model;
  Hardware hardware;
  int domains = 1;               // failure domains
  int ranks = 1;                 // of each; the optimiser's state is cut over them
  int domains_per_node = 1;      // all of them when they are on one machine, as those of `dd2 run`
  std::int64_t node_memory = 0;  // bytes of a node's memory; 0: not known
  bool this_machine = false;     // it is that of the machine that makes the plan
  int nodes() const { return (domains + domains_per_node - 1) / domains_per_node; }
  int world_size() const { return domains * ranks; }
};

// Shares of the peaks that a run is taken to get; stated with every plan.
inline constexpr double kMatrixShare = 0.45;  // of matrix products
inline constexpr double kVectorShare = 0.35;  // of all other arithmetic
inline constexpr double kMemoryShare = 0.7;   // of memory bandwidth
inline constexpr double kNetworkShare = 0.7;  // of every link
inline constexpr double kDiskRate = 1e9;      // bytes a second into the run's folder, of all ranks
inline constexpr int kDevicesOfNode = 8;
// Of a device's memory, before it is in pieces; of a node's, beside the system.
inline constexpr double kUsable = 0.92;
inline constexpr double kUsualSharedMemory = 0.5;  // size of /dev/shm, of a node's memory

// Where bytes lie: on the rank's device, in its process, or in shared memory (/dev/shm). Without
// devices there are only the last two.
enum class Place : std::uint8_t { kDevice, kHost, kShared };

struct MemoryPart {
  std::string what;
  Place place = Place::kHost;
  std::int64_t bytes = 0;
};

struct PhaseMemory {
  std::string name;
  std::int64_t bytes = 0;  // of a device; CPU: of a process
};

// Of the rank that needs most, in the phase that needs most.
struct MemoryPlan {
  std::string phase;  // where it needs most
  std::vector<PhaseMemory> phases;
  std::vector<MemoryPart> parts;  // none is 0
  std::int64_t device_bytes = 0;  // of one device
  std::int64_t rank_bytes = 0;    // of a process in its node, shared memory with it
  std::int64_t node_bytes = 0;    // of all ranks on a node, what they share counted once
  std::int64_t shared_bytes = 0;  // of these, in /dev/shm
};

struct PhaseTime {
  std::string name;             // "gts", "csd-2"
  std::int64_t steps = 0;       // sample: blocks of one rank
  double compute_seconds = 0;   // of one step
  double gradient_seconds = 0;  // of these, before the first update; sample: 0
  double update_seconds = 0;    // sums of gradients, Adam
  double exchange_seconds = 0;  // between ranks
  double cache_read_rate = 0;   // bytes a second of all ranks, gts with a cache
  double flops = 0;             // of one step, all ranks
  double step_seconds() const { return compute_seconds + update_seconds + exchange_seconds; }
  double seconds() const { return static_cast<double>(steps) * step_seconds(); }
};

// When a domain is lost and the others have its shards.
struct AfterLoss {
  std::int64_t device_bytes = 0;
  std::int64_t node_bytes = 0;
  bool fits = true;
};

struct RunPlan {
  std::int64_t teacher_parameters = 0;
  std::int64_t network_parameters = 0;  // of generator or guidance network
  std::int64_t shards_of_rank = 0;      // of the first
  std::int64_t sequences_of_shard = 0;  // in the largest phase
  MemoryPlan memory;
  std::vector<PhaseTime> phases;
  double seconds = 0;                 // all phases; evaluation is not counted
  std::int64_t checkpoint_bytes = 0;  // of one
  std::int64_t kept_bytes = 0;        // of all that are kept, and the one that is being written
  double checkpoint_copy_seconds = 0;
  double checkpoint_overlap_seconds = 0;  // of the next gradients, which are computed meanwhile
  double checkpoint_stall_seconds = 0;    // what is left of the copy then
  double checkpoint_write_seconds = 0;
  std::optional<double> checkpoint_interval;  // seconds; nothing: off
  std::int64_t cache_bytes = 0;               // 0: no sample phase, or no cache
  std::int64_t cache_entry_bytes = 0;
  bool fits = true;
  std::string verdict;
  std::optional<AfterLoss> after_loss;  // nothing: there is one domain only
};

// kInvalidArgument: more ranks than shards, or a batch that the shards do not divide.
Result<RunPlan> MakePlan(const PlanInput& input);

// Of a run as it is started: the teacher, the ranks and the device of the configuration (any GPU),
// so many domains, so many of them on each machine.
Result<RunPlan> PlanRun(const RunConfig& config, int domains, int domains_per_node = 1);

// What a change is made of; kResult: a setting that gives another run, whose bits differ.
enum class Lever : std::uint8_t { kSetting, kResult, kMachines, kDevices };
// One change, and the plan with it.
struct Alternative {
  std::string change;
  Lever lever = Lever::kSetting;
  RunPlan plan;
};
// Changes that make a plan fit better, or that a person may wonder about; those that fit first.
std::vector<Alternative> AlternativesTo(const PlanInput& input, const RunPlan& plan);
// The least that makes it fit, also after the loss of a node; empty when it does.
std::string AdviceOn(const PlanInput& input, const RunPlan& plan,
                     const std::vector<Alternative>& alternatives);

// What the plan rests on, a sentence each.
std::vector<std::string> AssumptionsOf(const PlanInput& input);

std::string FormatPlan(const PlanInput& input, const RunPlan& plan,
                       const std::vector<Alternative>& alternatives);
boost::json::object PlanDocument(const PlanInput& input, const RunPlan& plan,
                                 const std::vector<Alternative>& alternatives);

// ---- parts of MakePlan ----

inline constexpr std::int64_t kFloatBytes = 4;
// Of a checkpoint and a snapshot: parameters, two moments, average; of two networks.
inline constexpr std::int64_t kTensorKinds = 8;

// gts, regress, csd, align.
bool Trains(const PhaseConfig& phase);
// Sequences in the teacher's pass for one: 2 with guidance (Teacher::IsGuided).
int GuidedPasses(const PlanInput& input);
// Whether transformers compute their blocks in bf16 (the trained ones by model.precision, the
// teacher by teacher.precision), and whether the trained ones run them again in the backward pass
// (model.recompute). Networks in raster order know neither.
bool BlocksInBf16(const ModelSizes& model, std::string_view precision);
bool BlocksRunAgain(const ModelSizes& model, const ModelConfig& config);
// Of one sequence in the score cache: guided vectors in fp16, thresholds, tokens.
std::int64_t ScoreBytes(const ModelSizes& model);

// How the virtual shards of a batch fall on ranks (worker/parallel/shard_plan.h).
struct ShardShare {
  std::int64_t shards = 0;  // of the rank that has most
  std::int64_t sums = 0;    // sub-tree sums that it sends
  std::int64_t all_sums = 0;
};
ShardShare ShareOfShards(int shards, int world_size);

MemoryPlan PlanMemory(const PlanInput& input);
std::vector<PhaseTime> PlanTime(const PlanInput& input);
// Bytes of a checkpoint, all files together.
std::int64_t CheckpointBytesOf(const PlanInput& input);
// Elements of a network that each rank of a node keeps the optimiser's state of.
std::int64_t SliceElements(const PlanInput& input);

}  // namespace dd2
