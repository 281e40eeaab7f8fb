// dd2-coordinator --run DIR [--resume | --recover] [--elastic] [--command TEXT]: one process for
// one run. It owns phases, membership, the journal and the checkpoints of RUN, and serves the
// control port and the HTTP API. Exit codes: common/exit_codes.h.

#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "common/asio.h"
#include "common/clock.h"
#include "common/config.h"
#include "common/exit_codes.h"
#include "common/file.h"
#include "common/json.h"
#include "common/limits.h"
#include "common/local_address.h"
#include "common/log.h"
#include "common/process.h"
#include "common/version.h"
#include "coordinator/coordinator_loop.h"
#include "coordinator/http_server.h"
#include "coordinator/journal_replay.h"
#include "coordinator/recovery.h"
#include "coordinator/run_observers.h"
#include "storage/journal.h"
#include "storage/kv_store.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;

constexpr const char* kUsage =
    "usage: dd2-coordinator --run DIR [--resume | --recover] [--elastic] [--command TEXT]\n"
    "  --run DIR       folder of the run; DIR/config.yaml says what to do\n"
    "  --resume        go on from the newest checkpoint\n"
    "  --recover       the coordinator before died and its workers did not: take the run over, on "
    "the same ports\n"
    "  --elastic       domains come and go: the run waits while there is none\n"
    "  --command TEXT  what the user typed, for result.json\n";

struct Arguments {
  fs::path run;
  bool resume = false;
  bool recover = false;
  bool elastic = false;
  std::string command;
};

// Why the program ends before the run does.
struct Failure {
  ExitCode exit_code = kExitInternal;
  std::string message;
};
template <class T>
using OrFailure = tl::expected<T, Failure>;

tl::unexpected<Failure> Fail(ExitCode exit_code, std::string message) {
  Failure failure;
  failure.exit_code = exit_code;
  failure.message = std::move(message);
  return tl::unexpected<Failure>(std::move(failure));
}

// Of a failure before the run goes on. A full disk: dd2 run starts it again if the run has begun.
ExitCode StartCode(const Error& error) {
  if (error.code() == Code::kCorruption) return kExitBadData;
  return error.code() == Code::kResourceExhausted ? kExitDiskFull : kExitCannotStart;
}

OrFailure<Arguments> ParseArguments(const std::vector<std::string>& words) {
  Arguments arguments;
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "--run" && i + 1 < words.size()) {
      arguments.run = words[++i];
    } else if (words[i] == "--resume") {
      arguments.resume = true;
    } else if (words[i] == "--recover") {
      arguments.recover = true;
    } else if (words[i] == "--elastic") {
      arguments.elastic = true;
    } else if (words[i] == "--command" && i + 1 < words.size()) {
      arguments.command = words[++i];
    } else if (words[i] == "--help" || words[i] == "-h") {
      return Fail(kExitOk, kUsage);
    } else {
      return Fail(kExitUsage, "unknown or incomplete argument '" + words[i] + "'\n" + kUsage);
    }
  }
  if (arguments.run.empty()) return Fail(kExitUsage, std::string("--run is missing\n") + kUsage);
  std::error_code ignored;
  if (!fs::is_directory(arguments.run, ignored)) {
    return Fail(kExitNotFound, "there is no folder " + arguments.run.string());
  }
  return arguments;
}

// Not derived from any seed of the run: it guards the door.
std::string RandomHex(std::size_t bytes) {
  std::random_device device;
  static constexpr std::string_view kDigits = "0123456789abcdef";
  std::string hex;
  for (std::size_t i = 0; i < bytes; ++i) {
    const unsigned value = device();
    hex += kDigits[value & 0xf];
    hex += kDigits[(value >> 4) & 0xf];
  }
  return hex;
}

// The content of a file that only this user may read; made when it is not there.
Result<std::string> LoadOrMakeSecret(const fs::path& path) {
  Result<std::string> present = RealFileSystem().Read(path);
  if (present && !present->empty()) return present;
  if (!present && present.error().code() != Code::kNotFound) return present;
  const std::string made = RandomHex(32);
  DD2_TRY(WritePrivateFile(path, made));
  return made;
}

// What a run folder gives before anything is decided.
struct OpenedRun {
  RunConfig config;
  std::string config_digest;
  std::string secret;
  std::string token;
  std::unique_ptr<Journal> journal;
  JournalView view;
};

