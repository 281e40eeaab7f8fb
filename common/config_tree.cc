#include "common/config_tree.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <exception>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <sstream>

#include "common/limits.h"

namespace dd2 {
namespace {

std::string Where(const std::string& label, const YAML::Mark& mark) {
  if (label == "--set" || mark.is_null()) return label;
  return label + ":" + std::to_string(mark.line + 1);
}

// Ends the parse from inside an event; never leaves this file.
struct TreeError {
  YAML::Mark mark;
  std::string message;
};

std::size_t CountNodes(const ConfigNode& node) {
  std::size_t count = 1;
  for (const ConfigNode& item : node.list) count += CountNodes(item);
  for (const auto& [key, child] : node.entries) count += CountNodes(child);
  return count;
}

// Builds the tree from yaml-cpp's events, bounded while it grows. (YAML::Load would build a graph
// that aliases make huge or cyclic, and YAML::LoadAll never returns on some damaged files.)
class TreeBuilder : public YAML::EventHandler {
 public:
  explicit TreeBuilder(const std::string& label) : label_(label) { root_.where = label; }

  ConfigNode Take() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (documents_++ > 0) throw TreeError{mark, "a second YAML document; only one is allowed"};
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    Add(mark, anchor, NewNode(mark, ConfigNode::Kind::kNull));
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    // A plain ~ or null comes as a scalar with the tag "?"; a quoted one has the tag "!".
    const bool null = tag == "?" && (value == "~" || value == "null");
    ConfigNode node = NewNode(mark, null ? ConfigNode::Kind::kNull : ConfigNode::Kind::kScalar);
    node.scalar = value;
    Add(mark, anchor, std::move(node));
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto found = anchors_.find(anchor);
    if (found == anchors_.end()) throw TreeError{mark, "an alias inside of what it stands for"};
    Count(mark, CountNodes(found->second));
    Add(mark, 0, found->second);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& /*tag*/, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value /*style*/) override {
    Open(mark, anchor, ConfigNode::Kind::kList);
  }
  void OnSequenceEnd() override { Close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& /*tag*/, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value /*style*/) override {
    Open(mark, anchor, ConfigNode::Kind::kMap);
  }
  void OnMapEnd() override { Close(); }

 private:
  // A list or map whose end has not come yet.
  struct Frame {
    YAML::Mark mark;
    YAML::anchor_t anchor = 0;
    ConfigNode node;
    std::optional<std::string> key;  // of the value that comes next in a map
    std::string key_where;
  };

  void Count(const YAML::Mark& mark, std::size_t more) {
    nodes_ += more;
    if (nodes_ > kConfigNodesMax) {
      throw TreeError{mark, "more than " + std::to_string(kConfigNodesMax) +
                                " values (an alias counts as all that it stands for)"};
    }
  }

  ConfigNode NewNode(const YAML::Mark& mark, ConfigNode::Kind kind) {
    Count(mark, 1);
    ConfigNode node;
    node.kind = kind;
    node.where = Where(label_, mark);
    return node;
  }

  void Open(const YAML::Mark& mark, YAML::anchor_t anchor, ConfigNode::Kind kind) {
    if (open_.size() >= kConfigDepthMax) {
      throw TreeError{mark, "nested more than " + std::to_string(kConfigDepthMax) + " deep"};
    }
    if (!open_.empty() && open_.back().node.kind == ConfigNode::Kind::kMap && !open_.back().key) {
      throw TreeError{mark, "a key must be a single word"};
    }
    Frame& frame = open_.emplace_back();
    frame.mark = mark;
    frame.anchor = anchor;
    frame.node = NewNode(mark, kind);
  }

  void Close() {
    Frame frame = std::move(open_.back());
    open_.pop_back();
    Add(frame.mark, frame.anchor, std::move(frame.node));
  }

