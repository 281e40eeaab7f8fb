#include "common/log.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace dd2 {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;

std::string ReadAll(const std::filesystem::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

class LogTest : public ::testing::Test {
 protected:
  LogTest() { std::filesystem::remove_all(folder_); }
  ~LogTest() override { std::filesystem::remove_all(folder_); }

  const std::filesystem::path folder_ =
      std::filesystem::temp_directory_path() / ("dd2_log_test_" + std::to_string(getpid()));
  const std::filesystem::path file_ = folder_ / "logs" / "agent.log";
};

TEST_F(LogTest, LinesHaveTimeNameLevelAndPrefix) {
  LogOptions options;
  options.name = "agent-a";
  options.file = file_;
  options.to_stderr = false;
  ASSERT_TRUE(StartLog(options));
  LogInfo("first {} %s");  // braces are text
  SetLogPrefix("rank 1 gen 3");
  LogWarning("second");
  SetLogPrefix("");
  LogDebug("not shown");
  EXPECT_THAT(
      ReadAll(file_),
      MatchesRegex("....-..-.. ..:..:..\\.... agent-a info first \\{\\} %s\n"
                   "....-..-.. ..:..:..\\.... agent-a warning \\[rank 1 gen 3\\] second\n"));
  // A later process goes on in the same file.
  ASSERT_TRUE(StartLog(options));
  LogError("third");
  EXPECT_THAT(ReadAll(file_), HasSubstr("second\n"));
  EXPECT_THAT(ReadAll(file_), HasSubstr("agent-a error third\n"));
}

TEST_F(LogTest, AFileThatCannotBeOpenedIsReportedAndLoggingGoesOn) {
  LogOptions options;
  options.name = "agent-b";
  options.file = "/proc/no/such/place.log";
  options.to_stderr = false;
  const Status status = StartLog(options);
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message(), HasSubstr("/proc/no/such/place.log"));
  LogInfo("still works");
}

TEST(RateLimit, LetsOnePassAndCountsTheOthers) {
  RateLimit limit(milliseconds(100));
  const TimePoint start{};
  EXPECT_EQ(limit.Admit(start), 0u);
  EXPECT_EQ(limit.Admit(start + milliseconds(1)), std::nullopt);
  EXPECT_EQ(limit.Admit(start + milliseconds(99)), std::nullopt);
  EXPECT_EQ(limit.Admit(start + milliseconds(100)), 2u);
  EXPECT_EQ(limit.Admit(start + milliseconds(300)), 0u);
}

}  // namespace
}  // namespace dd2
