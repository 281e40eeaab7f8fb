#include "common/process.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <thread>

namespace dd2 {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

bool Eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 2000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(milliseconds(5));
  }
  return false;
}

// Neither running nor waiting to be reaped by somebody else.
bool Gone(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const std::size_t end = text.rfind(") ");
  return end == std::string::npos || text[end + 2] == 'Z' || text[end + 2] == 'X';
}

class ProcessTest : public ::testing::Test {
 protected:
  ProcessTest() {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  ~ProcessTest() override { std::filesystem::remove_all(folder_); }

  SpawnOptions Shell(const std::string& script) const {
    SpawnOptions options;
    options.argv = {"sh", "-c", script};
    options.output = output_;
    return options;
  }
  std::string Output() const {
    std::ifstream file(output_);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  // The number that a script wrote as its output.
  pid_t PidInOutput() const {
    EXPECT_TRUE(Eventually([this] { return HasLine(); }));
    return static_cast<pid_t>(std::stol(Output()));
  }
  bool HasLine() const { return Output().find('\n') != std::string::npos; }

  const std::filesystem::path folder_ =
      std::filesystem::temp_directory_path() / ("dd2_process_test_" + std::to_string(getpid()));
  const std::filesystem::path output_ = folder_ / "out.log";
};

TEST_F(ProcessTest, RunsWithEnvironmentFolderAndOutput) {
  SpawnOptions options = Shell("echo \"$GREETING $PWD\"; echo problem >&2; read line; exit 7");
  options.environment = {{"GREETING", "hello"}};
  options.folder = "/usr";
  auto child = ChildProcess::Spawn(options);
  ASSERT_TRUE(child) << child.error().message();
  EXPECT_EQ(child->Wait(seconds(10)), 7);
  EXPECT_EQ(child->TryWait(), 7);  // remembered
  EXPECT_EQ(Output(), "hello /usr\nproblem\n");
}

TEST_F(ProcessTest, OutputIsAppended) {
  for (int i = 0; i < 2; ++i) {
    auto child = ChildProcess::Spawn(Shell("echo line"));
    ASSERT_TRUE(child);
    EXPECT_EQ(child->Wait(seconds(10)), 0);
  }
  EXPECT_EQ(Output(), "line\nline\n");
}

TEST_F(ProcessTest, AMissingProgramIsNamed) {
  SpawnOptions options;
  options.argv = {"dd2-no-such-program"};
  const auto child = ChildProcess::Spawn(options);
  ASSERT_FALSE(child);
  EXPECT_EQ(child.error().code(), Code::kNotFound);
  EXPECT_THAT(child.error().message(), HasSubstr("dd2-no-such-program: no such program in PATH"));
  options.argv = {"/no/such/dd2-program"};
  EXPECT_EQ(ChildProcess::Spawn(options).error().code(), Code::kNotFound);
}

TEST_F(ProcessTest, AProgramThatCannotBeExecutedIsAnError) {
  const std::filesystem::path file = folder_ / "not-executable";
  std::ofstream(file) << "#!/bin/sh\n";
  SpawnOptions options;
  options.argv = {file.string()};
  const auto child = ChildProcess::Spawn(options);
  ASSERT_FALSE(child);
  EXPECT_EQ(child.error().code(), Code::kFailedPrecondition);
  EXPECT_THAT(child.error().message(), HasSubstr("not-executable: Permission denied"));
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1) << "a child was left unreaped";
}

TEST_F(ProcessTest, ASignalIsReportedAs128PlusN) {
  auto child = ChildProcess::Spawn(Shell("exec sleep 60"));
  ASSERT_TRUE(child);
  EXPECT_EQ(child->TryWait(), std::nullopt);
  EXPECT_EQ(child->Wait(milliseconds(20)), std::nullopt);
  ASSERT_TRUE(child->Signal(SIGKILL));
  EXPECT_EQ(child->Wait(seconds(10)), 128 + SIGKILL);
  EXPECT_TRUE(child->Signal(SIGTERM));  // has ended: not an error
}

TEST_F(ProcessTest, TerminateKillsWhatIgnoresSigterm) {
  auto child =
      ChildProcess::Spawn(Shell("trap '' TERM; echo ready; while true; do sleep 0.05; done"));
  ASSERT_TRUE(child);
  ASSERT_TRUE(Eventually([this] { return HasLine(); }));
  const auto status = child->Terminate(milliseconds(100));
  ASSERT_TRUE(status);
  EXPECT_EQ(*status, 128 + SIGKILL);

  auto polite = ChildProcess::Spawn(Shell("exec sleep 60"));
  ASSERT_TRUE(polite);
  EXPECT_EQ(*polite->Terminate(seconds(10)), 128 + SIGTERM);
}

TEST_F(ProcessTest, TheGroupEndsWithItsLeader) {
  auto child = ChildProcess::Spawn(Shell("sleep 60 & echo $!; exit 3"));
  ASSERT_TRUE(child);
  const pid_t grandchild = PidInOutput();
  EXPECT_EQ(child->Wait(seconds(10)), 3);
  EXPECT_TRUE(Eventually([&] { return Gone(grandchild); }));
}

TEST_F(ProcessTest, TheDestructorLeavesNothingBehind) {
  pid_t pid = 0;
  {
    auto child = ChildProcess::Spawn(Shell("sleep 60"));
    ASSERT_TRUE(child);
    pid = child->pid();
    EXPECT_EQ(getpgid(pid), pid);
  }
  EXPECT_EQ(kill(pid, 0), -1);
}

TEST_F(ProcessTest, DescriptorsAreNotInherited) {
  const int leaky = open("/dev/null", O_RDONLY);  // on purpose without O_CLOEXEC
  ASSERT_GE(leaky, 3);
  auto child = ChildProcess::Spawn(Shell("ls -1 /proc/self/fd | wc -l"));
  ASSERT_TRUE(child);
  EXPECT_EQ(child->Wait(seconds(10)), 0);
  close(leaky);
  EXPECT_EQ(std::stoi(Output()), 4);  // 0, 1, 2 and the folder that ls reads
}

// kill -9 of the parent takes the child along.
TEST_F(ProcessTest, DiesWithItsParent) {
  std::array<int, 2> pipe_ends{};
  ASSERT_EQ(pipe(pipe_ends.data()), 0);
  const pid_t parent = fork();
  if (parent == 0) {
    SpawnOptions options;
    options.argv = {"sleep", "60"};
    const auto child = ChildProcess::Spawn(options);
    const pid_t pid = child ? child->pid() : -1;
    if (write(pipe_ends[1], &pid, sizeof pid) < 0) _exit(1);
    kill(getpid(), SIGKILL);
  }
  pid_t grandchild = -1;
  ASSERT_EQ(read(pipe_ends[0], &grandchild, sizeof grandchild),
            static_cast<ssize_t>(sizeof grandchild));
  ASSERT_GT(grandchild, 0);
  int status = 0;
  ASSERT_EQ(waitpid(parent, &status, 0), parent);
  EXPECT_EQ(WTERMSIG(status), SIGKILL);
  EXPECT_TRUE(Eventually([&] { return Gone(grandchild); }));
  close(pipe_ends[0]);
  close(pipe_ends[1]);
}

// Grandchildren in sessions of their own, orphaned by the death of their parent, are found.
TEST_F(ProcessTest, KillDescendantsFindsOrphansInOtherGroups) {
  ASSERT_TRUE(AdoptOrphans());
  auto child = ChildProcess::Spawn(
      Shell("setsid sh -c 'echo $$; trap \"\" TERM; sleep 60 & sleep 60'; exit 0"));
  ASSERT_TRUE(child);
  const pid_t orphan = PidInOutput();
  ASSERT_TRUE(Eventually([&] { return DescendantsOf(orphan).size() == 2; }));
  EXPECT_THAT(DescendantsOf(getpid()), Contains(orphan));
  ASSERT_TRUE(child->Signal(SIGKILL));
  ASSERT_EQ(child->Wait(seconds(10)), 128 + SIGKILL);
  EXPECT_THAT(DescendantsOf(getpid()), SizeIs(3));  // the shell and its two sleeps
  EXPECT_EQ(KillDescendants(seconds(10)), 3u);
  EXPECT_THAT(DescendantsOf(getpid()), IsEmpty());
  EXPECT_TRUE(Gone(orphan));
}

}  // namespace
}  // namespace dd2
