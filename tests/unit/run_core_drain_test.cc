// Domains that join a running run and leave it, played against the core.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/timeouts.h"
#include "coordinator/core_start.h"
#include "tests/unit/run_core_testing.h"

namespace dd2 {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;
using DrainTest = DomainsTest;

TEST_F(DrainTest, LeavesAtTheEndOfAStepWithoutLoss) {
  Begin();
  Join('a');
  Join('b');
  ASSERT_EQ(Formed(), "ab");
  SayProgress('a', 1);
  ASSERT_TRUE(Drain('a'));
  EXPECT_EQ(journal_.back().domain_drained().domain(), "a");
  EXPECT_FALSE(Regroups('b')) << "not in the middle of a step";
  SayProgress('a', 2);
  EXPECT_TRUE(Regroups('a'));
  EXPECT_TRUE(Regroups('b'));
  SayRegrouped('b', 2);
  SayRegrouped('a', 2);
  EXPECT_EQ(Formed(), "b");
  EXPECT_TRUE(SentTo(Agent('a')).at(0).has_stop_domain());
  EXPECT_EQ(SentTo(Worker('a')).at(0).run_finished().outcome(), "drained");
  const proto::Assignment assignment = SentTo(Worker('b')).at(0).assignment();
  EXPECT_EQ(assignment.world_size(), 1);
  EXPECT_EQ(assignment.start().step(), 2);
  SayProgress('b', 3);
  ASSERT_THAT(state().incidents, SizeIs(1));
  EXPECT_EQ(state().incidents[0].kind, "drained");
  EXPECT_EQ(state().incidents[0].steps_lost, 0);

  SayExited('a', 143, 1);
  Tick(Timeouts().restart_first * 10);
  EXPECT_THAT(SentTo(Agent('a')), IsEmpty()) << "it is not started again";
  Take(core_->OnClosed(Agent('a'), "closed", at_));
  EXPECT_EQ(state().word, RunWord::kRunning);
  // An agent that is started again after all, by mistake.
  SayAgentHello('a');
  EXPECT_TRUE(SentTo(Agent('a')).at(0).has_stop_domain());
  SayWorkerHello('a');
  EXPECT_TRUE(SentTo(Worker('a')).at(0).has_refused());
  EXPECT_EQ(Formed(), "b");
}

TEST_F(DrainTest, TheLastDomainAndStrangersAreRefused) {
  Begin();
  Join('a');
  Join('b');
  const Status unknown = Drain('x');
  EXPECT_EQ(unknown.error().code(), Code::kNotFound);
  EXPECT_THAT(unknown.error().message(), HasSubstr("no domain 'x'; it has a, b"));
  ASSERT_TRUE(Drain('a'));
  EXPECT_TRUE(Drain('a')) << "again is no error";
  const Status last = Drain('b');
  EXPECT_EQ(last.error().code(), Code::kFailedPrecondition);
  EXPECT_THAT(last.error().message(), HasSubstr("it is the last one of the run"));
  EXPECT_THAT(last.error().message(), HasSubstr("dd2 agent join runs/x"));
}

// Somebody joins, and the only one that holds the state is drained at the same time.
TEST_F(DrainTest, ANewcomerGetsTheStateBeforeItsOnlyHolderLeaves) {
  options_.config.domains = 1;
  Begin();
  Join('a');
  SayProgress('a', 5);
  Join('b');
  EXPECT_TRUE(Regroups('a'));
  ASSERT_TRUE(Drain('a'));
  SayRegrouped('a', 5);
  EXPECT_EQ(Formed(), "ab") << "b holds nothing yet";
  EXPECT_THAT(SentTo(Agent('a')), IsEmpty());
  SayProgress('a', 6);
  EXPECT_TRUE(Regroups('b'));
  SayRegrouped('a', 6);
  SayRegrouped('b', 6);
  EXPECT_EQ(Formed(), "b");
  EXPECT_EQ(SentTo(Worker('b')).at(0).assignment().start().step(), 6);
  EXPECT_TRUE(SentTo(Agent('a')).at(0).has_stop_domain());
}

TEST_F(DrainTest, BeforeTheRunHasBegunItIsNotWaitedFor) {
  Begin();
  SayAgentHello('a');
  SayAgentHello('b');
  ASSERT_TRUE(Drain('b'));
  EXPECT_TRUE(SentTo(Agent('b')).at(0).has_stop_domain());
  SayExited('b', 1, 2);
  EXPECT_EQ(state().word, RunWord::kWaiting) << "that its start failed does not matter";
  SayWorkerHello('a');
  EXPECT_EQ(Formed(), "a");
}

TEST_F(DrainTest, AnIncidentWaitsForTheLastWordsOfItsDomain) {
  Begin();
  Join('a');
  Join('b');
  SayProgress('a', 1);
  Take(core_->OnClosed(Worker('b'), "closed", at_));
  EXPECT_THAT(state().open_incidents, SizeIs(1));
  Tick(std::chrono::seconds(1));
  SayRegrouped('a', 1);
  SayProgress('a', 2);
  EXPECT_THAT(state().incidents, IsEmpty()) << "how its mpirun ended is not known";
  EXPECT_EQ(state().open_incidents.at(0).resumed_seconds, 1);
  Tick(timeouts::kLastWords);
  ASSERT_THAT(state().incidents, SizeIs(1));
  EXPECT_EQ(state().incidents[0].exited_seconds, -1);
  EXPECT_EQ(state().incidents[0].resumed_seconds, 1);
}

TEST_F(DrainTest, APausedRunDoesNotWaitForTheEndOfAStep) {
  Begin();
  Join('a');
  Join('b');
  SayProgress('a', 1);
  Take(*core_->Pause("a test", at_));
  ASSERT_TRUE(Drain('b'));
  EXPECT_TRUE(Regroups('a'));
  SayRegrouped('a', 1);
  SayRegrouped('b', 1);
  EXPECT_EQ(Formed(), "a");
  EXPECT_EQ(state().word, RunWord::kPaused);
}

TEST_F(DrainTest, OneThatDiesOnItsWayOutIsNotStartedAgain) {
  Begin();
  Join('a');
  Join('b');
  SayProgress('a', 1);
  ASSERT_TRUE(Drain('b'));
  Take(core_->OnClosed(Worker('b'), "closed", at_));
  SayExited('b', 137, 2);
  EXPECT_TRUE(SentTo(Agent('b')).at(0).has_stop_domain());
  Tick(Timeouts().restart_last);
  EXPECT_THAT(SentTo(Agent('b')), IsEmpty());
}

TEST_F(DrainTest, ARestartedCoordinatorKnowsWhoWasToLeave) {
  Begin();
  Join('a');
  Join('b');
  SayProgress('a', 1);
  ASSERT_TRUE(Drain('a'));
  CoreStart start;
  StartTakingOver(ReplayJournal(journal_), options_.config.phases, RunPosition{0, 1}, at_.unix_ms,
                  start);
  Begin(std::move(start));
  SayAgentHello('a', true);
  SayAgentHello('b', true);
  EXPECT_THAT(SentTo(Agent('a')), IsEmpty()) << "it is still needed";
  for (const char domain : {'a', 'b'}) SayReturns(domain, 1);
  SayProgress('a', 2);
  EXPECT_TRUE(Regroups('b'));
  SayRegrouped('a', 2);
  SayRegrouped('b', 2);
  EXPECT_EQ(Formed(), "b");
}

TEST_F(DrainTest, OneThatWasLeftOutDoesNotTakeAnothersRank) {
  Begin();
  Join('a');
  Join('b');
  SayProgress('a', 1);
  ASSERT_TRUE(Drain('a'));
  SayProgress('a', 2);
  SayRegrouped('a', 2);
  SayRegrouped('b', 2);
  ASSERT_EQ(Formed(), "b");
  // The coordinator dies before it has told anybody; both name the rank that they had.
  CoreStart start;
  StartTakingOver(ReplayJournal(journal_), options_.config.phases, RunPosition{0, 2}, at_.unix_ms,
                  start);
  Begin(std::move(start));
  SayReturns('a', 2);
  EXPECT_TRUE(SentTo(Worker('a')).at(0).has_refused());
}

TEST_F(DrainTest, NobodyJoinsWithoutAShardToWorkOn) {
  options_.config.batch.shards = 2;
  Begin();
  Join('a');
  Join('b');
  SayAgentHello('c');
  ASSERT_TRUE(SentTo(Agent('c')).at(0).has_refused());
  EXPECT_THAT(SentTo(Agent('c'))[0].refused().message(),
              HasSubstr("3 domains of 1 ranks for 2 shards (batch.shards)"));
  SayProgress('a', 1);
  ASSERT_TRUE(Drain('a'));
  SayProgress('a', 2);
  SayRegrouped('a', 2);
  SayRegrouped('b', 2);
  ASSERT_EQ(Formed(), "b");
  SayAgentHello('c');
  EXPECT_TRUE(SentTo(Agent('c')).at(0).has_start_domain());
}

TEST_F(DrainTest, OneThatCannotJoinDoesNotEndTheRun) {
  Begin();
  Join('a');
  Join('b');
  SayProgress('a', 1);
  SayAgentHello('c');
  SayWorkerHello('c', "another");
  EXPECT_THAT(SentTo(Worker('c')).at(0).refused().message(), HasSubstr("has another teacher"));
  for (std::uint64_t attempt = 3; attempt < 3 + kDomainFailuresMax; ++attempt) {
    SayExited('c', 4, attempt);
    for (int i = 0; i < 4; ++i) {
      proto::Envelope beat;
      beat.mutable_heartbeat()->set_phase(0);
      for (const ConnectionId from :
           {Agent('a'), Agent('b'), Agent('c'), Worker('a'), Worker('b')}) {
        Say(from, beat, state().generation);
      }
      Tick(Timeouts().restart_last / 3);
    }
  }
  EXPECT_EQ(state().word, RunWord::kRunning);
  core_->ListMembers(at_);
  ASSERT_THAT(state().domains, SizeIs(3));
  EXPECT_EQ(state().domains[2].word, "given up");
  EXPECT_EQ(state().domains[0].word, "working");
}

TEST_F(DrainTest, WhereAllIsLostAnAgentThatStaysAwayIsNotWaitedForLong) {
  Begin();
  Join('a');
  Join('b');
  SayProgress('a', 3);
  for (const char domain : {'a', 'b'}) {
    Take(core_->OnClosed(Agent(domain), "gone", at_));
    Take(core_->OnClosed(Worker(domain), "gone", at_));
  }
  Join('a');
  const auto assigned = [this] {
    const auto sent = SentTo(Worker('a'));
    return std::ranges::any_of(sent, [](const auto& e) { return e.has_assignment(); });
  };
  EXPECT_FALSE(assigned());
  for (std::chrono::milliseconds waited{0};
       waited + std::chrono::seconds(1) < options_.config.timeouts.reattach;
       waited += std::chrono::seconds(1)) {
    proto::Envelope beat;
    beat.mutable_heartbeat()->set_phase(-1);
    Say(Worker('a'), beat, 0);
    Say(Agent('a'), beat, 0);
    Tick(std::chrono::seconds(1));
    EXPECT_FALSE(assigned());
  }
  Tick(std::chrono::seconds(1));
  EXPECT_TRUE(assigned());
}

TEST_F(DrainTest, OneThatDoesNotStopWhenItIsToldToIsLostAlone) {
  options_.config.timeouts.unwind = std::chrono::seconds(20);
  Begin();
  Join('a');
  Join('b');
  SayProgress('a', 3);
  Join('c');  // everybody is told to stop; a does not
  SayRegrouped('b', 3);
  for (int second = 0; second < 19; ++second) {
    proto::Envelope beat;
    beat.mutable_heartbeat()->set_phase(0);
    for (const char domain : {'a', 'b', 'c'}) {
      Say(Worker(domain), beat, Gathered());
      Say(Agent(domain), beat, 0);
    }
    Tick(std::chrono::seconds(1));
  }
  Tick(std::chrono::seconds(1));
  const auto closed = [this](ConnectionId worker) {
    return std::ranges::any_of(log_, [worker](const Action& action) {
      const auto* close = std::get_if<CloseAction>(&action);
      return close != nullptr && close->connection == worker;
    });
  };
  EXPECT_TRUE(closed(Worker('a')));
  for (const char domain : {'b', 'c'}) {
    EXPECT_FALSE(closed(Worker(domain))) << domain;
    const auto sent = SentTo(Worker(domain));
    EXPECT_EQ(std::ranges::count_if(sent, [](const auto& e) { return e.has_assignment(); }), 1);
  }
}

TEST_F(DrainTest, OneThatComesBackToARestartedCoordinatorMayEndWhatItIsIn) {
  Begin();
  Join('a');
  Join('b');
  SayProgress('a', 3);
  Join('c');  // the generation is broken, and the coordinator dies
  CoreStart start;
  StartTakingOver(ReplayJournal(journal_), options_.config.phases, RunPosition{0, 3}, at_.unix_ms,
                  start);
  Begin(std::move(start));
  SayAgentHello('a', true);
  proto::Envelope envelope;
  envelope.mutable_worker_hello()->set_domain("a");
  envelope.mutable_worker_hello()->set_local_size(1);
  envelope.mutable_worker_hello()->set_resumes(true);
  Say(Worker('a'), envelope, 1);
  ASSERT_TRUE(Regroups('a'));
  const auto passes = [this](std::chrono::milliseconds time) {
    bool killed = false;
    for (; time.count() > 0; time -= std::chrono::seconds(1)) {
      proto::Envelope beat;
      beat.mutable_heartbeat()->set_phase(0);
      Say(Worker('a'), beat, 1);
      Say(Agent('a'), beat, 0);
      Tick(std::chrono::seconds(1));
      for (const proto::Envelope& sent : SentTo(Agent('a'))) killed |= sent.has_kill_domain();
    }
    return killed;
  };
  const Timeouts& times = options_.config.timeouts;
  EXPECT_FALSE(passes(times.reattach + std::chrono::seconds(2)));
  EXPECT_TRUE(passes(times.unwind - times.reattach));
}

// Machines are given to an elastic run and taken away.
TEST_F(DrainTest, AnElasticRunBeginsWithAsManyAsAreWantedHoweverLateTheyCome) {
  options_.elastic = true;
  Begin();
  Tick(Timeouts().agent_join * 10);
  EXPECT_EQ(state().word, RunWord::kWaiting) << state().message;
  Join('a');
  Tick(Timeouts().workers_join * 10);
  EXPECT_EQ(state().word, RunWord::kWaiting) << "config.domains says two";
  SayAgentHello('c');
  SayExited('c', 1, 2);
  EXPECT_EQ(state().word, RunWord::kWaiting) << "one that cannot work is no reason to end";
  Join('b');
  EXPECT_EQ(state().word, RunWord::kWaiting) << "it may come yet";
  Tick(Timeouts().workers_join * 3);  // it is started once more
  Tick(Timeouts().workers_join * 3);
  EXPECT_EQ(Formed(), "ab");
}

TEST_F(DrainTest, AnElasticRunWaitsWhileItHasNobody) {
  options_.elastic = true;
  Begin();
  Join('a');
  Join('b');
  SayProgress('a', 1);
  ASSERT_TRUE(Drain('a'));
  SayProgress('a', 2);
  SayRegrouped('a', 2);
  SayRegrouped('b', 2);
  ASSERT_EQ(Formed(), "b");
  Take(core_->OnClosed(Worker('b'), "closed", at_));
  Take(core_->OnClosed(Agent('b'), "closed", at_));
  for (int i = 0; i < 100; ++i) Tick(Timeouts().workers_join);
  EXPECT_EQ(state().word, RunWord::kRecovering) << state().message;
  Join('c');
  EXPECT_EQ(Formed(), "c") << "one is enough to go on";
  Take(core_->OnClosed(Worker('c'), "closed", at_));
  Take(core_->OnClosed(Agent('c'), "closed", at_));
  Take(*core_->Stop("a test", at_));
  Tick(std::chrono::seconds(1));
  EXPECT_EQ(state().word, RunWord::kStopped) << "nobody is needed for that";
}

}  // namespace
}  // namespace dd2
