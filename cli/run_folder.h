#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "common/exit_codes.h"
#include "common/file.h"
#include "common/result.h"
#include "common/run_config.h"

namespace dd2 {

// What `dd2 run` was asked for.
struct RunRequest {
  std::filesystem::path config;
  std::filesystem::path folder;  // empty: runs/<config name>
  std::optional<int> domains;
  std::optional<int> ranks;  // of each domain
  std::optional<std::uint64_t> seed;
  std::vector<std::string> overrides;  // key.path=value
  bool resume = false;
  std::string command;  // the line as typed
};

// Why a run does not start, with the exit code that says so.
struct StartFailure {
  int exit_code = kExitInternal;
  std::string message;
};

// A run folder that is ready for a coordinator: config.yaml is in place and nobody else uses it.
// Holds the folder's lock while it lives.
struct PreparedRun {
  std::filesystem::path folder;
  std::filesystem::path config_path;  // as the user named it, for messages
  RunConfig config;
  FileLock lock;
  bool fresh = true;               // not resumed
  bool made_folder = false;        // the folder was not there before
  std::vector<std::string> notes;  // settings of CONFIG that the stored ones overrule
};

// "runs/<name>" of the configuration.
std::filesystem::path DefaultRunFolder(const RunConfig& config);

// The request's --domains, --ranks, --seed and --set as overrides, in the order in which they
// apply.
std::vector<std::string> OverridesOf(const RunRequest& request);

// The configuration that the request asks for, checked together with the teacher's files. Writes
// nothing.
tl::expected<RunConfig, StartFailure> CheckRequest(const RunRequest& request);

// Makes the folder or checks the one to resume, takes its lock and writes config.yaml. `config`
// comes from CheckRequest. On failure nothing that was not there before is left behind.
tl::expected<PreparedRun, StartFailure> PrepareRun(const RunRequest& request, RunConfig config);

// Takes back what PrepareRun made of a new folder: for a run that could not be started at all.
void AbandonRun(const PreparedRun& run);

// The teacher's weight files open and are whole. kNotFound: one is missing; kCorruption: a
// truncated or foreign file, with its name. kInvalidArgument: `config` asks an imported teacher for
// measurements without eval.inception, or it is a LlamaGen that takes codes through a table.
Status CheckTeacherFiles(const RunConfig& config);
// The files of eval.inception and eval.reference are there, where they are set. kNotFound: one is
// missing; kCorruption: the reference is no .npz.
Status CheckJudgeFiles(const EvalConfig& eval);
// Both of these.
Status CheckInputFiles(const RunConfig& config);

}  // namespace dd2
