#include <array>
#include <charconv>
#include <cmath>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "coordinator/api.h"

namespace dd2 {
namespace {

using Label = std::pair<std::string_view, std::string_view>;

// Writes OpenMetrics text: families one after the other, each with its type before its samples.
class MetricsWriter {
 public:
  // Begins a family; `unit` is empty or the last part of `name`.
  void Family(std::string_view name, std::string_view type, std::string_view unit,
              std::string_view help) {
    name_ = name;
    Line("# TYPE ", type);
    if (!unit.empty()) Line("# UNIT ", unit);
    Line("# HELP ", help);
  }

  // `suffix` as the family's type asks for: "_total" for a counter, "_info" for an info.
  void Sample(std::string_view suffix, std::initializer_list<Label> labels, double value) {
    text_ += name_;
    text_ += suffix;
    std::string_view separator = "{";
    for (const auto& [key, content] : labels) {
      text_ += separator;
      text_ += key;
      text_ += "=\"";
      AppendEscaped(content);
      text_ += '"';
      separator = ",";
    }
    if (labels.size() > 0) text_ += '}';
    text_ += ' ';
    AppendNumber(value);
    text_ += '\n';
  }

  void Gauge(std::string_view name, std::string_view unit, std::string_view help, double value) {
    Family(name, "gauge", unit, help);
    Sample("", {}, value);
  }

  void Counter(std::string_view name, std::string_view help, std::int64_t value) {
    Family(name, "counter", "", help);
    Sample("_total", {}, static_cast<double>(value));
  }

  std::string Finish() && {
    text_ += "# EOF\n";
    return std::move(text_);
  }

 private:
  void Line(std::string_view what, std::string_view content) {
    text_ += what;
    text_ += name_;
    text_ += ' ';
    text_ += content;
    text_ += '\n';
  }

  void AppendEscaped(std::string_view content) {
    for (const char c : content) {
      if (c == '\n') {
        text_ += "\\n";
        continue;
      }
      if (c == '\\' || c == '"') text_ += '\\';
      text_ += c;
    }
  }

  void AppendNumber(double value) {
    if (std::isnan(value)) {
      text_ += "NaN";
    } else if (std::isinf(value)) {
      text_ += value > 0 ? "+Inf" : "-Inf";
    } else {
      std::array<char, 32> digits{};
      const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value);
      text_.append(digits.data(), end.ptr);
    }
  }

