#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/result.h"

namespace dd2 {

struct SpawnOptions {
  std::vector<std::string> argv;  // argv[0] is looked up in PATH when it holds no '/'
  std::vector<std::pair<std::string, std::string>> environment;  // added to ours, or replacing it
  std::filesystem::path output;  // standard output and error are appended to it; empty: ours
  std::filesystem::path folder;  // working folder; empty: ours
  bool dies_with_parent = true;  // SIGKILL when the thread that called Spawn ends
  // Slurm sends SIGTERM to every process of a job that it wants to end soon; who is to end in an
  // orderly way, on its parent's word, must not hear it.
  bool blocks_sigterm = false;
};

// A child process with a process group of its own. Standard input is /dev/null; no descriptor of
// ours but output is inherited, so locks and sockets are not kept open by it.
//
// Owned by whoever started it. The destructor kills the group if the child still runs. With
// `dies_with_parent` the THREAD that calls Spawn must live as long as the child should (that is how
// the kernel counts parents). Not thread-safe.
class ChildProcess {
 public:
  // kNotFound: no such program (the message names it and PATH). kFailedPrecondition: it cannot be
  // executed. kUnavailable: output cannot be opened, no processes left.
  static Result<ChildProcess> Spawn(const SpawnOptions& options);

  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  ~ChildProcess();

  pid_t pid() const { return pid_; }
  // The exit status once the child has ended (128 + n when signal n killed it), nothing while it
  // runs. What is left of its group is killed when the end is first seen.
  std::optional<int> TryWait();
  // The same, waiting at most `limit`. Blocks the thread.
  std::optional<int> Wait(std::chrono::milliseconds limit);
  // Sends `signal` to the child's group. Not an error when it has ended.
  Status Signal(int signal);
  // SIGTERM to the group, SIGKILL after `grace`; the exit status. Blocks the thread.
  Result<int> Terminate(std::chrono::milliseconds grace);

 private:
  explicit ChildProcess(pid_t pid) : pid_(pid) {}
  void KillAndReap();

  pid_t pid_ = -1;  // -1: moved from
  std::optional<int> status_;
};

// Makes this process adopt orphans below it, so that KillDescendants finds all of them.
Status AdoptOrphans();
// Processes below `root` (children, their children, ...) that have not ended; /proc is read.
std::vector<pid_t> DescendantsOf(pid_t root);
// SIGKILLs every descendant of this process and reaps the adopted ones, until none is left or
// `limit` has passed. How many were killed. Do not call while a ChildProcess is still wanted.
std::size_t KillDescendants(std::chrono::milliseconds limit);

// Lets this process have as many open files (connections are some) as the hard limit allows; that
// number. The soft limit is often 1024, for programs that use select().
std::uint64_t RaiseFileLimit();

// Of this machine; "unknown" when it has none.
std::string HostName();
// The full path of a program as execvp would find it; kNotFound.
Result<std::string> FindProgram(const std::string& name);
// The folder that this process's own binary lies in.
Result<std::filesystem::path> OwnBinaryFolder();

}  // namespace dd2
