#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cli/checkpoint_files.h"
#include "cli/checkpoint_prune.h"
#include "common/config.h"
#include "proto/records.pb.h"
#include "storage/checkpoint_store.h"
#include "storage/journal.h"
#include "storage/kv_store.h"
#include "tests/support/crashing_file_system.h"
#include "tests/unit/storage_testing.h"

namespace dd2 {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

class PruneTest : public testing::Test {
 protected:
  // Five committed checkpoints, s1 to s5, of a run that keeps two.
  PruneTest() {
    std::filesystem::create_directories(run_);
    RunConfig config;
    config.name = "x";
    config.teacher.path = "/teacher";
    config.checkpoint.keep_last = 2;
    config.phases = {DefaultPhase(PhaseKind::kTeacherCheck), DefaultPhase(PhaseKind::kSample)};
    WriteAll(run_ / "config.yaml", DumpRunConfig(config));
    std::vector<proto::JournalRecord> records(5);
    for (int i = 1; i <= 5; ++i) {
      *records[static_cast<std::size_t>(i - 1)].mutable_checkpoint_committed() = Commit(i);
    }
    auto journal = OpenJournal();
    EXPECT_TRUE(journal->Append(std::move(records), 1));
  }
  static std::string Id(int step) { return CheckpointId(1, step); }
  proto::CheckpointManifest Commit(int step) {
    proto::CheckpointManifest manifest;
    manifest.set_checkpoint_id(Id(step));
    manifest.set_ordinal(step);
    manifest.mutable_header()->set_phase(1);
    manifest.mutable_header()->set_step(step);
    // An FDr that is best in the middle.
    manifest.mutable_evaluation()->set_step(step);
    manifest.mutable_evaluation()->set_fdr(10 + (step - 3) * (step - 3));
    proto::LogicalTensor& tensor = *manifest.mutable_header()->add_tensors();
    tensor.set_name("generator.param/w");
    tensor.add_shape(1);
    const float value = static_cast<float>(step);
    const PieceToWrite piece{"generator.param/w", {1}, 0, 1, {&value, 1}};
    auto part = WriteCheckpointPart(RealFileSystem(), checkpoints_ / Id(step), 0, 1, {&piece, 1});
    EXPECT_TRUE(part) << part.error().message();
    *manifest.add_parts() = *part;
    EXPECT_TRUE(PublishManifest(RealFileSystem(), checkpoints_, manifest));
    return manifest;
  }
  std::unique_ptr<Journal> OpenJournal() {
    auto store = OpenRocksStore(run_ / "journal", RocksOptions());
    EXPECT_TRUE(store) << store.error().message();
    return *Journal::Open(std::move(*store));
  }
  std::vector<std::string> Dropped() {
    std::vector<std::string> ids;
    const auto journal = OpenJournal();
    for (const auto& record : journal->records()) {
      if (!record.has_checkpoint_dropped()) continue;
      ids.push_back(record.checkpoint_dropped().checkpoint_id());
      EXPECT_THAT(record.checkpoint_dropped().reason(), HasSubstr("keep_last"));
    }
    return ids;
  }
  void Set(const std::string& line) {
    std::string text = ReadAll(run_ / "config.yaml");
    const auto at = text.find("  keep_last: 2\n");
    ASSERT_NE(at, std::string::npos) << text;
    const std::string key = line.substr(0, line.find(':'));
    const auto old = text.find(key + ":");
    ASSERT_NE(old, std::string::npos);
    text.replace(old, text.find('\n', old) - old, line);
    WriteAll(run_ / "config.yaml", text);
  }
  auto Prune(std::optional<int> keep = std::nullopt, bool dry_run = false) {
    PruneRequest request;
    request.run = run_;
    request.keep = keep;
    request.dry_run = dry_run;
    return PruneRun(RealFileSystem(), request);
  }
  std::vector<std::string> Ids() const {
    auto ids = CheckpointIds(run_);
    if (!ids) ADD_FAILURE() << ids.error().message();
    return *std::move(ids);
  }
  void Damage(int step) {
    const auto path = checkpoints_ / Id(step) / "rank-0-of-1.safetensors";
    std::string bytes = ReadAll(path);
    bytes.back() ^= 1;
    WriteAll(path, bytes);
  }

