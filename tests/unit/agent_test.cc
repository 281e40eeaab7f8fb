// dd2-agent as a real process, with a script in place of mpirun and a coordinator that is a socket
// in this test.

#include "worker/agent/agent.h"

#include <gmock/gmock.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <optional>
#include <string>
#include <thread>

#include "common/clock.h"
#include "common/exit_codes.h"
#include "common/framing.h"
#include "common/process.h"
#include "common/timeouts.h"
#include "proto/control.pb.h"
#include "worker/agent/domain_process.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

bool Eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 3000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(milliseconds(5));
  }
  return false;
}

std::string ReadAll(const fs::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// Neither running nor waiting to be reaped by somebody else.
bool Gone(pid_t pid) {
  const std::string text = ReadAll("/proc/" + std::to_string(pid) + "/stat");
  const std::size_t end = text.rfind(") ");
  return end == std::string::npos || text[end + 2] == 'Z' || text[end + 2] == 'X';
}

void WriteScript(const fs::path& path, const std::string& body) {
  std::ofstream(path) << "#!/bin/sh\n" << body << "\n";
  fs::permissions(path, fs::perms::owner_all);
}

template <class T>
T RunSync(asio::io_context& context, Task<T> task) {
  std::optional<T> result;
  asio::co_spawn(context, std::move(task),
                 [&result](std::exception_ptr, T value) { result = std::move(value); });
  context.restart();
  context.run();
  return std::move(*result);
}

// The coordinator's side of one connection.
class FakeCoordinator {
 public:
  FakeCoordinator()
      : acceptor_(context_, tcp::endpoint(asio::ip::address_v4::loopback(), 0)),
        socket_(context_) {}

  std::string address() const {
    return "127.0.0.1:" + std::to_string(acceptor_.local_endpoint().port());
  }
  std::uint16_t port() const { return acceptor_.local_endpoint().port(); }
  bool Accept() {
    bool accepted = false;
    acceptor_.async_accept(socket_, [&accepted](error_code code) { accepted = !code; });
    context_.restart();
    context_.run_for(seconds(15));
    return accepted;
  }
  // The next message that is no heartbeat; an empty envelope when none comes in time.
  proto::Envelope Receive() {
    while (true) {
      const Result<std::string> frame =
          RunSync(context_, ReadFrame(socket_, kFrameBytesMax, seconds(15)));
      proto::Envelope envelope;
      if (!frame) return envelope;
      EXPECT_TRUE(envelope.ParseFromString(*frame));
      if (!envelope.has_heartbeat()) return envelope;
      ++heartbeats_;
    }
  }
  void Send(proto::Envelope envelope) {
    envelope.set_run_id("run-1");
    envelope.set_generation(5);
    SendBytes(envelope.SerializeAsString());
  }
  void SendBytes(const std::string& bytes) {
    EXPECT_TRUE(RunSync(context_, WriteFrame(socket_, bytes, seconds(15))));
  }
  void StartDomain(std::uint64_t attempt = 5) {
    proto::Envelope envelope;
    envelope.mutable_start_domain()->set_local_size(2);
    envelope.mutable_start_domain()->set_threads_per_rank(3);
    envelope.mutable_start_domain()->set_attempt(attempt);
    Send(envelope);
  }
  void KillDomain() {
    proto::Envelope envelope;
    envelope.mutable_kill_domain()->set_reason("the test says so");
    Send(envelope);
  }
  void StopDomain() {
    proto::Envelope envelope;
    envelope.mutable_stop_domain()->set_reason("the test says so");
    Send(envelope);
  }
  void Close() { CloseSocket(socket_); }
  // As if the process had died: nobody listens any more.
  void Die() {
    endpoint_ = acceptor_.local_endpoint();
    acceptor_.close();
    Close();
  }
  // The next one, on the same port.
  void ComeBack() { acceptor_ = tcp::acceptor(context_, endpoint_); }
  int heartbeats() const { return heartbeats_; }

 private:
  asio::io_context context_;
  tcp::acceptor acceptor_;
  tcp::endpoint endpoint_;
  tcp::socket socket_;
  int heartbeats_ = 0;
};

class AgentTest : public ::testing::Test {
 protected:
  AgentTest() {
    fs::remove_all(folder_);
    fs::create_directories(bin_);
    fs::create_directories(run_);
    std::ofstream(run_ / "secret") << "s3cret";
    std::ofstream(run_ / "config.yaml") << "teacher: {path: /nowhere}\n"
                                           "timeouts: {heartbeat_interval: 0.2}\n"
                                           "phases:\n  - kind: sample\n";
    WriteScript(worker_, "exit 0");
  }
  ~AgentTest() override {
    agent_.reset();
    DomainPaths paths;
    paths.run = run_;
    paths.domain = "node-a";
    RemoveSessionFolders(paths);
    fs::remove_all(folder_);
  }

  void StartAgent() { StartAgent(bin_.string() + ":/usr/bin:/bin"); }
  void StartAgent(const std::string& path) {
    SpawnOptions options;
    options.argv = {DD2_AGENT_BINARY, "--run",         run_.string(),
                    "--domain",       "node-a",        "--worker",
                    worker_.string(), "--coordinator", coordinator_.address(),
                    "--first-device", first_device_};
    options.environment = {{"PATH", path}};
    options.output = folder_ / "agent.out";
    Result<ChildProcess> spawned = ChildProcess::Spawn(options);
    ASSERT_TRUE(spawned) << spawned.error().message();
    agent_ = std::move(*spawned);
  }
  // Starts the agent and takes its hello.
  proto::Envelope Join() {
    StartAgent();
    EXPECT_TRUE(coordinator_.Accept()) << Output();
    return coordinator_.Receive();
  }
  // ... and lets it start `mpirun`, until that has written its process id.
  pid_t JoinAndStart(const std::string& mpirun) {
    WriteScript(bin_ / "mpirun", "echo $$ > " + pid_file_.string() + "\n" + mpirun);
    EXPECT_TRUE(Join().has_agent_hello());
    coordinator_.StartDomain();
    return PidIn(pid_file_);
  }
  static pid_t PidIn(const fs::path& path) {
    EXPECT_TRUE(Eventually([&] { return ReadAll(path).find('\n') != std::string::npos; })) << path;
    return static_cast<pid_t>(std::stol(ReadAll(path)));
  }
  int ExitCode() { return agent_->Wait(seconds(15)).value_or(-1); }
  std::string Output() const { return ReadAll(folder_ / "agent.out"); }

  const fs::path folder_ =
      fs::canonical(fs::temp_directory_path()) / ("dd2_agent_test_" + std::to_string(getpid()));
  const fs::path bin_ = folder_ / "bin";
  const fs::path run_ = folder_ / "run";
  const fs::path worker_ = folder_ / "bin" / "worker";
  const fs::path pid_file_ = folder_ / "mpirun.pid";
  std::string first_device_ = "2";
  FakeCoordinator coordinator_;
  std::optional<ChildProcess> agent_;
};

TEST_F(AgentTest, WhatIsNoNumberOfAGpuIsRefused) {
  for (const char* wrong : {"-1", "two", "2x"}) {
    first_device_ = wrong;
    StartAgent();
    EXPECT_EQ(ExitCode(), kExitUsage);
    EXPECT_THAT(Output(), HasSubstr("--first-device: '" + first_device_ + "' is no GPU's number"));
  }
}

TEST_F(AgentTest, JoinsStartsMpirunAndReportsItsEnd) {
  WriteScript(bin_ / "mpirun",
              "echo \"arguments $@\"; echo \"threads $OMP_NUM_THREADS\"\n"
              "echo \"$TMPDIR\" > " +
                  (folder_ / "tmpdir").string() + "\nexit 3");
  const proto::Envelope hello = Join();
  ASSERT_TRUE(hello.has_agent_hello());
  EXPECT_EQ(hello.agent_hello().secret(), "s3cret");
  EXPECT_EQ(hello.agent_hello().domain(), "node-a");
  EXPECT_EQ(hello.agent_hello().pid(), agent_->pid());
  EXPECT_FALSE(hello.agent_hello().host().empty());
  EXPECT_FALSE(hello.agent_hello().running());
  EXPECT_EQ(hello.agent_hello().attempt(), 0u);

  coordinator_.StartDomain();
  const proto::Envelope exited = coordinator_.Receive();
  ASSERT_TRUE(exited.has_domain_exited()) << Output();
  EXPECT_EQ(exited.run_id(), "run-1");
  EXPECT_EQ(exited.domain_exited().attempt(), 5u);
  EXPECT_EQ(exited.domain_exited().domain(), "node-a");
  EXPECT_EQ(exited.domain_exited().exit_status(), 3);
  EXPECT_THAT(exited.domain_exited().log_tail(),
              AllOf(HasSubstr("-n 2 "), HasSubstr("threads 3\n"),
                    HasSubstr(worker_.string() + " run --run " + run_.string() + " --coordinator " +
                              coordinator_.address() + " --domain node-a --first-device 2 "),
                    HasSubstr("-snapshots --run-id run-1\n")));
  EXPECT_EQ(ReadAll(run_ / "logs" / "domain-node-a.log"), exited.domain_exited().log_tail());
  const std::string session = ReadAll(folder_ / "tmpdir");
  EXPECT_THAT(session, HasSubstr("/tmp/dd2-"));
  EXPECT_LT(session.size(), 40u);

  const std::string tail = exited.domain_exited().log_tail();
  const std::size_t named = tail.find("--snapshots ") + sizeof("--snapshots ") - 1;
  const fs::path snapshots = tail.substr(named, tail.find(' ', named) - named);
  EXPECT_TRUE(fs::is_directory(snapshots)) << snapshots << " stays for the next workers";

  EXPECT_EQ(agent_->TryWait(), std::nullopt);  // it waits for what the coordinator decides
  coordinator_.StopDomain();
  EXPECT_EQ(ExitCode(), kExitOk) << Output();
  EXPECT_FALSE(fs::exists(session.substr(0, session.size() - 1)));
  EXPECT_FALSE(fs::exists(snapshots));
  EXPECT_THAT(ReadAll(run_ / "logs" / "agent-node-a.log"), HasSubstr("ended with status 3"));
}

TEST_F(AgentTest, OnlyTheOutputOfThisStartIsReported) {
  fs::create_directories(run_ / "logs");
  std::ofstream(run_ / "logs" / "domain-node-a.log") << "of an earlier run\n";
  WriteScript(bin_ / "mpirun",
              "i=0; while [ $i -lt 400 ]; do i=$((i+1)); "
              "echo \"line $i ------------------------------------\"; done; exit 1");
  Join();
  coordinator_.StartDomain();
  const proto::Envelope exited = coordinator_.Receive();
  const std::string& tail = exited.domain_exited().log_tail();
  EXPECT_LE(tail.size(), kLogTailBytesMax);
  EXPECT_THAT(tail, AllOf(HasSubstr("line 400 -"), Not(HasSubstr("line 1 -"))));
  EXPECT_EQ(tail.substr(0, 5), "line ");

  agent_.reset();
  coordinator_.Close();
  WriteScript(bin_ / "mpirun", "echo short; exit 1");
  Join();
  coordinator_.StartDomain();
  EXPECT_EQ(coordinator_.Receive().domain_exited().log_tail(), "short\n");
}

TEST_F(AgentTest, StopDomainTakesEverythingAlong) {
  const fs::path stray_file = folder_ / "stray.pid";
  const pid_t mpirun = JoinAndStart(
      "setsid sh -c 'trap \"\" INT; echo $$ > " + stray_file.string() +
      "; while true; do sleep 1; done' &\ntrap 'exit 9' INT\nwhile true; do sleep 0.05; done");
  const pid_t stray = PidIn(stray_file);
  coordinator_.StopDomain();
  const proto::Envelope exited = coordinator_.Receive();
  ASSERT_TRUE(exited.has_domain_exited()) << Output();
  EXPECT_EQ(exited.domain_exited().exit_status(), 9);
  EXPECT_EQ(ExitCode(), kExitOk) << Output();
  EXPECT_TRUE(Gone(mpirun));
  EXPECT_TRUE(Gone(stray));
}

TEST_F(AgentTest, ADomainThatEndedIsStartedAgain) {
  WriteScript(bin_ / "mpirun", "echo of $$; exit 3");
  Join();
  for (std::uint64_t attempt = 5; attempt < 8; ++attempt) {
    coordinator_.StartDomain(attempt);
    const proto::Envelope exited = coordinator_.Receive();
    ASSERT_TRUE(exited.has_domain_exited()) << Output();
    EXPECT_EQ(exited.domain_exited().attempt(), attempt);
    EXPECT_EQ(exited.domain_exited().exit_status(), 3);
  }
  coordinator_.StartDomain(7);  // an old one that came late
  WriteScript(bin_ / "mpirun", "exit 4");
  coordinator_.StartDomain(8);
  const proto::Envelope exited = coordinator_.Receive();
  EXPECT_EQ(exited.domain_exited().attempt(), 8u);
  EXPECT_EQ(exited.domain_exited().exit_status(), 4);
  EXPECT_THAT(Output(), HasSubstr("attempt 7 is not newer"));
  coordinator_.StopDomain();
  EXPECT_EQ(ExitCode(), kExitOk);
}

TEST_F(AgentTest, AStartThatWorksForgetsTheOneThatDidNot) {
  Join();
  fs::rename(worker_, folder_ / "away");
  coordinator_.StartDomain(1);
  EXPECT_EQ(coordinator_.Receive().domain_exited().exit_status(), 127);
  fs::rename(folder_ / "away", worker_);
  WriteScript(bin_ / "mpirun", "exit 0");
  coordinator_.StartDomain(2);
  EXPECT_EQ(coordinator_.Receive().domain_exited().attempt(), 2u);
  coordinator_.StopDomain();
  EXPECT_EQ(ExitCode(), kExitOk) << Output();
}

// mpirun, a rank of it and a rank that left its session, all stopped: no SIGTERM would end them.
TEST_F(AgentTest, KillDomainEndsStoppedProcessesAndTheAgentStays) {
  const fs::path rank_file = folder_ / "rank.pid";
  const fs::path stray_file = folder_ / "stray.pid";
  const pid_t mpirun =
      JoinAndStart("sh -c 'echo $$ > " + rank_file.string() + "; exec sleep 60' &\n" +
                   "setsid sh -c 'echo $$ > " + stray_file.string() + "; exec sleep 60' &\nwait");
  const pid_t rank = PidIn(rank_file);
  const pid_t stray = PidIn(stray_file);
  for (const pid_t pid : {mpirun, rank, stray}) ASSERT_EQ(kill(pid, SIGSTOP), 0);
  coordinator_.KillDomain();
  const proto::Envelope exited = coordinator_.Receive();
  ASSERT_TRUE(exited.has_domain_exited()) << Output();
  EXPECT_EQ(exited.domain_exited().exit_status(), 128 + SIGKILL);
  EXPECT_EQ(exited.domain_exited().attempt(), 5u);
  for (const pid_t pid : {mpirun, rank, stray}) EXPECT_TRUE(Gone(pid));
  coordinator_.KillDomain();  // nothing left to kill
  EXPECT_EQ(agent_->TryWait(), std::nullopt);
  fs::remove(pid_file_);
  coordinator_.StartDomain(6);
  const pid_t next = PidIn(pid_file_);
  coordinator_.StopDomain();
  EXPECT_EQ(coordinator_.Receive().domain_exited().attempt(), 6u);
  EXPECT_EQ(ExitCode(), kExitOk) << Output();
  EXPECT_TRUE(Gone(next));
}

TEST_F(AgentTest, TheDomainRunsOnWhileTheCoordinatorIsAway) {
  const pid_t mpirun = JoinAndStart("exec sleep 60");
  coordinator_.Die();
  std::this_thread::sleep_for(3 * timeouts::kReconnect);
  EXPECT_FALSE(Gone(mpirun));
  coordinator_.ComeBack();
  ASSERT_TRUE(coordinator_.Accept()) << Output();
  const proto::Envelope hello = coordinator_.Receive();
  ASSERT_TRUE(hello.has_agent_hello()) << Output();
  EXPECT_EQ(hello.agent_hello().secret(), "s3cret");
  EXPECT_EQ(hello.agent_hello().pid(), agent_->pid());
  EXPECT_TRUE(hello.agent_hello().running());
  EXPECT_EQ(hello.agent_hello().attempt(), 5u);
  EXPECT_FALSE(Gone(mpirun));
  coordinator_.StopDomain();
  EXPECT_TRUE(coordinator_.Receive().has_domain_exited());
  EXPECT_EQ(ExitCode(), kExitOk) << Output();
  EXPECT_TRUE(Gone(mpirun));
}

TEST_F(AgentTest, AnEndDuringTheAbsenceIsReportedAfterwards) {
  const pid_t mpirun = JoinAndStart("exec sleep 60");
  coordinator_.Die();
  ASSERT_EQ(kill(mpirun, SIGKILL), 0);
  EXPECT_TRUE(Eventually([&] { return Gone(mpirun); }));
  coordinator_.ComeBack();
  // Also by the one after: nobody knows whether the first one had time to read it.
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(coordinator_.Accept()) << Output();
    const proto::Envelope hello = coordinator_.Receive();
    ASSERT_TRUE(hello.has_agent_hello()) << Output();
    EXPECT_FALSE(hello.agent_hello().running());
    EXPECT_EQ(hello.agent_hello().attempt(), 5u);
    const proto::Envelope exited = coordinator_.Receive();
    ASSERT_TRUE(exited.has_domain_exited()) << Output();
    EXPECT_EQ(exited.domain_exited().exit_status(), 128 + SIGKILL);
    EXPECT_EQ(exited.domain_exited().attempt(), 5u);
    coordinator_.Close();
  }
}

