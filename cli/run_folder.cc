#include "cli/run_folder.h"

#include <unistd.h>

#include <algorithm>
#include <system_error>
#include <tuple>

#include "cli/config_diff.h"
#include "cli/model_sizes.h"
#include "common/config.h"
#include "storage/npz.h"
#include "storage/safetensors.h"
#include "storage/teacher_folder.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;

constexpr const char* config_name = "config.yaml";
constexpr const char* lock_name = "dd2.lock";
// A run of the smallest configuration writes about this much; with less free it is sure to fail.
constexpr std::uintmax_t free_bytes_min = std::uintmax_t{64} << 20;

StartFailure CannotStart(const Error& error) { return {kExitCannotStart, error.message()}; }

StartFailure BadInput(const Error& error) {
  switch (error.code()) {
    case Code::kInvalidArgument: return {kExitUsage, error.message()};
    case Code::kNotFound: return {kExitNotFound, error.message()};
    case Code::kCorruption: return {kExitBadData, error.message()};
    default: return {kExitCannotStart, error.message()};
  }
}

bool Exists(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

// Nothing in it but perhaps the lock of an attempt that was ended early.
bool IsVacant(const fs::path& folder) {
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(folder, code)) {
    if (entry.path().filename() != lock_name) return false;
  }
  return !code;
}

Status CheckFreeSpace(const fs::path& folder) {
  std::error_code code;
  const auto space = fs::space(folder, code);
  if (code || space.available >= free_bytes_min) return {};
  return Error(Code::kResourceExhausted,
               folder.string() + ": only " + std::to_string(space.available >> 20) +
                   " MiB free on this disk; a run needs at least 64 MiB: free some, or choose "
                   "another disk with --run");
}

std::string Owner() { return "dd2 run, process " + std::to_string(::getpid()); }

// Makes the folder (true when it was not there) and takes its lock.
tl::expected<bool, StartFailure> MakeFolder(const fs::path& folder) {
  const bool was_there = Exists(folder);
  if (!was_there) {
    if (auto made = RealFileSystem().MakeDirectories(folder); !made) {
      return tl::unexpected(CannotStart(made.error()));
    }
  }
  if (auto space = CheckFreeSpace(folder); !space) {
    std::error_code ignored;
    if (!was_there) fs::remove(folder, ignored);
    return tl::unexpected(CannotStart(space.error()));
  }
  return !was_there;
}

tl::expected<FileLock, StartFailure> TakeLock(const fs::path& folder) {
  auto lock = FileLock::Acquire(folder / lock_name, Owner());
  if (lock) return std::move(*lock);
  if (lock.error().code() != Code::kUnavailable) {
    return tl::unexpected(CannotStart(lock.error()));
  }
  return tl::unexpected(
      StartFailure{kExitAlreadyStarted, folder.string() + " is in use: " + lock.error().message() +
                                            "\nFollow that run with `dd2 watch " + folder.string() +
                                            "`, or choose another folder with --run DIR"});
}

tl::expected<PreparedRun, StartFailure> PrepareFresh(const fs::path& folder,
                                                     const fs::path& config_path,
                                                     RunConfig config) {
  auto made = MakeFolder(folder);
  if (!made) return tl::unexpected(made.error());
  // The lock first: while another run is live the folder holds a configuration as well, and "in
  // use" is the more helpful answer.
  if (!*made && !IsVacant(folder) && !Exists(folder / config_name)) {
    return tl::unexpected(StartFailure{
        kExitCannotStart,
        folder.string() + " is not empty and holds no run: choose another folder with --run"});
  }
  auto lock = TakeLock(folder);
  if (!lock) {
    std::error_code ignored;
    if (*made) fs::remove(folder, ignored);
    return tl::unexpected(lock.error());
  }
  if (Exists(folder / config_name)) {
    return tl::unexpected(StartFailure{
        kExitAlreadyStarted, folder.string() +
                                 " already holds a run: continue it with --resume, or choose "
                                 "another folder with --run DIR"});
  }
  PreparedRun run{folder, config_path, std::move(config), std::move(*lock), true, *made, {}};
  if (auto written =
          WriteFileAtomically(RealFileSystem(), folder / config_name, DumpRunConfig(run.config));
      !written) {
    AbandonRun(run);
    return tl::unexpected(CannotStart(written.error()));
  }
  return run;
}

// "phases.1.steps: 300 in the run, 400 now" for what decides the bits, and the notes for the rest.
struct ResumeCheck {
  std::vector<ConfigDifference> fatal;
  std::vector<ConfigDifference> ignored;
};

