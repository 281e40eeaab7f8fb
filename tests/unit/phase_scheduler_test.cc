#include "coordinator/phase_scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>

#include "common/limits.h"

namespace dd2 {
namespace {

using std::chrono::seconds;

PhaseConfig Phase(PhaseKind kind, std::int64_t steps, int checkpoint_every) {
  PhaseConfig phase;
  phase.kind = kind;
  phase.steps = steps;
  phase.checkpoint_every = checkpoint_every;
  return phase;
}

// teacher check (1), gts (100, border every 40), csd (10), eval (1)
std::vector<PhaseConfig> Phases() {
  return {Phase(PhaseKind::kTeacherCheck, 1, 0), Phase(PhaseKind::kGts, 100, 40),
          Phase(PhaseKind::kCsd, 10, 0), Phase(PhaseKind::kEval, 1, 0)};
}

PhaseScheduler NewScheduler() { return PhaseScheduler(Phases(), RunPosition{}, 0, {}); }

// Hands out everything that is due, as the coordinator does.
std::vector<LeaseGrant> GrantAll(PhaseScheduler& scheduler, TimePoint now) {
  std::vector<LeaseGrant> granted;
  while (const auto lease = scheduler.NextLease()) {
    scheduler.Granted(*lease, now);
    granted.push_back(*lease);
  }
  return granted;
}

LeaseGrant Lease(std::int32_t phase, std::int64_t first, std::int64_t count) {
  LeaseGrant lease;
  lease.phase = phase;
  lease.first_step = first;
  lease.count = count;
  return lease;
}

Code CodeOf(const Status& status) { return status ? Code::kInternal : status.error().code(); }

TEST(PhaseScheduler, LeasesEndAtBordersAndPhaseEnds) {
  PhaseScheduler scheduler = NewScheduler();
  TimePoint now;
  EXPECT_THAT(GrantAll(scheduler, now), testing::ElementsAre(Lease(0, 0, 1)));
  ASSERT_TRUE(scheduler.OnProgress({0, 1}, now));
  // The next phase is not leased before this one is reported finished.
  EXPECT_THAT(GrantAll(scheduler, now), testing::IsEmpty());
  ASSERT_TRUE(scheduler.OnPhaseFinished(0, "{}", now));
  EXPECT_THAT(GrantAll(scheduler, now), testing::ElementsAre(Lease(1, 0, 40)));
  // 40 - 9 = 31 steps left: below the low water, so the next lease, up to the next border.
  ASSERT_TRUE(scheduler.OnProgress({1, 8}, now));
  EXPECT_THAT(GrantAll(scheduler, now), testing::IsEmpty());
  ASSERT_TRUE(scheduler.OnProgress({1, 9}, now));
  EXPECT_THAT(GrantAll(scheduler, now), testing::ElementsAre(Lease(1, 40, 40)));
  ASSERT_TRUE(scheduler.OnProgress({1, 80}, now));
  EXPECT_THAT(GrantAll(scheduler, now), testing::ElementsAre(Lease(1, 80, 20)));
  EXPECT_FALSE(scheduler.NextLease());
}

TEST(PhaseScheduler, EveryStepIsLeasedExactlyOnce) {
  for (const int every : {0, 1, 7, 64, 1000}) {
    PhaseScheduler scheduler({Phase(PhaseKind::kGts, 333, every)}, RunPosition{}, 0, {});
    TimePoint now;
    std::int64_t next = 0;
    for (std::int64_t step = 0; step < 333; ++step) {
      for (const LeaseGrant& lease : GrantAll(scheduler, now)) {
        EXPECT_EQ(lease.first_step, next);
        EXPECT_LE(lease.count, kLeaseSteps);
        if (every > 0) {
          EXPECT_EQ(lease.first_step / every, (lease.first_step + lease.count - 1) / every)
              << "a lease crosses a border of " << every;
        }
        next = lease.first_step + lease.count;
      }
      ASSERT_GT(next, step) << "rank 0 would have to wait";
      ASSERT_TRUE(scheduler.OnProgress({0, step + 1}, now));
    }
    EXPECT_EQ(next, 333);
    ASSERT_TRUE(scheduler.OnPhaseFinished(0, "", now));
    EXPECT_TRUE(scheduler.finished());
  }
}

TEST(PhaseScheduler, RefusesWhatWasNotHandedOut) {
  PhaseScheduler scheduler = NewScheduler();
  const TimePoint now;
  GrantAll(scheduler, now);
  EXPECT_EQ(CodeOf(scheduler.OnProgress({0, 2}, now)), Code::kInvalidArgument);
  EXPECT_EQ(CodeOf(scheduler.OnProgress({1, 1}, now)), Code::kInvalidArgument);
  EXPECT_EQ(CodeOf(scheduler.OnPhaseFinished(0, "", now)), Code::kInvalidArgument);
  ASSERT_TRUE(scheduler.OnProgress({0, 1}, now));
  EXPECT_EQ(CodeOf(scheduler.OnProgress({0, 1}, now)), Code::kAborted);
  EXPECT_EQ(CodeOf(scheduler.OnPhaseFinished(1, "", now)), Code::kInvalidArgument);
  EXPECT_TRUE(scheduler.OnPhaseFinished(0, "", now));
  EXPECT_EQ(CodeOf(scheduler.OnProgress({0, 1}, now)), Code::kAborted);
}

TEST(PhaseScheduler, ResumesInsideAPhase) {
  FinishedPhase check;
  check.seconds = 2;
  check.result_json = "{\"ok\":true}";
  PhaseScheduler scheduler(Phases(), RunPosition{1, 40}, 12.5, {check});
  const TimePoint now;
  EXPECT_THAT(GrantAll(scheduler, now), testing::ElementsAre(Lease(1, 40, 40)));
  EXPECT_EQ(scheduler.ResultOf(0), "{\"ok\":true}");
  EXPECT_DOUBLE_EQ(scheduler.PhaseSeconds(0, now), 2);
  EXPECT_DOUBLE_EQ(scheduler.PhaseSeconds(1, now + seconds(3)), 15.5);
}

TEST(PhaseScheduler, ResumesAtTheEndOfATrainingPhaseWithTheNext) {
  const PhaseScheduler scheduler(Phases(), RunPosition{1, 100}, 9, {});
  EXPECT_EQ(scheduler.position(), (RunPosition{2, 0}));
  EXPECT_DOUBLE_EQ(scheduler.PhaseSeconds(1, TimePoint()), 9);
}

TEST(PhaseScheduler, AnOutcomeThatWasLostIsComputedAgain) {
  const PhaseScheduler lost(Phases(), RunPosition{3, 1}, 0, {});
  EXPECT_EQ(lost.position(), (RunPosition{3, 0}));
  FinishedPhase eval;
  eval.phase = 3;
  eval.result_json = "{\"fdr_end\":4}";
  const PhaseScheduler kept(Phases(), RunPosition{3, 1}, 0, {eval});
  EXPECT_TRUE(kept.finished());
  EXPECT_EQ(kept.ResultOf(3), "{\"fdr_end\":4}");
}

TEST(PhaseScheduler, ForgetsOutcomesBehindTheRestorePoint) {
  FinishedPhase gts;
  gts.phase = 1;
  gts.seconds = 50;
  gts.result_json = "{\"late\":1}";
  const PhaseScheduler scheduler(Phases(), RunPosition{1, 40}, 20, {gts});
  EXPECT_EQ(scheduler.ResultOf(1), "");
  EXPECT_DOUBLE_EQ(scheduler.PhaseSeconds(1, TimePoint()), 20);
}

TEST(PhaseScheduler, PausesCostNoTimeAndNoSpeed) {
  PhaseScheduler scheduler({Phase(PhaseKind::kGts, 10, 0)}, RunPosition{}, 0, {});
  TimePoint now;
  GrantAll(scheduler, now);
  ASSERT_TRUE(scheduler.OnProgress({0, 1}, now += seconds(2)));
  scheduler.SetPaused(true, now);
  EXPECT_DOUBLE_EQ(scheduler.PhaseSeconds(0, now + seconds(50)), 2);
  scheduler.SetPaused(false, now += seconds(100));
  ASSERT_TRUE(scheduler.OnProgress({0, 2}, now += seconds(2)));
  ASSERT_TRUE(scheduler.OnProgress({0, 4}, now += seconds(4)));
  EXPECT_DOUBLE_EQ(scheduler.PhaseSeconds(0, now), 8);
  EXPECT_NEAR(scheduler.steps_per_second(), 0.5, 1e-9);
  EXPECT_NEAR(scheduler.PhaseEtaSeconds(), 12, 1e-9);
}

}  // namespace
}  // namespace dd2