TEST_F(AgentTest, AnAgentWithoutADomainWaitsForTheCoordinatorToo) {
  Join();
  coordinator_.Close();
  ASSERT_TRUE(coordinator_.Accept()) << Output();
  const proto::Envelope hello = coordinator_.Receive();
  ASSERT_TRUE(hello.has_agent_hello());
  EXPECT_FALSE(hello.agent_hello().running());
  EXPECT_EQ(hello.agent_hello().attempt(), 0u);
  proto::Envelope refused;
  refused.mutable_refused()->set_message("the run is over");
  coordinator_.Send(refused);
  EXPECT_EQ(ExitCode(), kExitCannotStart) << Output();
}

TEST_F(AgentTest, SigtermDuringTheAbsenceEndsTheDomain) {
  const pid_t mpirun = JoinAndStart("exec sleep 60");
  coordinator_.Die();
  EXPECT_TRUE(Eventually([&] { return Output().find("is away") != std::string::npos; }));
  ASSERT_EQ(kill(agent_->pid(), SIGTERM), 0);
  EXPECT_EQ(ExitCode(), kExitStopped) << Output();
  EXPECT_TRUE(Gone(mpirun));
}

// In this process, for the sake of the short grace.
TEST_F(AgentTest, ACoordinatorThatStaysAwayEndsTheDomain) {
  WriteScript(bin_ / "mpirun", "echo $$ > " + pid_file_.string() + "\nexec sleep 60");
  const std::string path = std::getenv("PATH");
  setenv("PATH", (bin_.string() + ":/usr/bin:/bin").c_str(), 1);
  AgentOptions options;
  options.paths.run = run_;
  options.paths.domain = "node-a";
  options.paths.coordinator = coordinator_.address();
  options.paths.worker = worker_;
  options.coordinator_host = "127.0.0.1";
  options.coordinator_port = coordinator_.port();
  options.away_limit = seconds(1);
  int exit_code = -1;
  std::thread thread([&] {
    const SystemClock clock;
    asio::io_context context(1);
    Agent agent(context, clock, options);
    exit_code = RunSync(context, agent.Run());
  });
  EXPECT_TRUE(coordinator_.Accept());
  EXPECT_TRUE(coordinator_.Receive().has_agent_hello());
  coordinator_.StartDomain();
  const pid_t mpirun = PidIn(pid_file_);
  const SystemClock clock;
  const TimePoint died = clock.Now();
  coordinator_.Die();
  std::this_thread::sleep_for(milliseconds(500));
  EXPECT_FALSE(Gone(mpirun));
  thread.join();
  EXPECT_EQ(exit_code, kExitUnreachable);
  EXPECT_GE(clock.Now() - died, milliseconds(500));
  EXPECT_TRUE(Gone(mpirun));
  setenv("PATH", path.c_str(), 1);
}