OrFailure<OpenedRun> OpenRun(const fs::path& run) {
  OpenedRun opened;
  Result<RunConfig> config = LoadRunConfig(run / "config.yaml");
  if (!config) return Fail(ExitCodeFor(config.error().code()), config.error().message());
  opened.config = std::move(*config);
  opened.config_digest = ConfigDigest(opened.config).Hex();
  for (const char* name : {"secret", "token"}) {
    Result<std::string> content = LoadOrMakeSecret(run / name);
    if (!content) return Fail(StartCode(content.error()), content.error().message());
    (std::string_view(name) == "secret" ? opened.secret : opened.token) = std::move(*content);
  }
  RocksOptions options;
  Result<std::unique_ptr<KvStore>> store = OpenRocksStore(run / "journal", options);
  if (!store) return Fail(StartCode(store.error()), store.error().message());
  Result<std::unique_ptr<Journal>> journal = Journal::Open(std::move(*store));
  if (!journal) return Fail(StartCode(journal.error()), journal.error().message());
  opened.journal = std::move(*journal);
  opened.view = ReplayJournal(opened.journal->records());
  return opened;
}

// Whether this start makes sense, given what the journal says.
std::optional<Failure> CheckStart(const Arguments& arguments, const OpenedRun& opened) {
  const std::string folder = arguments.run.string();
  const JournalView& view = opened.view;
  Failure failure;
  if (view.started && !arguments.resume && !arguments.recover) {
    failure.exit_code = kExitAlreadyStarted;
    failure.message = folder + " holds a run that has already begun" +
                      (view.outcome.empty() ? std::string() : " (" + view.outcome + ")") +
                      ": go on with it (--resume), or choose another folder";
    return failure;
  }
  if (view.outcome == RunWordName(RunWord::kFinished)) {
    failure.exit_code = kExitOk;
    failure.message = "the run in " + folder + " is finished: see result.json there";
    return failure;
  }
  if (view.started && view.config_digest != opened.config_digest) {
    failure.exit_code = kExitUsage;
    failure.message = folder + "/config.yaml was changed since the run began (digest " +
                      view.config_digest + ", now " + opened.config_digest +
                      "): its checkpoints do not belong to these settings. Restore the file, or "
                      "start a new run in another folder";
    return failure;
  }
  return std::nullopt;
}

Status WriteCoordinatorFile(const fs::path& run, const std::string& run_id,
                            const std::string& control_host, std::uint16_t control_port,
                            const HttpServer& http) {
  boost::json::object object;
  object["run_id"] = run_id;
  object["pid"] = static_cast<std::int64_t>(::getpid());
  object["host"] = HostName();
  object["control_host"] = control_host;
  object["control_port"] = control_port;
  object["http_port"] = http.port();
  object["api_url"] = http.url();
  return WriteFileAtomically(RealFileSystem(), run / "coordinator.json",
                             boost::json::serialize(object) + "\n");
}

Task<void> WatchSignals(asio::signal_set& signals, CoordinatorLoop& loop) {
  for (;;) {
    error_code code;
    const int number = co_await signals.async_wait(asio::redirect_error(asio::use_awaitable, code));
    if (code) co_return;
    loop.OnSignal(number == SIGINT ? "SIGINT" : "SIGTERM");
  }
}

// Ends the process before the run has begun but after a port was opened: its coroutines wait in a
// loop that will not run, so they go with the process. What was journalled is synced.
[[noreturn]] void Leave(ExitCode exit_code, const std::string& message) {
  std::fprintf(stderr, "dd2-coordinator: %s\n", message.c_str());
  std::_Exit(exit_code);
}

