#pragma once

#include <charconv>
#include <cstddef>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "common/result.h"

namespace dd2 {

// kInvalidArgument, with a hint at --help.
inline Error Usage(const std::string& message) {
  return {Code::kInvalidArgument, message + " (--help lists the options)"};
}

// The words of a command line: "--name value" for `valued`, "--name" for `flags`, others by
// position.
class Options {
 public:
  static Result<Options> Parse(const std::vector<std::string>& arguments,
                               const std::set<std::string>& valued,
                               const std::set<std::string>& flags, std::size_t positionals) {
    Options options;
    for (std::size_t i = 0; i < arguments.size(); ++i) {
      const std::string& word = arguments[i];
      if (!word.starts_with("--")) {
        if (options.positionals_.size() == positionals) return Usage("unexpected '" + word + "'");
        options.positionals_.push_back(word);
      } else if (flags.contains(word)) {
        options.values_[word] = "";
      } else if (!valued.contains(word)) {
        return Usage("unknown option '" + word + "'");
      } else if (i + 1 == arguments.size()) {
        return Usage("option " + word + " needs a value");
      } else {
        options.values_[word] = arguments[++i];
      }
    }
    return options;
  }

  bool Has(const std::string& name) const { return values_.contains(name); }
  std::string Text(const std::string& name, const std::string& otherwise) const {
    const auto found = values_.find(name);
    return found == values_.end() ? otherwise : found->second;
  }
  template <class Number>
  Result<Number> Get(const std::string& name, Number otherwise, Number low, Number high) const {
    const auto found = values_.find(name);
    if (found == values_.end()) return otherwise;
    const std::string& text = found->second;
    Number value{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error == std::errc() && end == text.data() + text.size() && value >= low && value <= high) {
      return value;
    }
    return Usage(name + " must be a number from " + std::to_string(low) + " to " +
                 std::to_string(high) + ", not '" + text + "'");
  }
  const std::vector<std::string>& positionals() const { return positionals_; }

 private:
  std::map<std::string, std::string> values_;
  std::vector<std::string> positionals_;
};

}  // namespace dd2