  std::string_view name_;
  std::string text_;
};

void WriteRun(const RunState& state, MetricsWriter& out) {
  out.Family("dd2_build", "info", "", "Version of the coordinator.");
  out.Sample("_info", {{"version", state.code_version}}, 1);
  out.Family("dd2_run", "info", "", "Which run this is.");
  out.Sample("_info", {{"run_id", state.run_id}, {"name", state.name}}, 1);
  out.Family("dd2_run_state", "stateset", "", "What the run is doing.");
  for (const RunWord word :
       {RunWord::kWaiting, RunWord::kRunning, RunWord::kRecovering, RunWord::kPaused,
        RunWord::kStopping, RunWord::kFinished, RunWord::kStopped, RunWord::kFailed}) {
    out.Sample("", {{"dd2_run_state", RunWordName(word)}}, state.word == word ? 1 : 0);
  }
  out.Gauge("dd2_start_timestamp_seconds", "seconds", "When this coordinator started, Unix time.",
            static_cast<double>(state.started_unix_ms) / 1000);
  out.Gauge("dd2_generation", "", "Number of the current membership, 0 before the first.",
            static_cast<double>(state.generation));
  out.Family("dd2_members", "gauge", "", "Connected members.");
  out.Sample("", {{"role", "agent"}}, state.agents);
  out.Sample("", {{"role", "worker"}}, state.workers);
}

void WritePhases(const RunState& state, MetricsWriter& out) {
  out.Family("dd2_phase_steps", "counter", "", "Finished steps of each phase; a rollback resets.");
  for (const PhaseState& phase : state.phases) {
    out.Sample("_total", {{"phase", phase.name}}, static_cast<double>(phase.done));
  }
  out.Family("dd2_phase_planned_steps", "gauge", "", "Steps that each phase has.");
  for (const PhaseState& phase : state.phases) {
    out.Sample("", {{"phase", phase.name}}, static_cast<double>(phase.steps));
  }
  out.Family("dd2_phase_seconds", "counter", "seconds", "Wall time spent in each phase.");
  for (const PhaseState& phase : state.phases) {
    out.Sample("_total", {{"phase", phase.name}}, phase.seconds);
  }
  out.Gauge("dd2_phase_index", "", "Index of the current phase.", static_cast<double>(state.phase));
  if (state.steps_per_second > 0) {
    out.Gauge("dd2_steps_per_second", "", "Speed of the current phase.", state.steps_per_second);
  }
  if (state.phase_eta_seconds >= 0) {
    out.Gauge("dd2_phase_remaining_seconds", "seconds", "Expected rest of the current phase.",
              state.phase_eta_seconds);
  }
}

void WriteCounters(const RunCounters& counters, MetricsWriter& out) {
  out.Counter("dd2_outer_cycles", "K guidance updates and one generator update, finished.",
              counters.outer_cycles);
  out.Counter("dd2_generator_updates", "Updates of the generator.", counters.generator_updates);
  out.Counter("dd2_guidance_updates", "Updates of the guidance network.",
              counters.guidance_updates);
  out.Counter("dd2_skipped_updates", "Updates skipped because a number was not finite.",
              counters.skipped_updates);
  out.Counter("dd2_score_cache_hits", "Look-ups of score cache entries that were found.",
              counters.cache_hits);
  out.Counter("dd2_score_cache_misses",
              "Look-ups of score cache entries that the teacher computed.", counters.cache_misses);
}

void WriteCheckpoints(const RunState& state, MetricsWriter& out) {
  constexpr std::array words = {CheckpointWord::kWriting, CheckpointWord::kCommitted,
                                CheckpointWord::kDeleted, CheckpointWord::kQuarantined,
                                CheckpointWord::kFailed};
  std::array<double, words.size()> counts{};
  const CheckpointState* newest = nullptr;
  for (const CheckpointState& checkpoint : state.checkpoints) {
    for (std::size_t i = 0; i < words.size(); ++i) {
      if (checkpoint.word == words[i]) counts[i] += 1;
    }
    if (checkpoint.word == CheckpointWord::kCommitted) newest = &checkpoint;
  }
  out.Family("dd2_checkpoints", "gauge", "", "Checkpoints known, by state.");
  for (std::size_t i = 0; i < words.size(); ++i) {
    out.Sample("", {{"state", CheckpointWordName(words[i])}}, counts[i]);
  }
  if (newest == nullptr) return;
  out.Gauge("dd2_checkpoint_newest_bytes", "bytes", "Size of the newest committed checkpoint.",
            static_cast<double>(newest->bytes));
  out.Gauge("dd2_checkpoint_newest_hold_seconds", "seconds",
            "How long training was held up for the newest committed checkpoint.",
            newest->hold_seconds);
  out.Gauge("dd2_checkpoint_newest_timestamp_seconds", "seconds",
            "When the newest committed checkpoint was committed, Unix time.",
            static_cast<double>(newest->committed_unix_ms) / 1000);
}

}  // namespace

std::string MetricsText(const RunState& state) {
  MetricsWriter out;
  WriteRun(state, out);
  WritePhases(state, out);
  WriteCounters(state.counters, out);
  WriteCheckpoints(state, out);
  if (!state.metrics.empty()) {
    out.Family("dd2_training_value", "gauge", "",
               "Newest value of each number the workers report.");
    for (const MetricValue& metric : state.metrics) {
      out.Sample("", {{"name", metric.name}}, metric.value);
    }
  }
  return std::move(out).Finish();
}

}  // namespace dd2