// The one before may have ended because the disk was full, or while it was: the workers train on,
// and a little patience keeps the run. False: it still is.
bool WaitForSpace(const fs::path& run) {
  constexpr std::uint64_t kNeeded = std::uint64_t{16} << 20;
  // Well below the time in which dd2 run wants it to be up.
  constexpr auto kPatience = std::chrono::seconds(40);
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  // By doing it: a quota, or no more files, cannot be asked for.
  const fs::path probe = run / "space.probe";
  const std::string bytes(kNeeded, '\0');
  const auto lacks = [&] {
    const Status written = WriteFileAtomically(RealFileSystem(), probe, bytes);
    static_cast<void>(RealFileSystem().Remove(probe));
    return !written && written.error().code() == Code::kResourceExhausted;
  };
  if (!lacks()) return true;
  std::fprintf(stderr, "dd2-coordinator: the disk of %s is full; waiting for space\n", run.c_str());
  while (lacks()) {
    if (std::chrono::steady_clock::now() >= deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  }
  return true;
}

// Where the coordinator before was reached; zeros: any port; no host: as the settings say.
struct Ports {
  std::string host;
  std::uint16_t control = 0;
  std::uint16_t http = 0;
};

// Workers and agents try the ports that they know.
Ports LastPorts(const fs::path& run) {
  Ports ports;
  const Result<std::string> text = RealFileSystem().Read(run / "coordinator.json");
  if (!text) return ports;
  boost::system::error_code failure;
  const boost::json::value value = boost::json::parse(*text, failure);
  const boost::json::object* object = failure ? nullptr : value.if_object();
  const auto port = [object](const char* name) {
    const boost::json::value* number = object == nullptr ? nullptr : object->if_contains(name);
    return number != nullptr && number->is_int64() ? static_cast<std::uint16_t>(number->as_int64())
                                                   : std::uint16_t{0};
  };
  ports.control = port("control_port");
  ports.http = port("http_port");
  const boost::json::value* host =
      object == nullptr ? nullptr : object->if_contains("control_host");
  if (host != nullptr && host->is_string()) ports.host = std::string(host->get_string());
  return ports;
}

// From an opened run to its end.
class Program {
 public:
  Program(fs::path run, const Arguments& arguments, Ports ports, OpenedRun opened)
      : run_(std::move(run)),
        command_(arguments.command),
        recover_(arguments.recover),
        elastic_(arguments.elastic),
        ports_(ports),
        opened_(std::move(opened)),
        signals_(context_, SIGINT, SIGTERM) {}

  OrFailure<ExitCode> Run() {
    Result<CoreStart> start = FindStart();
    if (!start) return Fail(StartCode(start.error()), start.error().message());
    // Not to know it is no reason not to start.
    if (const auto free = FreeBytes(run_)) start->free_bytes = *free;
    const Status built = BuildLoop(std::move(*start));
    if (!built) return Fail(StartCode(built.error()), built.error().message());
    const Result<std::uint16_t> control_port = loop_->Listen();
    if (!control_port) return Fail(kExitCannotStart, control_port.error().message());
    HttpOptions options;
    options.host = ports_.host;
    options.port = recover_ ? ports_.http : static_cast<std::uint16_t>(opened_.config.api.port);
    options.token = opened_.token;
    Result<std::unique_ptr<HttpServer>> http = HttpServer::Start(context_, options, *loop_);
    if (!http) {
      Leave(kExitCannotStart,
            http.error().message() + ". Set api.port to another port, or to 0 for any");
    }
    HttpObserver notify(**http);
    loop_->AddObserver(notify);
    const Status written = WriteCoordinatorFile(run_, run_id_, ports_.host, *control_port, **http);
    if (!written) Leave(StartCode(written.error()), written.error().message());
    LogInfo("run " + run_id_ + " in " + run_.string() + ": control port " +
            std::to_string(*control_port) + ", API " + (*http)->url());
    if (!IsLoopback(ports_.host)) {
      LogWarning("the control port and the API are open to the network of " + ports_.host +
                 ", behind the run's secret and token, without encryption");
    }
    asio::co_spawn(context_, WatchSignals(signals_, *loop_), asio::detached);
    asio::co_spawn(context_, Work(**http), asio::detached);
    context_.run();
    // The next one takes the ports from it.
    if (exit_code_ != kExitDiskFull) {
      static_cast<void>(RealFileSystem().Remove(run_ / "coordinator.json"));
    }
    if (!loop_->state().message.empty())
      std::fprintf(stderr, "%s\n", loop_->state().message.c_str());
    return exit_code_;
  }

 private:
  Result<CoreStart> FindStart() {
    if (!recover_) {
      return RecoverRun(RealFileSystem(), run_, *opened_.journal, clock_.UnixMs());
    }
    Result<std::string> lines = RealFileSystem().Read(run_ / "metrics.jsonl");
    if (!lines && lines.error().code() != Code::kNotFound) return lines.error();
    const RecordPosition last = LastRecorded(lines ? *lines : std::string());
    return TakeOverRun(RealFileSystem(), run_, *opened_.journal, opened_.config.phases,
                       RunPosition{last.phase, last.step}, clock_.UnixMs());
  }

  Status BuildLoop(CoreStart start) {
    std::vector<std::int64_t> phase_steps;
    for (const PhaseConfig& phase : opened_.config.phases) phase_steps.push_back(phase.steps);
    DD2_TRY_ASSIGN(auto record, RunRecord::Open(run_, std::move(phase_steps), clock_));
    record_ = std::make_unique<RecordObserver>(std::move(record), run_ / "incidents.jsonl");
    run_id_ = opened_.view.run_id.empty() ? RandomHex(8) : opened_.view.run_id;
    CoreOptions core;
    core.config = opened_.config;
    core.run_id = run_id_;
    core.run_folder = run_.string();
    core.code_version = std::string(CodeVersion());
    core.config_digest = opened_.config_digest;
    core.command = command_;
    core.elastic = elastic_;
    LoopOptions options;
    options.run_folder = run_;
    options.secret = opened_.secret;
    options.host = ports_.host;
    options.port = ports_.control;
    loop_ =
        std::make_unique<CoordinatorLoop>(context_, RealFileSystem(), clock_, *opened_.journal,
                                          std::move(core), std::move(start), std::move(options));
    loop_->AddObserver(log_);
    loop_->AddObserver(*record_);
    return Status();
  }

  Task<void> Work(HttpServer& http) {
    exit_code_ = co_await loop_->Run();
    co_await http.Stop(std::chrono::seconds(1));
    error_code ignored;
    signals_.cancel(ignored);
  }

  const fs::path run_;
  const std::string command_;
  const bool recover_;
  const bool elastic_;
  const Ports ports_;
  OpenedRun opened_;
  const SystemClock clock_;
  asio::io_context context_{1};
  asio::signal_set signals_;
  std::unique_ptr<RecordObserver> record_;
  LogObserver log_;
  std::string run_id_;
  std::unique_ptr<CoordinatorLoop> loop_;
  ExitCode exit_code_ = kExitInternal;
};

OrFailure<ExitCode> Main(const std::vector<std::string>& words) {
  OrFailure<Arguments> arguments = ParseArguments(words);
  if (!arguments) return tl::unexpected<Failure>(arguments.error());
  const fs::path run = fs::absolute(arguments->run).lexically_normal();
  const std::string owner = "dd2-coordinator, process " + std::to_string(::getpid());
  const Result<FileLock> lock = FileLock::Acquire(run / "lock", owner);
  if (!lock) {
    return Fail(lock.error().code() == Code::kUnavailable ? kExitAlreadyStarted : kExitCannotStart,
                "the run in " + run.string() + " is in use: " + lock.error().message());
  }
  if (arguments->recover && !WaitForSpace(run)) {
    return Fail(kExitDiskFull, "the disk of " + run.string() + " is full; free some space");
  }
  Ports ports = arguments->recover ? LastPorts(run) : Ports();
  // Nobody may be led to the coordinator that was here before, unless this one takes its ports.
  if (!arguments->recover) {
    const Status removed = RealFileSystem().Remove(run / "coordinator.json");
    if (!removed) return Fail(kExitCannotStart, removed.error().message());
  }
  OrFailure<OpenedRun> opened = OpenRun(run);
  if (!opened) return tl::unexpected<Failure>(opened.error());
  if (std::optional<Failure> failure = CheckStart(*arguments, *opened)) {
    // The one before died at the very end of the run: nobody shall wait for it.
    static_cast<void>(RealFileSystem().Remove(run / "coordinator.json"));
    return tl::unexpected<Failure>(std::move(*failure));
  }
  if (ports.host.empty()) {
    Result<std::string> host = ResolveListenAddress(opened->config.api.host);
    if (!host) return Fail(kExitCannotStart, host.error().message());
    ports.host = std::move(*host);
  }
  const std::uint64_t files = RaiseFileLimit();
  LogOptions log;
  log.name = "coordinator";
  log.file = run / "logs" / "coordinator.log";
  log.to_stderr = false;
  const Status logging = StartLog(log);
  if (!logging) return Fail(kExitCannotStart, logging.error().message());
  // Each rank holds two connections: its own and that of its store client.
  const auto ranks = static_cast<std::uint64_t>(opened->config.domains * opened->config.ranks);
  if (files <
      2 * ranks + static_cast<std::uint64_t>(opened->config.domains) + kHttpConnectionsMax) {
    LogWarning("only " + std::to_string(files) + " files may be open (ulimit -Hn): too few for " +
               std::to_string(ranks) + " ranks");
  }
  return Program(run, *arguments, ports, std::move(*opened)).Run();
}

}  // namespace
}  // namespace dd2

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  const auto outcome = dd2::Main(words);
  if (outcome) return *outcome;
  std::fprintf(stderr, "dd2-coordinator: %s\n", outcome.error().message.c_str());
  return outcome.error().exit_code;
}