// What a resume takes over from the new configuration.
bool MayDiffer(const std::string& key) {
  return key == "domains" || key == "ranks" || key == "model.recompute" ||
         key == "eval.inception" || key == "eval.reference" || key == "api.host" ||
         key.starts_with("timeouts.");
}

// A difference is fatal when it alone changes the digest of the stored configuration.
Result<ResumeCheck> CompareForResume(const RunConfig& stored, const RunConfig& asked) {
  const std::string stored_yaml = DumpRunConfig(stored);
  DD2_TRY_ASSIGN(const auto differences, DiffConfigs(stored_yaml, DumpRunConfig(asked)));
  ResumeCheck check;
  for (const auto& difference : differences) {
    if (MayDiffer(difference.key)) continue;
    const auto changed = ParseRunConfig(stored_yaml, "stored configuration", fs::current_path(),
                                        {difference.key + "=" + difference.after});
    // What cannot be tried alone (a phase more or less, two settings that depend on each other) is
    // only fatal if the digests of the whole differ.
    const bool fatal = changed ? ConfigDigest(*changed) != ConfigDigest(stored)
                               : ConfigDigest(asked) != ConfigDigest(stored);
    (fatal ? check.fatal : check.ignored).push_back(difference);
  }
  return check;
}

tl::expected<PreparedRun, StartFailure> PrepareResume(const fs::path& folder,
                                                      const RunRequest& request,
                                                      const RunConfig& asked) {
  if (!Exists(folder / config_name)) {
    return tl::unexpected(StartFailure{
        kExitNotFound, folder.string() + " holds no run that could be resumed: start it without "
                                         "--resume, or name its folder with --run DIR"});
  }
  auto lock = TakeLock(folder);
  if (!lock) return tl::unexpected(lock.error());
  auto stored = LoadRunConfig(folder / config_name);
  if (!stored) return tl::unexpected(BadInput(stored.error()));
  auto check = CompareForResume(*stored, asked);
  if (!check) return tl::unexpected(BadInput(check.error()));
  if (ConfigDigest(*stored) != ConfigDigest(asked)) {
    return tl::unexpected(StartFailure{
        kExitUsage, "cannot resume " + folder.string() + ": " + request.config.string() +
                        " would give another result than the run was started for\n" +
                        DescribeDifferences(check->fatal, "  ") +
                        "\nUndo the change, or start a new run with --run DIR"});
  }
  PreparedRun run{folder, request.config, std::move(*stored), std::move(*lock), false, false, {}};
  for (const auto& difference : check->ignored) {
    run.notes.push_back(difference.key + " stays " + difference.before + " (" +
                        request.config.string() + " says " + difference.after + ")");
  }
  RunConfig& config = run.config;
  const std::string before = DumpRunConfig(config);
  config.domains = asked.domains;
  config.ranks = asked.ranks;
  config.model.recompute = asked.model.recompute;
  config.eval.inception = asked.eval.inception;
  config.eval.reference = asked.eval.reference;
  config.api.host = asked.api.host;
  config.timeouts = asked.timeouts;
  if (const std::string after = DumpRunConfig(config); after != before) {
    if (auto written = WriteFileAtomically(RealFileSystem(), folder / config_name, after);
        !written) {
      return tl::unexpected(CannotStart(written.error()));
    }
  }
  if (auto space = CheckFreeSpace(folder); !space) {
    return tl::unexpected(CannotStart(space.error()));
  }
  return run;
}

}  // namespace

fs::path DefaultRunFolder(const RunConfig& config) { return fs::path("runs") / config.name; }

std::vector<std::string> OverridesOf(const RunRequest& request) {
  std::vector<std::string> overrides = request.overrides;
  if (request.seed) overrides.push_back("seed=" + std::to_string(*request.seed));
  if (request.domains) overrides.push_back("domains=" + std::to_string(*request.domains));
  if (request.ranks) overrides.push_back("ranks=" + std::to_string(*request.ranks));
  return overrides;
}