TEST_F(AgentTest, SigtermEndsTheDomain) {
  const pid_t mpirun = JoinAndStart("exec sleep 60");
  ASSERT_EQ(kill(agent_->pid(), SIGTERM), 0);
  const proto::Envelope exited = coordinator_.Receive();
  EXPECT_EQ(exited.domain_exited().exit_status(), 128 + SIGINT) << "it does not hear SIGTERM";
  EXPECT_EQ(ExitCode(), kExitStopped);
  EXPECT_TRUE(Gone(mpirun));
}

TEST_F(AgentTest, KillingTheAgentKillsMpirun) {
  const pid_t mpirun = JoinAndStart("exec sleep 60");
  ASSERT_EQ(kill(agent_->pid(), SIGKILL), 0);
  EXPECT_EQ(ExitCode(), 128 + SIGKILL);
  EXPECT_TRUE(Eventually([&] { return Gone(mpirun); }));
}

TEST_F(AgentTest, AKilledMpirunIsReportedWithItsSignal) {
  const pid_t mpirun = JoinAndStart("exec sleep 60");
  ASSERT_EQ(kill(mpirun, SIGKILL), 0);
  EXPECT_EQ(coordinator_.Receive().domain_exited().exit_status(), 128 + SIGKILL);
}

TEST_F(AgentTest, WithoutMpirunItSaysWhatToInstall) {
  fs::create_directories(folder_ / "empty");
  StartAgent((folder_ / "empty").string());
  ASSERT_TRUE(coordinator_.Accept());
  coordinator_.Receive();
  coordinator_.StartDomain();
  const proto::Envelope exited = coordinator_.Receive();
  EXPECT_EQ(exited.domain_exited().exit_status(), 127);
  EXPECT_THAT(exited.domain_exited().log_tail(),
              AllOf(HasSubstr("mpirun is missing"), HasSubstr("openmpi-bin")));
  coordinator_.StopDomain();
  EXPECT_EQ(ExitCode(), kExitCannotStart);
  EXPECT_THAT(Output(), HasSubstr("openmpi-bin"));
}

