#include <gtest/gtest.h>

#include "cli/run_files.h"
#include "cli/run_view.h"
#include "proto/records.pb.h"
#include "storage/journal.h"
#include "storage/kv_store.h"
#include "storage_testing.h"

namespace dd2 {
namespace {

namespace json = boost::json;

constexpr const char* config_yaml = R"(name: tiny
seed: 9
teacher:
  path: bundle
phases:
  - kind: sample
    sequences: 512
    block: 256
  - kind: gts
    steps: 60
    validation: 0
  - kind: csd
    cycles: 50
  - kind: csd
    cycles: 40
  - kind: export
)";

std::string Metric(int phase, int step, const std::string& rest) {
  return "{\"phase\":" + std::to_string(phase) +
         ",\"kind\":\"csd\",\"step\":" + std::to_string(step) + ",\"time\":1.0," + rest + "}\n";
}

class RunFilesTest : public ::testing::Test {
 protected:
  RunFilesTest() { WriteAll(run_ / "config.yaml", config_yaml); }

  void WriteJournal(const std::vector<proto::JournalRecord>& records) {
    auto store = OpenRocksStore(run_ / "journal", RocksOptions());
    ASSERT_TRUE(store) << store.error().message();
    auto journal = Journal::Open(std::move(*store));
    ASSERT_TRUE(journal) << journal.error().message();
    ASSERT_TRUE((*journal)->Append(records, 1));
  }

  RunView View() {
    RunView view;
    const auto files = ReadRunFiles(run_);
    if (!files) ADD_FAILURE() << files.error().message();
    const Status applied = ApplyDocument(files ? FilesDocument(*files) : json::object(), view);
    EXPECT_TRUE(applied);
    return view;
  }

  TemporaryFolder folder_;
  std::filesystem::path run_ = folder_.path();
};

proto::JournalRecord Started() {
  proto::JournalRecord record;
  record.mutable_run_started()->set_run_id("r1");
  return record;
}
proto::JournalRecord Finished(int phase, double seconds) {
  proto::JournalRecord record;
  record.mutable_phase_finished()->set_phase(phase);
  record.mutable_phase_finished()->set_seconds(seconds);
  return record;
}
proto::JournalRecord RolledBack(int phase, int step) {
  proto::JournalRecord record;
  record.mutable_rolled_back()->set_phase(phase);
  record.mutable_rolled_back()->set_step(step);
  return record;
}
proto::JournalRecord Ended(const std::string& outcome, const std::string& message) {
  proto::JournalRecord record;
  record.mutable_run_ended()->set_outcome(outcome);
  record.mutable_run_ended()->set_message(message);
  return record;
}

TEST_F(RunFilesTest, KilledRunIsInterruptedWhereItsRecordEnds) {
  WriteJournal({Started(), Finished(0, 1), Finished(1, 12.5), Finished(2, 3)});
  WriteAll(run_ / "metrics.jsonl", Metric(3, 6, "\"csd/sid\":-0.5") +
                                       Metric(3, 7, "\"csd/sid\":-0.25") +
                                       "{\"phase\":3,\"kind\":\"csd\",\"step\":8,\"csd/s");
  const RunView view = View();
  EXPECT_EQ(view.state, "interrupted");
  EXPECT_EQ(view.seed, 9);
  ASSERT_EQ(view.phases.size(), 6u);  // the teacher check is put in front
  EXPECT_EQ(view.phase, 3u);
  EXPECT_EQ(view.phases[1].state, "done");
  EXPECT_EQ(view.phases[1].seconds, 12.5);
  EXPECT_EQ(view.phases[3].state, "running");
  EXPECT_EQ(view.phases[3].step, 7);  // the torn line is not a step
  EXPECT_EQ(view.phases[4].name, "csd-2");
  EXPECT_EQ(view.phases[4].state, "pending");
  ASSERT_EQ(view.metrics.size(), 1u);
  EXPECT_EQ(view.metrics[0].second, -0.25);
}

TEST_F(RunFilesTest, OutcomeOfTheLastLifeCounts) {
  WriteJournal({Started(), Finished(0, 1), Ended("failed", "rank 1: connection lost")});
  EXPECT_EQ(View().state, "failed");
  EXPECT_EQ(View().message, "rank 1: connection lost");
}

TEST_F(RunFilesTest, ResumedAndKilledIsNotFailedAnyMore) {
  WriteJournal({Started(), Finished(0, 1), Ended("failed", "disk full"), Started()});
  EXPECT_EQ(View().state, "interrupted");
  EXPECT_EQ(View().message, "");
}

TEST_F(RunFilesTest, RollBackTakesFinishedPhasesBack) {
  WriteJournal({Started(), Finished(0, 1), Finished(1, 2), Finished(2, 3), RolledBack(1, 1)});
  EXPECT_EQ(View().phase, 1u);
}

TEST_F(RunFilesTest, RollBackToTheEndOfAPhaseKeepsIt) {
  WriteJournal({Started(), Finished(0, 1), Finished(1, 2), Finished(2, 3), RolledBack(1, 2)});
  EXPECT_EQ(View().phase, 2u);
}

TEST_F(RunFilesTest, FinishedRunHasNoCurrentPhase) {
  WriteJournal({Started(), Finished(0, 1), Finished(1, 1), Finished(2, 1), Finished(3, 1),
                Finished(4, 1), Finished(5, 1), Ended("finished", "")});
  const RunView view = View();
  EXPECT_EQ(view.state, "finished");
  EXPECT_EQ(view.phase, 6u);
  for (const PhaseView& phase : view.phases) EXPECT_EQ(phase.state, "done");
}

TEST_F(RunFilesTest, JournalIsReadWhileItsOwnerHasItOpen) {
  auto store = OpenRocksStore(run_ / "journal", RocksOptions());
  ASSERT_TRUE(store);
  auto journal = Journal::Open(std::move(*store));
  ASSERT_TRUE(journal);
  ASSERT_TRUE((*journal)->Append({Started(), Finished(0, 1)}, 1));
  EXPECT_EQ(View().phase, 1u);
}

TEST_F(RunFilesTest, MissingFolderAndFolderWithoutRunAreNotFound) {
  const auto missing = ReadRunFiles(run_ / "nothing");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code(), Code::kNotFound);
  std::filesystem::create_directory(run_ / "empty");
  const auto empty = ReadRunFiles(run_ / "empty");
  ASSERT_FALSE(empty);
  EXPECT_EQ(empty.error().code(), Code::kNotFound);
}

}  // namespace
}  // namespace dd2
