#include "common/checkpoint_interval.h"

#include <gtest/gtest.h>

namespace dd2 {
namespace {

using std::chrono::seconds;

CheckpointInterval Setting(const std::string& text) {
  const auto setting = ParseCheckpointInterval(text);
  if (!setting) ADD_FAILURE() << text;
  return setting.value_or(CheckpointInterval());
}

TEST(CheckpointInterval, WordsAndSecondsAreRead) {
  EXPECT_EQ(Setting("auto").kind, CheckpointInterval::Kind::kAuto);
  EXPECT_EQ(Setting("off").kind, CheckpointInterval::Kind::kOff);
  EXPECT_EQ(Setting("90.5").kind, CheckpointInterval::Kind::kFixed);
  EXPECT_EQ(Setting("90.5").seconds, 90.5);
  for (const char* bad : {"", "on", "Auto", "0", "0.5", "-1", "1e10", "nan", "inf", "60s", " 60"}) {
    EXPECT_FALSE(ParseCheckpointInterval(bad)) << bad;
  }
}

TEST(CheckpointInterval, BeforeAnythingWasSeen) {
  // sqrt(2 * 1 s * 28,800 s) = sqrt(57,600) = 240 s, below the smallest interval.
  const IntervalEvidence nothing;
  EXPECT_EQ(MeanStallSeconds(nothing), 1);
  EXPECT_EQ(MeanSecondsToFailure(nothing), 28'800);
  EXPECT_EQ(YoungDalySeconds(nothing), 300);
}

TEST(CheckpointInterval, FollowsCostAndFailures) {
  IntervalEvidence evidence;
  evidence.checkpoints = 10;
  evidence.stall_seconds = 80;
  // 8 s each: sqrt(2 * 8 * 28,800) = sqrt(460,800) = 678.82 s.
  EXPECT_NEAR(YoungDalySeconds(evidence), 678.82, 0.01);
  // Ten days without a failure: M = 28,800 + 864,000 = 892,800 s; sqrt(2 * 8 * 892,800) = 3,779.5
  // s, above the largest interval. With 30 failures in them M = 892,800 / 31 = 28,800 s again.
  evidence.trained_seconds = 864'000;
  EXPECT_EQ(YoungDalySeconds(evidence), 3600);
  evidence.failures = 30;
  EXPECT_EQ(MeanSecondsToFailure(evidence), 28'800);
  EXPECT_NEAR(YoungDalySeconds(evidence), 678.82, 0.01);
  // A failure every quarter of an hour, an expensive checkpoint: M = (28,800 + 86,400) / 96 = 1,200
  // s; sqrt(2 * 60 * 1,200) = sqrt(144,000) = 379.47 s.
  evidence = IntervalEvidence{
      .checkpoints = 2, .stall_seconds = 120, .trained_seconds = 86'400, .failures = 95};
  EXPECT_NEAR(YoungDalySeconds(evidence), 379.47, 0.01);
}

TEST(CheckpointTimer, IsDueAfterTheInterval) {
  const TimePoint start = TimePoint() + seconds(1000);
  IntervalEvidence evidence;
  CheckpointTimer fixed(Setting("60"));
  EXPECT_FALSE(fixed.Due(evidence, start + seconds(600))) << "nothing has begun";
  fixed.Restart(start);
  EXPECT_FALSE(fixed.Due(evidence, start + seconds(59)));
  EXPECT_TRUE(fixed.Due(evidence, start + seconds(60)));
  fixed.Restart(start + seconds(60));
  EXPECT_FALSE(fixed.Due(evidence, start + seconds(119)));

  CheckpointTimer off(Setting("off"));
  off.Restart(start);
  EXPECT_FALSE(off.Seconds(evidence));
  EXPECT_FALSE(off.Due(evidence, start + seconds(1'000'000)));

  CheckpointTimer automatic(Setting("auto"));
  automatic.Restart(start);
  EXPECT_FALSE(automatic.Due(evidence, start + seconds(299)));
  EXPECT_TRUE(automatic.Due(evidence, start + seconds(300)));
  // What was learnt since counts.
  evidence.checkpoints = 10;
  evidence.stall_seconds = 80;
  EXPECT_FALSE(automatic.Due(evidence, start + seconds(678)));
  EXPECT_TRUE(automatic.Due(evidence, start + seconds(679)));
}

}  // namespace
}  // namespace dd2
