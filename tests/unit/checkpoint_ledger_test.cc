#include "coordinator/checkpoint_ledger.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace dd2 {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

proto::PartReport Report(const std::string& id, std::int32_t phase, std::int64_t step,
                         std::int32_t rank, std::int32_t world_size = 2) {
  proto::PartReport report;
  report.set_checkpoint_id(id);
  report.set_rank(rank);
  report.mutable_part()->set_file("rank-" + std::to_string(rank));
  report.mutable_part()->set_size_bytes(10 + rank);
  report.mutable_header()->set_phase(phase);
  report.mutable_header()->set_step(step);
  report.mutable_header()->set_world_size(world_size);
  return report;
}

proto::PartFailed Failure(const std::string& id, std::int32_t rank, std::int32_t attempt) {
  proto::PartFailed failed;
  failed.set_checkpoint_id(id);
  failed.set_rank(rank);
  failed.set_attempt(attempt);
  failed.set_message("no space left on device");
  return failed;
}

CheckpointLedger NewLedger(std::int32_t keep_last) {
  CheckpointLedger ledger("run-1", keep_last);
  ledger.StartGeneration(2);
  return ledger;
}

// Both ranks report; true when the second one committed it.
bool Commit(CheckpointLedger& ledger, const std::string& id, std::int32_t phase,
            std::int64_t step) {
  const auto first = ledger.OnPart(Report(id, phase, step, 1), 5);
  const auto second = ledger.OnPart(Report(id, phase, step, 0), 6);
  return first && !first->commit && second && second->commit.has_value();
}

TEST(CheckpointLedger, CommitsWhenTheLastRankHasReported) {
  CheckpointLedger ledger = NewLedger(3);
  const auto first = ledger.OnPart(Report("p001-s5", 1, 5, 1), 70);
  ASSERT_TRUE(first);
  EXPECT_FALSE(first->commit);
  EXPECT_TRUE(ledger.writing());
  EXPECT_THAT(ledger.committed(), IsEmpty());
  const auto second = ledger.OnPart(Report("p001-s5", 1, 5, 0), 71);
  ASSERT_TRUE(second);
  ASSERT_TRUE(second->commit);
  const proto::CheckpointManifest& manifest = *second->commit;
  EXPECT_EQ(manifest.checkpoint_id(), "p001-s5");
  EXPECT_EQ(manifest.run_id(), "run-1");
  EXPECT_EQ(manifest.committed_unix_ms(), 71);
  ASSERT_EQ(manifest.parts_size(), 2);
  EXPECT_EQ(manifest.parts(0).file(), "rank-0");
  EXPECT_EQ(manifest.parts(1).file(), "rank-1");
  EXPECT_FALSE(ledger.writing());
  EXPECT_EQ(ledger.newest(), "p001-s5");
  // Again, after it was committed: no second manifest.
  const auto again = ledger.OnPart(Report("p001-s5", 1, 5, 0), 72);
  ASSERT_TRUE(again);
  EXPECT_TRUE(again->already_committed);
  EXPECT_FALSE(again->commit);
}

TEST(CheckpointLedger, RefusesRanksThatDoNotAgree) {
  CheckpointLedger ledger = NewLedger(3);
  ASSERT_TRUE(ledger.OnPart(Report("a", 1, 5, 0), 0));
  proto::PartReport other = Report("a", 1, 5, 1);
  other.mutable_header()->mutable_counters()->set_guidance_updates(7);
  const auto refused = ledger.OnPart(other, 0);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Code::kInvalidArgument);
  EXPECT_THAT(refused.error().message(), HasSubstr("the counters"));
  proto::PartReport moved = Report("a", 1, 6, 1);
  EXPECT_THAT(ledger.OnPart(moved, 0).error().message(), HasSubstr("the position (1/5 and 1/6)"));
  proto::PartReport twice = Report("a", 1, 5, 0);
  twice.mutable_part()->set_hash("x");
  EXPECT_THAT(ledger.OnPart(twice, 0).error().message(), HasSubstr("reported twice"));
}

