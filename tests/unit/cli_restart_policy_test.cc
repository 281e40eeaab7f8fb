#include <gmock/gmock.h>

#include "cli/restart_policy.h"

namespace dd2 {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr RestartLimits limits{milliseconds(500), seconds(3), 4, seconds(60)};

TEST(RestartPolicy, WaitsLongerEachTimeAndGivesUp) {
  RestartPolicy policy(limits);
  TimePoint now{};
  for (const int delay : {500, 1000, 2000, 3000}) {
    policy.OnStarted(now);
    now += seconds(5);
    EXPECT_EQ(policy.OnEnded(now), now + milliseconds(delay));
  }
  policy.OnStarted(now);
  EXPECT_EQ(policy.OnEnded(now + seconds(59)), std::nullopt);
}

TEST(RestartPolicy, ALongLifeForgivesWhatWasBefore) {
  RestartPolicy policy(limits);
  TimePoint now{};
  for (int i = 0; i < 20; ++i) {
    policy.OnStarted(now);
    now += i % 2 == 0 ? seconds(60) : seconds(1);
    EXPECT_EQ(policy.OnEnded(now), now + (i % 2 == 0 ? milliseconds(500) : milliseconds(1000)));
  }
}

TEST(RestartPolicy, WithoutADelayItIsAtOnce) {
  RestartPolicy policy(RestartLimits{});
  const TimePoint now{};
  for (int i = 0; i < 5; ++i) EXPECT_EQ(policy.OnEnded(now), now);
  EXPECT_EQ(policy.OnEnded(now), std::nullopt);
}

}  // namespace
}  // namespace dd2