TEST_F(AgentTest, WithoutTheWorkerItSaysSo) {
  fs::remove(worker_);
  WriteScript(bin_ / "mpirun", "exit 0");
  Join();
  coordinator_.StartDomain();
  EXPECT_THAT(coordinator_.Receive().domain_exited().log_tail(),
              HasSubstr(worker_.string() + " is missing or not executable"));
  coordinator_.StopDomain();
  EXPECT_EQ(ExitCode(), kExitCannotStart);
}

TEST_F(AgentTest, ARefusalEndsIt) {
  Join();
  proto::Envelope envelope;
  envelope.mutable_refused()->set_code("aborted");
  envelope.mutable_refused()->set_message("wrong secret");
  coordinator_.Send(envelope);
  EXPECT_EQ(ExitCode(), kExitCannotStart);
  EXPECT_THAT(Output(), HasSubstr("the coordinator refused: wrong secret (aborted)"));
}

TEST_F(AgentTest, GarbageFromTheCoordinatorEndsIt) {
  const pid_t mpirun = JoinAndStart("exec sleep 60");
  proto::Envelope envelope;
  envelope.mutable_worker_failed()->set_message("not for an agent");
  coordinator_.Send(envelope);  // ignored
  coordinator_.SendBytes("\xff\xff\xff");
  EXPECT_EQ(ExitCode(), kExitUnreachable);
  EXPECT_TRUE(Gone(mpirun));
  EXPECT_THAT(Output(), HasSubstr("3 bytes that are no message"));
}

