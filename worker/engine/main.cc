// dd2-worker: everything of DD2 that links LibTorch. `run` is a rank of a training run, started by
// dd2-agent through mpirun; `device` says which GPU it would use, or why none; the other commands
// are what `dd2 teacher train | adapt | logits | decode | encode` and `dd2 sample | eval | export`
// hand over.

#include <execinfo.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/config_teacher.h"
#include "common/exit_codes.h"
#include "common/file.h"
#include "common/hash.h"
#include "worker/engine/commands.h"
#include "worker/engine/teacher_training.h"
#include "worker/engine/worker_loop.h"
#include "worker/kernels/device.h"
#include "worker/parallel/mpi_domain.h"

namespace dd2 {
namespace {

using Arguments = std::vector<std::string>;

int Fail(const Error& error) {
  std::fprintf(stderr, "dd2-worker: %s\n", error.message().c_str());
  return ExitCodeFor(error.code());
}

// "--name value" pairs.
std::optional<std::map<std::string, std::string>> ParsePairs(const Arguments& arguments) {
  std::map<std::string, std::string> pairs;
  for (std::size_t i = 0; i < arguments.size(); i += 2) {
    if (!arguments[i].starts_with("--") || i + 1 == arguments.size()) return std::nullopt;
    pairs[arguments[i].substr(2)] = arguments[i + 1];
  }
  return pairs;
}

std::optional<WorkerOptions> ParseWorkerOptions(const Arguments& arguments) {
  const auto pairs = ParsePairs(arguments);
  if (!pairs || !pairs->contains("run") || !pairs->contains("coordinator")) return std::nullopt;
  WorkerOptions options;
  options.run = pairs->at("run");
  const std::string& address = pairs->at("coordinator");
  const std::size_t colon = address.rfind(':');
  const long port = colon == std::string::npos ? 0 : std::atol(address.c_str() + colon + 1);
  if (port <= 0 || port > 65535) return std::nullopt;
  options.coordinator_host = address.substr(0, colon);
  options.coordinator_port = static_cast<std::uint16_t>(port);
  options.domain = pairs->contains("domain") ? pairs->at("domain") : "local";
  if (pairs->contains("snapshots")) options.snapshots = pairs->at("snapshots");
  if (pairs->contains("run-id")) options.run_id = pairs->at("run-id");
  if (pairs->contains("first-device")) {
    options.first_device = std::atoi(pairs->at("first-device").c_str());
  }
  return options;
}

// Dies with mpirun, however that dies, and not of a SIGTERM that Slurm sends to every process of a
// job before it takes its nodes away: the coordinator is asked to stop, not the single rank.
void TieToParent() {
  signal(SIGTERM, SIG_IGN);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() == 1) _exit(kExitRunFailed);  // mpirun was gone before the line above
}

// What mpirun has not passed on yet is lost when its domain is killed, so the reason of this
// worker's end goes into the domain's log directly.
std::filesystem::path DomainLog(const WorkerOptions& options) {
  return options.run / "logs" / ("domain-" + options.domain + ".log");
}

void KeepLastWords(const WorkerOptions& options, const std::string& words) {
  std::ofstream log(DomainLog(options), std::ios::app | std::ios::binary);
  log << "worker " + std::to_string(options.local_rank) + " (pid " + std::to_string(getpid()) +
             "): " + words + "\n";
}

int crash_log = -1;  // open while there is a run

// Only what may be called in a signal handler; then the signal does what it would have done.
void OnCrash(int number) {
  if (crash_log >= 0) {
    constexpr char kText[] = "a worker crashed; where it was, innermost first:\n";
    [[maybe_unused]] const ssize_t written = write(crash_log, kText, sizeof(kText) - 1);
    void* frames[64];
    backtrace_symbols_fd(frames, backtrace(frames, 64), crash_log);
  }
  signal(number, SIG_DFL);
  raise(number);
}

// A thread of a library may end us with an exception that nobody catches.
[[noreturn]] void OnTerminate() {
  std::string what = "an exception that nobody catches";
  try {
    if (std::current_exception()) std::rethrow_exception(std::current_exception());
  } catch (const std::exception& exception) {
    what += std::string(": ") + exception.what();
  } catch (...) {
  }
  what += "\n";
  if (crash_log >= 0) {
    [[maybe_unused]] const ssize_t written = write(crash_log, what.data(), what.size());
  }
  std::abort();
}

void KeepCrashes(const WorkerOptions& options) {
  crash_log = open(DomainLog(options).c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  void* frame = nullptr;
  backtrace(&frame, 1);  // loads what it needs, which a handler must not do
  for (const int number : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) signal(number, OnCrash);
  std::set_terminate(OnTerminate);
}

int RunCommand(const Arguments& arguments) {
  std::optional<WorkerOptions> options = ParseWorkerOptions(arguments);
  if (!options) {
    std::fputs(
        "usage: dd2-worker run --run DIR --coordinator HOST:PORT [--domain NAME] "
        "[--first-device N] [--snapshots DIR --run-id ID]\n",
        stderr);
    return kExitUsage;
  }
  TieToParent();
  Result<MpiDomain> domain = MpiDomain::Start();
  if (!domain) return Fail(domain.error());
  options->local_rank = domain->rank();
  options->local_size = domain->size();
  KeepCrashes(*options);
  const Result<std::string> config = RealFileSystem().Read(options->run / "config.yaml");
  if (!config) return Fail(config.error());
  Status status = domain->AgreeOn("config.yaml", Hash128(*config).low);
  if (status) {
    const Result<WorkerOutcome> outcome = RunWorker(*options);
    if (outcome) return kExitOk;
    status = outcome.error();
  }
  std::fflush(stdout);
  KeepLastWords(*options, status.error().message() + " (" +
                              std::string(CodeName(status.error().code())) + ")");
  // Without MPI_Finalize: mpirun then ends the whole domain, which dies as one.
  _exit(Fail(status.error()));
}

int TrainTeacherCommand(const Arguments& arguments) {
  if (arguments.empty()) {
    std::fputs("usage: dd2-worker teacher-train CONFIG [--set KEY=VALUE ...]\n", stderr);
    return kExitUsage;
  }
  std::vector<std::string> overrides;
  for (std::size_t i = 1; i + 1 < arguments.size(); i += 2) overrides.push_back(arguments[i + 1]);
  const Result<TeacherTrainConfig> config = LoadTeacherTrainConfig(arguments[0], overrides);
  if (!config) return Fail(config.error());
  const Status status = TrainTeacher(*config);
  return status ? kExitOk : Fail(status.error());
}

int DeviceCommand() {
  const Result<Device> device = LoadDevice(DeviceLibrary());
  if (!device) return Fail(device.error().Wrap("no device"));
  std::puts(device->Describe().c_str());
  return kExitOk;
}

}  // namespace
}  // namespace dd2

