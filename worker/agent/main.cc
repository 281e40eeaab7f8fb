// dd2-agent --run DIR --domain NAME --coordinator HOST:PORT: the process of DD2 on a node that
// starts and watches its mpirun. Exit codes: common/exit_codes.h.

#include <signal.h>

#include <charconv>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/asio.h"
#include "common/clock.h"
#include "common/config.h"
#include "common/exit_codes.h"
#include "common/log.h"
#include "common/process.h"
#include "worker/agent/agent.h"

namespace dd2 {
namespace {

constexpr const char* kUsage =
    "usage: dd2-agent --run DIR --domain NAME --coordinator HOST:PORT [--worker FILE]\n"
    "                 [--first-device N] [--slurm-job ID | --sigterm ignore]\n"
    "  --run DIR              folder of the run: DIR/secret lets this agent join, DIR/config.yaml "
    "has\n"
    "                         its time-outs\n"
    "  --domain NAME          name of this failure domain: letters, digits, '-', '_', '.'\n"
    "  --coordinator ADDRESS  IP address and control port of the coordinator\n"
    "  --worker FILE          worker program (default: dd2-worker beside this program)\n"
    "  --first-device N       GPU of its first rank, the others take those behind it (default: 0)\n"
    "  --slurm-job ID         the job that this is a step of: SIGTERM is passed on to its script\n"
    "  --sigterm ignore       whoever started this agent hears it too and decides\n";

// Splits "HOST:PORT" at the last ':'; false when that is not what it is.
bool ParseAddress(const std::string& text, AgentOptions& options) {
  const std::size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon == 0) return false;
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data() + colon + 1, end, options.coordinator_port);
  options.coordinator_host = text.substr(0, colon);
  options.paths.coordinator = text;
  return parsed.ec == std::errc() && parsed.ptr == end && options.coordinator_port != 0;
}

bool ParseNumber(const std::string& text, int& number) {
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, number);
  return parsed.ec == std::errc() && parsed.ptr == end && number >= 0;
}

Result<AgentOptions> ParseArguments(const std::vector<std::string>& words) {
  AgentOptions options;
  for (std::size_t i = 0; i < words.size(); i += 2) {
    if (i + 1 == words.size()) return Error(Code::kInvalidArgument, words[i] + " needs a value");
    const std::string& value = words[i + 1];
    if (words[i] == "--run") {
      options.paths.run = value;
    } else if (words[i] == "--domain") {
      options.paths.domain = value;
    } else if (words[i] == "--worker") {
      options.paths.worker = value;
    } else if (words[i] == "--slurm-job") {
      options.slurm_job = value;
    } else if (words[i] == "--sigterm" && value == "ignore") {
      options.ignores_sigterm = true;
    } else if (words[i] == "--first-device") {
      if (!ParseNumber(value, options.paths.first_device)) {
        return Error(Code::kInvalidArgument, "--first-device: '" + value + "' is no GPU's number");
      }
    } else if (words[i] == "--coordinator") {
      if (!ParseAddress(value, options)) {
        return Error(Code::kInvalidArgument, "'" + value + "' is not HOST:PORT");
      }
    } else {
      return Error(Code::kInvalidArgument, "unknown argument '" + words[i] + "'");
    }
  }
  if (options.paths.run.empty()) return Error(Code::kInvalidArgument, "--run is missing");
  if (options.coordinator_port == 0) {
    return Error(Code::kInvalidArgument, "--coordinator is missing");
  }
  if (!IsDomainName(options.paths.domain)) {
    return Error(Code::kInvalidArgument,
                 "--domain is missing or no name: '" + options.paths.domain + "'");
  }
  return options;
}

// Makes what was left out or is relative definite.
Status CompletePaths(DomainPaths& paths) {
  std::error_code error;
  if (!std::filesystem::is_directory(paths.run, error)) {
    return Error(Code::kNotFound, "there is no folder " + paths.run.string());
  }
  paths.run = std::filesystem::canonical(paths.run, error);
  if (error) return Error(Code::kNotFound, paths.run.string() + ": " + error.message());
  if (!paths.worker.empty()) return {};
  DD2_TRY_ASSIGN(const std::filesystem::path folder, OwnBinaryFolder());
  paths.worker = folder / "dd2-worker";
  return {};
}

// The exit code, also where the agent itself would be at fault.
int RunAgent(AgentOptions options) {
  const SystemClock clock;
  asio::io_context context(1);
  Agent agent(context, clock, std::move(options));
  int exit_code = kExitInternal;
  asio::co_spawn(context, agent.Run(), [&exit_code](std::exception_ptr thrown, int code) {
    if (!thrown) exit_code = code;
  });
  context.run();
  return exit_code;
}

int Main(const std::vector<std::string>& words) {
  if (words.size() == 1 && (words[0] == "--help" || words[0] == "-h")) {
    std::fputs(kUsage, stdout);
    return kExitOk;
  }
  Result<AgentOptions> options = ParseArguments(words);
  if (!options) {
    std::fprintf(stderr, "dd2-agent: %s\n%s", options.error().message().c_str(), kUsage);
    return kExitUsage;
  }
  Status status = CompletePaths(options->paths);
  if (status) status = AdoptOrphans();
  if (!status) {
    std::fprintf(stderr, "dd2-agent: %s\n", status.error().message().c_str());
    return ExitCodeFor(status.error().code());
  }
  const Result<RunConfig> config = LoadRunConfig(options->paths.run / "config.yaml");
  if (!config) {
    std::fprintf(stderr, "dd2-agent: %s\n", config.error().message().c_str());
    return ExitCodeFor(config.error().code());
  }
  LogOptions log;
  log.name = "agent-" + options->paths.domain;
  log.file = options->paths.run / "logs" / (log.name + ".log");
  status = StartLog(log);
  if (!status) LogWarning(status.error().message());
  options->beat = config->timeouts.heartbeat_interval;
  options->away_limit = config->timeouts.coordinator_away;
  return RunAgent(std::move(*options));
}

}  // namespace
}  // namespace dd2

int main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);
  return dd2::Main(std::vector<std::string>(argv + 1, argv + argc));
}