namespace {

// Networks in raster order have kernels and backward passes of their own.
Status CheckPassMode(const RunConfig& config) {
  if (config.model.precision == kPrecisionFp32 && !config.model.recompute &&
      config.teacher.precision == kPrecisionFp32) {
    return {};
  }
  const auto sizes = ReadModelSizes(config.teacher.path);
  if (!sizes || sizes->kind != ModelKind::kRaster) return {};
  return Error(Code::kInvalidArgument,
               "model.precision, model.recompute and teacher.precision are for the transformers of "
               "VAR and LlamaGen; "
               "the teacher in " +
                   config.teacher.path + " is none: take them out of the configuration");
}

Status CheckImportedTeacher(const RunConfig& config) {
  const fs::path folder = config.teacher.path;
  DD2_TRY_ASSIGN(const TeacherDescription teacher,
                 ReadTeacherDescription(RealFileSystem(), folder));
  if (!teacher.is_var() && teacher.transformer && teacher.transformer->sizes.code_channels == 0) {
    return Error(Code::kInvalidArgument,
                 "teacher.path " + folder.string() +
                     " is a LlamaGen that takes codes through a table: make its input continuous "
                     "first (dd2 teacher adapt " +
                     folder.string() + " --tokens FILE --out DIR)");
  }
  const auto measures = [](const PhaseConfig& phase) {
    return phase.kind == PhaseKind::kEval || phase.eval_every > 0;
  };
  if (!config.eval.by_inception() && std::ranges::any_of(config.phases, measures)) {
    return Error(Code::kInvalidArgument,
                 "teacher.path " + folder.string() +
                     " was imported and has no evaluation network: set eval.inception and "
                     "eval.reference (FID, docs/CLI.md), or take the phase eval and eval_every "
                     "out of the configuration");
  }
  for (const std::string_view name : {kTransformerFile, kTokenizerFile}) {
    const auto file = SafetensorsFile::Open(folder / name);
    if (!file) return file.error().Wrap("import the teacher again");
  }
  return {};
}

}  // namespace

// Whether they hold what they should is seen by the workers, before they join the run.
Status CheckJudgeFiles(const EvalConfig& eval) {
  if (!eval.by_inception()) return {};
  for (const auto& [setting, path, advice] :
       {std::tuple("eval.inception", &eval.inception,
                   "FID's network pt_inception-2015-12-05, as pytorch-fid publishes it"),
        std::tuple("eval.reference", &eval.reference,
                   "ADM's VIRTUAL_imagenet256_labeled.npz or alike")}) {
    std::error_code ignored;
    if (fs::is_regular_file(*path, ignored)) continue;
    return Error(Code::kNotFound, std::string(setting) + " " + *path + " is not there (" + advice +
                                      "); to train without FID, empty both eval.inception and "
                                      "eval.reference and take eval and eval_every out");
  }
  const auto reference = NpzFile::Open(eval.reference);
  if (!reference) return reference.error().Wrap("eval.reference");
  return {};
}

Status CheckInputFiles(const RunConfig& config) {
  DD2_TRY(CheckJudgeFiles(config.eval));
  return CheckTeacherFiles(config);
}

Status CheckTeacherFiles(const RunConfig& config) {
  DD2_TRY(CheckPassMode(config));
  const fs::path folder = config.teacher.path;
  std::error_code ignored;
  if (fs::exists(folder / kTeacherFile, ignored)) return CheckImportedTeacher(config);
  for (const char* name : {"tokenizer", "teacher", "classifier"}) {
    const auto file = SafetensorsFile::Open(folder / (std::string(name) + ".safetensors"));
    if (file) continue;
    if (file.error().code() != Code::kNotFound) return file.error();
    return Error(Code::kNotFound, "teacher.path " + folder.string() + " has no " + name +
                                      ".safetensors: train a teacher with `dd2 teacher train "
                                      "CONFIG`, or import one, and set teacher.path to its folder");
  }
  return {};
}

tl::expected<RunConfig, StartFailure> CheckRequest(const RunRequest& request) {
  auto config = LoadRunConfig(request.config, OverridesOf(request));
  if (!config) return tl::unexpected(BadInput(config.error()));
  if (auto teacher = CheckInputFiles(*config); !teacher) {
    return tl::unexpected(BadInput(teacher.error()));
  }
  return std::move(*config);
}

tl::expected<PreparedRun, StartFailure> PrepareRun(const RunRequest& request, RunConfig config) {
  // The children must find it whatever their working folder is.
  const fs::path folder =
      fs::absolute(request.folder.empty() ? DefaultRunFolder(config) : request.folder)
          .lexically_normal();
  if (request.resume) return PrepareResume(folder, request, config);
  return PrepareFresh(folder, request.config, std::move(config));
}

void AbandonRun(const PreparedRun& run) {
  if (!run.fresh) return;
  // What cannot be removed stays: the caller has a better error to tell already. Nobody else can
  // have come in between, the lock is ours (its file goes too).
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(run.folder, ignored)) {
    fs::remove_all(entry.path(), ignored);
  }
  if (run.made_folder) fs::remove(run.folder, ignored);
}

}  // namespace dd2
