// Domains that are lost and come back, played against the core.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/timeouts.h"
#include "tests/unit/run_core_testing.h"

namespace dd2 {
namespace {

using testing::IsEmpty;
using ReturnTest = DomainsTest;

TEST_F(ReturnTest, AllConnectionsBreakAndNoStepIsLost) {
  for (const bool agents_first : {true, false}) {
    SCOPED_TRACE(agents_first);
    journal_.clear();
    Begin();
    Join('a');
    Join('b');
    SayProgress('a', 3);
    for (const bool agents : {agents_first, !agents_first}) {
      for (const char domain : {'a', 'b'}) {
        Take(core_->OnClosed(agents ? Agent(domain) : Worker(domain), "reset", at_));
      }
    }
    SayAgentHello('a', true);
    SayAgentHello('b', true);
    EXPECT_THAT(SentTo(Agent('b')), IsEmpty()) << "its domain lives";
    SayReturns('b', 1);
    EXPECT_TRUE(Regroups('b'));
    SayReturns('a', 1);
    EXPECT_TRUE(Regroups('a'));
    SayRegrouped('a', 3);
    SayRegrouped('b', 4);
    EXPECT_EQ(Formed(), "ba") << "the newer state leads";
    EXPECT_EQ(SentTo(Worker('a')).at(0).assignment().start().step(), 4);
    for (const proto::JournalRecord& record : journal_) EXPECT_FALSE(record.has_rolled_back());
  }
}

TEST_F(ReturnTest, OneThatIsBeingKilledDoesNotComeBack) {
  options_.config.domains = 1;
  Begin();
  Join('a');
  SayProgress('a', 3);
  Take(core_->OnClosed(Worker('a'), "gone", at_));
  ASSERT_TRUE(SentTo(Agent('a')).at(0).has_kill_domain());
  SayReturns('a', 1);
  EXPECT_TRUE(SentTo(Worker('a')).at(0).has_refused());
}

TEST_F(ReturnTest, OneThatOthersGoOnWithoutDoesNotComeBack) {
  Begin();
  Join('a');
  Join('b');
  SayProgress('a', 3);
  Cut('b');
  SayAgentHello('b', true);
  SayReturns('b', 1);
  EXPECT_TRUE(SentTo(Worker('b')).at(0).has_refused());
  SayRegrouped('a', 3);
  EXPECT_EQ(Formed(), "a");
}

TEST_F(ReturnTest, AStateWhoseProgressTheRecordLacksIsNotTakenUp) {
  for (const std::int64_t recorded : {3, 4}) {
    SCOPED_TRACE(recorded);
    Begin();
    Join('a');
    Join('b');
    SayProgress('a', 3);
    Take(core_->OnClosed(Worker('b'), "gone", at_));
    // As if the run had gone back while this one was away.
    proto::Envelope envelope;
    proto::HeldState& held = *envelope.mutable_regrouped()->mutable_held();
    held.set_has_state(true);
    held.mutable_position()->set_step(9);
    held.mutable_recorded()->set_step(recorded);
    Say(Worker('a'), envelope, 2);
    ASSERT_FALSE(SentTo(Worker('a')).empty());
    EXPECT_EQ(SentTo(Worker('a')).at(0).assignment().has_start(), recorded == 3);
    journal_.clear();
  }
}

TEST_F(ReturnTest, WhoReturnsSaysAgainWhatItHolds) {
  options_.config.domains = 1;
  Begin();
  Join('a');
  SayProgress('a', 3);
  Cut('a');
  SayAgentHello('a', true);
  SayReturns('a', 2);  // it has heard of the next generation already
  EXPECT_TRUE(Regroups('a')) << "its hello may be of the last step's begin";
  EXPECT_NE(core_->state().word, RunWord::kRunning);
}

TEST_F(ReturnTest, ALossWhileTheRunStopsLeavesTheStopItsTime) {
  Begin();
  Join('a');
  Join('b');
  SayProgress('a', 3);
  Take(*core_->Stop("a test", at_));
  Take(core_->OnClosed(Worker('b'), "gone", at_));
  SayRegrouped('a', 3);
  ASSERT_EQ(Formed(), "a");
  const auto passes = [this](std::chrono::milliseconds time) {
    for (; time.count() > 0; time -= std::chrono::seconds(1)) {
      proto::Envelope beat;
      beat.mutable_heartbeat()->set_phase(0);
      Say(Worker('a'), beat, 2);
      for (const char domain : {'a', 'b'}) Say(Agent(domain), beat, 0);
      Tick(std::chrono::seconds(1));
    }
  };
  passes(options_.config.timeouts.stop - std::chrono::seconds(2));
  EXPECT_EQ(core_->state().word, RunWord::kStopping);
  passes(std::chrono::seconds(3));
  EXPECT_EQ(core_->state().word, RunWord::kStopped);
}

TEST_F(ReturnTest, OneThatHasLeftDoesNotComeBackWhenTheOthersAreLost) {
  Begin();
  Join('a');
  Join('b');
  SayProgress('a', 1);
  ASSERT_TRUE(Drain('b'));
  SayProgress('a', 2);
  SayRegrouped('a', 2);
  SayRegrouped('b', 2);
  ASSERT_EQ(Formed(), "a");
  // It is cut off before it hears that it may go; then the others are.
  for (const char domain : {'b', 'a'}) Cut(domain);
  SayAgentHello('b', true);
  SayReturns('b', 2);
  EXPECT_TRUE(SentTo(Worker('b')).at(0).has_refused());
  SayAgentHello('a', true);
  SayReturns('a', 2);
  EXPECT_TRUE(Regroups('a'));
}

}  // namespace
}  // namespace dd2
