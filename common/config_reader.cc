#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <type_traits>

#include "common/config_settings.h"

namespace dd2 {
namespace {

std::string Number(double value) {
  char text[64];
  const auto end = std::to_chars(text, text + sizeof(text), value);
  return std::string(text, end.ptr);
}

// Bounds are small or powers of two: printed as whole numbers where they are.
std::string Bound(double value) {
  if (std::abs(value) < 1e15 && value == std::floor(value)) {
    return std::to_string(static_cast<std::int64_t>(value));
  }
  return Number(value);
}

// "from 1 to 64", "above 0, at most 1", "at least 0", or empty.
std::string BoundsText(const SettingInfo& info) {
  const std::string low =
      ((info.flags & kAboveMin) != 0 ? "above " : "at least ") + Bound(info.min);
  if (info.max == kUnbounded) return low;
  if ((info.flags & kAboveMin) != 0) return low + ", at most " + Bound(info.max);
  if (info.min == info.max) return "only " + Bound(info.min);
  return "from " + Bound(info.min) + " to " + Bound(info.max);
}

using std::chrono::milliseconds;

template <class T>
std::string ParseNumber(const std::string& text, const SettingInfo& info, T& value) {
  constexpr const char* expected = std::is_integral_v<T> ? "a whole number" : "a number";
  T parsed{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, parsed);
  if (error == std::errc::result_out_of_range) {
    return "\"" + text + "\" is too large or too small; allowed: " + BoundsText(info);
  }
  // An unsigned field refuses the sign of an otherwise good number: that is a matter of bounds.
  if (std::is_unsigned_v<T> && text.size() > 1 && text[0] == '-') {
    return text + " is out of bounds; allowed: " + BoundsText(info);
  }
  if (error != std::errc() || stop != end) {
    return std::string("expected ") + expected + ", got \"" + text.substr(0, 60) + "\"";
  }
  const auto number = static_cast<double>(parsed);
  const bool too_low = (info.flags & kAboveMin) != 0 ? number <= info.min : number < info.min;
  if (too_low || number > info.max || !std::isfinite(number)) {
    return text + " is out of bounds; allowed: " + BoundsText(info);
  }
  value = parsed;
  return "";
}

std::string ParseScalar(const std::string& text, const SettingInfo& info,
                        const SettingField& field) {
  return std::visit(
      [&](auto* value) -> std::string {
        using T = std::remove_pointer_t<decltype(value)>;
        if constexpr (std::is_same_v<T, std::string>) {
          *value = text;
          return "";
        } else if constexpr (std::is_same_v<T, bool>) {
          if (text != "true" && text != "false") {
            return "expected true or false, got \"" + text.substr(0, 60) + "\"";
          }
          *value = text == "true";
          return "";
        } else if constexpr (std::is_same_v<T, milliseconds>) {
          double seconds = 0;
          std::string problem = ParseNumber(text, info, seconds);
          if (problem.empty()) *value = milliseconds(std::llround(seconds * 1000));
          return problem;
        } else {
          return ParseNumber(text, info, *value);
        }
      },
      field);
}

const char* TypeName(const SettingField& field) {
  if (std::holds_alternative<double*>(field)) return "a number";
  if (std::holds_alternative<milliseconds*>(field)) return "a number";
  if (std::holds_alternative<bool*>(field)) return "true or false";
  if (std::holds_alternative<std::string*>(field)) return "text";
  return "a whole number";
}

const char* KindName(ConfigNode::Kind kind) {
  switch (kind) {
    case ConfigNode::Kind::kNull: return "nothing";
    case ConfigNode::Kind::kScalar: return "a single value";
    case ConfigNode::Kind::kList: return "a list";
    case ConfigNode::Kind::kMap: return "a map of settings";
  }
  return "";
}

std::string LastPart(const std::string& key) { return key.substr(key.rfind('.') + 1); }

}  // namespace

struct SettingsReader::Scope {
  const std::string& prefix;
  const std::vector<BoundSetting>& settings;
  const std::vector<std::string>& skipped;
  const std::string& owner;

