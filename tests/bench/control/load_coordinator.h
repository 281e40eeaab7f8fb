#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>

#include "common/process.h"
#include "common/result.h"
#include "common/run_config.h"

namespace dd2::load {

// A real dd2-coordinator process on a run folder of its own. The destructor kills it and removes
// the folder. Blocks the thread; one thread.
class CoordinatorProcess {
 public:
  // `config`: as YAML. Makes the folder below `parent`, starts the program that lies beside ours,
  // and waits until it listens. kUnavailable: it does not.
  static Result<CoordinatorProcess> Start(const std::filesystem::path& parent,
                                          const std::string& config);
  CoordinatorProcess(CoordinatorProcess&&) = default;
  CoordinatorProcess& operator=(CoordinatorProcess&&) = delete;
  ~CoordinatorProcess();

  const std::filesystem::path& run_folder() const { return folder_; }
  const std::string& secret() const { return secret_; }
  std::uint16_t control_port() const { return control_port_; }
  // Time on a core so far, in user and system mode; nothing less than a clock tick (10 ms).
  double CpuSeconds() const;
  std::int64_t ResidentBytes() const;
  bool running() { return !child_.TryWait(); }

 private:
  CoordinatorProcess(std::filesystem::path folder, ChildProcess child)
      : folder_(std::move(folder)), child_(std::move(child)) {}
  Status WaitUntilUp();

  std::filesystem::path folder_;  // empty: moved from
  ChildProcess child_;
  std::string secret_;
  std::uint16_t control_port_ = 0;
};

}  // namespace dd2::load
