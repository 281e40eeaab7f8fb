#pragma once

#include <chrono>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cli/restart_policy.h"
#include "common/clock.h"
#include "common/process.h"
#include "common/result.h"

namespace dd2 {

// The coordinator of a run as a child process. One that a signal killed after it had come up, or
// that found the disk full, is started again on the same ports and takes the run over: workers and
// agents wait for it. One that ended with another exit code had a reason and is left.
//
// Owned by RunSession; main thread only: it dies with the thread that started it. The destructor
// kills it.
class RunCoordinator {
 public:
  // `words`: more of its own in each life. `long_life`: earlier ends of one that has lived for this
  // long are forgotten.
  RunCoordinator(std::filesystem::path program, std::filesystem::path run,
                 std::vector<std::string> words, const Clock& clock,
                 std::chrono::milliseconds long_life);

  // Starts it; Watch() says when it is up.
  Status Start(bool resume);
  // Looks after it; call it often. What happened, for people; empty: nothing.
  std::string Watch();
  // An end from now on is the last one.
  void StopRestarting() { restarting_ = false; }
  // SIGTERM, SIGKILL after `grace`, if it runs. Blocks.
  void Terminate(std::chrono::milliseconds grace);

  // It can be asked and joined: its address, HOST:PORT for agents. Nothing while it starts.
  const std::optional<std::string>& address() const { return address_; }
  bool up() const { return address_.has_value(); }
  // How often it has come up: the number names one life of it.
  int lives() const { return lives_; }
  // Once it has ended for good.
  const std::optional<int>& status() const { return status_; }
  // Its end was Terminate()'s work.
  bool terminated() const { return terminated_; }

 private:
  Status Spawn(const std::vector<std::string>& more);
  std::string OnEnded(int status);

  const std::filesystem::path program_;
  const std::filesystem::path run_;
  const std::vector<std::string> words_;
  const Clock& clock_;
  RestartPolicy policy_;  // at once: whoever waits for it waits for a short time
  std::optional<ChildProcess> process_;
  TimePoint started_;
  std::optional<std::string> address_;
  std::optional<int> status_;
  std::string died_;  // what became of the one before
  int lives_ = 0;
  bool restarting_ = true;
  bool terminated_ = false;
};

// A coordinator opens its journal (a crash may have left some to replay) and two ports; one that
// is not up after this hangs.
inline constexpr std::chrono::milliseconds kCoordinatorStart = std::chrono::seconds(60);

}  // namespace dd2