  TemporaryFolder folder_;
  std::filesystem::path run_ = folder_.path() / "run";
  std::filesystem::path checkpoints_ = run_ / "checkpoints";
};

TEST_F(PruneTest, DeletesByTheRuleOfTheRunAndSaysSoInTheJournal) {
  const auto dry = Prune({}, true);
  ASSERT_TRUE(dry) << dry.error().message;
  EXPECT_THAT(dry->deleted, ElementsAre(Id(1), Id(2), Id(3)));
  EXPECT_THAT(Ids(), SizeIs(5));
  EXPECT_THAT(Dropped(), IsEmpty());
  const auto outcome = Prune();
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_EQ(outcome->rule, "keep_last = 2");
  EXPECT_THAT(outcome->deleted, ElementsAre(Id(1), Id(2), Id(3)));
  EXPECT_THAT(outcome->kept, ElementsAre(Id(4), Id(5)));
  EXPECT_EQ(outcome->freed_bytes, dry->freed_bytes);
  EXPECT_GT(outcome->freed_bytes, 0);
  EXPECT_THAT(Ids(), ElementsAre(Id(4), Id(5)));
  EXPECT_THAT(Dropped(), ElementsAre(Id(1), Id(2), Id(3)));
  EXPECT_FALSE(std::filesystem::exists(checkpoints_ / Id(1)));
  const auto again = Prune();
  ASSERT_TRUE(again);
  EXPECT_THAT(again->deleted, IsEmpty());
}

TEST_F(PruneTest, EveryAndBestAreKeptAlsoWithKeep) {
  Set("keep_every: 2");
  Set("keep_best: 1");
  const auto outcome = Prune(1);
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_EQ(outcome->rule, "keep_last = 1, keep_every = 2, keep_best = 1");
  EXPECT_THAT(outcome->deleted, ElementsAre(Id(1)));
  EXPECT_THAT(outcome->kept, ElementsAre(Id(2), Id(3), Id(4), Id(5)));
}

TEST_F(PruneTest, ALiveRunIsRefused) {
  for (const char* name : {"dd2.lock", "lock"}) {
    auto lock = FileLock::Acquire(run_ / name, "the run, process 77");
    ASSERT_TRUE(lock);
    for (const bool dry_run : {false, true}) {
      const auto outcome = Prune({}, dry_run);
      ASSERT_FALSE(outcome);
      EXPECT_EQ(outcome.error().exit_code, kExitAlreadyStarted);
      EXPECT_THAT(outcome.error().message, HasSubstr("the run, process 77"));
      EXPECT_THAT(outcome.error().message, HasSubstr("dd2 cancel"));
    }
  }
  EXPECT_THAT(Ids(), SizeIs(5));
  EXPECT_TRUE(Prune());
}

TEST_F(PruneTest, TheNewestThatVerifiesIsNeverDeleted) {
  Damage(5);
  Damage(4);
  WriteAll(checkpoints_ / Id(2) / "manifest.json", "{}");
  const auto outcome = Prune(1);
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_THAT(outcome->kept, ElementsAre(Id(3)));
  EXPECT_THAT(outcome->deleted, ElementsAre(Id(1)));
  EXPECT_THAT(outcome->damaged, ElementsAre(HasSubstr(Id(2)), HasSubstr(Id(5)), HasSubstr(Id(4))));
  EXPECT_THAT(Ids(), ElementsAre(Id(2), Id(3), Id(4), Id(5)));
  Damage(3);
  const auto none = Prune(1);
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().exit_code, kExitBadData);
  EXPECT_THAT(none.error().message, HasSubstr("none is deleted"));
  EXPECT_THAT(Ids(), SizeIs(4));
}

TEST_F(PruneTest, APruneThatStopsAnywhereLeavesGoodCheckpoints) {
  bool finished = false;
  for (int at = 0; !finished; ++at) {
    ASSERT_LT(at, 40);
    SCOPED_TRACE(at);
    CrashingFileSystem files(run_);
    files.FailAt(at, FileFault::kCrash);
    PruneRequest request;
    request.run = run_;
    const auto outcome = PruneRun(files, request);
    finished = static_cast<bool>(outcome);
    for (const std::string& id : Ids()) {
      EXPECT_TRUE(VerifyCheckpoint(RealFileSystem(), checkpoints_, id)) << id;
    }
    EXPECT_THAT(Ids(), testing::IsSupersetOf({Id(4), Id(5)}));
    // What is gone was journalled before.
    const std::vector<std::string> dropped = Dropped();
    for (const int step : {1, 2, 3}) {
      if (!std::filesystem::exists(checkpoints_ / Id(step) / "manifest.json")) {
        EXPECT_THAT(dropped, testing::Contains(Id(step)));
      }
    }
    if (finished) break;
    for (const int step : {1, 2, 3}) {
      ASSERT_TRUE(DeleteCheckpoint(RealFileSystem(), checkpoints_, Id(step)));
      Commit(step);
    }
  }
}

TEST_F(PruneTest, WhatIsNoRunIsSaid) {
  std::filesystem::remove(run_ / "config.yaml");
  const auto outcome = Prune();
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().exit_code, kExitNotFound);
}

TEST_F(PruneTest, QuarantineIsListedWithItsReason) {
  EXPECT_THAT(*QuarantinedCheckpoints(run_), IsEmpty());
  const auto folder = run_ / "quarantine" / (Id(3) + "-1700000000123");
  std::filesystem::create_directories(folder);
  std::filesystem::create_directories(run_ / "quarantine" / (Id(2) + "-17"));
  WriteAll(folder / "reason.txt", "its bytes changed on the disk\n");
  const auto found = QuarantinedCheckpoints(run_);
  ASSERT_TRUE(found);
  ASSERT_THAT(*found, SizeIs(2));
  EXPECT_EQ((*found)[1].id, Id(3));
  EXPECT_EQ((*found)[1].unix_ms, 1'700'000'000'123);
  EXPECT_EQ((*found)[1].reason, "its bytes changed on the disk");
  EXPECT_EQ((*found)[0].id, Id(2));
  EXPECT_EQ((*found)[0].unix_ms, 17);
}

}  // namespace
}  // namespace dd2
