#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <set>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "common/config_tree.h"
#include "common/run_config.h"

namespace dd2 {

// Inside common/config*: how settings are declared, read, written and described. The tables at the
// end are the only place where a setting's key, unit, bounds and sentence stand; its default is
// that of the struct.

// A duration is written in seconds, "0.5".
using SettingField = std::variant<int*, std::int64_t*, std::uint64_t*, double*, bool*, std::string*,
                                  std::chrono::milliseconds*>;

// What else is true of a setting; combined with |.
enum SettingFlags : unsigned {
  kPlain = 0,
  kBits = 1,      // changes the trained bits: part of the config digest
  kPath = 2,      // a path: resolved when relative
  kRequired = 4,  // has no default
  kAboveMin = 8,  // `min` itself is not allowed
  // With kBits: came after the first runs, whose digest did not have it. It is part of the digest
  // only where it differs from its default, so that those runs go on.
  kLater = 16,
};

// The kinds of phases that a setting of a phase is allowed in.
constexpr unsigned KindBit(PhaseKind kind) { return 1u << static_cast<unsigned>(kind); }

inline constexpr double kUnbounded = std::numeric_limits<double>::infinity();

struct SettingInfo {
  const char* key;   // dotted path in the YAML file
  const char* unit;  // "" when it has none
  double min;        // bounds of a number, inclusive
  double max;
  unsigned flags;
  const char* sentence;
};

template <class T>
struct Setting {
  SettingInfo info;
  SettingField (*field)(T& object);
  unsigned kinds = 0;  // phases only
};

// A setting together with the place in one object that it is read into.
struct BoundSetting {
  const SettingInfo* info;
  SettingField field;
};

template <class T>
std::vector<BoundSetting> Bind(std::span<const Setting<T>> table, T& object) {
  std::vector<BoundSetting> bound;
  for (const Setting<T>& setting : table) bound.push_back({&setting.info, setting.field(object)});
  return bound;
}

std::span<const Setting<RunConfig>> RunSettings();
std::span<const Setting<PhaseConfig>> PhaseSettings();

// The settings of `phase` that its kind uses.
std::vector<BoundSetting> BindPhase(PhaseConfig& phase);

// Fills objects from a tree and remembers where each key was given.
class SettingsReader {
 public:
  SettingsReader(std::filesystem::path folder, ConfigProblems& problems)
      : folder_(std::move(folder)), problems_(problems) {}

  // Reads the map `node` into `settings`. `prefix` ("", "phases.2.") goes in front of keys in
  // messages; keys in `skipped` are somebody else's; `owner` ends the message about an unknown key
  // (" of a gts phase").
  void Read(const ConfigNode& node, const std::string& prefix,
            const std::vector<BoundSetting>& settings, const std::vector<std::string>& skipped,
            const std::string& owner);
  // Where `key` (with prefix) was given; where its nearest parent was, when it was not.
  const std::string& Where(const std::string& key) const;
  void Remember(const std::string& key, const std::string& where) { where_[key] = where; }
  bool Given(const std::string& key) const { return where_.count(key) > 0; }
  // True when `key` was given but could not be used; rules that need it say nothing then.
  bool Failed(const std::string& key) const { return failed_.count(key) > 0; }

 private:
  struct Scope;
  void ReadMap(const ConfigNode& node, const std::string& section, const Scope& scope);
  void ReadOne(const ConfigNode& node, const std::string& key, const BoundSetting& setting);
  // What is wrong with the value, or empty after it was stored.
  std::string Store(const ConfigNode& node, const BoundSetting& setting) const;
  void Unknown(const ConfigNode& node, const std::string& section, const std::string& key,
               const Scope& scope);

  std::filesystem::path folder_;
  ConfigProblems& problems_;
  std::map<std::string, std::string> where_;
  std::set<std::string> failed_;
};

// The value as it stands in YAML: strings quoted, numbers in the shortest form that reads back.
std::string FormatField(const SettingField& field);
// `indent` spaces, the settings as nested YAML, one line each.
std::string FormatSettings(const std::vector<BoundSetting>& settings, std::size_t indent);
// A Markdown table of the settings.
std::string DescribeTable(const std::vector<BoundSetting>& settings);

}  // namespace dd2