int main(int argc, char** argv) {
  // Gloo writes to sockets that a peer, or Abort(), has closed; it handles the error, not the
  // signal (under Python, for which it was made, the signal is ignored).
  signal(SIGPIPE, SIG_IGN);
  // Tensors of a step come and go. Memory that goes back to the kernel has to be touched anew in
  // every step, which was a fifth of the time of `dd2 teacher train` with a multi-scale teacher.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  // c10d and the profiler log to standard error on their own.
  setenv("TORCH_CPP_LOG_LEVEL", "ERROR", 0);
  const std::string command = argc > 1 ? argv[1] : "";
  const std::vector<std::string> arguments(argv + std::min(argc, 2), argv + argc);
  if (command == "run") return dd2::RunCommand(arguments);
  if (command == "teacher-train") return dd2::TrainTeacherCommand(arguments);
  if (command == "teacher-adapt") return dd2::TeacherAdaptCommand(arguments);
  if (command == "teacher-logits") return dd2::TeacherLogitsCommand(arguments);
  if (command == "teacher-decode") return dd2::TeacherDecodeCommand(arguments);
  if (command == "teacher-encode") return dd2::TeacherEncodeCommand(arguments);
  if (command == "sample") return dd2::SampleCommand(arguments);
  if (command == "eval") return dd2::EvalCommand(arguments);
  if (command == "export") return dd2::ExportCommand(arguments);
  if (command == "device") return dd2::DeviceCommand();
  std::fputs(
      "usage: dd2-worker run|teacher-{train,adapt,logits,decode,encode}|sample|eval|export|device "
      "...\n",
      stderr);
  return dd2::kExitUsage;
}
