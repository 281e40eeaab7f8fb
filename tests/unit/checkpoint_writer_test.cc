#include "storage/checkpoint_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <numeric>

#include "proto/control.pb.h"
#include "tests/support/crashing_file_system.h"
#include "tests/support/far_values.h"
#include "tests/unit/storage_testing.h"

namespace dd2 {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// The real one, whose creations wait for a gate.
class GatedFileSystem : public CrashingFileSystem {
 public:
  using CrashingFileSystem::CrashingFileSystem;
  Result<std::unique_ptr<WritableFile>> Create(const std::filesystem::path& path) override {
    gate_.get_future().wait();
    gate_ = {};
    return CrashingFileSystem::Create(path);
  }
  void Open() { gate_.set_value(); }

 private:
  std::promise<void> gate_;
};

class CheckpointWriterTest : public testing::Test {
 protected:
  CheckpointWriterTest() : frozen_(1000), moving_(77) {
    std::iota(frozen_.begin(), frozen_.end(), 1.0F);
    std::iota(moving_.begin(), moving_.end(), -5.0F);
  }

  // Two whole tensors, a cut one and an empty one, so that there are gaps and slices.
  std::vector<PieceToWrite> Pieces() const {
    return {{"guidance.param/w", {10, 100}, 0, 1000, frozen_},
            {"guidance.param/none", {0}, 0, 0, {}},
            {"generator.param/b", {77}, 0, 77, moving_},
            {"generator.adam_m/b", {500}, 3, 80, moving_}};
  }
  StagingMemory Memory() const {
    const auto bytes = AsyncCheckpointWriter::BytesFor({"a", 1, 2}, Pieces());
    EXPECT_TRUE(bytes) << bytes.error().message();
    auto memory = StagingMemory::Allocate(*bytes);
    EXPECT_TRUE(memory) << memory.error().message();
    return *std::move(memory);
  }
  // Keeps what done says.
  AsyncCheckpointWriter::Done Keep(const std::string& id) {
    return [this, id](Result<proto::CheckpointPart> part) {
      order_.push_back(id);
      parts_.push_back(std::move(part));
    };
  }
  // Until the pieces may change.
  static SaveStall Save(AsyncCheckpointWriter& writer, const PartName& name,
                        const std::vector<PieceToWrite>& pieces, AsyncCheckpointWriter::Done done) {
    const Status begun = writer.Begin(name, pieces, std::move(done));
    EXPECT_TRUE(begun) << begun.error().message();
    return writer.WaitCopied();
  }
  std::string Bytes(const std::string& id) const {
    return ReadAll(root_ / id / "rank-1-of-2.safetensors");
  }
  // What the synchronous writer makes of the pieces as they are now.
  std::string Expected(proto::CheckpointPart* part = nullptr) const {
    const auto written =
        WriteCheckpointPart(RealFileSystem(), folder_.path() / "sync", 1, 2, Pieces());
    EXPECT_TRUE(written) << written.error().message();
    if (part != nullptr) *part = *written;
    return ReadAll(folder_.path() / "sync" / "rank-1-of-2.safetensors");
  }