  // Puts a finished node where it belongs.
  void Add(const YAML::Mark& mark, YAML::anchor_t anchor, ConfigNode node) {
    if (anchor != 0) {
      Count(mark, CountNodes(node));
      anchors_[anchor] = node;
    }
    if (open_.empty()) {
      root_ = std::move(node);
      return;
    }
    Frame& parent = open_.back();
    if (parent.node.kind == ConfigNode::Kind::kList) {
      parent.node.list.push_back(std::move(node));
    } else if (parent.key) {
      node.where = parent.key_where;
      parent.node.entries.push_back(ConfigEntry{*parent.key, std::move(node)});
      parent.key.reset();
    } else {
      AddKey(mark, parent, node);
    }
  }

  void AddKey(const YAML::Mark& mark, Frame& parent, const ConfigNode& node) {
    if (node.kind != ConfigNode::Kind::kScalar) {
      throw TreeError{mark, "a key must be a single word"};
    }
    if (const ConfigNode* first = parent.node.Find(node.scalar)) {
      throw TreeError{mark, node.scalar + ": given twice (first at " + first->where + ")"};
    }
    parent.key = node.scalar;
    parent.key_where = node.where;
  }

  const std::string& label_;
  ConfigNode root_;
  int documents_ = 0;
  std::size_t nodes_ = 0;
  std::vector<Frame> open_;
  std::map<YAML::anchor_t, ConfigNode> anchors_;
};

// Optimal string alignment: insertions, deletions, substitutions and swaps of neighbours.
std::size_t EditDistance(std::string_view a, std::string_view b) {
  const std::size_t width = b.size() + 1;
  std::vector<std::size_t> table((a.size() + 1) * width);
  const auto at = [&](std::size_t i, std::size_t j) -> std::size_t& {
    return table[i * width + j];
  };
  for (std::size_t i = 0; i <= a.size(); ++i) at(i, 0) = i;
  for (std::size_t j = 0; j <= b.size(); ++j) at(0, j) = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t substitute = at(i - 1, j - 1) + (a[i - 1] == b[j - 1] ? 0 : 1);
      at(i, j) = std::min({at(i - 1, j) + 1, at(i, j - 1) + 1, substitute});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        at(i, j) = std::min(at(i, j), at(i - 2, j - 2) + 1);
      }
    }
  }
  return at(a.size(), b.size());
}

// The child of `node` that one step of an override path names; adds a missing map key. Null (and a
// problem) when there is no such place.
ConfigNode* Step(ConfigNode& node, const std::string& step, const std::string& path,
                 ConfigProblems& problems) {
  if (node.kind == ConfigNode::Kind::kNull) node.kind = ConfigNode::Kind::kMap;
  if (node.kind == ConfigNode::Kind::kMap) {
    for (auto& [key, child] : node.entries) {
      if (key == step) return &child;
    }
    ConfigNode child;
    child.where = "--set";
    child.from_override = true;
    node.entries.push_back(ConfigEntry{step, std::move(child)});
    return &node.entries.back().node;
  }
  if (node.kind == ConfigNode::Kind::kScalar) {
    problems.Add("--set", path, "there is nothing below a single value (at \"" + step + "\")");
    return nullptr;
  }
  std::size_t index = 0;
  const auto [end, error] = std::from_chars(step.data(), step.data() + step.size(), index);
  if (error != std::errc() || end != step.data() + step.size() || index >= node.list.size()) {
    problems.Add("--set", path,
                 "\"" + step + "\" is no index of the list at " + node.where + ", which has " +
                     std::to_string(node.list.size()) + " items (counted from 0)");
    return nullptr;
  }
  return &node.list[index];
}

void MarkOverride(ConfigNode& node) {
  node.from_override = true;
  for (ConfigNode& item : node.list) MarkOverride(item);
  for (auto& [key, child] : node.entries) MarkOverride(child);
}

}  // namespace

const ConfigNode* ConfigNode::Find(std::string_view key) const {
  for (const auto& [name, child] : entries) {
    if (name == key) return &child;
  }
  return nullptr;
}

