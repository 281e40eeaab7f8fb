#include "coordinator/regroup_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>

#include "proto/position.h"

namespace dd2 {
namespace {

using testing::ElementsAre;

std::vector<PhaseConfig> Phases() {
  PhaseConfig gts;
  gts.kind = PhaseKind::kGts;
  gts.steps = 10;
  PhaseConfig csd;
  csd.kind = PhaseKind::kCsd;
  csd.steps = 4;
  csd.guidance_updates = 2;
  PhaseConfig eval;
  eval.kind = PhaseKind::kEval;
  eval.steps = 1;
  return {gts, csd, eval};
}

proto::HeldState Held(std::int32_t phase, std::int64_t step, std::int32_t updates,
                      bool pending = false) {
  proto::HeldState held;
  held.set_has_state(true);
  held.mutable_position()->set_phase(phase);
  held.mutable_position()->set_step(step);
  held.mutable_position()->set_updates(updates);
  held.set_pending(pending);
  return held;
}

RegroupPlan Plan(const std::vector<CandidateDomain>& domains) {
  return PlanRegroup(domains, Phases());
}

std::vector<int> MeansOf(const RegroupPlan& plan) {
  std::vector<int> means;
  for (const auto& member : plan.members) means.push_back(member.means());
  // Those that receive are the last ones, whatever the plan.
  const auto receivers = std::ranges::count(means, proto::GenerationMember::RECEIVE);
  EXPECT_EQ(plan.first_receiver + receivers, std::ssize(means));
  for (auto rank = static_cast<std::size_t>(plan.first_receiver); rank < means.size(); ++rank) {
    EXPECT_EQ(means[rank], proto::GenerationMember::RECEIVE);
  }
  return means;
}

constexpr int kKeep = proto::GenerationMember::KEEP;
constexpr int kRoll = proto::GenerationMember::ROLL;
constexpr int kReceive = proto::GenerationMember::RECEIVE;
constexpr int kRecall = proto::GenerationMember::RECALL;

proto::HeldState InMemory(const std::vector<proto::HeldState>& states,
                          proto::HeldState held = proto::HeldState()) {
  for (const proto::HeldState& state : states) {
    *held.add_snapshots()->mutable_position() = state.position();
  }
  return held;
}

TEST(RegroupPlan, FreshWorkersStartFromACheckpoint) {
  const RegroupPlan plan = Plan({{"a", {proto::HeldState(), proto::HeldState()}}});
  EXPECT_FALSE(plan.start);
  ASSERT_EQ(plan.members.size(), 2u);
  EXPECT_EQ(plan.members[1].local_rank(), 1);
  EXPECT_EQ(plan.members[1].local_size(), 2);
}

TEST(RegroupPlan, ANewcomerReceivesAndComesLast) {
  const RegroupPlan plan = Plan({{"a", {proto::HeldState()}}, {"b", {Held(1, 2, 1)}}});
  EXPECT_THAT(plan.domains, ElementsAre("b", "a"));
  EXPECT_EQ(plan.start->step(), 2);
  EXPECT_EQ(plan.start->updates(), 1);
  EXPECT_THAT(MeansOf(plan), ElementsAre(kKeep, kReceive));
  EXPECT_EQ(plan.source, 0);
}

TEST(RegroupPlan, WhoHoldsTheGradientDoesTheUpdate) {
  const RegroupPlan plan = Plan({{"a", {Held(1, 2, 1, true)}}, {"b", {Held(1, 2, 2)}}});
  EXPECT_EQ(plan.start->updates(), 2);
  EXPECT_THAT(plan.domains, ElementsAre("a", "b"));
  EXPECT_THAT(MeansOf(plan), ElementsAre(kRoll, kKeep));
  EXPECT_EQ(plan.source, 1) << "it has the counters of the start";
}

TEST(RegroupPlan, NobodyDidTheUpdateSoItIsComputedAgain) {
  const RegroupPlan plan = Plan({{"a", {Held(0, 5, 0, true)}}, {"b", {Held(0, 5, 0)}}});
  EXPECT_EQ(plan.start->step(), 5);
  EXPECT_THAT(MeansOf(plan), ElementsAre(kKeep, kKeep));
}

TEST(RegroupPlan, TheLastUpdateOfAStepIsTheStep) {
  // csd: 3 updates a step; the rank at the next step has also counted it.
  const RegroupPlan plan =
      Plan({{"a", {Held(1, 2, 2, true), Held(1, 2, 3)}}, {"b", {Held(1, 3, 0), Held(1, 2, 3)}}});
  EXPECT_EQ(plan.start->step(), 3);
  EXPECT_EQ(plan.start->updates(), 0);
  EXPECT_THAT(MeansOf(plan), ElementsAre(kRoll, kKeep, kKeep, kKeep));
  EXPECT_EQ(plan.source, 2);
}

TEST(RegroupPlan, TheEndOfAPhaseIsTheBeginningOfTheNext) {
  const RegroupPlan plan = Plan({{"a", {Held(0, 10, 0)}}, {"b", {Held(1, 0, 0)}}});
  EXPECT_EQ(plan.start->phase(), 1);
  EXPECT_THAT(MeansOf(plan), ElementsAre(kKeep, kKeep));
  EXPECT_EQ(plan.source, 1);
  const RegroupPlan both = Plan({{"a", {Held(0, 10, 0)}}, {"b", {Held(0, 10, 0)}}});
  EXPECT_EQ(both.start->phase(), 0) << "a checkpoint may be due there";
}

TEST(RegroupPlan, AStateThatNoDomainHoldsAsAWholeIsGivenUp) {
  const RegroupPlan plan = Plan({{"a", {Held(0, 6, 0), Held(0, 5, 0)}}});
  EXPECT_FALSE(plan.start) << "slices of two steps: only a checkpoint helps";
  const RegroupPlan other =
      Plan({{"a", {Held(0, 6, 0), Held(0, 4, 0)}}, {"b", {Held(0, 5, 0), Held(0, 4, 0, true)}}});
  EXPECT_EQ(other.start->step(), 5);
  EXPECT_THAT(other.domains, ElementsAre("b", "a"));
  EXPECT_THAT(MeansOf(other), ElementsAre(kKeep, kRoll, kReceive, kReceive));
}

TEST(RegroupPlan, TheExactOneMayItselfReceive) {
  const RegroupPlan plan = Plan(
      {{"a", {Held(0, 6, 0), Held(0, 4, 0)}}, {"b", {Held(0, 5, 0, true), Held(0, 5, 0, true)}}});
  EXPECT_EQ(plan.start->step(), 6);
  EXPECT_THAT(MeansOf(plan), ElementsAre(kRoll, kRoll, kReceive, kReceive));
  EXPECT_EQ(plan.source, 2);
}

TEST(RegroupPlan, WhereAllProcessesAreNewSnapshotsInMemoryLead) {
  const auto older = Held(1, 1, 0);
  const auto newer = Held(1, 2, 0);
  // Rank 1 of "a" died while it took the newer one; "c" has its machine lost.
  const RegroupPlan plan = Plan({{"a", {InMemory({newer, older}), InMemory({older})}},
                                 {"b", {InMemory({older}), InMemory({older, newer})}},
                                 {"c", {proto::HeldState(), proto::HeldState()}}});
  ASSERT_TRUE(plan.start);
  EXPECT_EQ(plan.start->step(), 1) << "no domain has all of the newer one";
  EXPECT_THAT(MeansOf(plan), ElementsAre(kRecall, kRecall, kRecall, kRecall, kReceive, kReceive));
  EXPECT_EQ(plan.members[3].snapshot().step(), 1);
  EXPECT_EQ(plan.source, 0);
}

TEST(RegroupPlan, AStateThatIsHeldGoesBeforeAnOlderOneInMemory) {
  const RegroupPlan plan =
      Plan({{"a", {InMemory({Held(1, 2, 0)})}}, {"b", {InMemory({Held(1, 2, 0)}, Held(1, 2, 1))}}});
  EXPECT_THAT(plan.domains, ElementsAre("b", "a"));
  EXPECT_THAT(MeansOf(plan), ElementsAre(kKeep, kReceive));
}

TEST(RegroupPlan, ANewerOneInMemoryGoesBeforeAStateThatIsHeld) {
  const RegroupPlan plan = Plan({{"a", {Held(1, 1, 0)}}, {"b", {InMemory({Held(1, 2, 0)})}}});
  EXPECT_THAT(plan.domains, ElementsAre("b", "a"));
  EXPECT_THAT(MeansOf(plan), ElementsAre(kRecall, kReceive));
  EXPECT_EQ(plan.source, 0);
}

TEST(RegroupPlan, ASnapshotOfTheSameStateMayHaveItsOtherName) {
  const RegroupPlan plan = Plan({{"a", {Held(1, 0, 0)}}, {"b", {InMemory({Held(0, 10, 0)})}}});
  EXPECT_THAT(MeansOf(plan), ElementsAre(kKeep, kRecall));
  EXPECT_EQ(plan.start->phase(), 1);
  EXPECT_EQ(plan.members[1].snapshot().phase(), 0);
  EXPECT_EQ(plan.source, 0);
}

TEST(RegroupPlan, WhoLacksItForWantOfAPeerReceivesAndDoesNotLead) {
  // "a" has half of it only.
  const RegroupPlan plan = Plan({{"a", {InMemory({Held(1, 2, 0)}), proto::HeldState()}},
                                 {"b", {Held(1, 2, 0), Held(1, 2, 0)}}});
  EXPECT_THAT(plan.domains, ElementsAre("b", "a"));
  EXPECT_THAT(MeansOf(plan), ElementsAre(kKeep, kKeep, kReceive, kReceive));
  EXPECT_EQ(plan.source, 0);
}

TEST(RegroupPlan, ASnapshotThatItsDomainLacksIsNoAim) {
  // "b" could roll to it, but nobody stands at it exactly.
  const RegroupPlan plan = Plan({{"a", {InMemory({Held(1, 3, 0)}), proto::HeldState()}},
                                 {"b", {Held(1, 2, 2, true), Held(1, 2, 2, true)}}});
  ASSERT_TRUE(plan.start);
  EXPECT_EQ(plan.start->updates(), 2);
  EXPECT_THAT(MeansOf(plan), ElementsAre(kKeep, kKeep, kReceive, kReceive));
}

TEST(RecordedBefore, ProgressIsOfFinishedSteps) {
  proto::Position position;
  position.set_phase(1);
  position.set_step(2);
  position.set_updates(3);  // all of them: another name of step 3
  EXPECT_EQ(Normalised(position, Phases()).step(), 3);
  EXPECT_EQ(RecordedBefore(position, nullptr).step(), 2) << "nobody has told step 3 yet";
  EXPECT_EQ(RecordedBefore(position, nullptr).updates(), 0);
  proto::Progress kept;
  kept.set_phase(1);
  kept.set_step(2);
  EXPECT_EQ(RecordedBefore(position, &kept).step(), 1);
}

}  // namespace
}  // namespace dd2
