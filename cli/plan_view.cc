// A plan as a table, and as a document.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string_view>

#include "cli/format.h"
#include "cli/plan.h"
#include "common/checkpoint_interval.h"

namespace dd2 {
namespace {

namespace json = boost::json;

constexpr double kDay = 86400;

// What the authors of DD2 report for whole schedules, on one node of 8 A800 (arXiv 2510.21003,
// Tables 3 and 8); LlamaGen-L with the adaptation of its teacher.
struct ReportedHours {
  std::string_view teacher;
  double hours;
};
constexpr ReportedHours kReportedHours[] = {
    {"var-d16", 115.5}, {"var-d20", 174.4}, {"var-d24", 96.1}, {"llamagen-l", 52.6}};
constexpr std::size_t kWhat = 40;

const char* PlaceName(Place place) {
  switch (place) {
    case Place::kDevice: return "device";
    case Place::kHost: return "memory";
    case Place::kShared: return "/dev/shm";
  }
  return "";
}

std::string Fixed(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof(text), "%.*f", digits, value);
  return text;
}

// "3.4 days", "5.1 hours", "42 s".
std::string Long(double seconds) {
  if (seconds >= 2 * kDay) return Fixed(seconds / kDay, 1) + " days";
  if (seconds >= 7200) return Fixed(seconds / 3600, 1) + " hours";
  if (seconds >= 120) return Fixed(seconds / 60, 1) + " min";
  return Fixed(seconds, 1) + " s";
}

std::string Millions(std::int64_t count) {
  return Fixed(static_cast<double>(count) / 1e6, count < 10'000'000 ? 2 : 1) + " M";
}

std::string Where(const PlanInput& in) {
  const int nodes = in.nodes();
  return std::to_string(nodes) + (nodes == 1 ? " node" : " nodes") + " with " +
         (in.domains_per_node > 1 ? std::to_string(in.domains_per_node) + " domains of " : "") +
         std::to_string(in.ranks) +
         (in.hardware.device
              ? " x " + in.hardware.title
              : " ranks of " + std::to_string(in.config.threads_per_rank) + " threads (CPU, fp32)");
}

std::string Head(const PlanInput& in, const RunPlan& plan) {
  const ModelSizes& m = in.model;
  return in.config.name + " on " + Where(in) + "\n" +
         (in.hardware.device
              ? "training on GPUs has not been run on one yet: what they would need and take\n"
              : "") +
         "\nteacher    " + m.name + " (" + ModelKindName(m.kind) +
         "): " + std::to_string(m.layers) + " layers, width " + std::to_string(m.width) + ", " +
         std::to_string(m.tokens) + " tokens of " + std::to_string(m.channels) + " channels, " +
         std::to_string(m.codes) + " codes, " + Millions(plan.teacher_parameters) +
         " parameters\nnetworks   " + Millions(plan.network_parameters) +
         " parameters each; head " + std::to_string(in.config.model.head_depth) + " x " +
         std::to_string(in.config.model.head_width) + "\nshards     " +
         std::to_string(in.config.batch.shards) + ", of a rank " +
         std::to_string(plan.shards_of_rank) + " of at most " +
         std::to_string(plan.sequences_of_shard) + " sequences\n";
}

std::string MemoryTable(const PlanInput& in, const MemoryPlan& memory) {
  std::string out = "\nmemory of a rank in " + memory.phase + ", where it needs most\n";
  for (const MemoryPart& part : memory.parts) {
    out += "  " + PadRight(part.what, kWhat) + PadRight(PlaceName(part.place), 10) +
           PadLeft(FormatBytes(part.bytes), 10) + "\n";
  }
  const auto sum = [](const std::string& what, const std::string& where, std::int64_t bytes) {
    return "  " + PadRight(what, kWhat) + PadRight(where, 10) + PadLeft(FormatBytes(bytes), 10);
  };
  if (in.hardware.device) {
    out += sum("= a device", "device", memory.device_bytes) + " of " +
           FormatBytes(in.hardware.memory_bytes) + "\n";
  }
  out += sum("= a process", "memory", memory.rank_bytes) + "\n";
  out += sum("= a node", "memory", memory.node_bytes) + ", of these " +
         FormatBytes(memory.shared_bytes) + " in /dev/shm" +
         (memory.shared_bytes > 0 ? ", whose usual size is half of the memory\n" : "\n");
  out += std::string("of a ") + (in.hardware.device ? "device" : "process") + " by phase:";
  for (const PhaseMemory& phase : memory.phases) {
    out +=
        (&phase == memory.phases.data() ? " " : ", ") + phase.name + " " + FormatBytes(phase.bytes);
  }
  return out + "\n";
}

std::string TimeTable(const PlanInput& in, const RunPlan& plan) {
  std::string out = "\n" + PadRight("time", 14) + PadLeft("steps", 10) + PadLeft("a step", 12) +
                    PadLeft("compute", 12) + PadLeft("update", 12) + PadLeft("exchange", 12) +
                    PadLeft("in all", 14) + "\n";
  const auto ms = [](double seconds) {
    return PadLeft(seconds < 10 ? Fixed(seconds * 1e3, 1) + " ms" : Fixed(seconds, 1) + " s", 12);
  };
  for (const PhaseTime& phase : plan.phases) {
    out += "  " + PadRight(phase.name, 12) + PadLeft(std::to_string(phase.steps), 10) +
           ms(phase.step_seconds()) + ms(phase.compute_seconds) + ms(phase.update_seconds) +
           ms(phase.exchange_seconds) + PadLeft(Long(phase.seconds()), 14) + "\n";
  }
  out += "  " + PadRight("= all, at least", 70) + PadLeft(Long(plan.seconds), 14) + "\n";
  out += "a lower bound: what the hardware allows (a roofline), without what software adds\n";
  const auto* reported = std::ranges::find(kReportedHours, in.model.name, &ReportedHours::teacher);
  if (!in.hardware.device || reported == std::end(kReportedHours)) return out;
  return out + "reported for " + in.model.name +
         " with the paper's schedule: " + Fixed(reported->hours, 1) +
         " hours on 8 A800 (arXiv 2510.21003)\n";
}

std::string IntervalText(const PlanInput& in, const RunPlan& plan) {
  if (!plan.checkpoint_interval) return "off: none besides those that phases set";
  const double seconds = *plan.checkpoint_interval;
  const std::string every = "one every " + Long(seconds);
  const auto setting = ParseCheckpointInterval(in.config.checkpoint.interval);
  if (setting && setting->kind == CheckpointInterval::Kind::kFixed) {
    return every + " (checkpoint.interval)";
  }
  if (seconds == kIntervalMinSeconds)
    return every + ", the least that auto takes: they cost little";
  if (seconds == kIntervalMaxSeconds) return every + ", the most that auto takes: they cost much";
  return every + " (auto: at a failure in 8 hours, until failures are seen)";
}

std::string StorageLines(const PlanInput& in, const RunPlan& plan) {
  const double stall = plan.checkpoint_stall_seconds;
  std::string out = "\ncheckpoint   " + FormatBytes(plan.checkpoint_bytes) + ", " +
                    FormatBytes(plan.kept_bytes) + " with all that are kept; " +
                    IntervalText(in, plan) + "\n             copied in " +
                    Fixed(plan.checkpoint_copy_seconds, 2) + " s beside the next gradients (" +
                    Fixed(plan.checkpoint_overlap_seconds, 2) + " s at least), training " +
                    (stall > 0 ? "stands " + Fixed(stall, 2) + " s" : "does not stand") +
                    " for it; written in " + Long(plan.checkpoint_write_seconds) + " at " +
                    FormatBytes(std::llround(kDiskRate)) + "/s (dd2 doctor measures the folder)\n";
  if (plan.cache_bytes == 0) return out;
  out += "score cache  " + FormatBytes(plan.cache_bytes) + ", " +
         FormatBytes(plan.cache_entry_bytes) + " a sequence";
  double rate = 0;
  for (const PhaseTime& phase : plan.phases) rate = std::max(rate, phase.cache_read_rate);
  if (rate > 0) out += "; gts reads " + FormatBytes(std::llround(rate)) + "/s from it in all";
  return out + "\n";
}

std::string AlternativeLines(const PlanInput& in, const std::vector<Alternative>& alternatives) {
  if (alternatives.empty()) return "";
  const bool device = in.hardware.device;
  std::string out = "\n" + PadRight("what a change does", 48) +
                    (device ? PadLeft("a device", 10) : "") + PadLeft("a node", 10) +
                    PadLeft("in all", 14) + "\n";
  bool marked = false;
  for (const Alternative& one : alternatives) {
    const MemoryPlan& memory = one.plan.memory;
    const bool other = one.lever == Lever::kResult;
    marked = marked || other;
    out += "  " + PadRight(one.change + (other ? " *" : ""), 32) +
           PadRight(one.plan.fits ? "fits" : "does not fit", 14) +
           (device ? PadLeft(FormatBytes(memory.device_bytes), 10) : "") +
           PadLeft(FormatBytes(memory.node_bytes), 10) + PadLeft(Long(one.plan.seconds), 14) + "\n";
  }
  return out + (marked ? "  * changes the result of the run\n" : "");
}

std::string LossLine(const PlanInput& in, const RunPlan& plan) {
  if (!plan.after_loss) return "";
  return std::string("after the loss of a ") + (in.nodes() > 1 ? "node" : "domain") + ": " +
         (in.hardware.device ? FormatBytes(plan.after_loss->device_bytes) + " a device, " : "") +
         FormatBytes(plan.after_loss->node_bytes) + " a node, " +
         (plan.after_loss->fits ? "fits\n" : "does not fit\n");
}

json::object MemoryObject(const MemoryPlan& memory) {
  json::array parts;
  for (const MemoryPart& part : memory.parts) {
    parts.push_back({{"what", part.what}, {"place", PlaceName(part.place)}, {"bytes", part.bytes}});
  }
  json::array phases;
  for (const PhaseMemory& phase : memory.phases) {
    phases.push_back({{"name", phase.name}, {"bytes", phase.bytes}});
  }
  return {{"phase", memory.phase},
          {"phases", std::move(phases)},
          {"parts", std::move(parts)},
          {"device_bytes", memory.device_bytes},
          {"rank_bytes", memory.rank_bytes},
          {"node_bytes", memory.node_bytes},
          {"shared_bytes", memory.shared_bytes}};
}

json::array PhaseArray(const std::vector<PhaseTime>& phases) {
  json::array out;
  for (const PhaseTime& phase : phases) {
    out.push_back({{"name", phase.name},
                   {"steps", phase.steps},
                   {"step_seconds", phase.step_seconds()},
                   {"compute_seconds", phase.compute_seconds},
                   {"update_seconds", phase.update_seconds},
                   {"exchange_seconds", phase.exchange_seconds},
                   {"step_flops", phase.flops},
                   {"cache_read_rate", phase.cache_read_rate},
                   {"seconds", phase.seconds()}});
  }
  return out;
}

}  // namespace

