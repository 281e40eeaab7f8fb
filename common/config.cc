#include "common/config.h"

#include <cstdlib>
#include <fstream>
#include <iterator>

#include "common/config_rules.h"
#include "common/config_settings.h"
#include "common/limits.h"

namespace dd2 {
namespace {

std::vector<std::string> PhaseKindNames() {
  std::vector<std::string> names;
  for (const PhaseKind kind : kPhaseKinds) names.emplace_back(PhaseKindName(kind));
  return names;
}

// "one of teacher_check, sample, ..."
std::string PhaseKindChoice() {
  std::string text;
  for (const std::string& name : PhaseKindNames()) {
    text += (text.empty() ? "one of " : ", ") + name;
  }
  return text;
}

// Settings that follow from others and have no key of their own.
void FinishPhase(PhaseConfig& phase) {
  if (phase.kind == PhaseKind::kSample) phase.steps = phase.sequences / phase.block;
  phase.generator.warmup = phase.guidance.warmup;
  phase.generator.start = phase.guidance.start;
}

std::optional<PhaseConfig> ReadPhase(const ConfigNode& node, const std::string& key,
                                     SettingsReader& reader, ConfigProblems& problems) {
  reader.Remember(key, node.where);
  if (node.kind != ConfigNode::Kind::kMap) {
    problems.Add(node.where, key, "expected a map such as {kind: gts, steps: 400}");
    return std::nullopt;
  }
  const ConfigNode* kind_node = node.Find("kind");
  if (kind_node == nullptr || kind_node->kind != ConfigNode::Kind::kScalar) {
    problems.Add(node.where, key + ".kind", "is missing; " + PhaseKindChoice());
    return std::nullopt;
  }
  reader.Remember(key + ".kind", kind_node->where);
  const std::optional<PhaseKind> kind = ParsePhaseKind(kind_node->scalar);
  if (!kind) {
    const std::string nearest = NearestWord(kind_node->scalar, PhaseKindNames());
    problems.Add(kind_node->where, key + ".kind",
                 "unknown kind of phase \"" + kind_node->scalar.substr(0, 60) + "\"; " +
                     (nearest.empty() ? PhaseKindChoice() : "did you mean " + nearest + "?"));
    return std::nullopt;
  }
  PhaseConfig phase = DefaultPhase(*kind);
  reader.Read(node, key + ".", BindPhase(phase), {"kind"},
              std::string(" of a phase of kind ") + PhaseKindName(*kind));
  FinishPhase(phase);
  return phase;
}

struct PhaseList {
  std::vector<PhaseConfig> phases;
  std::vector<std::size_t> positions;  // in the file's list
  bool complete = false;
};

PhaseList ReadPhases(const ConfigNode& root, SettingsReader& reader, ConfigProblems& problems) {
  PhaseList out;
  const ConfigNode* node = root.Find("phases");
  if (node == nullptr || node->kind == ConfigNode::Kind::kNull) {
    problems.Add(root.where, "phases", "is missing: a list of phases, \"- kind: sample\" first");
    return out;
  }
  reader.Remember("phases", node->where);
  if (node->kind != ConfigNode::Kind::kList) {
    problems.Add(node->where, "phases", "expected a list of phases, each \"- kind: ...\"");
    return out;
  }
  if (node->list.size() > kPhasesMax) {
    problems.Add(
        node->where, "phases",
        std::to_string(node->list.size()) + " phases, the limit is " + std::to_string(kPhasesMax));
    return out;
  }
  for (std::size_t i = 0; i < node->list.size(); ++i) {
    const std::string key = "phases." + std::to_string(i);
    std::optional<PhaseConfig> phase = ReadPhase(node->list[i], key, reader, problems);
    if (!phase) continue;
    out.phases.push_back(*phase);
    out.positions.push_back(i);
  }
  out.complete = out.phases.size() == node->list.size();
  return out;
}

// Hashes the settings that change the trained bits. Callers hand in copies: binding needs
// something that it may point into. `defaults`: the same settings of a fresh object.
void HashSettings(const std::vector<BoundSetting>& settings,
                  const std::vector<BoundSetting>& defaults, Hasher128& hasher) {
  for (std::size_t i = 0; i < settings.size(); ++i) {
    const SettingInfo& info = *settings[i].info;
    const std::string value = FormatField(settings[i].field);
    if ((info.flags & kBits) == 0) continue;
    if ((info.flags & kLater) != 0 && value == FormatField(defaults[i].field)) continue;
    hasher.UpdateField(info.key);
    hasher.UpdateField(value);
  }
}

}  // namespace

Result<RunConfig> ParseRunConfig(std::string_view yaml, const std::string& label,
                                 const std::filesystem::path& folder,
                                 const std::vector<std::string>& overrides) {
  DD2_TRY_ASSIGN(ConfigNode root, ParseConfigTree(yaml, label));
  ConfigProblems problems;
  for (const std::string& text : overrides) ApplyOverride(root, text, problems);
  SettingsReader reader(folder, problems);
  reader.Remember("", root.where);

  RunConfig config;
  config.name = std::filesystem::path(label).stem().string();
  reader.Read(root, "", Bind(RunSettings(), config), {"phases"}, "");
  const PhaseList list = ReadPhases(root, reader, problems);
  config.phases = list.phases;
  CheckRunRules(config, list.positions, list.complete, reader, problems);
  if (!problems.empty()) return problems.ToError();
  if (config.phases.front().kind != PhaseKind::kTeacherCheck) {
    config.phases.insert(config.phases.begin(), DefaultPhase(PhaseKind::kTeacherCheck));
  }
  return config;
}

Result<RunConfig> LoadRunConfig(const std::filesystem::path& path,
                                const std::vector<std::string>& overrides) {
  DD2_TRY_ASSIGN(const std::string text, ReadConfigFile(path));
  return ParseRunConfig(text, path.string(), path.parent_path(), overrides);
}

std::string DumpRunConfig(const RunConfig& config) {
  RunConfig copy = config;
  std::string out = FormatSettings(Bind(RunSettings(), copy), 0) + "phases:\n";
  for (PhaseConfig& phase : copy.phases) {
    out += std::string("  - kind: ") + PhaseKindName(phase.kind) + "\n" +
           FormatSettings(BindPhase(phase), 4);
  }
  return out;
}

Digest128 ConfigDigest(const RunConfig& config) {
  RunConfig copy = config;
  RunConfig defaults;
  Hasher128 hasher;
  hasher.UpdateField("dd2 run config 1");
  HashSettings(Bind(RunSettings(), copy), Bind(RunSettings(), defaults), hasher);
  hasher.UpdateInt(copy.phases.size());
  for (PhaseConfig& phase : copy.phases) {
    hasher.UpdateField(PhaseKindName(phase.kind));
    PhaseConfig plain = DefaultPhase(phase.kind);
    HashSettings(BindPhase(phase), BindPhase(plain), hasher);
  }
  return hasher.Finish();
}

std::string DescribeSettings() {
  RunConfig defaults;
  std::string out = "## Settings of a run\n\n" + DescribeTable(Bind(RunSettings(), defaults)) +
                    "\n## Phases\n\n`phases` is a list, each item with its `kind`:\n";
  for (const PhaseKind kind : kPhaseKinds) {
    PhaseConfig phase = DefaultPhase(kind);
    const std::vector<BoundSetting> settings = BindPhase(phase);
    out += std::string("\n### ") + PhaseKindName(kind) + "\n\n" +
           (settings.empty() ? "No settings.\n" : DescribeTable(settings));
  }
  return out;
}

std::filesystem::path ScoreCacheFolder(const RunConfig& config) {
  if (!config.cache.path.empty()) return config.cache.path;
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && *cache != '\0') return std::filesystem::path(cache) / "dd2" / "scores";
  const char* home = std::getenv("HOME");
  return std::filesystem::path(home != nullptr ? home : "/tmp") / ".cache" / "dd2" / "scores";
}

}  // namespace dd2
