// The probes of dd2 doctor that need Slurm: what it says of itself, and all nodes in one step.

#include <unistd.h>

#include <chrono>
#include <thread>

#include "cli/doctor_probes.h"
#include "cli/slurm_client.h"
#include "common/asio.h"
#include "common/blocking_channel.h"
#include "common/clock.h"
#include "common/file.h"
#include "common/framing.h"
#include "common/local_address.h"
#include "common/process.h"
#include "common/version.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using std::chrono::milliseconds;
using std::chrono::seconds;

// The nodes of a step begin within this of each other, and the first one looks at itself before it
// answers the others.
constexpr seconds kMeet(150);
constexpr seconds kStep(600);  // until Slurm has nodes for the step
constexpr seconds kAnswer(10);
constexpr const char* kServer = "first-node.json";
constexpr const char* kMark = "here";

fs::path NodeFile(const fs::path& meeting, int rank) {
  return meeting / ("node-" + std::to_string(rank) + ".json");
}

double UnixSeconds() { return static_cast<double>(SystemClock().UnixMs()) / 1000; }

// One answer to each of the others: what time it is here.
Task<void> AnswerOne(tcp::socket socket) {
  const auto asked = co_await ReadFrame(socket, 64, kAnswer);
  if (!asked) co_return;
  std::string now = std::to_string(UnixSeconds());
  static_cast<void>(co_await WriteFrame(socket, std::move(now), kAnswer));
}

Task<void> AnswerAll(tcp::acceptor& acceptor) {
  while (true) {
    error_code code;
    tcp::socket socket =
        co_await acceptor.async_accept(asio::redirect_error(asio::use_awaitable, code));
    if (code) co_return;
    asio::co_spawn(acceptor.get_executor(), AnswerOne(std::move(socket)), asio::detached);
  }
}

// The first node waits for the reports of the others, and tells the time meanwhile.
Status Serve(const fs::path& meeting, const std::string& host, int count) {
  DD2_TRY_ASSIGN(const std::string address, ResolveListenAddress(host));
  asio::io_context context;
  error_code code;
  tcp::acceptor acceptor(context);
  const tcp::endpoint endpoint(asio::ip::make_address(address, code), 0);
  if (!code) acceptor.open(endpoint.protocol(), code);
  if (!code) acceptor.bind(endpoint, code);
  if (!code) acceptor.listen(asio::socket_base::max_listen_connections, code);
  if (code) return Error(Code::kUnavailable, address + ": " + code.message());
  json::object server;
  server["address"] = address;
  server["port"] = acceptor.local_endpoint(code).port();
  DD2_TRY(WriteFileAtomically(RealFileSystem(), meeting / kServer, json::serialize(server)));
  asio::co_spawn(context, AnswerAll(acceptor), asio::detached);
  const SystemClock clock;
  const TimePoint deadline = clock.Now() + kMeet;
  std::error_code error;
  for (int rank = 1; rank < count && clock.Now() < deadline;) {
    context.run_for(milliseconds(50));
    if (fs::exists(NodeFile(meeting, rank), error)) ++rank;
  }
  return {};
}

// Seconds that this clock is before the first node's.
Result<double> AskFirst(const fs::path& meeting) {
  const SystemClock clock;
  const TimePoint deadline = clock.Now() + kMeet;
  Result<std::string> text = RealFileSystem().Read(meeting / kServer);
  while (!text && clock.Now() < deadline) {
    std::this_thread::sleep_for(milliseconds(100));
    text = RealFileSystem().Read(meeting / kServer);
  }
  if (!text) return text.error().Wrap("what the first node has written is not seen");
  boost::system::error_code failure;
  const json::value server = json::parse(*text, failure);
  if (failure) return Error(Code::kCorruption, "what the first node has written is damaged");
  DD2_TRY_ASSIGN(
      BlockingChannel channel,
      BlockingChannel::Connect(std::string(server.at("address").as_string()),
                               static_cast<std::uint16_t>(server.at("port").as_int64()), kAnswer));
  const double before = UnixSeconds();
  DD2_TRY(channel.Send("time", kAnswer));
  DD2_TRY_ASSIGN(const std::string there, channel.Receive(kAnswer));
  return (before + UnixSeconds()) / 2 - std::strtod(there.c_str(), nullptr);
}

}  // namespace

