// What a person may change, and the least of it that makes a run fit.

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "cli/plan.h"
#include "cli/run_files.h"

namespace dd2 {
namespace {

// Domains that are beside each other move apart before new ones come.
PlanInput WithNodes(const PlanInput& input, int nodes) {
  PlanInput changed = input;
  changed.domains = std::max(input.domains, nodes);
  changed.domains_per_node = (changed.domains + nodes - 1) / nodes;
  return changed;
}

bool FitsAfterLoss(const RunPlan& plan) { return !plan.after_loss || plan.after_loss->fits; }

// The least number of nodes above that of `input` that fits, and still does when one is lost.
std::optional<int> LeastNodes(const PlanInput& input, bool after_loss) {
  const int most = input.config.batch.shards / input.ranks;
  for (int nodes = input.nodes() + 1; nodes <= most; ++nodes) {
    const auto plan = MakePlan(WithNodes(input, nodes));
    if (plan && plan->fits && (!after_loss || FitsAfterLoss(*plan))) return nodes;
  }
  return std::nullopt;
}

class Changes {
 public:
  Changes(const PlanInput& input, const RunPlan& plan) : input_(input), plan_(plan) {}

  std::vector<Alternative> All() {
    Shards();
    Machines();
    DecidingPhase();
    if (input_.config.checkpoint.memory_every > 0) {
      PlanInput changed = input_;
      changed.config.checkpoint.memory_every = 0;
      Add("checkpoint.memory_every: 0", Lever::kSetting, changed);
    }
    if (input_.hardware.device) Devices();
    std::ranges::stable_sort(all_, [](const Alternative& a, const Alternative& b) {
      return a.plan.fits && !b.plan.fits;
    });
    return std::move(all_);
  }

 private:
  // Not what cannot be made or changes nothing, nor a setting that changes time alone.
  void Add(const std::string& change, Lever lever, const PlanInput& changed) {
    auto plan = MakePlan(changed);
    if (!plan) return;
    const bool setting = lever == Lever::kSetting || lever == Lever::kResult;
    if (plan->memory.device_bytes == plan_.memory.device_bytes &&
        plan->memory.node_bytes == plan_.memory.node_bytes &&
        (setting || plan->seconds == plan_.seconds)) {
      return;
    }
    all_.push_back({change, lever, *std::move(plan)});
  }

  void Shards() {
    const int now = input_.config.batch.shards;
    for (const int shards : {now / 2, now * 2, now * 4}) {
      if (shards == 0) continue;
      PlanInput changed = input_;
      changed.config.batch.shards = shards;
      Add("batch.shards: " + std::to_string(shards), Lever::kResult, changed);
    }
  }

  void Machines() {
    const int now = input_.nodes();
    std::set<int> counts = {2 * now, 4 * now, 8 * now};
    if (const auto least = LeastNodes(input_, false)) counts.insert(*least);
    for (const int nodes : counts) {
      Add(std::to_string(nodes) + " nodes", Lever::kMachines, WithNodes(input_, nodes));
    }
    const bool device = input_.hardware.device;
    for (const int ranks : {input_.ranks / 2, input_.ranks * 2}) {
      // Devices that stand there are not left idle.
      if (ranks == 0 || (device && (ranks < input_.ranks || ranks > kDevicesOfNode))) continue;
      PlanInput changed = input_;
      changed.ranks = ranks;
      Add(std::to_string(ranks) + (ranks == 1 ? " rank a " : " ranks a ") +
              (input_.domains_per_node > 1 ? "domain" : "node"),
          device ? Lever::kMachines : Lever::kSetting, changed);
    }
  }

  void Devices() {
    for (const std::string& name : HardwareNames()) {
      const auto other = FindHardware(name);
      if (!other || !other->device || name == input_.hardware.name) continue;
      PlanInput changed = input_;
      changed.hardware = *other;
      Add(other->title, Lever::kDevices, changed);
    }
  }

  // What makes the phase that needs most smaller.
  void DecidingPhase() {
    const std::vector<std::string> names = PhaseNames(input_.config.phases);
    const auto at = std::ranges::find(names, plan_.memory.phase) - names.begin();
    if (at == std::ssize(names)) return;
    const auto index = static_cast<std::size_t>(at);
    const PhaseConfig& now = input_.config.phases[index];
    PlanInput changed = input_;
    PhaseConfig& phase = changed.config.phases[index];
    if (now.kind == PhaseKind::kSample && now.block % 2 == 0) {
      phase.block = now.block / 2;
      phase.steps = now.steps * 2;
      Add("block: " + std::to_string(phase.block) + " in " + names[index], Lever::kResult, changed);
    }
    if (Trains(now) && now.draws > 1) {
      phase.draws = now.draws / 2;
      Add("draws: " + std::to_string(phase.draws) + " in " + names[index], Lever::kResult, changed);
    }
  }

  const PlanInput& input_;
  const RunPlan& plan_;
  std::vector<Alternative> all_;
};

}  // namespace

std::vector<Alternative> AlternativesTo(const PlanInput& input, const RunPlan& plan) {
  return Changes(input, plan).All();
}

std::string AdviceOn(const PlanInput& input, const RunPlan& plan,
                     const std::vector<Alternative>& alternatives) {
  if (plan.fits && FitsAfterLoss(plan)) return "";
  const auto safe = LeastNodes(input, true);
  const std::string count = safe ? std::to_string(*safe) : "";
  if (plan.fits) {
    return safe ? "take " + count + " nodes to go on after the loss of one"
                : "no number of nodes goes on after the loss of one";
  }
  std::string ways;
  if (const auto least = LeastNodes(input, false)) {
    ways = "take " + std::to_string(*least) + " nodes";
    if (safe && *safe != *least) ways += " (" + count + " to go on after the loss of one)";
  }
  // Rather a setting that gives the same result.
  for (const Lever lever : {Lever::kSetting, Lever::kResult}) {
    const auto one = std::ranges::find_if(alternatives, [&](const Alternative& alternative) {
      return alternative.plan.fits && alternative.lever == lever;
    });
    if (one == alternatives.end()) continue;
    ways += (ways.empty() ? "take " : ", or ") + one->change;
    if (lever == Lever::kResult) ways += " (another result)";
    break;
  }
  return ways.empty() ? "neither more nodes nor one of the changes below make it fit"
                      : ways + ": the least that fits";
}

}  // namespace dd2
