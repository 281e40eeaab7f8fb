#include "storage/checkpoint_tools.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <numeric>

#include "proto/control.pb.h"
#include "storage/checkpoint_part.h"
#include "tests/support/crashing_file_system.h"
#include "tests/unit/storage_testing.h"

namespace dd2 {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kId = "p003-s000000120";

class CheckpointToolsTest : public testing::Test {
 protected:
  struct Tensor {
    std::string name;
    std::vector<std::int64_t> shape;
    std::vector<float> values;
  };
  CheckpointToolsTest() {
    Add("generator.param/w", {30, 7}, 1);
    Add("generator.param/none", {0, 3}, 0);
    Add("generator.param/b", {5}, 500);
    Add("generator.ema/w", {30, 7}, -9);
    Add("generator.ema/b", {5}, 0.25F);
    Add("guidance.adam_m/w", {101}, 7);
  }
  void Add(const std::string& name, std::vector<std::int64_t> shape, float first) {
    std::size_t count = 1;
    for (const std::int64_t size : shape) count *= static_cast<std::size_t>(size);
    std::vector<float> values(count);
    std::iota(values.begin(), values.end(), first);
    tensors_.push_back({name, std::move(shape), std::move(values)});
  }

  // Every tensor cut in `world` pieces, the last of them first: another layout than reshard's.
  void Commit(int world) {
    proto::CheckpointManifest manifest;
    manifest.set_checkpoint_id(kId);
    manifest.set_run_id("run");
    manifest.set_ordinal(12);
    manifest.set_committed_unix_ms(1234);
    manifest.mutable_header()->set_world_size(world);
    manifest.mutable_header()->set_step(120);
    for (const Tensor& tensor : tensors_) {
      proto::LogicalTensor& listed = *manifest.mutable_header()->add_tensors();
      listed.set_name(tensor.name);
      for (const std::int64_t size : tensor.shape) listed.add_shape(size);
    }
    for (int rank = 0; rank < world; ++rank) {
      std::vector<PieceToWrite> pieces;
      for (const Tensor& tensor : tensors_) {
        const auto size = static_cast<std::int64_t>(tensor.values.size());
        const std::int64_t begin = size * (world - rank - 1) / world;
        const std::int64_t end = size * (world - rank) / world;
        pieces.push_back(
            {tensor.name, tensor.shape, begin, end,
             std::span(tensor.values)
                 .subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin))});
      }
      const auto part = WriteCheckpointPart(RealFileSystem(), from_ / kId, rank, world, pieces);
      ASSERT_TRUE(part) << part.error().message();
      *manifest.add_parts() = *part;
    }
    const Status published = PublishManifest(RealFileSystem(), from_, manifest);
    ASSERT_TRUE(published) << published.error().message();
  }
  static CheckpointReader Open(const std::filesystem::path& checkpoints) {
    auto reader = CheckpointReader::Open(RealFileSystem(), checkpoints, kId);
    if (!reader) ADD_FAILURE() << reader.error().message();
    return *std::move(reader);
  }

  TemporaryFolder folder_;
  std::filesystem::path from_ = folder_.path() / "run" / "checkpoints";
  std::filesystem::path to_ = folder_.path() / "copy" / "checkpoints";
  std::vector<Tensor> tensors_;
};

TEST_F(CheckpointToolsTest, AnyWorldSizeAndLayoutToAnyOther) {
  for (const int before : {1, 2, 3, 7}) {
    Commit(before);
    const CheckpointReader source = Open(from_);
    const auto digests = DigestByGroup(source);
    ASSERT_TRUE(digests);
    EXPECT_EQ(digests->size(), 3U);
    for (const int after : {1, 2, 3, 4, 40}) {
      SCOPED_TRACE(testing::Message() << before << " to " << after);
      const Status done = ReshardCheckpoint(RealFileSystem(), source, after, to_);
      ASSERT_TRUE(done) << done.error().message();
      const CheckpointReader copy = Open(to_);
      EXPECT_EQ(*DigestByGroup(copy), *digests);
      EXPECT_EQ(copy.manifest().parts_size(), after);
      // All else is as it was.
      proto::CheckpointManifest same = copy.manifest();
      same.mutable_header()->set_world_size(before);
      *same.mutable_parts() = source.manifest().parts();
      same.set_manifest_hash(source.manifest().manifest_hash());
      EXPECT_EQ(same.SerializeAsString(), source.manifest().SerializeAsString());
      ASSERT_TRUE(DeleteCheckpoint(RealFileSystem(), to_, kId));
    }
    ASSERT_TRUE(DeleteCheckpoint(RealFileSystem(), from_, kId));
  }
}