Status ReportNode(const fs::path& meeting, const std::string& host, int rank, int count,
                  const Needs& needs) {
  NodeFacts facts;
  const char* const node = std::getenv("SLURMD_NODENAME");
  facts.node = node != nullptr ? node : HostName();
  facts.version = CodeVersion();
  const auto mark = RealFileSystem().Read(meeting / kMark);
  facts.saw_folder = mark && *mark == meeting.filename().string();
  const auto write = [&] {
    return WriteFileAtomically(RealFileSystem(), NodeFile(meeting, rank),
                               json::serialize(ToJson(facts)));
  };
  if (rank > 0) facts.clock_ahead = AskFirst(meeting);
  facts.findings = JudgeMachine(ProbeMachine(meeting, host), needs);
  if (rank > 0) return write();
  if (const Status served = Serve(meeting, host, count); !served) {
    facts.clock_ahead = served.error();
  }
  return write();
}

Result<std::vector<NodeFacts>> ProbeNodes(const fs::path& folder, const std::string& host,
                                          int nodes, const std::vector<std::string>& srun) {
  DD2_TRY_ASSIGN(const fs::path programs, OwnBinaryFolder());
  const fs::path meeting =
      fs::absolute(folder) / (".dd2-doctor-" + HostName() + "-" + std::to_string(::getpid()));
  std::error_code error;
  const bool made = !fs::exists(folder, error);
  DD2_TRY(RealFileSystem().MakeDirectories(meeting));
  DD2_TRY(WriteFileAtomically(RealFileSystem(), meeting / kMark, meeting.filename().string()));
  std::vector<std::string> words = {"srun",
                                    "--nodes=" + std::to_string(nodes),
                                    "--ntasks-per-node=1",
                                    "--mpi=none",
                                    "--quiet",
                                    "--job-name=dd2-doctor",
                                    "--time=5"};
  words.insert(words.end(), srun.begin(), srun.end());
  words.insert(words.end(), {(programs / "dd2").string(), "doctor", "--meeting", meeting.string(),
                             "--host", host});
  const auto said = CallSlurm(words, kStep);
  std::vector<NodeFacts> found;
  for (int rank = 0; rank < nodes; ++rank) {
    const auto text = RealFileSystem().Read(NodeFile(meeting, rank));
    if (!text) continue;
    auto facts = NodeFactsFrom(*text);
    if (facts) found.push_back(std::move(*facts));
  }
  static_cast<void>(RealFileSystem().RemoveTree(meeting));
  if (made) fs::remove(folder, error);  // unless somebody has put something into it meanwhile
  if (!said && found.empty()) return said.error();
  return found;
}

Result<SlurmFacts> ProbeSlurm(const std::string& partition) {
  SlurmFacts facts;
  DD2_TRY_ASSIGN(const std::string config, CallSlurm({"scontrol", "show", "config"}, kAnswer));
  facts.config = ParseScontrol(config);
  std::string name = partition;
  if (name.empty()) {
    // The default one is marked.
    DD2_TRY_ASSIGN(const std::string listed, CallSlurm({"sinfo", "-h", "-o", "%P"}, kAnswer));
    for (std::size_t begin = 0; begin < listed.size();) {
      const std::size_t end = std::min(listed.find('\n', begin), listed.size());
      const std::string line = listed.substr(begin, end - begin);
      if (line.ends_with('*')) name = line.substr(0, line.size() - 1);
      begin = end + 1;
    }
    if (name.empty()) {
      return Error(Code::kFailedPrecondition,
                   "the cluster has no default partition: name one with --partition");
    }
  }
  DD2_TRY_ASSIGN(const std::string shown,
                 CallSlurm({"scontrol", "show", "partition", name}, kAnswer));
  facts.partition = ParseScontrol(shown);
  DD2_TRY_ASSIGN(const std::string states,
                 CallSlurm({"sinfo", "-h", "-p", name, "-N", "-o", "%T"}, kAnswer));
  for (std::size_t begin = 0; begin < states.size();) {
    const std::size_t end = std::min(states.find('\n', begin), states.size());
    const std::string state = states.substr(begin, end - begin);
    const bool up = state.starts_with("idle") || state.starts_with("alloc") ||
                    state.starts_with("mix") || state.starts_with("comp");
    facts.nodes_up += up && !state.ends_with('*') ? 1 : 0;
    begin = end + 1;
  }
  return facts;
}

}  // namespace dd2
