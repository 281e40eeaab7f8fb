// The pure parts of dd2-agent.

#include "worker/agent/agent_state.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <chrono>

#include "common/exit_codes.h"
#include "common/timeouts.h"
#include "worker/agent/domain_process.h"

namespace dd2 {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(MpirunCommand, RootNeedsTheExplicitAllowance) {
  DomainPaths paths;
  DomainSpec spec;
  spec.local_size = 2;
  EXPECT_THAT(MpirunCommand(paths, spec, true), Contains("--allow-run-as-root"));
  EXPECT_THAT(MpirunCommand(paths, spec, false), Not(Contains("--allow-run-as-root")));
}

TEST(MpirunCommand, RanksAreToldTheFirstGpuOfTheirDomain) {
  DomainPaths paths;
  paths.first_device = 6;
  const std::vector<std::string> command = MpirunCommand(paths, DomainSpec(), false);
  const auto option = std::ranges::find(command, "--first-device");
  ASSERT_LT(option + 1, command.end());
  EXPECT_EQ(option[1], "6");
}

DomainSpec Spec(std::uint64_t attempt) {
  DomainSpec spec;
  spec.local_size = 2;
  spec.threads_per_rank = 1;
  spec.attempt = attempt;
  return spec;
}

TEST(AgentState, EscalatesFromSigtermToSigkill) {
  const TimePoint now{};
  AgentState state;
  EXPECT_TRUE(state.OnStartDomain(Spec(1)).start);
  EXPECT_FALSE(state.OnTick(now + seconds(100)).kill);
  const AgentActions leave = state.OnLeave(kExitStopped, now);
  EXPECT_TRUE(leave.terminate);
  EXPECT_FALSE(leave.quit);
  EXPECT_FALSE(state.OnTick(now + timeouts::kDomainKill - milliseconds(1)).kill);
  EXPECT_TRUE(state.OnTick(now + timeouts::kDomainKill).kill);
  EXPECT_FALSE(state.OnTick(now + timeouts::kDomainKill + seconds(1)).kill);  // once
  const AgentActions end = state.OnExited(137);
  EXPECT_EQ(end.report, 137);
  EXPECT_EQ(end.quit, kExitStopped);
}

TEST(AgentState, KillsEachDomainOnce) {
  AgentState state;
  EXPECT_FALSE(state.OnKillDomain().kill);
  for (std::uint64_t attempt = 1; attempt < 3; ++attempt) {
    ASSERT_TRUE(state.OnStartDomain(Spec(attempt)).start);
    EXPECT_TRUE(state.OnKillDomain().kill);
    EXPECT_FALSE(state.OnKillDomain().kill);
    const AgentActions end = state.OnExited(137);
    EXPECT_TRUE(end.kill);  // what is left
    EXPECT_EQ(end.report, 137);
    EXPECT_FALSE(end.quit);
  }
}

TEST(AgentState, LeavesAtOnceWithoutADomainAndKeepsTheFirstCode) {
  AgentState state;
  EXPECT_EQ(state.OnLeave(kExitOk, TimePoint{}).quit, kExitOk);
  EXPECT_FALSE(state.OnLeave(kExitUnreachable, TimePoint{}).quit);

  AgentState failed;
  ASSERT_TRUE(failed.OnStartDomain(Spec(1)).start);
  const AgentActions report = failed.OnStartFailed(kExitCannotStart);
  EXPECT_EQ(report.report, 127);
  EXPECT_FALSE(report.quit);
  EXPECT_EQ(failed.OnLeave(kExitOk, TimePoint{}).quit, kExitCannotStart);
}

TEST(AgentState, FollowsOnlyNewerStartsAndOneAtATime) {
  AgentState state;
  EXPECT_TRUE(state.OnStartDomain(Spec(3)).start);
  EXPECT_THAT(state.OnStartDomain(Spec(4)).refused, HasSubstr("3 is still running"));
  EXPECT_EQ(state.OnExited(1).report, 1);
  EXPECT_THAT(state.OnStartDomain(Spec(3)).refused, HasSubstr("not newer"));
  EXPECT_TRUE(state.OnStartDomain(Spec(4)).start);
  state.OnLeave(kExitOk, TimePoint{});
  state.OnExited(0);
  EXPECT_THAT(state.OnStartDomain(Spec(5)).refused, HasSubstr("ending"));
  AgentState empty;
  DomainSpec nobody = Spec(1);
  nobody.local_size = 0;
  EXPECT_THAT(empty.OnStartDomain(nobody).refused, HasSubstr("at least one rank"));
  EXPECT_FALSE(empty.running());
}

}  // namespace
}  // namespace dd2