void ConfigProblems::Add(const std::string& where, const std::string& key,
                         const std::string& problem) {
  if (lines_.size() >= kConfigProblemsMax) {
    ++left_out_;
    return;
  }
  lines_.push_back(where + ": " + (key.empty() ? "" : key + ": ") + problem);
}

Error ConfigProblems::ToError() const {
  std::string text;
  for (const std::string& line : lines_) text += (text.empty() ? "" : "\n") + line;
  if (left_out_ > 0) text += "\n... and " + std::to_string(left_out_) + " more problems";
  return Error(Code::kInvalidArgument, text);
}

Result<ConfigNode> ParseConfigTree(std::string_view yaml, const std::string& label) {
  if (yaml.size() > kConfigBytesMax) {
    return Error(Code::kInvalidArgument, label + ": " + std::to_string(yaml.size()) +
                                             " bytes, the limit is " +
                                             std::to_string(kConfigBytesMax));
  }
  try {
    std::istringstream stream{std::string(yaml)};
    YAML::Parser parser(stream);
    TreeBuilder builder(label);
    // The second call finds the end of the file, or what must not be there.
    if (parser.HandleNextDocument(builder)) parser.HandleNextDocument(builder);
    return builder.Take();
  } catch (const TreeError& error) {
    return Error(Code::kInvalidArgument, Where(label, error.mark) + ": " + error.message);
  } catch (const YAML::Exception& error) {
    return Error(Code::kInvalidArgument, Where(label, error.mark) + ": not YAML: " + error.msg);
  } catch (const std::exception& error) {
    return Error(Code::kInvalidArgument, label + ": not YAML: " + error.what());
  }
}

Result<std::string> ReadConfigFile(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    return Error(Code::kNotFound, path.string() + ": no such configuration file");
  }
  if (!std::filesystem::is_regular_file(path, error)) {
    return Error(Code::kInvalidArgument, path.string() + ": not a file");
  }
  const auto size = std::filesystem::file_size(path, error);
  if (!error && size > kConfigBytesMax) {
    return Error(Code::kInvalidArgument, path.string() + ": " + std::to_string(size) +
                                             " bytes, the limit is " +
                                             std::to_string(kConfigBytesMax));
  }
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file) {
    return Error(Code::kUnavailable, path.string() + ": cannot be read; check its permissions");
  }
  return text;
}

void ApplyOverride(ConfigNode& root, const std::string& override_text, ConfigProblems& problems) {
  const std::size_t equals = override_text.find('=');
  if (equals == std::string::npos || equals == 0) {
    problems.Add("--set", "", "\"" + override_text + "\" is not of the form key.path=value");
    return;
  }
  const std::string path = override_text.substr(0, equals);
  if (static_cast<std::size_t>(std::count(path.begin(), path.end(), '.')) >= kConfigDepthMax) {
    problems.Add("--set", path, "nested too deep");
    return;
  }
  Result<ConfigNode> value = ParseConfigTree(override_text.substr(equals + 1), "--set");
  if (!value) {
    problems.Add("--set", path, "in its value: " + value.error().message().substr(7));
    return;
  }
  MarkOverride(*value);
  if (value->kind == ConfigNode::Kind::kNull) value->kind = ConfigNode::Kind::kScalar;  // "key="
  ConfigNode* node = &root;
  for (std::size_t begin = 0; begin <= path.size() && node != nullptr;) {
    const std::size_t end = std::min(path.find('.', begin), path.size());
    node = Step(*node, path.substr(begin, end - begin), path, problems);
    begin = end + 1;
  }
  if (node != nullptr) *node = std::move(*value);
}

std::string NearestWord(std::string_view word, const std::vector<std::string>& known) {
  if (word.size() > 64) return "";
  std::string best;
  std::size_t best_distance = std::max<std::size_t>(2, word.size() / 3) + 1;
  for (const std::string& candidate : known) {
    const std::size_t distance = EditDistance(word, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

std::string QuoteYaml(std::string_view text) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte == 0x7f) {
      out += "\\x";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    } else {
      out += c;
    }
  }
  return out + '"';
}

}  // namespace dd2
