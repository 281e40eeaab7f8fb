// A rank's checkpoints beside its training, on tiny networks: the real trainer, the real writer,
// and a coordinator that the test plays.

#include "worker/engine/checkpoint_saver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <future>
#include <mutex>

#include "tests/support/crashing_file_system.h"
#include "tests/support/tiny_teacher.h"
#include "tests/unit/storage_testing.h"
#include "worker/engine/phase_steps.h"
#include "worker/engine/trainer.h"

namespace dd2 {
namespace {

using testing::HasSubstr;
using Until = CheckpointSaver::Until;

constexpr std::int32_t kGts = 1;
constexpr std::int32_t kRegress = 2;
constexpr std::int32_t kCsd = 3;
constexpr std::int32_t kAlign = 4;

// Keeps what is said; the test says what is decided.
class PlayedCoordinator final : public CommitChannel {
 public:
  void SendPart(std::uint64_t generation, proto::Envelope envelope) override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !held_up_; });
    generations.push_back(generation);
    said.push_back(std::move(envelope));
    changed_.notify_all();
  }
  void Send(proto::CheckpointHeld stall) override { held.push_back(std::move(stall)); }
  void SetWaitsForDisk(bool waits) override { waits_for_disk = waits; }
  Result<bool> WaitForCheckpoint(const std::string& id, std::int32_t attempt,
                                 std::chrono::milliseconds) override {
    waits.push_back(id + " " + std::to_string(attempt));
    if (decisions.empty()) return Error(Code::kAborted, "the generation is over");
    const bool committed = decisions.front();
    decisions.erase(decisions.begin());
    return committed;
  }
  void HoldUp(bool hold) {
    const std::lock_guard lock(mutex_);
    held_up_ = hold;
    changed_.notify_all();
  }
  // The last of `count` messages.
  proto::Envelope Said(std::size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return said.size() >= count; });
    return said.at(count - 1);
  }

  std::vector<std::uint64_t> generations;
  std::vector<proto::Envelope> said;
  std::vector<proto::CheckpointHeld> held;
  std::vector<std::string> waits;
  std::vector<bool> decisions;
  std::atomic<bool> waits_for_disk{false};

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_up_ = false;
};

RunConfig TinyConfig() {
  RunConfig config;
  config.seed = 3;
  config.batch.shards = 2;
  config.model.head_width = 16;
  config.model.head_depth = 1;
  config.model.time_features = 8;
  config.phases.resize(5);
  config.phases[0].kind = PhaseKind::kSample;
  const PhaseKind kinds[] = {PhaseKind::kGts, PhaseKind::kRegress, PhaseKind::kCsd,
                             PhaseKind::kAlign};
  for (std::size_t i = 0; i < 4; ++i) {
    PhaseConfig& phase = config.phases[i + 1];
    phase = DefaultPhase(kinds[i]);
    phase.steps = 4;
    phase.batch = 4;
    phase.guidance_updates = 2;
  }
  return config;
}

class CheckpointSaverTest : public testing::Test {
 protected:
  CheckpointSaverTest()
      : teacher_(MakeTinyTeacher(5)),
        state_(MakeTrainingState(Network::Layout(SpecFor(config_.model, *teacher_.teacher)), 0, 1)),
        alone_(NewLocalCollectives()),
        trainer_(config_, teacher_, *alone_, state_),
        data_({.sampling = config_.teacher,
               .seed = 3,
               .phase = 0,
               .sequences = 24,
               .block = 8,
               .ode_steps = 4,
               .use_cache = false,
               .numeric_mode = ""},
              teacher_, nullptr) {
    SetComputeThreads(1);
    EXPECT_TRUE(data_.LoadSequences());
    EXPECT_TRUE(trainer_.EnterPhase(kGts));
  }
  std::unique_ptr<CheckpointSaver> NewSaver(FileSystem& files = RealFileSystem()) {
    Result<StagingMemory> memory = CheckpointSaver::Allocate(state_);
    EXPECT_TRUE(memory) << memory.error().message();
    auto saver = std::make_unique<CheckpointSaver>(files, root_, *std::move(memory), state_,
                                                   CheckpointIdentity(), coordinator_,
                                                   std::chrono::seconds(60));
    saver->StartGeneration(7, OneDomain(0, 1), "");
    trainer_.OnChange([saver = saver.get()] { saver->BeforeChange(); });
    return saver;
  }
  void Step() {
    const PhaseKind kind = config_.phases.at(static_cast<std::size_t>(state_.phase)).kind;
    const Result<StepOutcome> outcome = kind == PhaseKind::kGts ? trainer_.GtsStep(data_, Wish())
                                        : kind == PhaseKind::kRegress
                                            ? trainer_.RegressStep(data_, Wish())
                                        : kind == PhaseKind::kCsd ? trainer_.CsdCycle(Wish())
                                                                  : trainer_.AlignStep(Wish());
    ASSERT_TRUE(outcome) << outcome.error().message();
    AdvanceSteps(state_, 1);
  }
  // What the synchronous writer makes of the state as it is now.
  std::string Expected() const {
    const auto part = WriteCheckpointPart(RealFileSystem(), folder_.path() / "sync", 0, 1,
                                          PiecesOf(state_, OneDomain(0, 1)));
    EXPECT_TRUE(part) << part.error().message();
    return ReadAll(folder_.path() / "sync" / part->file());
  }
  std::string Written(const proto::PartReport& report) const {
    return ReadAll(root_ / report.checkpoint_id() / report.part().file());
  }

