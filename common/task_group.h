#pragma once

#include <cstddef>
#include <list>
#include <string>

#include "common/asio.h"

namespace dd2 {

// Coroutines that belong together: started here, cancelled together, waited for before what they
// refer to is destroyed.
//
// Owned by the service whose work they do; Wait() must have returned before it is destroyed
// (checked). Control thread only. A task ends by returning; a task that throws anything but
// "operation aborted" is a bug of ours and ends the process.
class TaskGroup {
 public:
  explicit TaskGroup(asio::any_io_executor executor);
  ~TaskGroup();
  TaskGroup(const TaskGroup&) = delete;
  TaskGroup& operator=(const TaskGroup&) = delete;

  // `name` is for the message when the task throws.
  void Spawn(std::string name, Task<void> task);
  // Cancels the current operation of every task; further ones fail at once. Later Spawns run.
  void Cancel();
  // Returns when no task is left.
  Task<void> Wait();
  std::size_t size() const { return running_.size(); }

 private:
  struct Running {
    std::string name;
    asio::cancellation_signal cancel;
  };
  asio::any_io_executor executor_;
  asio::steady_timer empty_;  // never expires; cancelled when the last task ends
  std::list<Running> running_;
};

}  // namespace dd2