  TemporaryFolder folder_;
  std::filesystem::path root_ = folder_.path() / "checkpoints";
  std::vector<float> frozen_, moving_;
  std::vector<std::string> order_;
  std::vector<Result<proto::CheckpointPart>> parts_;
};

TEST_F(CheckpointWriterTest, TheFileIsTheSynchronousOne) {
  AsyncCheckpointWriter writer(RealFileSystem(), root_, Memory());
  proto::CheckpointPart part;
  const std::string expected = Expected(&part);
  const SaveStall stall = Save(writer, {"a", 1, 2}, Pieces(), Keep("a"));
  EXPECT_EQ(stall.copied_bytes, (1000 + 77 + 77) * 4);
  EXPECT_EQ(stall.ahead_bytes, 0);
  // The copy is what counts.
  moving_[0] = 99;
  writer.Wait();
  ASSERT_EQ(parts_.size(), 1U);
  ASSERT_TRUE(parts_[0]) << parts_[0].error().message();
  EXPECT_EQ(parts_[0]->SerializeAsString(), part.SerializeAsString());
  EXPECT_EQ(Bytes("a"), expected);
}

// 400 MB take a while to copy: a WaitCopied that did not wait would let the change into the file.
TEST_F(CheckpointWriterTest, TheChangeWaitsForTheCopy) {
  std::vector<float> large(100'000'000, 0.5F);
  const auto count = static_cast<std::int64_t>(large.size());
  const std::vector<PieceToWrite> pieces = {{"g/w", {count}, 0, count, large}};
  const auto bytes = AsyncCheckpointWriter::BytesFor({"a", 0, 1}, pieces);
  AsyncCheckpointWriter writer(RealFileSystem(), root_, *StagingMemory::Allocate(*bytes));
  ASSERT_TRUE(writer.Begin({"a", 0, 1}, pieces, Keep("a")));
  writer.WaitCopied();
  large.back() = 1.0F;
  writer.Wait();
  const std::string file = ReadAll(root_ / "a" / parts_.at(0)->file());
  float last = 0;
  ASSERT_GE(file.size(), sizeof(last));
  std::memcpy(&last, file.data() + file.size() - sizeof(last), sizeof(last));
  EXPECT_EQ(last, 0.5F);
}

TEST_F(CheckpointWriterTest, ALargePartIsWrittenInPieces) {
  frozen_.resize(3'000'000, 0.5F);  // 12 MB, several writes
  const std::vector<PieceToWrite> pieces = {{"g/w", {3'000'000}, 0, 3'000'000, frozen_}};
  const auto bytes = AsyncCheckpointWriter::BytesFor({"a", 0, 1}, pieces);
  AsyncCheckpointWriter writer(RealFileSystem(), root_, *StagingMemory::Allocate(*bytes));
  ASSERT_TRUE(writer.Begin({"a", 0, 1}, pieces, Keep("a")));
  writer.Wait();
  const auto part = WriteCheckpointPart(RealFileSystem(), folder_.path() / "sync", 0, 1, pieces);
  EXPECT_EQ(parts_.at(0)->hash(), part->hash());
  EXPECT_EQ(ReadAll(root_ / "a" / part->file()), ReadAll(folder_.path() / "sync" / part->file()));
}

TEST_F(CheckpointWriterTest, PiecesStagedAheadAreNotCopiedAgain) {
  AsyncCheckpointWriter writer(RealFileSystem(), root_, Memory());
  const auto staged = writer.StageAhead({"a", 1, 2}, Pieces(), 0, 2);
  ASSERT_TRUE(staged && *staged);
  moving_[3] = 1234;
  const std::string expected = Expected();
  const SaveStall stall = Save(writer, {"a", 1, 2}, Pieces(), Keep("a"));
  EXPECT_EQ(stall.ahead_bytes, 4000);
  EXPECT_EQ(stall.copied_bytes, 2 * 77 * 4);
  writer.Wait();
  EXPECT_EQ(Bytes("a"), expected);
}

TEST_F(CheckpointWriterTest, WhatWasStagedForAnotherSaveIsNotUsed) {
  AsyncCheckpointWriter writer(RealFileSystem(), root_, Memory());
  ASSERT_TRUE(writer.StageAhead({"a", 1, 2}, Pieces(), 0, 2));
  writer.Wait();
  frozen_[0] = 7;
  EXPECT_EQ(Save(writer, {"b", 1, 2}, Pieces(), Keep("b")).ahead_bytes, 0);
  writer.Wait();
  EXPECT_EQ(Bytes("b"), Expected());
  // Nor after the save, nor when it was dropped.
  EXPECT_EQ(Save(writer, {"c", 1, 2}, Pieces(), Keep("c")).ahead_bytes, 0);
  writer.Wait();
  ASSERT_TRUE(writer.StageAhead({"d", 1, 2}, Pieces(), 0, 2));
  writer.DropStaged();
  frozen_[0] = 8;
  EXPECT_EQ(Save(writer, {"d", 1, 2}, Pieces(), Keep("d")).ahead_bytes, 0);
  writer.Wait();
  EXPECT_EQ(Bytes("d"), Expected());
}

TEST_F(CheckpointWriterTest, StagingIsDroppedBetweenTwoPieces) {
  // Many pieces, so that some are left when it is dropped; whatever was copied is not used.
  std::vector<PieceToWrite> pieces;
  for (int i = 0; i < 200; ++i) {
    pieces.push_back({"g/" + std::to_string(i), {1000}, 0, 1000, frozen_});
  }
  const auto bytes = AsyncCheckpointWriter::BytesFor({"a", 0, 1}, pieces);
  AsyncCheckpointWriter writer(RealFileSystem(), root_, *StagingMemory::Allocate(*bytes));
  for (int round = 0; round < 20; ++round) {
    const std::string id = "a" + std::to_string(round);
    ASSERT_TRUE(*writer.StageAhead({id, 0, 1}, pieces, 0, 200));
    writer.DropStaged();
    frozen_[5] = static_cast<float>(round);  // nobody reads it any more
    EXPECT_EQ(Save(writer, {id, 0, 1}, pieces, Keep(id)).ahead_bytes, 0);
    writer.Wait();
  }
  const auto part = WriteCheckpointPart(RealFileSystem(), folder_.path() / "sync", 0, 1, pieces);
  EXPECT_EQ(parts_.back()->hash(), part->hash());
}

TEST_F(CheckpointWriterTest, TheGenerationIsInTheNameOfTheFile) {
  AsyncCheckpointWriter writer(RealFileSystem(), root_, Memory());
  // Staged for one generation, it is of no use to the next.
  ASSERT_TRUE(*writer.StageAhead({"a", 1, 2, 3}, Pieces(), 0, 2));
  EXPECT_EQ(Save(writer, {"a", 1, 2, 4}, Pieces(), Keep("a")).ahead_bytes, 0);
  writer.Wait();
  EXPECT_EQ(parts_.at(0)->file(), "rank-1-of-2-g4.safetensors");
  EXPECT_EQ(ReadAll(root_ / "a" / "rank-1-of-2-g4.safetensors"), Expected());
}

TEST_F(CheckpointWriterTest, GapsAreZeroAfterASaveOfAnotherLayout) {
  AsyncCheckpointWriter writer(RealFileSystem(), root_, Memory());
  const std::vector<PieceToWrite> dense = {{"x", {1000}, 0, 1000, frozen_}};
  ASSERT_TRUE(writer.Begin({"x", 1, 2}, dense, Keep("x")));
  ASSERT_TRUE(writer.Begin({"a", 1, 2}, Pieces(), Keep("a")));
  writer.Wait();
  EXPECT_EQ(Bytes("a"), Expected());
}

TEST_F(CheckpointWriterTest, ASecondSaveWaitsForTheFirst) {
  GatedFileSystem files(folder_.path());
  AsyncCheckpointWriter writer(files, root_, Memory());
  Save(writer, {"a", 1, 2}, Pieces(), Keep("a"));
  const std::string first = Expected();
  const auto staged = writer.StageAhead({"b", 1, 2}, Pieces(), 0, 2);
  ASSERT_TRUE(staged);
  EXPECT_FALSE(*staged) << "the memory is the first save's";
  moving_[0] = 42;
  auto second = std::async(std::launch::async, [&] {
    return Save(writer, {"b", 1, 2}, Pieces(), Keep("b"));
  });
  EXPECT_EQ(second.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  EXPECT_TRUE(order_.empty());
  files.Open();
  EXPECT_GE(second.get().waited_seconds, 0.03);
  files.Open();
  writer.Wait();
  EXPECT_THAT(order_, ElementsAre("a", "b"));
  EXPECT_EQ(Bytes("a"), first);
  EXPECT_EQ(Bytes("b"), Expected());
}

TEST_F(CheckpointWriterTest, TheEndFinishesWhatWasBegun) {
  const std::string expected = Expected();
  {
    AsyncCheckpointWriter writer(RealFileSystem(), root_, Memory());
    ASSERT_TRUE(writer.Begin({"a", 1, 2}, Pieces(), Keep("a")));
  }
  EXPECT_THAT(order_, ElementsAre("a"));
  EXPECT_EQ(Bytes("a"), expected);
  const AsyncCheckpointWriter unused(RealFileSystem(), root_, Memory());
}

TEST_F(CheckpointWriterTest, ErrorsSayWhatToDoAndTheNextSaveWorks) {
  for (const FileFault fault : {FileFault::kNoSpace, FileFault::kIoError}) {
    for (int index = 0; index < 6; ++index) {
      SCOPED_TRACE(testing::Message() << "operation " << index);
      order_.clear();
      parts_.clear();
      std::filesystem::remove_all(root_);
      CrashingFileSystem files(folder_.path());
      files.FailAt(index, fault);
      AsyncCheckpointWriter writer(files, root_, Memory());
      ASSERT_TRUE(writer.Begin({"a", 1, 2}, Pieces(), Keep("a")));
      writer.Wait();
      ASSERT_EQ(parts_.size(), 1U);
      ASSERT_FALSE(parts_[0]);
      const Error& error = parts_[0].error();
      const bool full = fault == FileFault::kNoSpace;
      EXPECT_EQ(error.code(), full ? Code::kResourceExhausted : Code::kUnavailable);
      EXPECT_THAT(error.message(), HasSubstr(full ? "Free space" : "Look at the disk"));
      EXPECT_THAT(error.message(), HasSubstr("checkpoint a was not written"));
      ASSERT_TRUE(writer.Begin({"a", 1, 2}, Pieces(), Keep("a")));
      writer.Wait();
      ASSERT_TRUE(parts_[1]) << parts_[1].error().message();
      EXPECT_EQ(Bytes("a"), Expected());
    }
  }
}

TEST_F(CheckpointWriterTest, AFailedSaveGivesItsSpaceBack) {
  CrashingFileSystem files(folder_.path());
  files.FailAt(3, FileFault::kNoSpace);  // two folders, the file, its first bytes
  AsyncCheckpointWriter writer(files, root_, Memory());
  ASSERT_TRUE(writer.Begin({"a", 1, 2}, Pieces(), Keep("a")));
  writer.Wait();
  ASSERT_FALSE(parts_.at(0));
  EXPECT_TRUE(std::filesystem::is_empty(root_ / "a"));
}

TEST_F(CheckpointWriterTest, ACommittedCheckpointIsNotWrittenAgain) {
  std::filesystem::create_directories(root_ / "a");
  WriteAll(root_ / "a" / "manifest.json", "{}");
  WriteAll(root_ / "a" / "rank-1-of-2.safetensors", "committed");
  AsyncCheckpointWriter writer(RealFileSystem(), root_, Memory());
  ASSERT_TRUE(writer.Begin({"a", 1, 2}, Pieces(), Keep("a")));
  writer.Wait();
  ASSERT_FALSE(parts_.at(0));
  EXPECT_EQ(parts_[0].error().code(), Code::kFailedPrecondition);
  EXPECT_EQ(Bytes("a"), "committed");
}

TEST_F(CheckpointWriterTest, WhatDoesNotFitIsRefusedAtOnce) {
  AsyncCheckpointWriter writer(RealFileSystem(), root_, *StagingMemory::Allocate(64));
  const auto large = writer.Begin({"a", 1, 2}, Pieces(), Keep("a"));
  ASSERT_FALSE(large);
  EXPECT_EQ(large.error().code(), Code::kInvalidArgument);
  EXPECT_THAT(large.error().message(), HasSubstr("the staging memory 64"));
  std::vector<PieceToWrite> bad = Pieces();
  bad[0].end += 1;
  EXPECT_EQ(writer.Begin({"a", 1, 2}, bad, Keep("a")).error().code(), Code::kInvalidArgument);
  EXPECT_EQ(writer.StageAhead({"a", 1, 2}, Pieces(), 3, 2).error().code(), Code::kInvalidArgument);
  writer.Wait();
  EXPECT_TRUE(order_.empty());
}

// Two groups of tensors in one memory that the host cannot touch, as they lie in a network's flat
// buffer: at multiples of 64 bytes.
class FarCheckpointTest : public CheckpointWriterTest {
 protected:
  static constexpr std::size_t kGroup = 1024 + 16 + 80 + 32;
  static std::vector<float> Values(float first) {
    std::vector<float> values(2 * kGroup);
    std::iota(values.begin(), values.end(), first);
    return values;
  }
  static std::vector<PieceToWrite> PiecesIn(std::span<const float> memory) {
    std::vector<PieceToWrite> pieces;
    for (const std::string group : {"generator.param", "guidance.param"}) {
      for (const std::int64_t size : {1024, 16, 77, 32}) {
        pieces.push_back({group + "/" + std::to_string(size),
                          {size},
                          0,
                          size,
                          memory.first(static_cast<std::size_t>(size))});
        memory = memory.subspan(static_cast<std::size_t>((size + 15) / 16 * 16));
      }
    }
    return pieces;
  }
  static constexpr std::int64_t kGroupBytes = (1024 + 16 + 77 + 32) * 4;

  AsyncCheckpointWriter Writer() {
    const auto bytes = AsyncCheckpointWriter::BytesFor({"a", 1, 2}, PiecesIn(far_.far()));
    return {RealFileSystem(), root_, *StagingMemory::Allocate(*bytes), std::ref(copies_)};
  }
  std::string ExpectedOf(const std::vector<float>& values) const {
    const auto part =
        WriteCheckpointPart(RealFileSystem(), folder_.path() / "sync", 1, 2, PiecesIn(values));
    EXPECT_TRUE(part) << part.error().message();
    return ReadAll(folder_.path() / "sync" / part->file());
  }

  FarValues far_{Values(1)};
  FarCopies copies_;
};

// A gap after 77 elements, in memory and in the file, and a group's end are ends of a copy.
TEST_F(FarCheckpointTest, NeighboursAreCopiedTogetherWithinAGroup) {
  AsyncCheckpointWriter writer = Writer();
  const SaveStall stall = Save(writer, {"a", 1, 2}, PiecesIn(far_.far()), Keep("a"));
  EXPECT_EQ(stall.copied_bytes, 2 * kGroupBytes);
  EXPECT_EQ(copies_.count, 4);
  far_.Set(Values(5000));  // the copy is what counts
  writer.Wait();
  EXPECT_EQ(Bytes("a"), ExpectedOf(Values(1)));
}

TEST_F(FarCheckpointTest, CopiesEndBetweenPiecesAfterSoManyBytes) {
  constexpr std::int64_t kPiece = std::int64_t{2} << 20;  // 8 MiB
  const FarValues far(std::vector<float>(3 * kPiece, 0.5F));
  std::vector<PieceToWrite> pieces;
  for (std::size_t i = 0; i < 3; ++i) {
    pieces.push_back(
        {"g/" + std::to_string(i), {kPiece}, 0, kPiece, far.far().subspan(i * kPiece, kPiece)});
  }
  const auto bytes = AsyncCheckpointWriter::BytesFor({"a", 0, 1}, pieces);
  AsyncCheckpointWriter writer(RealFileSystem(), root_, *StagingMemory::Allocate(*bytes),
                               std::ref(copies_));
  Save(writer, {"a", 0, 1}, pieces, Keep("a"));
  EXPECT_EQ(copies_.count, 2) << "so the training gets its memory back soon";
  writer.Wait();
  EXPECT_TRUE(parts_.at(0));
}

TEST_F(FarCheckpointTest, AHalfIsStagedAhead) {
  AsyncCheckpointWriter writer = Writer();
  ASSERT_TRUE(*writer.StageAhead({"a", 1, 2}, PiecesIn(far_.far()), 4, 4));
  writer.Wait();
  std::vector<float> values = Values(1);
  values[3] = values[1030] = 1234;  // of the other half
  far_.Set(values);
  const SaveStall stall = Save(writer, {"a", 1, 2}, PiecesIn(far_.far()), Keep("a"));
  EXPECT_EQ(stall.ahead_bytes, kGroupBytes);
  EXPECT_EQ(stall.copied_bytes, kGroupBytes);
  writer.Wait();
  EXPECT_EQ(Bytes("a"), ExpectedOf(values));
}

TEST_F(FarCheckpointTest, AFailedCopyEndsThatSaveAlone) {
  AsyncCheckpointWriter writer = Writer();
  for (const int fails_at : {1, 2, 4}) {
    SCOPED_TRACE(fails_at);
    copies_ = {.count = 0, .fails_at = fails_at};
    parts_.clear();
    Save(writer, {"a", 1, 2}, PiecesIn(far_.far()), Keep("a"));
    writer.Wait();
    ASSERT_EQ(parts_.size(), 1U);
    ASSERT_FALSE(parts_[0]);
    EXPECT_EQ(parts_[0].error().code(), Code::kInternal);
    EXPECT_EQ(
        parts_[0].error().message(),
        "checkpoint a was not written, its values could not be copied: the device has failed");
    EXPECT_FALSE(std::filesystem::exists(root_ / "a"));
  }
  Save(writer, {"a", 1, 2}, PiecesIn(far_.far()), Keep("a"));
  writer.Wait();
  ASSERT_TRUE(parts_.at(1)) << parts_[1].error().message();
  EXPECT_EQ(Bytes("a"), ExpectedOf(Values(1)));
}

TEST_F(FarCheckpointTest, WhatCouldNotBeStagedIsCopiedByTheSave) {
  AsyncCheckpointWriter writer = Writer();
  copies_.fails_at = 2;  // the first half of it is staged
  ASSERT_TRUE(*writer.StageAhead({"a", 1, 2}, PiecesIn(far_.far()), 4, 4));
  writer.Wait();
  const SaveStall stall = Save(writer, {"a", 1, 2}, PiecesIn(far_.far()), Keep("a"));
  EXPECT_EQ(stall.ahead_bytes, kGroupBytes - 32 * 4);
  EXPECT_EQ(stall.copied_bytes, kGroupBytes + 32 * 4);
  writer.Wait();
  EXPECT_EQ(Bytes("a"), ExpectedOf(Values(1)));
}

TEST(StagingMemoryTest, GivenMemoryGoesBackOnce) {
  std::vector<std::byte> given(10);
  int released = 0;
  {
    StagingMemory memory(given, [&released] { ++released; });
    StagingMemory moved = std::move(memory);
    EXPECT_EQ(moved.bytes().data(), given.data());
    StagingMemory other = *StagingMemory::Allocate(64);
    other = std::move(moved);
    EXPECT_EQ(other.bytes().size(), 10U);
    EXPECT_EQ(released, 0);
  }
  EXPECT_EQ(released, 1);
}

}  // namespace
}  // namespace dd2
