// A full disk, and domains that stay away, played against the core: what ends the coordinator, what
// the run, and what neither.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "common/limits.h"
#include "common/timeouts.h"
#include "tests/unit/run_core_testing.h"

namespace dd2 {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

class LossTest : public DomainsTest {
 protected:
  LossTest() { options_.config.domains = 1; }
  std::optional<ExitCode> Ended() const {
    for (const Action& action : log_) {
      if (const auto* end = std::get_if<EndAction>(&action)) return end->exit_code;
    }
    return std::nullopt;
  }
  void TickUntilEnded() {
    for (int i = 0; i < 10'000 && !Ended(); ++i) Tick(timeouts::kTick);
  }
  void NoDisk(bool journal_works) {
    Take(core_->OnEffectFailed(Error(Code::kResourceExhausted, "disk full"), journal_works, at_));
  }
};

TEST_F(LossTest, AFullDiskEndsTheProcessAndNotTheRun) {
  for (const bool journal_works : {true, false}) {
    Begin();
    Join('a');
    journal_.clear();
    NoDisk(journal_works);
    EXPECT_EQ(Ended(), kExitDiskFull);
    EXPECT_THAT(journal_, IsEmpty());
    EXPECT_THAT(SentTo(Agent('a')), IsEmpty());
    EXPECT_THAT(SentTo(Worker('a')), IsEmpty());
    EXPECT_EQ(state().word, RunWord::kRunning);
  }
}

TEST_F(LossTest, ALifeWhoseBeginningIsNotInTheJournalCannotBeTakenOver) {
  Begin();
  NoDisk(false);
  EXPECT_EQ(state().word, RunWord::kFailed);
}

// To look for the cause and start again at the same step is right for a bug, not for a full disk.
TEST_F(LossTest, AFullDiskOfAWorkerIsTriedMoreOftenThanAnotherFailure) {
  Begin();
  Join('a');
  proto::Envelope failed;
  failed.mutable_worker_failed()->set_code(std::string(CodeName(Code::kResourceExhausted)));
  failed.mutable_worker_failed()->set_message("cannot write samples/teacher.png");
  proto::Envelope beat;
  beat.mutable_heartbeat()->set_phase(-1);
  for (std::uint64_t attempt = 1; attempt <= kDomainFailuresMax; ++attempt) {
    ASSERT_EQ(state().word, RunWord::kRunning) << attempt;
    // Long enough that its earlier ends are forgotten.
    for (std::chrono::seconds time{0}; time <= Timeouts().restart_forgotten; ++time) {
      Say(Agent('a'), beat, 0);
      Say(Worker('a'), beat, state().generation);
      Tick(std::chrono::seconds(1));
    }
    Say(Worker('a'), failed, state().generation);
    if (attempt == kDomainFailuresMax) break;
    SayExited('a', 1, attempt);
    for (std::chrono::seconds time{0}; time <= Timeouts().restart_last; ++time) {
      Say(Agent('a'), beat, 0);
      Tick(std::chrono::seconds(1));
    }
    SayWorkerHello('a');
  }
  EXPECT_EQ(state().word, RunWord::kFailed);
  EXPECT_THAT(state().message, HasSubstr("cannot write samples/teacher.png"));
  TickUntilEnded();
  EXPECT_EQ(Ended(), kExitRunFailed);
}

TEST_F(LossTest, AnAgentThatStaysAwayWithItsWorkersEndsTheRun) {
  Begin();
  Join('a');
  SayProgress('a', 1);
  TickUntilEnded();
  EXPECT_EQ(Ended(), kExitRunFailed);
  EXPECT_THAT(state().message, HasSubstr("no domain came back in time"));
}

// It died between the last step and the end of the run: its agents come back to be told.
TEST_F(LossTest, ATakeOverThatOnlyEndsTheRunWaitsForTheAgents) {
  CoreStart start;
  start.recovered = true;
  start.worked = true;
  start.position = RunPosition{static_cast<std::int32_t>(options_.config.phases.size()), 0};
  start.orphan.emplace();
  start.orphan->members.resize(1);
  start.orphan->members[0].set_domain("a");
  Begin(start);
  EXPECT_FALSE(Ended());
  Tick(timeouts::kTick);
  EXPECT_FALSE(Ended());
  SayAgentHello('a', true);
  Tick(timeouts::kFarewell / 2);
  EXPECT_TRUE(SentTo(Agent('a')).at(0).has_stop_domain());
  SayExited('a', 0, 1);
  EXPECT_EQ(Ended(), kExitOk);
  // Not for ever.
  Begin(start);
  TickUntilEnded();
  EXPECT_EQ(Ended(), kExitOk);
}

// Two ranks in long evaluations, which tell of the exchanges they have entered.
class StallTest : public DomainsTest {
 protected:
  StallTest() {
    Begin();
    Join('a');
    Join('b');
  }
  void Beat(ConnectionId from, std::uint64_t collectives) {
    proto::Envelope envelope;
    envelope.mutable_heartbeat()->set_collectives(collectives);
    Say(from, envelope, state().generation);
  }
  // False: it has regrouped without 'a' at some moment.
  bool Pass(std::chrono::seconds time, std::uint64_t of_a, std::uint64_t of_b) {
    for (std::chrono::seconds passed{0}; passed < time; ++passed) {
      for (const char domain : {'a', 'b'}) Beat(Agent(domain), 0);
      Beat(Worker('a'), of_a);
      Beat(Worker('b'), of_b);
      Tick(std::chrono::seconds(1));
      if (Regroups('b')) return false;
    }
    return true;
  }
  const std::chrono::seconds stall_ =
      std::chrono::duration_cast<std::chrono::seconds>(options_.config.timeouts.stall);
};

TEST_F(StallTest, ARankIsNotLateBecauseAllComputedForLong) {
  EXPECT_TRUE(Pass(3 * stall_, 5, 5));
  EXPECT_TRUE(Pass(std::chrono::seconds(5), 5, 6));  // b is ready first
  EXPECT_TRUE(Pass(3 * stall_, 6, 6));
}

TEST_F(StallTest, ARankThatTheOthersWaitForHangs) {
  EXPECT_TRUE(Pass(3 * stall_, 5, 5));
  EXPECT_TRUE(Pass(stall_ - std::chrono::seconds(2), 5, 6));
  EXPECT_FALSE(Pass(std::chrono::seconds(5), 5, 6));
}

}  // namespace
}  // namespace dd2
