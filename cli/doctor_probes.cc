#include "cli/doctor_probes.h"

#include <sys/resource.h>
#include <sys/timex.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "cli/commands.h"
#include "cli/format.h"
#include "cli/plan.h"
#include "cli/slurm_client.h"
#include "common/asio.h"
#include "common/clock.h"
#include "common/config.h"
#include "common/file.h"
#include "common/local_address.h"
#include "common/process.h"
#include "common/version.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr std::size_t kProbeBytes = std::size_t{64} << 20;
constexpr seconds kProgramLimit(30);

// Runs a program to its end; what it said. kUnavailable with that: it failed or took too long.
Result<std::string> Ask(const std::vector<std::string>& words, milliseconds limit) {
  const fs::path output =
      fs::temp_directory_path() / ("dd2-doctor-" + std::to_string(::getpid()) + ".out");
  DD2_TRY(RealFileSystem().Remove(output));
  SpawnOptions options;
  options.argv = words;
  options.output = output;
  DD2_TRY_ASSIGN(ChildProcess child, ChildProcess::Spawn(options));
  const std::optional<int> status = child.Wait(limit);
  const Result<std::string> said = RealFileSystem().Read(output);
  static_cast<void>(RealFileSystem().Remove(output));
  std::string text = said ? *said : "";
  while (text.ends_with('\n')) text.pop_back();
  if (status == 0) return text;
  return Error(Code::kUnavailable, words[0] +
                                       (status ? " ended with status " + std::to_string(*status)
                                               : " did not end in time") +
                                       (text.empty() ? "" : ": " + text));
}

void ProbePrograms(MachineFacts& facts) {
  facts.version = CodeVersion();
  for (const char* name : {"dd2-coordinator", "dd2-agent", "dd2-worker"}) {
    if (FindSibling(name)) facts.programs.insert(name);
  }
  if (auto said = Ask({"mpirun", "--version"}, kProgramLimit)) {
    facts.mpirun = said->substr(0, said->find('\n'));
  } else {
    facts.mpirun = said.error();
    return;
  }
  // As an agent starts its domain.
  std::vector<std::string> words = {
      "mpirun",   "-n",    "2",   "--bind-to", "none",  "--oversubscribe",    "--mca", "plm",
      "isolated", "--mca", "ras", "^slurm",    "--mca", "oob_tcp_if_include", "lo",    "true"};
  if (::geteuid() == 0) words.insert(words.begin() + 1, "--allow-run-as-root");
  const SystemClock clock;
  const TimePoint begun = clock.Now();
  const auto ran = Ask(words, kProgramLimit);
  facts.mpirun_start = ran ? Result<double>(SecondsBetween(begun, clock.Now())) : ran.error();
}

Result<std::string> TryToListen(const std::string& host) {
  DD2_TRY_ASSIGN(std::string address, ResolveListenAddress(host));
  error_code code;
  asio::io_context context;
  tcp::acceptor acceptor(context);
  const tcp::endpoint endpoint(asio::ip::make_address(address, code), 0);
  if (!code) acceptor.open(endpoint.protocol(), code);
  if (!code) acceptor.bind(endpoint, code);
  if (!code) acceptor.listen(1, code);
  if (code) {
    return Error(Code::kUnavailable, address + " cannot be listened on: " + code.message());
  }
  return address;
}