TEST_F(AgentTest, NobodyThereAndNoSecret) {
  fs::remove(run_ / "secret");
  StartAgent();
  EXPECT_EQ(ExitCode(), kExitCannotStart);
  EXPECT_THAT(Output(), HasSubstr("the run's secret"));
  std::ofstream(run_ / "secret") << "s3cret";
  SpawnOptions options;
  options.argv = {DD2_AGENT_BINARY, "--run",      run_.string(), "--domain", "a",
                  "--coordinator",  "127.0.0.1:1"};
  options.output = folder_ / "agent.out";
  auto agent = ChildProcess::Spawn(options);
  ASSERT_TRUE(agent);
  EXPECT_EQ(agent->Wait(timeouts::kHello + seconds(5)), kExitUnreachable);
  EXPECT_THAT(Output(), HasSubstr("cannot reach the coordinator"));
  options.argv = {DD2_AGENT_BINARY, "--run",         run_.string(), "--domain",
                  "../a",           "--coordinator", "127.0.0.1:1"};
  agent = ChildProcess::Spawn(options);
  ASSERT_TRUE(agent);
  EXPECT_EQ(agent->Wait(seconds(15)), kExitUsage);
}

TEST_F(AgentTest, HeartbeatsCome) {
  JoinAndStart("exec sleep 0.9");  // the run's configuration says every .2 s
  EXPECT_TRUE(coordinator_.Receive().has_domain_exited());
  EXPECT_GE(coordinator_.heartbeats(), 2);
}