  const RunConfig config_ = TinyConfig();
  const TeacherBundle teacher_;
  TrainingState state_;
  const std::unique_ptr<Collectives> alone_;
  Trainer trainer_;
  TeacherData data_;
  TemporaryFolder folder_;
  const std::filesystem::path root_ = folder_.path() / "checkpoints";
  PlayedCoordinator coordinator_;
};

TEST_F(CheckpointSaverTest, TrainingGoesOnWhileThePartIsWritten) {
  const auto saver = NewSaver();
  Step();
  const std::string expected = Expected();
  coordinator_.HoldUp(true);
  ASSERT_TRUE(saver->Save(Until::kBegun));
  EXPECT_EQ(saver->begun(), CheckpointId(kGts, 1));
  EXPECT_TRUE(coordinator_.held.empty()) << "what it costs is known when the state may change";
  Step();
  ASSERT_EQ(coordinator_.held.size(), 1U);
  EXPECT_EQ(coordinator_.held[0].step(), 1);
  // One is in flight: the next waits for it.
  auto next = std::async(std::launch::async, [&] { return saver->Save(Until::kBegun); });
  EXPECT_EQ(next.wait_for(std::chrono::milliseconds(100)), std::future_status::timeout);
  EXPECT_TRUE(coordinator_.waits_for_disk);
  coordinator_.HoldUp(false);
  ASSERT_TRUE(next.get());
  EXPECT_FALSE(coordinator_.waits_for_disk);
  saver->BeforeChange();
  EXPECT_GE(coordinator_.held.at(1).waited_seconds(), 0.05);
  EXPECT_GE(coordinator_.held[1].seconds(), coordinator_.held[1].waited_seconds());
  const proto::PartReport first = coordinator_.Said(1).part_report();
  EXPECT_EQ(first.checkpoint_id(), CheckpointId(kGts, 1));
  EXPECT_EQ(first.header().step(), 1);
  EXPECT_EQ(first.part().file(), "rank-0-of-1-g7.safetensors");
  EXPECT_EQ(Written(first), expected);
  EXPECT_EQ(Written(coordinator_.Said(2).part_report()), Expected());
  EXPECT_EQ(coordinator_.generations, (std::vector<std::uint64_t>{7, 7}));
  EXPECT_TRUE(coordinator_.waits.empty());
}

// In every phase the half that the trainer calls frozen is staged while it trains the other.
TEST_F(CheckpointSaverTest, TheFrozenHalfIsStagedAheadAndTheFileIsTheSame) {
  const auto saver = NewSaver();
  std::size_t saves = 0;
  std::vector<NetworkRole> frozen;
  trainer_.OnFrozen([&](NetworkRole network) {
    frozen.push_back(network);
    saver->StageAhead(network, state_.step + 1);
  });
  for (const std::int32_t phase : {kGts, kRegress, kCsd, kAlign}) {
    SCOPED_TRACE(phase);
    ASSERT_TRUE(trainer_.EnterPhase(phase));
    frozen.clear();
    for (int step = 0; step < 2; ++step) {
      Step();
      const std::string expected = Expected();
      ASSERT_TRUE(saver->Save(Until::kBegun));
      saver->BeforeChange();
      EXPECT_EQ(saver->stall().ahead_bytes, saver->stall().copied_bytes) << "one half of it each";
      EXPECT_EQ(Written(coordinator_.Said(++saves).part_report()), expected);
      saver->Wait();  // what follows has the memory to itself
    }
    const bool generator = phase == kGts || phase == kAlign;
    EXPECT_EQ(frozen.size(), 2U);
    EXPECT_EQ(frozen.front(), generator ? NetworkRole::kGenerator : NetworkRole::kGuidance);
  }
}

