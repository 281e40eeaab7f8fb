#pragma once

#include <signal.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "common/process.h"
#include "common/result.h"
#include "worker/agent/agent_state.h"

namespace dd2 {

// Where things of a domain are; constant while the agent lives.
struct DomainPaths {
  std::filesystem::path run;     // the run's folder
  std::string domain;            // its name: letters, digits, '-', '_', '.'
  std::string coordinator;       // HOST:PORT
  std::filesystem::path worker;  // dd2-worker
  int first_device = 0;          // GPU of its first rank; the others take those behind it
};

// mpirun's command line for a domain. Only this machine, only loopback and shared memory, whatever
// network or batch system there is; as root only with Open MPI's explicit allowance.
std::vector<std::string> MpirunCommand(const DomainPaths& paths, const DomainSpec& spec,
                                       bool as_root);

// A folder of this user for mpirun's sockets: short, since a socket's path may have 107 bytes, and
// the same for every agent of a domain, so that the next one clears up after a killed one.
std::filesystem::path SessionFolder(const DomainPaths& paths);

// The same for the memory that its ranks share: they cannot remove it when they are killed. Empty
// where this machine has no /dev/shm.
std::filesystem::path SharedMemoryFolder(const DomainPaths& paths);

// Where its ranks keep snapshots of their state, for those that come after them: it stays when a
// domain ends, and until the agent leaves of its own accord. Empty where this machine has no
// /dev/shm.
std::filesystem::path SnapshotFolder(const DomainPaths& paths);

// One mpirun and the ranks below it: they live and die as one (design 2).
//
// Owned by Agent; same thread. mpirun dies with the thread that called Start; its workers die with
// mpirun (they see to that themselves). The destructor kills mpirun.
class DomainProcess {
 public:
  // kFailedPrecondition: mpirun or dd2-worker is missing (the message says what to install);
  // kUnavailable: a folder or log could not be made.
  static Result<DomainProcess> Start(const DomainPaths& paths, const DomainSpec& spec);

  pid_t pid() const { return child_.pid(); }
  // mpirun's exit status (128 + signal) once it has ended.
  std::optional<int> TryWait() { return child_.TryWait(); }
  // mpirun ends its ranks, which it kills a second later.
  Status Terminate() { return child_.Signal(SIGINT); }
  // SIGKILL to mpirun and to everything below it, which ends stopped processes too.
  Status Kill();
  // The last lines that mpirun and the ranks wrote since the start.
  std::string LogTail() const;
  const std::filesystem::path& log() const { return log_; }

 private:
  DomainProcess(ChildProcess child, std::filesystem::path log, std::uintmax_t log_start)
      : child_(std::move(child)), log_(std::move(log)), log_start_(log_start) {}

  ChildProcess child_;
  std::filesystem::path log_;
  std::uintmax_t log_start_;  // its size before this domain
};

// Removes all three folders and what is in them.
void RemoveSessionFolders(const DomainPaths& paths);

}  // namespace dd2