TEST_F(AgentTest, AConfigurationThatCannotBeReadIsSaid) {
  std::ofstream(run_ / "config.yaml") << "timeouts: {heartbeat: 1}\n";
  StartAgent();
  EXPECT_EQ(ExitCode(), kExitUsage);
  EXPECT_THAT(Output(), HasSubstr("timeouts.heartbeat: unknown setting"));
}

// Open MPI itself: two ranks, ended together.
TEST_F(AgentTest, RealMpirunStartsTheRanksAndIsEnded) {
  ASSERT_TRUE(FindProgram("mpirun")) << "scripts/setup installs openmpi-bin";
  WriteScript(worker_,
              "echo \"rank $OMPI_COMM_WORLD_RANK of $OMPI_COMM_WORLD_SIZE threads "
              "$OMP_NUM_THREADS\"; echo $$ > " +
                  (folder_ / "rank").string() + "$OMPI_COMM_WORLD_RANK; sleep 60");
  Join();
  coordinator_.StartDomain();
  const pid_t first = PidIn(folder_ / "rank0");
  const pid_t second = PidIn(folder_ / "rank1");
  coordinator_.StopDomain();
  const proto::Envelope exited = coordinator_.Receive();
  ASSERT_TRUE(exited.has_domain_exited()) << Output();
  EXPECT_NE(exited.domain_exited().exit_status(), 0);
  EXPECT_THAT(exited.domain_exited().log_tail(),
              AllOf(HasSubstr("rank 0 of 2 threads 3"), HasSubstr("rank 1 of 2 threads 3")));
  EXPECT_EQ(ExitCode(), kExitOk);
  EXPECT_TRUE(Gone(first));
  EXPECT_TRUE(Gone(second));
}

}  // namespace
}  // namespace dd2