TEST_F(CheckpointToolsTest, SharesAreEvenInEveryGroup) {
  tensors_ = {};
  Add("generator.param/w", {1000}, 1);
  Add("generator.param/v", {600}, 1);
  Add("generator.ema/w", {1600}, 2);
  Commit(1);
  ASSERT_TRUE(ReshardCheckpoint(RealFileSystem(), Open(from_), 3, to_));
  const CheckpointReader copy = Open(to_);
  for (const proto::CheckpointPart& part : copy.manifest().parts()) {
    std::map<std::string, std::int64_t> elements;
    for (const auto& piece : part.pieces()) {
      elements[GroupOf(piece.tensor())] += piece.end() - piece.begin();
      EXPECT_EQ(piece.begin() % 8, 0) << piece.stored_as();
    }
    EXPECT_NEAR(static_cast<double>(elements["generator.param"]), 1600.0 / 3, 16);
    EXPECT_EQ(elements["generator.param"], elements["generator.ema"]);
  }
}

TEST_F(CheckpointToolsTest, ReshardRefusesWhatIsThereAndClearsWhatWasLeft) {
  Commit(2);
  const CheckpointReader source = Open(from_);
  std::filesystem::create_directories(to_ / kId);
  WriteAll(to_ / kId / "rank-8-of-9.safetensors", "left by an attempt that was killed");
  ASSERT_TRUE(ReshardCheckpoint(RealFileSystem(), source, 1, to_));
  EXPECT_THAT(*RealFileSystem().List(to_ / kId),
              ElementsAre("manifest.json", "rank-0-of-1.safetensors"));
  const Status again = ReshardCheckpoint(RealFileSystem(), source, 2, to_);
  EXPECT_EQ(again.error().code(), Code::kFailedPrecondition);
  EXPECT_EQ(ReshardCheckpoint(RealFileSystem(), source, 2, from_).error().code(),
            Code::kFailedPrecondition);
  for (const int ranks : {0, -1, 1'000'000}) {
    EXPECT_EQ(ReshardCheckpoint(RealFileSystem(), source, ranks, to_).error().code(),
              Code::kInvalidArgument);
  }
  EXPECT_EQ(*DigestByGroup(Open(to_)), *DigestByGroup(source));
}

// The machine stops at every operation, and each of them fails once: the new checkpoint is whole or
// not there, the old one is untouched, and the next attempt succeeds.
TEST_F(CheckpointToolsTest, AReshardThatStopsAnywhereIsAllOrNothing) {
  Commit(2);
  const CheckpointReader source = Open(from_);
  const auto digests = DigestByGroup(source);
  const auto target = folder_.path() / "target";
  std::filesystem::create_directories(target);
  const auto checkpoints = target / "checkpoints";
  for (const FileFault fault : {FileFault::kCrash, FileFault::kCrashAfter, FileFault::kShortWrite,
                                FileFault::kNoSpace, FileFault::kIoError}) {
    for (const CrashLoss loss : {CrashLoss::kUnsynced, CrashLoss::kData, CrashLoss::kNothing}) {
      bool finished = false;
      for (int at = 0; !finished; ++at) {
        SCOPED_TRACE(testing::Message() << "fault " << static_cast<int>(fault) << ", loss "
                                        << static_cast<int>(loss) << ", operation " << at);
        ASSERT_LT(at, 60);
        CrashingFileSystem files(target);
        files.FailAt(at, fault);
        const Status done = ReshardCheckpoint(files, source, 3, checkpoints);
        finished = files.operations() <= at;
        ASSERT_TRUE(done || !finished);
        files.Restart(loss);
        const auto ids = ListCheckpoints(RealFileSystem(), checkpoints);
        ASSERT_TRUE(ids);
        if (done || !ids->empty()) {
          EXPECT_EQ(*DigestByGroup(Open(checkpoints)), *digests);
        }
        const bool crashed = fault != FileFault::kNoSpace && fault != FileFault::kIoError;
        if (!done && !crashed && loss == CrashLoss::kNothing) {
          // What failed gives its space back.
          EXPECT_FALSE(std::filesystem::exists(checkpoints / kId));
        }
        ASSERT_TRUE(DeleteCheckpoint(files, checkpoints, kId));
        const Status again = ReshardCheckpoint(files, source, 2, checkpoints);
        ASSERT_TRUE(again) << again.error().message();
        EXPECT_EQ(*DigestByGroup(Open(checkpoints)), *digests);
        std::filesystem::remove_all(checkpoints);
      }
    }
  }
  EXPECT_EQ(*DigestByGroup(Open(from_)), *digests);
}

