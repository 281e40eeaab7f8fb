#include "common/config_rules.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

namespace dd2 {
namespace {

// Checks one run; keeps what the phases so far have produced.
class RunRules {
 public:
  RunRules(const RunConfig& config, bool complete, const SettingsReader& reader,
           ConfigProblems& problems)
      : config_(config), complete_(complete), reader_(reader), problems_(problems) {}

  void CheckAll(const std::vector<std::size_t>& positions) {
    CheckGlobals();
    CheckTimes();
    if (complete_ && config_.phases.empty()) Add("phases", {}, "the list is empty");
    for (std::size_t i = 0; i < config_.phases.size(); ++i) {
      CheckPhase(config_.phases[i], "phases." + std::to_string(positions[i]),
                 i + 1 == config_.phases.size());
    }
  }

 private:
  // Says nothing when a setting that the rule reads was wrong by itself.
  void Add(const std::string& key, const std::vector<std::string>& also_read,
           const std::string& problem) {
    if (reader_.Failed(key)) return;
    for (const std::string& other : also_read) {
      if (reader_.Failed(other)) return;
    }
    problems_.Add(reader_.Where(key), key, problem);
  }

  void CheckGlobals() {
    const int shards = config_.batch.shards;
    if ((shards & (shards - 1)) != 0) {
      Add("batch.shards", {}, std::to_string(shards) + " is not a power of two");
    }
    if (config_.domains * config_.ranks > shards) {
      Add("ranks", {"domains", "batch.shards"},
          (config_.domains > 1 ? std::to_string(config_.domains) + " domains of " : "") +
              std::to_string(config_.ranks) + " ranks for " + std::to_string(shards) +
              " shards (batch.shards): some would have nothing to do");
    }
    if (config_.model.time_features % 2 != 0) {
      Add("model.time_features", {},
          std::to_string(config_.model.time_features) + " is odd; sines and cosines come in pairs");
    }
    if (config_.device != kDeviceCpu && config_.device != kDeviceCuda) {
      Add("device", {},
          "\"" + config_.device.substr(0, 60) + "\" is neither cpu (the default) nor cuda");
    }
    const auto check_precision = [this](const char* setting, const std::string& word) {
      if (word == kPrecisionFp32 || word == kPrecisionBf16) return;
      Add(setting, {}, "\"" + word.substr(0, 60) + "\" is neither fp32 (the default) nor bf16");
    };
    check_precision("teacher.precision", config_.teacher.precision);
    check_precision("model.precision", config_.model.precision);
    if (config_.eval.inception.empty() != config_.eval.reference.empty()) {
      Add(config_.eval.reference.empty() ? "eval.reference" : "eval.inception",
          {"eval.inception", "eval.reference"},
          "is empty: FID takes both, eval.inception and eval.reference (or neither)");
    }
    if (!ParseCheckpointInterval(config_.checkpoint.interval)) {
      Add("checkpoint.interval", {},
          "\"" + config_.checkpoint.interval.substr(0, 60) +
              "\" is neither auto, off, nor seconds from 1 to 1e9");
    }
    const std::string& name = config_.name;
    const bool plain = std::all_of(name.begin(), name.end(), [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
             c == '-' || c == '_' || c == '.';
    });
    if (name.empty() || name.front() == '.' || name.size() > 100 || !plain) {
      Add("name", {},
          "\"" + name.substr(0, 100) +
              "\" is no folder name: 1 to 100 letters, digits, '-', '_' or '.'");
    }
  }

  void CheckTimes() {
    for (const TimeoutConflict& conflict : CheckTimeouts(config_.timeouts)) {
      std::vector<std::string> also_read;
      if (!conflict.other.empty()) also_read.push_back("timeouts." + conflict.other);
      Add("timeouts." + conflict.setting, also_read, conflict.problem);
    }
  }

  void CheckPhase(const PhaseConfig& phase, const std::string& key, bool last) {
    if (complete_) CheckOrder(phase, key + ".kind", last);
    first_ = false;
    if (phase.kind == PhaseKind::kSample) {
      if (phase.sequences % phase.block != 0) {
        Add(key + ".sequences", {key + ".block"},
            std::to_string(phase.sequences) + " is not a multiple of block (" +
                std::to_string(phase.block) + ")");
      }
      sequences_ = phase.sequences;
      has_trajectories_ = phase.ode_steps > 0;
      sample_key_ = key;
    }
    const bool trains = phase.kind == PhaseKind::kGts || phase.kind == PhaseKind::kRegress ||
                        phase.kind == PhaseKind::kCsd || phase.kind == PhaseKind::kAlign;
    if (trains) CheckTraining(phase, key);
    if (phase.kind == PhaseKind::kGts) CheckGts(phase, key);
    if (phase.kind == PhaseKind::kCsd) CheckCsd(phase, key);
  }