// Until the trainer says that it changes the state, a save may read it.
TEST_F(CheckpointSaverTest, TheTrainerTellsBeforeEveryChange) {
  std::string last = Expected();
  int told = 0;
  trainer_.OnChange([&] {
    ++told;
    if (told == 1) {
      EXPECT_EQ(Expected(), last);
    }
  });
  const auto expect_change = [&](int times) {
    EXPECT_EQ(told, times);
    const std::string now = Expected();
    EXPECT_NE(now, last);
    last = now;
    told = 0;
  };
  for (const std::int32_t phase : {kGts, kRegress, kCsd, kAlign}) {
    SCOPED_TRACE(phase);
    ASSERT_TRUE(trainer_.EnterPhase(phase));
    EXPECT_EQ(told, 1);
    last = Expected();
    told = 0;
    Step();
    expect_change(phase == kCsd ? 3 : 1);
    Step();
    expect_change(phase == kCsd ? 3 : 1);
  }
}

TEST_F(CheckpointSaverTest, WhatWasStagedForAnotherPositionOrGenerationIsNotUsed) {
  const auto saver = NewSaver();
  saver->StageAhead(NetworkRole::kGuidance, 5);
  saver->StartGeneration(8, OneDomain(0, 1), "");  // from here on the state may change
  Step();
  ASSERT_TRUE(saver->Save(Until::kBegun));
  saver->BeforeChange();
  EXPECT_EQ(saver->stall().ahead_bytes, 0);
  EXPECT_EQ(Written(coordinator_.Said(1).part_report()), Expected());
  saver->Wait();
  saver->StageAhead(NetworkRole::kGenerator, 3);
  Step();
  ASSERT_TRUE(saver->Save(Until::kBegun));  // asked for, one step before
  saver->BeforeChange();
  EXPECT_EQ(saver->stall().ahead_bytes, 0);
  EXPECT_EQ(Written(coordinator_.Said(2).part_report()), Expected());
}

TEST_F(CheckpointSaverTest, AFailedSaveIsReportedAndTriedAgainWhereItIsWanted) {
  CrashingFileSystem files(folder_.path());
  files.FailAt(3, FileFault::kNoSpace);
  const auto saver = NewSaver(files);
  Step();
  coordinator_.decisions = {false};
  ASSERT_TRUE(saver->Save(Until::kDecided)) << "the rank goes on";
  const proto::PartFailed failed = coordinator_.Said(1).part_failed();
  EXPECT_EQ(failed.checkpoint_id(), CheckpointId(kGts, 1));
  EXPECT_EQ(failed.attempt(), 1);
  EXPECT_EQ(failed.code(), CodeName(Code::kResourceExhausted));
  EXPECT_THAT(failed.message(), HasSubstr("Free space"));
  // At the same position: once its failure is known to all.
  coordinator_.decisions = {false, true};
  ASSERT_TRUE(saver->Save(Until::kDecided));
  EXPECT_EQ(coordinator_.Said(2).part_report().attempt(), 2);
  EXPECT_EQ(Written(coordinator_.Said(2).part_report()), Expected());
  // Committed now: not written again, whoever asks.
  coordinator_.decisions = {true};
  ASSERT_TRUE(saver->Save(Until::kBegun));
  EXPECT_EQ(coordinator_.said.size(), 2U);
  const std::string id = CheckpointId(kGts, 1);
  EXPECT_EQ(coordinator_.waits,
            (std::vector<std::string>{id + " 1", id + " 1", id + " 2", id + " 2"}));
  // A generation that ends meanwhile is an end of the wait, not of the save.
  Step();
  EXPECT_EQ(saver->Save(Until::kDecided).error().code(), Code::kAborted);
  EXPECT_EQ(coordinator_.Said(3).part_report().checkpoint_id(), CheckpointId(kGts, 2));
}

// The end of the training: no later checkpoint makes up for this one.
TEST_F(CheckpointSaverTest, ASaveThatMustBeCommittedIsTriedAgain) {
  CrashingFileSystem files(folder_.path());
  files.FailAt(3, FileFault::kNoSpace);
  const auto saver = NewSaver(files);
  Step();
  coordinator_.decisions = {false, true};
  ASSERT_TRUE(saver->Save(Until::kCommitted));
  EXPECT_TRUE(coordinator_.Said(1).has_part_failed());
  EXPECT_EQ(coordinator_.Said(2).part_report().attempt(), 2);
  EXPECT_EQ(Written(coordinator_.Said(2).part_report()), Expected());
  EXPECT_FALSE(coordinator_.waits_for_disk);
}

}  // namespace
}  // namespace dd2