TEST(CheckpointLedger, RefusesWrongRanksAndNames) {
  CheckpointLedger ledger = NewLedger(3);
  EXPECT_FALSE(ledger.OnPart(Report("a", 0, 1, 2), 0));
  EXPECT_FALSE(ledger.OnPart(Report("a", 0, 1, -1), 0));
  EXPECT_FALSE(ledger.OnPart(Report("a", 0, 1, 0, 4), 0));
  EXPECT_FALSE(ledger.OnPart(Report("../a", 0, 1, 0), 0));
  EXPECT_FALSE(ledger.OnPart(Report("", 0, 1, 0), 0));
  EXPECT_FALSE(ledger.writing());
}

TEST(CheckpointLedger, PartsOfAnOlderGenerationAreVoid) {
  CheckpointLedger ledger = NewLedger(3);
  ASSERT_TRUE(ledger.OnPart(Report("a", 0, 1, 0), 0));
  ledger.StartGeneration(2);
  const auto outcome = ledger.OnPart(Report("a", 0, 1, 1), 0);
  ASSERT_TRUE(outcome);
  EXPECT_FALSE(outcome->commit) << "rank 0 of this generation has not written its part";
}

TEST(CheckpointLedger, AFailureIsDecidedWhenEveryRankHasReported) {
  for (const bool failure_first : {true, false}) {
    CheckpointLedger ledger = NewLedger(3);
    proto::PartReport part = Report("a", 0, 1, 0);
    part.set_attempt(1);
    const auto report = [&] { return ledger.OnPart(part, 0); };
    const auto fail = [&] { return ledger.OnPartFailed(Failure("a", 1, 1)); };
    const auto first = failure_first ? fail() : report();
    ASSERT_TRUE(first);
    EXPECT_FALSE(first->failed || first->commit) << "the other rank may still be writing";
    const auto second = failure_first ? report() : fail();
    ASSERT_TRUE(second && second->failed);
    EXPECT_FALSE(second->already_failed || second->commit);
    EXPECT_EQ(second->failed->attempt(), 1);
    EXPECT_THAT(second->failed->reason(), HasSubstr("rank 1: no space"));
    EXPECT_FALSE(ledger.writing());
    // Said again: told again, and it takes no part in the next try.
    const auto again = report();
    ASSERT_TRUE(again && again->failed);
    EXPECT_TRUE(again->already_failed);
    part.set_attempt(2);
    EXPECT_FALSE(report()->commit);
    part.set_rank(1);
    EXPECT_TRUE(report()->commit);
    // A failure that was committed after all, or told by a rank that does not know of the commit.
    EXPECT_TRUE(ledger.OnPartFailed(Failure("a", 1, 1))->already_committed);
  }
}

TEST(CheckpointLedger, ANextTryVoidsTheOneBefore) {
  CheckpointLedger ledger = NewLedger(3);
  proto::PartReport part = Report("a", 0, 1, 0);
  part.set_attempt(1);
  ASSERT_TRUE(ledger.OnPart(part, 0));
  // That the first try failed was told by a coordinator that died.
  part = Report("a", 0, 1, 1);
  part.set_attempt(2);
  EXPECT_FALSE(ledger.OnPart(part, 0)->commit);
  part = Report("a", 0, 1, 0);
  part.set_attempt(1);
  EXPECT_FALSE(ledger.OnPart(part, 0)->commit) << "its file is gone";
  part.set_attempt(2);
  EXPECT_TRUE(ledger.OnPart(part, 0)->commit);
  EXPECT_FALSE(ledger.OnPartFailed(Failure("b", 2, 1))) << "there is no rank 2";
}

TEST(CheckpointLedger, KeepsTheNewestByPosition) {
  CheckpointLedger ledger = NewLedger(2);
  ASSERT_TRUE(Commit(ledger, "a", 0, 1));
  ASSERT_TRUE(Commit(ledger, "c", 2, 3));
  EXPECT_THAT(ledger.TakeExpired(), IsEmpty());
  ASSERT_TRUE(Commit(ledger, "b", 1, 900));
  EXPECT_EQ(ledger.newest(), "c");
  EXPECT_THAT(ledger.TakeExpired(), ElementsAre("a"));
  EXPECT_THAT(ledger.TakeExpired(), IsEmpty());
  EXPECT_THAT(ledger.committed(), ElementsAre("b", "c"));
}

}  // namespace
}  // namespace dd2
