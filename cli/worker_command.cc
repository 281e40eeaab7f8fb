// The sub-commands whose work needs LibTorch: they become `dd2-worker <mode> ARGS...`, which stands
// beside dd2, so that dd2 itself stays small and starts at once.

#include <sched.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "cli/commands.h"
#include "common/exit_codes.h"

namespace dd2 {
namespace {

int UsableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

// Settings of the environment win: who sets OMP_NUM_THREADS means it.
void SetDefault(const char* name, const std::string& value) {
  ::setenv(name, value.c_str(), /*overwrite=*/0);
}

// Replaces this process, so that signals and the exit code are the worker's own.
int BecomeWorker(const std::string& mode, const std::vector<std::string>& arguments) {
  const auto program = FindSibling("dd2-worker");
  if (!program) return Fail(program.error());
  SetDefault("OMP_NUM_THREADS", std::to_string(UsableCores()));
  SetDefault("TORCH_CPP_LOG_LEVEL", "ERROR");
  std::vector<std::string> words = {program->string(), mode};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> pointers;
  for (auto& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  ::execv(words.front().c_str(), pointers.data());
  return Fail(Error(Code::kInternal, "cannot start " + words.front() + ": " +
                                         std::strerror(errno)));  // NOLINT(concurrency-mt-unsafe)
}

void AddPassThrough(CLI::App& parent, int& exit_code, const std::string& name,
                    const std::string& mode, const std::string& text) {
  CLI::App* command = parent.add_subcommand(name, text);
  command->prefix_command();
  command->set_help_flag();  // --help is answered by the worker, which knows the options
  command->callback(
      [command, mode, &exit_code] { exit_code = BecomeWorker(mode, command->remaining()); });
}

}  // namespace

void AddWorkerCommands(CLI::App& app, int& exit_code) {
  CLI::App* teacher = app.add_subcommand("teacher", "Work on teachers");
  teacher->require_subcommand(1);
  AddPassThrough(*teacher, exit_code, "train", "teacher-train",
                 "Train tokenizer, teacher and evaluation network: CONFIG [--set KEY.PATH=VALUE]");
  AddPassThrough(*teacher, exit_code, "adapt", "teacher-adapt",
                 "Make the input of an imported LlamaGen continuous, so that it can be distilled");
  AddPassThrough(*teacher, exit_code, "logits", "teacher-logits",
                 "Logits of an imported teacher on given tokens");
  AddPassThrough(*teacher, exit_code, "decode", "teacher-decode",
                 "Images of given tokens by an imported tokenizer");
  AddPassThrough(*teacher, exit_code, "encode", "teacher-encode",
                 "Tokens of given images by an imported tokenizer");
  AddTeacherTools(*teacher, exit_code);
  AddPassThrough(app, exit_code, "sample", "sample",
                 "Draw images with an exported generator (PNG grid, npz or safetensors)");
  AddPassThrough(app, exit_code, "eval", "eval",
                 "FD, FDr and class accuracy of an exported generator; FID of any images");
  AddPassThrough(app, exit_code, "export", "export",
                 "Write the generator of a run as one safetensors file and its JSON");
}

}  // namespace dd2
