#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "common/result.h"

namespace dd2 {

// What RUN/coordinator.json says to agents: where its writer waits for them.
struct ControlFile {
  std::int64_t pid = 0;
  std::string machine;       // host name of the coordinator's machine; empty: not known
  std::string control_host;  // the address that it listens on
  int control_port = 0;

  // "127.0.0.1:4711" for agents. Who listens on every address is on this machine.
  std::string Address() const;
  // Nobody on another machine can be led to it.
  bool OnlyForItsMachine() const;
};

// kUnavailable: no coordinator is there; kCorruption: it is no such file.
Result<ControlFile> ReadControlFile(const std::filesystem::path& run);

}  // namespace dd2
