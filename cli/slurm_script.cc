#include "cli/slurm_script.h"

#include <algorithm>
#include <cctype>
#include <charconv>

#include "cli/format.h"

namespace dd2 {
namespace {

// `text` with '_' for each character that would mean something to Slurm or the shell.
std::string Plain(std::string text, std::string_view more = "") {
  for (char& c : text) {
    const bool plain = std::isalnum(static_cast<unsigned char>(c)) != 0 ||
                       std::string_view("._+-=,:@").find(c) != std::string_view::npos ||
                       more.find(c) != std::string_view::npos;
    if (!plain) c = '_';
  }
  return text;
}

bool IsPlaceholder(std::string_view name) {
  if (name.empty()) return false;
  for (const char c : name) {
    if (std::isupper(static_cast<unsigned char>(c)) == 0 && c != '_' && c != '2') return false;
  }
  return true;
}

Status CheckLine(const char* what, const std::string& value) {
  if (value.find('\n') == std::string::npos) return {};
  return Error(Code::kInvalidArgument, std::string(what) + " must be one line");
}

}  // namespace

Result<std::string> FillIn(std::string_view text,
                           const std::map<std::string, std::string>& values) {
  std::string filled;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t begin = text.find('@', at);
    const std::size_t end = begin == std::string_view::npos ? begin : text.find('@', begin + 1);
    if (end == std::string_view::npos) return filled.append(text.substr(at));
    const std::string name(text.substr(begin + 1, end - begin - 1));
    filled.append(text.substr(at, begin - at));
    if (!IsPlaceholder(name)) {  // an '@' of the script's own
      filled += '@';
      at = begin + 1;
      continue;
    }
    const auto found = values.find(name);
    if (found == values.end()) return Error(Code::kInternal, "no value for @" + name + "@");
    filled.append(found->second);
    at = end + 1;
  }
  return filled;
}

Result<NodeRange> ParseNodes(const std::string& text) {
  NodeRange range;
  const char* const end = text.data() + text.size();
  auto parsed = std::from_chars(text.data(), end, range.min);
  range.max = range.min;
  if (parsed.ec == std::errc() && parsed.ptr != end && *parsed.ptr == '-') {
    parsed = std::from_chars(parsed.ptr + 1, end, range.max);
  }
  if (parsed.ec != std::errc() || parsed.ptr != end || range.min < 1 || range.max < range.min) {
    return Error(Code::kInvalidArgument,
                 "--nodes " + text + ": a number of nodes, or MIN-MAX as 2-4");
  }
  return range;
}

void AddGpus(int ranks, std::vector<std::string>& options) {
  const bool said = std::ranges::any_of(options, [](const std::string& option) {
    return option.starts_with("--gres") || option.starts_with("--gpus") || option.starts_with("-G");
  });
  if (!said) options.push_back("--gpus-per-node=" + std::to_string(ranks));
}

Result<std::string> RenderSlurmScript(const SlurmScript& values) {
  DD2_TRY(ParseNodes(values.nodes));
  DD2_TRY(CheckLine("the name of the run", values.name));
  DD2_TRY(CheckLine("the run folder", values.run));
  if (Plain(values.run, "/") != values.run) {
    return Error(
        Code::kInvalidArgument,
        "the run folder " + values.run +
            " has other characters in its name than letters, digits and / . _ + - = , : @, "
            "which Slurm or the shell would not take as they stand: choose another with "
            "--run");
  }
  std::string options;
  for (const std::string& option : values.sbatch) {
    DD2_TRY(CheckLine("an option of sbatch", option));
    if (option.find_first_of(" \t#") != std::string::npos) {
      return Error(Code::kInvalidArgument,
                   "the option " + option +
                       " of sbatch has a blank or '#', at which Slurm would "
                       "cut it: write it as --name=value, without them");
    }
    options += "#SBATCH " + option + "\n";
  }
  std::string prolog;
  for (const std::string& line : values.prolog) {
    DD2_TRY(CheckLine("a line of the site's prolog", line));
    prolog += line + "\n";
  }
  const auto part = [](std::string_view name) {
    std::string text(SlurmScriptPart(name));
    while (text.ends_with('\n')) text.pop_back();
    return text;
  };
  return FillIn(SlurmScriptText(values.kind), {{"NAME", values.name},
                                               {"JOB_NAME", "dd2-" + Plain(values.name)},
                                               {"RUN", values.run},
                                               {"SCRIPT", values.script},
                                               {"DD2", ShellLine({values.dd2})},
                                               {"NODES", values.nodes},
                                               {"GRACE", std::to_string(values.grace_seconds)},
                                               {"WAIT", std::to_string(values.wait_seconds)},
                                               {"RUN_OPTIONS", ShellLine(values.run_options)},
                                               {"LAUNCH", ShellLine(values.launch)},
                                               {"STOP", part("stop")},
                                               {"BEGIN", part("begin")},
                                               {"END", part("end")},
                                               {"SBATCH", options},
                                               {"PROLOG", prolog}});
}

}  // namespace dd2