std::vector<std::string> AssumptionsOf(const PlanInput& in) {
  const auto percent = [](double share) { return Fixed(100 * share, 0) + " %"; };
  std::vector<std::string> lines = {
      "of the peaks: " + percent(kMatrixShare) + " in matrix products, " + percent(kVectorShare) +
          " in other arithmetic, " + percent(kMemoryShare) + " of memory bandwidth, " +
          percent(kNetworkShare) + " of links; nothing overlaps",
      "time is of the training alone: evaluation, pauses and work done again after failures are "
      "not counted; the score cache gives what gts reads"};
  if (in.hardware.device) {
    lines.push_back(
        "devices: not measured on one; passes as model.precision, model.recompute and "
        "teacher.precision say, all else (sampling, logits, score, state) in fp32, which the "
        "matrix units do not take");
  }
  if (in.model.kind == ModelKind::kLlamaGen) {
    lines.push_back("LlamaGen's teacher already takes codes through an MLP (method 4.3)");
  }
  return lines;
}

std::string FormatPlan(const PlanInput& in, const RunPlan& plan,
                       const std::vector<Alternative>& alternatives) {
  const std::string advice = AdviceOn(in, plan, alternatives);
  std::string out = Head(in, plan) + MemoryTable(in, plan.memory) + TimeTable(in, plan) +
                    StorageLines(in, plan) + "\n" + plan.verdict + "\n" + LossLine(in, plan) +
                    (advice.empty() ? "" : advice + "\n") + AlternativeLines(in, alternatives) +
                    "\nassumed\n";
  for (const std::string& line : AssumptionsOf(in)) out += "  * " + line + "\n";
  return out;
}