  void CheckOrder(const PhaseConfig& phase, const std::string& key, bool last) {
    switch (phase.kind) {
      case PhaseKind::kTeacherCheck:
        if (!first_) Add(key, {}, "a teacher_check can only be the first phase");
        break;
      case PhaseKind::kSample:
        if (has_sample_) Add(key, {}, "a second sample phase: make the first one larger instead");
        has_sample_ = true;
        break;
      case PhaseKind::kGts:
        if (!has_sample_) Add(key, {}, "gts needs a sample phase before it");
        if (has_csd_) Add(key, {}, "gts after csd would train over the distilled generator");
        if (has_regress_) Add(key, {}, "gts after regress would leave its generator behind");
        has_gts_ = true;
        break;
      case PhaseKind::kRegress:
        if (!has_gts_) Add(key, {}, "regress needs a gts phase before it");
        if (has_csd_) Add(key, {}, "regress after csd would train over the distilled generator");
        if (has_sample_ && !has_trajectories_) {
          Add(key, {sample_key_ + ".ode_steps"},
              "regress needs trajectories: set ode_steps (14, say) in the sample phase");
        }
        has_regress_ = true;
        break;
      case PhaseKind::kCsd:
        if (!has_gts_) Add(key, {}, "csd needs a gts phase before it");
        has_csd_ = true;
        break;
      case PhaseKind::kAlign:
      case PhaseKind::kEval:
      case PhaseKind::kExport:  // the generator gets its first weights where these begin
        if (!has_csd_ && !has_regress_) {
          Add(key, {},
              std::string(PhaseKindName(phase.kind)) + " needs a csd or regress phase before it");
        }
        break;
    }
    if (phase.kind == PhaseKind::kExport && !last) {
      Add(key, {}, "export can only be the last phase");
    }
  }

  void CheckTraining(const PhaseConfig& phase, const std::string& key) {
    const int shards = std::max(1, config_.batch.shards);
    if (phase.batch % shards != 0) {
      Add(key + ".batch", {"batch.shards"},
          std::to_string(phase.batch) + " is not a multiple of batch.shards (" +
              std::to_string(shards) + ")");
    }
    if (phase.guidance.warmup > phase.steps) {
      Add(key + ".warmup", {key + ".steps", key + ".cycles"},
          std::to_string(phase.guidance.warmup) + " is longer than the phase (" +
              std::to_string(phase.steps) + " steps)");
    }
    CheckStart(phase, key);
    if (phase.t_min >= phase.t_max)
      Add(key + ".t_min", {key + ".t_max"}, "must be smaller than t_max");
  }

  // The rate that warm-ups rise from.
  void CheckStart(const PhaseConfig& phase, const std::string& key) {
    const double start = phase.guidance.start;
    if (start == 0) return;
    if (phase.guidance.warmup == 0) {
      Add(key + ".start_lr", {key + ".warmup"}, "without a warmup nothing starts from it");
    }
    const bool both = phase.kind == PhaseKind::kCsd;
    const double lowest = phase.kind == PhaseKind::kRegress ? phase.generator.peak
                          : both ? std::min(phase.generator.peak, phase.guidance.peak)
                                 : phase.guidance.peak;
    if (start > lowest) {
      Add(key + ".start_lr", {key + ".lr", key + ".generator_lr", key + ".guidance_lr"},
          "is above the rate that the warm-up ends at");
    }
  }

  void CheckGts(const PhaseConfig& phase, const std::string& key) {
    if (phase.trains != kTrainsAll && phase.trains != kTrainsHead) {
      Add(key + ".trains", {},
          "\"" + phase.trains.substr(0, 60) + "\" is neither all (the default) nor head");
    }
    if (!has_sample_ || sequences_ <= 0) return;
    const std::int64_t training = std::int64_t{sequences_} - phase.validation;
    if (training < phase.batch) {
      Add(key + (phase.validation > 0 ? ".validation" : ".batch"),
          {key + ".batch", key + ".validation"},
          std::to_string(sequences_) + " sampled sequences less " +
              std::to_string(phase.validation) + " for validation leave fewer than one batch of " +
              std::to_string(phase.batch));
    }
  }

  void CheckCsd(const PhaseConfig& phase, const std::string& key) {
    if (phase.generator_t_min >= phase.generator_t_max) {
      Add(key + ".generator_t_min", {key + ".generator_t_max"},
          "must be smaller than generator_t_max");
    }
    // Positions of random numbers hold an update in 32 bits.
    if (phase.steps * (phase.guidance_updates + 1) >= (std::int64_t{1} << 32)) {
      Add(key + ".cycles", {key + ".guidance_updates"},
          "cycles times (guidance_updates + 1) must stay below 2^32");
    }
  }

  const RunConfig& config_;
  const bool complete_;
  const SettingsReader& reader_;
  ConfigProblems& problems_;
  bool first_ = true;
  bool has_sample_ = false;
  bool has_gts_ = false;
  bool has_regress_ = false;
  bool has_csd_ = false;
  bool has_trajectories_ = false;  // the sample phase solves the flow
  std::string sample_key_;
  int sequences_ = 0;
};

}  // namespace

void CheckRunRules(const RunConfig& config, const std::vector<std::size_t>& positions,
                   bool complete, const SettingsReader& reader, ConfigProblems& problems) {
  RunRules(config, complete, reader, problems).CheckAll(positions);
}

}  // namespace dd2
