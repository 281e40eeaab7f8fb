#include "worker/agent/domain_process.h"

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <utility>

#include "common/hash.h"
#include "common/limits.h"

namespace dd2 {

namespace {

namespace fs = std::filesystem;

std::string FolderName(const DomainPaths& paths) {
  Hasher128 hasher;
  hasher.UpdateField(paths.run.string());
  hasher.UpdateField(paths.domain);
  return "dd2-" + std::to_string(geteuid()) + "-" + hasher.Finish().Hex().substr(0, 12);
}

// Ours alone afterwards, and empty unless `keep`. In a folder that everybody may write to, so
// nothing of another user is followed or removed.
Status PrepareFolder(const fs::path& folder, bool keep) {
  struct stat info {};
  if (lstat(folder.c_str(), &info) == 0) {
    if (!S_ISDIR(info.st_mode) || info.st_uid != geteuid()) {
      return Error(Code::kFailedPrecondition,
                   folder.string() + " is not a folder of this user; remove it and try again");
    }
    if (keep) return {};
    std::error_code error;
    fs::remove_all(folder, error);
  }
  if (mkdir(folder.c_str(), 0700) == 0) return {};
  return Error(Code::kUnavailable, "cannot make " + folder.string() + ": " + std::strerror(errno));
}

Error ExplainMissingMpirun(const Error& error) {
  if (error.code() != Code::kNotFound) return error;
  return Error(Code::kFailedPrecondition,
               "mpirun is missing: install Open MPI (Debian: apt-get install openmpi-bin), or put "
               "its folder into PATH (" +
                   error.message() + ")");
}

}  // namespace

std::vector<std::string> MpirunCommand(const DomainPaths& paths, const DomainSpec& spec,
                                       bool as_root) {
  std::vector<std::string> command = {"mpirun"};
  if (as_root) command.emplace_back("--allow-run-as-root");
  const auto add = [&command](std::initializer_list<std::string> words) {
    command.insert(command.end(), words);
  };
  add({"-n", std::to_string(spec.local_size), "--bind-to", "none", "--oversubscribe"});
  add({"--tag-output", "-x", "OMP_NUM_THREADS"});
  // Never over the network, to another node, or through ssh; no help text once for each rank.
  add({"--mca", "plm", "isolated", "--mca", "ras", "^slurm"});
  add({"--mca", "oob_tcp_if_include", "lo", "--mca", "pml", "ob1", "--mca", "btl", "self,vader"});
  // Copies between processes through the kernel are forbidden in many containers.
  add({"--mca", "btl_vader_single_copy_mechanism", "none"});
  add({"--mca", "orte_base_help_aggregate", "1"});
  if (const fs::path shared = SharedMemoryFolder(paths); !shared.empty()) {
    add({"--mca", "btl_vader_backing_directory", shared.string()});
  }
  add({paths.worker.string(), "run", "--run", paths.run.string()});
  add({"--coordinator", paths.coordinator, "--domain", paths.domain});
  add({"--first-device", std::to_string(paths.first_device)});
  if (const fs::path snapshots = SnapshotFolder(paths); !snapshots.empty()) {
    add({"--snapshots", snapshots.string(), "--run-id", spec.run_id});
  }
  return command;
}

fs::path SessionFolder(const DomainPaths& paths) { return "/tmp/" + FolderName(paths); }

fs::path SharedMemoryFolder(const DomainPaths& paths) {
  const fs::path root = "/dev/shm";
  return access(root.c_str(), W_OK | X_OK) == 0 ? root / FolderName(paths) : fs::path();
}

fs::path SnapshotFolder(const DomainPaths& paths) {
  const fs::path shared = SharedMemoryFolder(paths);
  return shared.empty() ? shared : fs::path(shared.string() + "-snapshots");
}

Result<DomainProcess> DomainProcess::Start(const DomainPaths& paths, const DomainSpec& spec) {
  std::error_code error;
  if (access(paths.worker.c_str(), X_OK) != 0) {
    return Error(Code::kFailedPrecondition,
                 paths.worker.string() +
                     " is missing or not executable: build it (scripts/build) or install all "
                     "programs of DD2 into one folder");
  }
  const fs::path session = SessionFolder(paths);
  DD2_TRY(PrepareFolder(session, false));
  if (const fs::path shared = SharedMemoryFolder(paths); !shared.empty()) {
    DD2_TRY(PrepareFolder(shared, false));
    DD2_TRY(PrepareFolder(SnapshotFolder(paths), true));
  }
  const fs::path logs = paths.run / "logs";
  fs::create_directories(logs, error);
  if (error) {
    return Error(Code::kUnavailable, "cannot make " + logs.string() + ": " + error.message());
  }
  SpawnOptions options;
  options.argv = MpirunCommand(paths, spec, geteuid() == 0);
  options.output = logs / ("domain-" + paths.domain + ".log");
  options.environment = {{"OMP_NUM_THREADS", std::to_string(spec.threads_per_rank)},
                         {"TMPDIR", session.string()}};
  options.blocks_sigterm = true;
  const std::uintmax_t size = fs::file_size(options.output, error);
  Result<ChildProcess> child = ChildProcess::Spawn(options);
  if (!child) return ExplainMissingMpirun(child.error());
  return DomainProcess(std::move(*child), options.output, error ? 0 : size);
}

Status DomainProcess::Kill() {
  // Looked up before: the ranks have another parent once mpirun is dead.
  const std::vector<pid_t> below = DescendantsOf(child_.pid());
  const Status sent = child_.Signal(SIGKILL);
  for (const pid_t pid : below) kill(pid, SIGKILL);
  return sent;
}

std::string DomainProcess::LogTail() const {
  std::ifstream file(log_, std::ios::binary | std::ios::ate);
  if (!file) return "";
  const auto end = static_cast<std::uintmax_t>(std::max<std::streamoff>(0, file.tellg()));
  const std::uintmax_t oldest = end > kLogTailBytesMax ? end - kLogTailBytesMax : 0;
  const std::uintmax_t begin = std::max(oldest, log_start_);
  if (begin >= end) return "";
  file.seekg(static_cast<std::streamoff>(begin));
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  // Begin with a whole line. Other bytes than ASCII may be half a character: the tail travels as
  // text, which must be UTF-8.
  const std::size_t line = text.find('\n');
  if (begin > log_start_ && line != std::string::npos) text.erase(0, line + 1);
  std::replace_if(
      text.begin(), text.end(),
      [](char c) { return c != '\n' && c != '\t' && (c < ' ' || c > '~'); }, '?');
  return text;
}

void RemoveSessionFolders(const DomainPaths& paths) {
  for (const fs::path& folder :
       {SessionFolder(paths), SharedMemoryFolder(paths), SnapshotFolder(paths)}) {
    struct stat info {};
    if (lstat(folder.c_str(), &info) != 0 || !S_ISDIR(info.st_mode) || info.st_uid != geteuid()) {
      continue;
    }
    std::error_code ignored;
    fs::remove_all(folder, ignored);
  }
}

}  // namespace dd2
