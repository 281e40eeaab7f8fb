#include "cli/plan.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "cli/format.h"
#include "common/checkpoint_interval.h"

namespace dd2 {
namespace {

// Of an entry of the score cache besides what ScoreBytes says: keys, checksums, labels.
constexpr std::int64_t kEntryOverhead = 160;

std::string Plural(std::int64_t count, const std::string& noun) {
  return std::to_string(count) + " " + noun + (count == 1 ? "" : "s");
}

Status CheckCounts(const PlanInput& in) {
  const int shards = in.config.batch.shards;
  const int ranks = in.world_size();
  if (ranks > shards) {
    return Error(Code::kInvalidArgument,
                 Plural(ranks, "rank") + " for " + Plural(shards, "shard") +
                     " (batch.shards): some would have nothing to do; take fewer ranks, or set "
                     "batch.shards higher (another result)");
  }
  for (const PhaseConfig& phase : in.config.phases) {
    if (Trains(phase) && phase.batch % shards != 0) {
      return Error(Code::kInvalidArgument, "a batch of " + std::to_string(phase.batch) +
                                               " is not a multiple of " + Plural(shards, "shard") +
                                               " (batch.shards)");
    }
  }
  return {};
}

std::int64_t Usable(std::int64_t bytes) {
  return static_cast<std::int64_t>(static_cast<double>(bytes) * kUsable);
}

bool Fits(const PlanInput& in, const MemoryPlan& memory) {
  const Hardware& hardware = in.hardware;
  return (!hardware.device || memory.device_bytes <= Usable(hardware.memory_bytes)) &&
         (in.node_memory == 0 || memory.node_bytes <= Usable(in.node_memory));
}

// What is left, or else what is missing, of all that is known.
std::string VerdictOn(const PlanInput& in, const MemoryPlan& memory, bool fits) {
  std::string out;
  const auto judge = [&](const std::string& who, std::int64_t needed, std::int64_t there,
                         const std::string& whose) {
    const std::int64_t usable = Usable(there);
    if (!fits && needed <= usable) return;
    out += (out.empty() ? "" : "; ") +
           (fits ? FormatBytes(usable - needed) + " " + whose + " are left"
                 : who + " needs " + FormatBytes(needed) + ", " + FormatBytes(usable) + " " +
                       whose + " can be used") +
           " (" + FormatBytes(there) + " less " + std::to_string(std::lround(100 * (1 - kUsable))) +
           " %)";
  };
  if (in.hardware.device) {
    judge("a device", memory.device_bytes, in.hardware.memory_bytes, "of each device");
  }
  if (in.node_memory > 0) {
    judge("a node", memory.node_bytes, in.node_memory,
          in.this_machine ? "of this machine's memory" : "of a node's memory");
  }
  if (!out.empty()) out = (fits ? "fits: " : "does not fit: ") + out;
  if (in.node_memory == 0) {
    out += (out.empty() ? "" : "; ") + ("a node needs " + FormatBytes(memory.node_bytes)) +
           " of memory (--memory judges it)";
  } else if (static_cast<double>(memory.shared_bytes) >
             kUsualSharedMemory * static_cast<double>(in.node_memory)) {
    out +=
        "; /dev/shm has usually half of the memory: too little for the snapshots, without which "
        "a run goes on (checkpoint.memory_every)";
  }
  return out;
}

void Judge(const PlanInput& in, RunPlan& plan) {
  plan.fits = Fits(in, plan.memory);
  plan.verdict = VerdictOn(in, plan.memory, plan.fits);
  if (in.domains == 1) return;
  PlanInput fewer = in;
  --fewer.domains;
  fewer.domains_per_node = std::min(in.domains_per_node, fewer.domains);
  const MemoryPlan memory = PlanMemory(fewer);
  plan.after_loss = {.device_bytes = memory.device_bytes,
                     .node_bytes = memory.node_bytes,
                     .fits = Fits(fewer, memory)};
}

void PlanCheckpoints(const PlanInput& in, RunPlan& plan) {
  const CheckpointConfig& config = in.config.checkpoint;
  plan.checkpoint_bytes = CheckpointBytesOf(in);
  plan.kept_bytes = plan.checkpoint_bytes * (config.keep_last + config.keep_best + 1);
  const std::int64_t part = kTensorKinds * SliceElements(in) * kFloatBytes;
  plan.checkpoint_copy_seconds = static_cast<double>(part) / (in.hardware.host_rate * kMemoryShare);
  // The state changes after the next gradients only (CheckpointSaver::BeforeChange).
  for (const PhaseTime& phase : plan.phases) {
    double& least = plan.checkpoint_overlap_seconds;
    if (phase.gradient_seconds == 0) continue;
    least = least == 0 ? phase.gradient_seconds : std::min(least, phase.gradient_seconds);
  }
  plan.checkpoint_stall_seconds =
      std::max(0.0, plan.checkpoint_copy_seconds - plan.checkpoint_overlap_seconds);
  plan.checkpoint_write_seconds = static_cast<double>(plan.checkpoint_bytes) / kDiskRate;
  const auto setting = ParseCheckpointInterval(config.interval);
  if (!setting) return;
  const IntervalEvidence evidence{.checkpoints = 1, .stall_seconds = plan.checkpoint_stall_seconds};
  plan.checkpoint_interval = CheckpointTimer(*setting).Seconds(evidence);
}

}  // namespace

bool Trains(const PhaseConfig& phase) {
  using enum PhaseKind;
  return phase.kind == kGts || phase.kind == kRegress || phase.kind == kCsd || phase.kind == kAlign;
}

bool BlocksInBf16(const ModelSizes& model, std::string_view precision) {
  return precision == kPrecisionBf16 && model.kind != ModelKind::kRaster;
}

bool BlocksRunAgain(const ModelSizes& model, const ModelConfig& config) {
  return config.recompute && model.kind != ModelKind::kRaster;
}

int GuidedPasses(const PlanInput& input) {
  const double none = input.model.kind == ModelKind::kVar ? 0 : 1;
  return input.config.teacher.cfg_scale == none ? 1 : 2;
}

std::int64_t ScoreBytes(const ModelSizes& model) {
  return model.tokens * (2 * model.width + 4 + 2);
}

Result<RunPlan> MakePlan(const PlanInput& input) {
  DD2_TRY(CheckCounts(input));
  RunPlan plan;
  plan.teacher_parameters = Sum(TeacherTensors(input.model));
  plan.network_parameters =
      Sum(NetworkBackboneTensors(input.model)) + Sum(HeadTensors(input.model, input.config.model));
  plan.shards_of_rank = ShareOfShards(input.config.batch.shards, input.world_size()).shards;
  for (const PhaseConfig& phase : input.config.phases) {
    if (Trains(phase)) {
      plan.sequences_of_shard =
          std::max<std::int64_t>(plan.sequences_of_shard, phase.batch / input.config.batch.shards);
    }
    if (phase.kind == PhaseKind::kSample && input.config.cache.enabled) {
      plan.cache_entry_bytes = ScoreBytes(input.model) + kEntryOverhead;
      plan.cache_bytes = phase.sequences * plan.cache_entry_bytes;
    }
  }
  plan.memory = PlanMemory(input);
  plan.phases = PlanTime(input);
  for (const PhaseTime& phase : plan.phases) plan.seconds += phase.seconds();
  PlanCheckpoints(input, plan);
  Judge(input, plan);
  return plan;
}

Result<RunPlan> PlanRun(const RunConfig& config, int domains, int domains_per_node) {
  PlanInput input;
  input.config = config;
  input.domains = domains;
  input.ranks = config.ranks;
  input.domains_per_node = domains_per_node;
  // Of devices any will do: who asks wants the host's memory and the disk.
  DD2_TRY_ASSIGN(input.hardware, FindHardware(config.device == kDeviceCuda ? "h200" : "cpu"));
  DD2_TRY_ASSIGN(input.model, ReadModelSizes(config.teacher.path));
  return MakePlan(input);
}

}  // namespace dd2