void ProbeNetwork(const std::string& host, MachineFacts& facts) {
  facts.address = TryToListen(host);
  for (const LocalAddress& one : LocalAddresses()) facts.interfaces.push_back(one.interface);
  for (const char* name : {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME"}) {
    const char* const value = std::getenv(name);
    if (value != nullptr && *value != '\0') facts.interface_variables[name] = value;
  }
  std::ifstream range("/proc/sys/net/ipv4/ip_local_port_range");
  std::int64_t first = 0;
  std::int64_t last = -1;
  range >> first >> last;
  facts.port_range = last - first + 1;
}

// The hard one: a coordinator raises its own up to it.
std::int64_t LimitOf(__rlimit_resource resource) {
  rlimit limit{};
  if (getrlimit(resource, &limit) != 0 || limit.rlim_max == RLIM_INFINITY) return -1;
  return static_cast<std::int64_t>(limit.rlim_max);
}

void ProbeLimits(MachineFacts& facts) {
  facts.files_limit = LimitOf(RLIMIT_NOFILE);
  facts.processes_limit = LimitOf(RLIMIT_NPROC);
  if (const auto free = FreeBytes("/dev/shm")) {
    facts.shared_memory_bytes = static_cast<std::int64_t>(*free);
  }
  timex state{};
  facts.clock_synchronised = adjtimex(&state) != TIME_ERROR;
  if (const auto said = Ask({"nvidia-smi", "-L"}, kProgramLimit)) {
    facts.devices = std::to_string(std::count(said->begin(), said->end(), '\n') + 1) + " (" +
                    said->substr(0, said->find('(')) + "...)";
  }
}

Result<double> MeasureWriting(const fs::path& file) {
  const std::vector<std::byte> bytes(kProbeBytes, std::byte{0x5a});
  const SystemClock clock;
  const TimePoint begun = clock.Now();
  Status done;
  {
    DD2_TRY_ASSIGN(auto writable, RealFileSystem().Create(file));
    done = writable->Append(bytes);
    if (done) done = writable->Sync();
    if (done) done = writable->Close();
  }
  const double taken = SecondsBetween(begun, clock.Now());
  static_cast<void>(RealFileSystem().Remove(file));
  if (!done) return done.error();
  return static_cast<double>(kProbeBytes) / std::max(taken, 1e-6);
}

// An existing folder at or above `folder`: a run's own is made by the run.
fs::path Existing(fs::path folder) {
  std::error_code error;
  folder = fs::absolute(folder, error).lexically_normal();
  while (!folder.empty() && !fs::is_directory(folder, error) && folder.has_relative_path()) {
    folder = folder.parent_path();
  }
  return folder;
}

// Of the files in a folder and below it; 0 when it is not there.
std::int64_t BytesIn(const fs::path& folder) {
  std::int64_t bytes = 0;
  std::error_code problem;  // a file that vanishes meanwhile
  for (fs::recursive_directory_iterator at(folder, problem), end; at != end;
       at.increment(problem)) {
    std::error_code ignored;
    if (at->is_regular_file(ignored)) bytes += static_cast<std::int64_t>(at->file_size(ignored));
  }
  return bytes;
}

void ProbeFolder(const fs::path& folder, MachineFacts& facts) {
  const fs::path place = Existing(folder);
  const std::string mine = ".dd2-doctor-" + HostName() + "-" + std::to_string(::getpid());
  if (const auto free = FreeBytes(place)) facts.free_bytes = static_cast<std::int64_t>(*free);
  facts.write_rate = MeasureWriting(place / (mine + ".probe"));
  const fs::path lock = place / (mine + ".lock");
  {
    const auto first = FileLock::Acquire(lock, "dd2 doctor");
    facts.lock = first ? Status() : first.error();
    if (first && FileLock::Acquire(lock, "dd2 doctor")) {
      facts.lock = Error(Code::kFailedPrecondition, "do not exclude a second holder");
    }
  }
  static_cast<void>(RealFileSystem().Remove(lock));
}

}  // namespace

Needs NeedsOf(const std::optional<RunConfig>& config, int nodes) {
  Needs needs;
  // Each rank has one connection for control and one to the rendezvous store.
  const int ranks = !config ? 1 : config->ranks;
  needs.connections = nodes * (2 * ranks + 1);
  if (!config) return needs;
  // Domains that are more than the machines are beside each other.
  const int domains = std::max(nodes, config->domains);
  const auto plan = PlanRun(*config, domains, (domains + nodes - 1) / nodes);
  if (!plan) return needs;  // no usable teacher, or too many ranks: a run says so itself
  needs.checkpoint_bytes = plan->kept_bytes;
  needs.snapshot_bytes = plan->memory.shared_bytes;
  return needs;
}

Status CheckRoom(const RunConfig& config, const fs::path& folder) {
  // Those of a run that is resumed are there already.
  const std::int64_t needed = NeedsOf(config, 1).checkpoint_bytes - BytesIn(folder / "checkpoints");
  const auto free = FreeBytes(Existing(folder));
  if (!free || static_cast<std::int64_t>(*free) >= needed) return {};
  return Error(Code::kResourceExhausted,
               folder.string() + ": " + FormatBytes(static_cast<std::int64_t>(*free)) +
                   " free, the checkpoints that are kept need " + FormatBytes(needed) + " more" +
                   ": free some, choose another disk with --run, or "
                   "lower checkpoint.keep_last or keep_best");
}

std::string CacheWarning(const RunConfig& config) {
  const auto plan = PlanRun(config, 1);
  const fs::path folder = ScoreCacheFolder(config);
  const auto free = FreeBytes(Existing(folder));
  if (!plan || !free) return "";
  if (static_cast<std::int64_t>(*free) >= plan->cache_bytes) return "";
  return "the score cache may need " + FormatBytes(plan->cache_bytes) +
         " (less what it has of this teacher) in " + folder.string() + ", where " +
         FormatBytes(static_cast<std::int64_t>(*free)) +
         " are free: set cache.path to a folder on a larger disk that all nodes see";
}

Result<std::string> CheckNodeMemory(const RunConfig& config, int nodes,
                                    const std::string& partition) {
  const auto plan = PlanRun(config, nodes);
  if (!plan) return std::string();  // as above
  const auto said = CallSlurm(NodeMemoryWords(partition));
  if (!said) return std::string();  // sbatch will say what is wrong
  return JudgeNodeMemory(ParseNodeMemory(*said, !partition.empty()), plan->memory.node_bytes);
}

MachineFacts ProbeMachine(const fs::path& folder, const std::string& host) {
  MachineFacts facts;
  ProbePrograms(facts);
  ProbeNetwork(host, facts);
  ProbeLimits(facts);
  ProbeFolder(folder, facts);
  return facts;
}

}  // namespace dd2
