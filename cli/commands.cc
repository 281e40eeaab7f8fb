#include "cli/commands.h"

#include <algorithm>
#include <cstdio>
#include <system_error>

#include "common/config_tree.h"
#include "common/exit_codes.h"

namespace dd2 {
bool IsUnknownCommand(const CLI::App& app, const std::string& word) {
  if (word.starts_with("-")) return false;
  std::vector<std::string> known;
  for (const CLI::App* command : app.get_subcommands({})) known.push_back(command->get_name());
  if (std::find(known.begin(), known.end(), word) != known.end()) return false;
  const std::string nearest = NearestWord(word, known);
  std::fprintf(stderr, "dd2: there is no command '%s'%s; `dd2 --help` lists them\n", word.c_str(),
               nearest.empty() ? "" : (" (did you mean '" + nearest + "'?)").c_str());
  return true;
}

int Fail(const Error& error) {
  std::fprintf(stderr, "dd2: %s\n", error.message().c_str());
  // For a command that asks, "try again" means that the coordinator does not answer.
  const bool no_answer =
      error.code() == Code::kUnavailable || error.code() == Code::kDeadlineExceeded;
  return no_answer ? kExitUnreachable : ExitCodeFor(error.code());
}

Result<std::filesystem::path> FindSibling(const std::string& name) {
  std::error_code code;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", code);
  if (code) return Error(Code::kInternal, "cannot read /proc/self/exe: " + code.message());
  auto program = self.parent_path() / name;
  if (std::filesystem::exists(program, code)) return program;
  return Error(Code::kNotFound, program.string() +
                                    " is missing: dd2 needs its other programs beside itself; "
                                    "build all of them with scripts/build");
}

}  // namespace dd2
