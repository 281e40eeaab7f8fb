#include "coordinator/result_json.h"

#include "common/json.h"

namespace dd2 {

namespace {

namespace json = boost::json;

// Objects are merged member by member, anything else is replaced.
void MergeInto(json::object& target, const json::object& source) {
  for (const auto& [key, value] : source) {
    json::value* present = target.if_contains(key);
    if (present != nullptr && present->is_object() && value.is_object()) {
      MergeInto(present->get_object(), value.get_object());
    } else {
      target[key] = value;
    }
  }
}

}  // namespace

std::string BuildResultJson(const RunState& state) {
  json::object result;
  result["name"] = state.name;
  result["run_id"] = state.run_id;
  result["outcome"] = RunWordName(state.word);
  result["seed"] = state.seed;
  result["ranks"] = state.ranks;
  if (!state.command.empty()) result["command"] = state.command;
  json::object seconds;
  double total = 0;
  for (const PhaseState& phase : state.phases) {
    seconds[phase.name] = phase.seconds;
    total += phase.seconds;
  }
  result["seconds"] = std::move(seconds);
  result["seconds_total"] = total;
  json::object cache;
  cache["hits"] = state.counters.cache_hits;
  cache["misses"] = state.counters.cache_misses;
  result["cache"] = std::move(cache);
  json::object checkpoints;
  checkpoints["count"] = state.checkpoint_totals.count;
  checkpoints["bytes"] = state.checkpoint_totals.bytes;
  checkpoints["stall_seconds"] = state.checkpoint_totals.stall_seconds;
  result["checkpoints"] = std::move(checkpoints);
  json::object counters;
  counters["outer_cycles"] = state.counters.outer_cycles;
  counters["generator_updates"] = state.counters.generator_updates;
  counters["guidance_updates"] = state.counters.guidance_updates;
  counters["skipped_updates"] = state.counters.skipped_updates;
  result["counters"] = std::move(counters);
  json::object versions;
  versions["dd2"] = state.code_version;
  versions["numeric_mode"] = state.numeric_mode;
  result["versions"] = std::move(versions);
  for (const PhaseState& phase : state.phases) {
    if (phase.result_json.empty()) continue;
    boost::system::error_code error;
    const json::value parsed = json::parse(phase.result_json, error);
    if (!error && parsed.is_object()) {
      MergeInto(result, parsed.get_object());
    } else {
      result[phase.name] = phase.result_json;
    }
  }
  return json::serialize(result) + "\n";
}

}  // namespace dd2