json::object PlanDocument(const PlanInput& in, const RunPlan& plan,
                          const std::vector<Alternative>& alternatives) {
  json::object out{
      {"name", in.config.name},
      {"hardware", in.hardware.name},
      {"nodes", in.nodes()},
      {"domains", in.domains},
      {"ranks_per_domain", in.ranks},
      {"model",
       {{"name", in.model.name},
        {"kind", ModelKindName(in.model.kind)},
        {"layers", in.model.layers},
        {"width", in.model.width},
        {"heads", in.model.heads},
        {"tokens", in.model.tokens},
        {"channels", in.model.channels},
        {"codes", in.model.codes},
        {"classes", in.model.classes},
        {"teacher_parameters", plan.teacher_parameters},
        {"network_parameters", plan.network_parameters}}},
      {"shards_of_rank", plan.shards_of_rank},
      {"sequences_of_shard", plan.sequences_of_shard},
      {"memory", MemoryObject(plan.memory)},
      {"phases", PhaseArray(plan.phases)},
      {"seconds", plan.seconds},
      {"days", plan.seconds / kDay},
      {"checkpoint",
       {{"bytes", plan.checkpoint_bytes},
        {"kept_bytes", plan.kept_bytes},
        {"copy_seconds", plan.checkpoint_copy_seconds},
        {"stall_seconds", plan.checkpoint_stall_seconds},
        {"write_seconds", plan.checkpoint_write_seconds}}},
      {"cache", {{"bytes", plan.cache_bytes}, {"entry_bytes", plan.cache_entry_bytes}}},
      {"node_memory", in.node_memory},
      {"fits", plan.fits},
      {"verdict", plan.verdict},
      {"advice", AdviceOn(in, plan, alternatives)}};
  if (plan.after_loss) {
    out["after_loss"] = {{"device_bytes", plan.after_loss->device_bytes},
                         {"node_bytes", plan.after_loss->node_bytes},
                         {"fits", plan.after_loss->fits}};
  }
  json::value& interval = out["checkpoint"].as_object()["interval_seconds"];
  if (plan.checkpoint_interval) interval = *plan.checkpoint_interval;
  json::array& changes = out["alternatives"].emplace_array();
  for (const Alternative& one : alternatives) {
    changes.push_back({{"change", one.change},
                       {"changes_result", one.lever == Lever::kResult},
                       {"fits", one.plan.fits},
                       {"device_bytes", one.plan.memory.device_bytes},
                       {"node_bytes", one.plan.memory.node_bytes},
                       {"seconds", one.plan.seconds}});
  }
  json::array& assumed = out["assumptions"].emplace_array();
  for (const std::string& line : AssumptionsOf(in)) assumed.emplace_back(line);
  return out;
}

}  // namespace dd2
