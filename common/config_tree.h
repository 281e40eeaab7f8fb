#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/result.h"

namespace dd2 {

struct ConfigEntry;

// A YAML document as plain data: what the settings code reads, free of yaml-cpp. Each node knows
// where it was written ("configs/a.yaml:12", or "--set"), so that a problem can be traced to it.
struct ConfigNode {
  enum class Kind : std::uint8_t { kNull, kScalar, kList, kMap };
  Kind kind = Kind::kNull;
  std::string where;
  bool from_override = false;
  std::string scalar;                // kScalar
  std::vector<ConfigNode> list;      // kList
  std::vector<ConfigEntry> entries;  // kMap, in the order of the file

  const ConfigNode* Find(std::string_view key) const;
};

struct ConfigEntry {
  std::string key;
  ConfigNode node;
};

// All that is wrong with a document, gathered so that a person fixes it in one go.
class ConfigProblems {
 public:
  // One line "where: key: problem". Empty keys are left out. At most 100 are kept.
  void Add(const std::string& where, const std::string& key, const std::string& problem);
  bool empty() const { return lines_.empty(); }
  // kInvalidArgument with one line for each problem.
  Error ToError() const;

 private:
  std::vector<std::string> lines_;
  std::size_t left_out_ = 0;
};

// Reads one YAML document. `label` stands in front of the line numbers. Bounded in size, depth and
// number of nodes (aliases count each time); kInvalidArgument with file:line beyond that.
Result<ConfigNode> ParseConfigTree(std::string_view yaml, const std::string& label);

// The text of a configuration file. kNotFound, kInvalidArgument (no file, too large), kUnavailable.
Result<std::string> ReadConfigFile(const std::filesystem::path& path);

// Puts "key.path=value" into the tree; the value is YAML. Map keys are created when missing; list
// items must exist.
void ApplyOverride(ConfigNode& root, const std::string& override_text, ConfigProblems& problems);

// The known word that `word` was most likely meant to be (edit distance), or empty.
std::string NearestWord(std::string_view word, const std::vector<std::string>& known);

// `text` as a double-quoted YAML string.
std::string QuoteYaml(std::string_view text);

}  // namespace dd2