  const BoundSetting* Find(const std::string& key) const {
    for (const BoundSetting& setting : settings) {
      if (key == setting.info->key) return &setting;
    }
    return nullptr;
  }
  bool IsSection(const std::string& key) const {
    return std::any_of(settings.begin(), settings.end(), [&](const BoundSetting& setting) {
      return std::string_view(setting.info->key).substr(0, key.size() + 1) == key + ".";
    });
  }
};

void SettingsReader::Read(const ConfigNode& node, const std::string& prefix,
                          const std::vector<BoundSetting>& settings,
                          const std::vector<std::string>& skipped, const std::string& owner) {
  const Scope scope{prefix, settings, skipped, owner};
  ReadMap(node, "", scope);
  for (const BoundSetting& setting : settings) {
    if ((setting.info->flags & kRequired) != 0 && !Given(prefix + setting.info->key)) {
      problems_.Add(Where(prefix + setting.info->key), prefix + setting.info->key,
                    std::string("is missing. ") + setting.info->sentence);
    }
  }
}

void SettingsReader::ReadMap(const ConfigNode& node, const std::string& section,
                             const Scope& scope) {
  if (node.kind == ConfigNode::Kind::kNull) return;  // "cache:" with nothing below
  if (node.kind != ConfigNode::Kind::kMap) {
    std::string name = scope.prefix + section;
    if (!name.empty()) name.pop_back();
    problems_.Add(node.where, name,
                  std::string("expected a map of settings, got ") + KindName(node.kind));
    return;
  }
  for (const auto& [name, child] : node.entries) {
    const std::string key = section + name;
    if (std::find(scope.skipped.begin(), scope.skipped.end(), key) != scope.skipped.end()) continue;
    if (const BoundSetting* setting = scope.Find(key)) {
      ReadOne(child, scope.prefix + key, *setting);
    } else if (scope.IsSection(key)) {
      Remember(scope.prefix + key, child.where);
      ReadMap(child, key + ".", scope);
    } else {
      Unknown(child, section, name, scope);
    }
  }
}

void SettingsReader::ReadOne(const ConfigNode& node, const std::string& key,
                             const BoundSetting& setting) {
  Remember(key, node.where);
  const std::string problem = Store(node, setting);
  if (problem.empty()) return;
  problems_.Add(node.where, key, problem);
  failed_.insert(key);
}

std::string SettingsReader::Store(const ConfigNode& node, const BoundSetting& setting) const {
  if (node.kind == ConfigNode::Kind::kNull) {
    return "has no value; leave the line out to take the default";
  }
  if (node.kind != ConfigNode::Kind::kScalar) {
    return std::string("expected ") + TypeName(setting.field) + ", got " + KindName(node.kind);
  }
  std::string problem = ParseScalar(node.scalar, *setting.info, setting.field);
  if (!problem.empty() || (setting.info->flags & kPath) == 0 || node.scalar.empty()) return problem;
  std::filesystem::path path = node.scalar;
  if (path.is_relative() && !node.from_override) path = folder_ / path;
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(path, error);
  if (error) return "cannot be made absolute: " + error.message();
  *std::get<std::string*>(setting.field) = absolute.lexically_normal().string();
  return "";
}

void SettingsReader::Unknown(const ConfigNode& node, const std::string& section,
                             const std::string& key, const Scope& scope) {
  // First the words that may stand here, then every setting's last word, wherever it belongs.
  std::vector<std::string> here = scope.skipped;
  std::vector<std::string> anywhere;
  for (const BoundSetting& setting : scope.settings) {
    const std::string known = setting.info->key;
    anywhere.push_back(LastPart(known));
    if (known.substr(0, section.size()) != section) continue;
    const std::string rest = known.substr(section.size());
    here.push_back(rest.substr(0, rest.find('.')));
  }
  std::string nearest = NearestWord(key, here);
  if (!nearest.empty()) {
    nearest = scope.prefix + section + nearest;
  } else if (const std::string word = NearestWord(key, anywhere); !word.empty()) {
    for (const BoundSetting& setting : scope.settings) {
      if (LastPart(setting.info->key) == word) nearest = scope.prefix + setting.info->key;
    }
  }
  std::string problem = "unknown setting" + scope.owner;
  if (!nearest.empty()) problem += "; did you mean " + nearest + "?";
  problems_.Add(node.where, scope.prefix + section + key.substr(0, 60), problem);
}

const std::string& SettingsReader::Where(const std::string& key) const {
  std::string path = key;
  while (true) {
    const auto found = where_.find(path);
    if (found != where_.end()) return found->second;
    if (path.empty()) break;
    const std::size_t dot = path.rfind('.');
    path = dot == std::string::npos ? "" : path.substr(0, dot);
  }
  static const std::string nowhere = "config";
  return nowhere;
}

std::string FormatField(const SettingField& field) {
  return std::visit(
      [](const auto* value) -> std::string {
        using T = std::remove_cv_t<std::remove_pointer_t<decltype(value)>>;
        if constexpr (std::is_same_v<T, std::string>) {
          return QuoteYaml(*value);
        } else if constexpr (std::is_same_v<T, bool>) {
          return *value ? "true" : "false";
        } else if constexpr (std::is_same_v<T, double>) {
          return Number(*value);
        } else if constexpr (std::is_same_v<T, milliseconds>) {
          return Number(static_cast<double>(value->count()) / 1000.0);
        } else {
          return std::to_string(*value);
        }
      },
      field);
}

std::string FormatSettings(const std::vector<BoundSetting>& settings, std::size_t indent) {
  std::string out;
  std::string open_section;
  const std::string margin(indent, ' ');
  for (const BoundSetting& setting : settings) {
    const std::string key = setting.info->key;
    const std::size_t dot = key.find('.');
    const std::string section = dot == std::string::npos ? "" : key.substr(0, dot);
    if (section != open_section && !section.empty()) out += margin + section + ":\n";
    open_section = section;
    out += margin + (section.empty() ? "" : "  ") + LastPart(key) + ": " +
           FormatField(setting.field) + "\n";
  }
  return out;
}

std::string DescribeTable(const std::vector<BoundSetting>& settings) {
  std::string out = "| setting | default | unit | allowed | what it is |\n|---|---|---|---|---|\n";
  for (const BoundSetting& setting : settings) {
    const SettingInfo& info = *setting.info;
    const bool number = !std::holds_alternative<std::string*>(setting.field) &&
                        !std::holds_alternative<bool*>(setting.field);
    const std::string value =
        (info.flags & kRequired) != 0 ? "(required)" : FormatField(setting.field);
    out += std::string("| `") + info.key + "` | " + value + " | " + info.unit + " | " +
           (number ? BoundsText(info) : TypeName(setting.field)) + " | " + info.sentence + " |\n";
  }
  return out;
}

}  // namespace dd2
