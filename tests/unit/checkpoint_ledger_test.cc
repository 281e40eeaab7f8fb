#include "coordinator/checkpoint_ledger.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

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

CheckpointLedger NewLedger(int keep_last, int keep_every = 0, int keep_best = 0,
                           std::int64_t ever_committed = 0) {
  CheckpointConfig rule;
  rule.keep_last = keep_last;
  rule.keep_every = keep_every;
  rule.keep_best = keep_best;
  CheckpointLedger ledger("run-1", rule, ever_committed);
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

proto::Evaluation Evaluated(std::int32_t phase, std::int64_t step, double fdr) {
  proto::Evaluation evaluation;
  evaluation.set_phase(phase);
  evaluation.set_step(step);
  evaluation.set_fdr(fdr);
  return evaluation;
}

// The manifest of a checkpoint that both ranks report.
proto::CheckpointManifest Manifest(CheckpointLedger& ledger, const std::string& id,
                                   std::int32_t phase, std::int64_t step) {
  EXPECT_TRUE(ledger.OnPart(Report(id, phase, step, 1), 5));
  auto second = ledger.OnPart(Report(id, phase, step, 0), 6);
  if (!second || !second->commit) {
    ADD_FAILURE() << id << " was not committed";
    return {};
  }
  return *std::move(second->commit);
}

TEST(CheckpointLedger, KeepsEveryKthThatWasEverCommitted) {
  CheckpointLedger ledger = NewLedger(1, 3);
  std::vector<std::string> gone;
  for (int step = 1; step <= 8; ++step) {
    EXPECT_EQ(Manifest(ledger, "s" + std::to_string(step), 0, step).ordinal(), step);
    for (const std::string& id : ledger.TakeExpired()) gone.push_back(id);
  }
  EXPECT_THAT(ledger.committed(), ElementsAre("s3", "s6", "s8"));
  EXPECT_THAT(gone, ElementsAre("s1", "s2", "s4", "s5", "s7"));
  // The count goes on in the next life: the ninth.
  CheckpointLedger next = NewLedger(1, 3, 0, 8);
  const proto::CheckpointManifest ninth = Manifest(next, "s9", 0, 9);
  EXPECT_EQ(ninth.ordinal(), 9);
  ASSERT_TRUE(Commit(next, "s10", 0, 10));
  EXPECT_THAT(next.TakeExpired(), IsEmpty());
  EXPECT_THAT(next.committed(), ElementsAre("s9", "s10"));
}

TEST(CheckpointLedger, TiesACheckpointToTheEvaluationNearestBefore) {
  CheckpointLedger ledger = NewLedger(9);
  EXPECT_FALSE(Manifest(ledger, "a", 4, 5).has_evaluation());
  ledger.OnEvaluation(Evaluated(4, 10, 30));
  EXPECT_FALSE(Manifest(ledger, "b", 4, 9).has_evaluation()) << "it is of a later state";
  EXPECT_EQ(Manifest(ledger, "c", 4, 10).evaluation().fdr(), 30);
  ledger.OnEvaluation(Evaluated(4, 20, 25));
  EXPECT_EQ(Manifest(ledger, "d", 4, 19).evaluation().step(), 10);
  const proto::CheckpointManifest behind = Manifest(ledger, "e", 5, 1);
  EXPECT_EQ(behind.evaluation().phase(), 4);
  EXPECT_EQ(behind.evaluation().step(), 20);
  // Back before it: as if it had never been.
  ledger.GoBack(4, 19);
  EXPECT_EQ(Manifest(ledger, "f", 4, 22).evaluation().step(), 10);
  ledger.GoBack(4, 10);
  EXPECT_EQ(Manifest(ledger, "g", 4, 23).evaluation().step(), 10);
}

TEST(CheckpointLedger, KeepsTheBestByFdr) {
  CheckpointLedger ledger = NewLedger(1, 0, 2);
  const double fdr[] = {50, 20, 30, 40, 10, 60};
  for (int i = 0; i < 6; ++i) {
    ledger.OnEvaluation(Evaluated(2, 10 * i, fdr[i]));
    ASSERT_TRUE(Commit(ledger, "s" + std::to_string(i), 2, 10 * i));
    static_cast<void>(ledger.TakeExpired());
  }
  EXPECT_THAT(ledger.committed(), ElementsAre("s1", "s4", "s5"));
  // No evaluation, or one that is no number, is no reason to keep it.
  CheckpointLedger without = NewLedger(1, 0, 2);
  ASSERT_TRUE(Commit(without, "a", 0, 1));
  without.OnEvaluation(Evaluated(0, 2, std::nan("")));
  ASSERT_TRUE(Commit(without, "b", 0, 2));
  ASSERT_TRUE(Commit(without, "c", 0, 3));
  EXPECT_THAT(without.TakeExpired(), ElementsAre("a", "b"));
}

TEST(CheckpointLedger, OneCheckpointStandsForAnEvaluation) {
  CheckpointLedger ledger = NewLedger(2, 0, 2);
  ledger.OnEvaluation(Evaluated(2, 0, 10));
  for (const int step : {1, 4, 8, 9}) {
    ASSERT_TRUE(Commit(ledger, "s" + std::to_string(step), 2, step));
    static_cast<void>(ledger.TakeExpired());
  }
  // s4 has the same FDr in its manifest, but has trained on since.
  EXPECT_THAT(ledger.committed(), ElementsAre("s1", "s8", "s9"));
  // The newer of two that are equally good.
  ledger.OnEvaluation(Evaluated(2, 10, 10));
  ledger.OnEvaluation(Evaluated(2, 11, 10));
  ASSERT_TRUE(Commit(ledger, "s10", 2, 10));
  ASSERT_TRUE(Commit(ledger, "s11", 2, 11));
  EXPECT_THAT(ledger.TakeExpired(), ElementsAre("s1", "s8", "s9"));
}

// Whatever the rule: a ledger that is restored from the manifests decides as the one that made
// them, and the newest stays.
TEST(CheckpointLedger, ARestoredLedgerDecidesTheSame) {
  for (int rule = 0; rule < 36; ++rule) {
    SCOPED_TRACE(rule);
    const int last = 1 + rule % 3;
    const int every = rule / 3 % 4;
    const int best = rule / 12;
    CheckpointLedger whole = NewLedger(last, every, best);
    std::map<std::string, proto::CheckpointManifest> disk;
    std::vector<proto::Evaluation> evaluations;
    for (int step = 1; step <= 30; ++step) {
      CheckpointLedger restored = NewLedger(last, every, best, step - 1);
      for (const auto& [id, manifest] : disk) restored.Restore(manifest);
      if (step % 4 == 0) evaluations.push_back(Evaluated(1, step, step * 37 % 11));
      for (const auto& evaluation : evaluations) restored.OnEvaluation(evaluation);
      if (step % 4 == 0) whole.OnEvaluation(evaluations.back());
      const std::string id = "s" + std::to_string(100 + step);
      const proto::CheckpointManifest made = Manifest(whole, id, 1, step);
      EXPECT_EQ(Manifest(restored, id, 1, step).SerializeAsString(), made.SerializeAsString());
      disk[id] = made;
      const std::vector<std::string> expired = whole.TakeExpired();
      EXPECT_EQ(restored.TakeExpired(), expired);
      for (const std::string& gone : expired) disk.erase(gone);
      EXPECT_EQ(whole.newest(), id);
      EXPECT_TRUE(disk.contains(id));
    }
  }
}

}  // namespace
}  // namespace dd2