TEST_F(CheckpointToolsTest, ExportsOneGroupAsPlainTensors) {
  Commit(3);
  const CheckpointReader source = Open(from_);
  const auto out = folder_.path() / "ema.safetensors";
  WriteAll(out, "an older one");
  const auto written = ExportGroup(RealFileSystem(), source, "generator.ema", out);
  ASSERT_TRUE(written) << written.error().message();
  EXPECT_EQ(Hash128(ReadAll(out)), written->hash);
  const auto file = SafetensorsFile::Open(out);
  ASSERT_TRUE(file) << file.error().message();
  EXPECT_EQ(file->tensors().size(), 2U);
  EXPECT_EQ(file->metadata().at("format"), "pt");
  EXPECT_EQ(file->metadata().at("dd2.checkpoint"), kId);
  EXPECT_EQ(*file->ReadF32("w", std::vector<std::int64_t>{30, 7}), tensors_[3].values);
  EXPECT_EQ(*file->ReadF32("b", std::vector<std::int64_t>{5}), tensors_[4].values);
  EXPECT_THAT(*RealFileSystem().List(folder_.path()), ElementsAre("ema.safetensors", "run"));

  const auto none = ExportGroup(RealFileSystem(), source, "guidance.ema", out);
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code(), Code::kNotFound);
  EXPECT_THAT(none.error().message(),
              HasSubstr("it has generator.ema generator.param guidance.adam_m"));
  // A disk that is full leaves the older file alone.
  const std::string before = ReadAll(out);
  CrashingFileSystem full(folder_.path());
  full.FailAt(1, FileFault::kNoSpace);
  EXPECT_EQ(ExportGroup(full, source, "generator.param", out).error().code(),
            Code::kResourceExhausted);
  EXPECT_EQ(ReadAll(out), before);
  EXPECT_THAT(*RealFileSystem().List(folder_.path()), ElementsAre("ema.safetensors", "run"));
}

TEST_F(CheckpointToolsTest, CountsGroups) {
  Commit(2);
  const auto groups = GroupsOf(Open(from_).manifest());
  ASSERT_EQ(groups.size(), 3U);
  EXPECT_EQ(groups.at("generator.param").tensors, 3);
  EXPECT_EQ(groups.at("generator.param").elements, 215);
  EXPECT_EQ(groups.at("guidance.adam_m").elements, 101);
}

std::int64_t PeakBytes() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return std::int64_t{usage.ru_maxrss} << 10;
}

// A checkpoint of 192 MiB, one tensor of it 128 MiB, goes through far less memory than one tensor.
TEST_F(CheckpointToolsTest, NothingOfTheSizeOfATensorIsInMemory) {
  constexpr std::int64_t kLarge = std::int64_t{32} << 20;
  std::vector<PieceToWrite> pieces;
  pieces.push_back({"generator.ema/large", {kLarge}, 0, kLarge, {}});
  pieces.push_back({"generator.ema/small", {kLarge / 2}, 0, kLarge / 2, {}});
  proto::CheckpointManifest manifest;
  manifest.set_checkpoint_id(kId);
  manifest.mutable_header()->set_world_size(1);
  for (const PieceToWrite& piece : pieces) {
    proto::LogicalTensor& listed = *manifest.mutable_header()->add_tensors();
    listed.set_name(piece.tensor);
    listed.add_shape(piece.end);
  }
  const std::int64_t before = PeakBytes();
  const auto part = WriteCheckpointPartFrom(
      RealFileSystem(), from_ / kId, 0, 1, pieces,
      [](std::size_t index, std::int64_t begin, std::span<float> out) -> Status {
        for (float& value : out)
          value = static_cast<float>(index + 1) + static_cast<float>(begin++);
        return {};
      });
  ASSERT_TRUE(part) << part.error().message();
  *manifest.add_parts() = *part;
  ASSERT_TRUE(PublishManifest(RealFileSystem(), from_, manifest));
  const CheckpointReader source = Open(from_);
  ASSERT_TRUE(ReshardCheckpoint(RealFileSystem(), source, 3, to_));
  const CheckpointReader copy = Open(to_);
  const auto digests = DigestByGroup(copy);
  ASSERT_TRUE(digests);
  EXPECT_EQ(*digests, *DigestByGroup(source));
  ASSERT_TRUE(
      ExportGroup(RealFileSystem(), copy, "generator.ema", folder_.path() / "x.safetensors"));
  EXPECT_LT(PeakBytes() - before, std::int64_t{64} << 20);
  float value = 0;
  ASSERT_TRUE(copy.Read("generator.ema/small", 1000, {&value, 1}));
  EXPECT_EQ(value, 1002);
}

}  // namespace
}  // namespace dd2
