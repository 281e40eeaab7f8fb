#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "proto/control.pb.h"
#include "storage/checkpoint_store.h"
#include "storage/safetensors.h"
#include "tests/support/crashing_file_system.h"
#include "tests/unit/storage_testing.h"

namespace dd2 {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Two logical tensors of a run, cut over any number of ranks.
class CheckpointTest : public testing::Test {
 protected:
  CheckpointTest() : weight_(12), bias_(7) {
    std::iota(weight_.begin(), weight_.end(), 1.0F);
    std::iota(bias_.begin(), bias_.end(), -7.5F);
  }

  std::filesystem::path Folder(const std::string& id) const { return root_ / id; }

  // Rank r's share: elements [n r / w, n (r + 1) / w) of each tensor.
  std::vector<PieceToWrite> Share(int rank, int world) const {
    std::vector<PieceToWrite> pieces;
    const auto add = [&](const std::string& name, std::vector<std::int64_t> shape,
                         const std::vector<float>& values) {
      const auto size = static_cast<std::int64_t>(values.size());
      const std::int64_t begin = size * rank / world;
      const std::int64_t end = size * (rank + 1) / world;
      pieces.push_back({name, std::move(shape), begin, end,
                        std::span(values).subspan(static_cast<std::size_t>(begin),
                                                  static_cast<std::size_t>(end - begin))});
    };
    add("generator.param/weight", {3, 4}, weight_);
    add("generator.param/bias", {7}, bias_);
    add("guidance.adam_m/weight", {3, 4}, weight_);
    return pieces;
  }

  proto::CheckpointManifest WriteParts(const std::string& id, int world) {
    proto::CheckpointManifest manifest;
    manifest.set_checkpoint_id(id);
    manifest.set_run_id("run");
    proto::CheckpointHeader& header = *manifest.mutable_header();
    header.set_world_size(world);
    header.set_step(120);
    header.set_extra_json(std::string("{\"a\":\xFF}"));
    for (const PieceToWrite& piece : Share(0, 1)) {
      proto::LogicalTensor& tensor = *header.add_tensors();
      tensor.set_name(piece.tensor);
      for (const std::int64_t size : piece.shape) tensor.add_shape(size);
    }
    for (int rank = 0; rank < world; ++rank) {
      auto part =
          WriteCheckpointPart(RealFileSystem(), Folder(id), rank, world, Share(rank, world));
      EXPECT_TRUE(part) << part.error().message();
      *manifest.add_parts() = *part;
    }
    return manifest;
  }
  Status Publish(const proto::CheckpointManifest& manifest) {
    return PublishManifest(RealFileSystem(), root_, manifest);
  }
  void Commit(const std::string& id, int world) {
    const Status published = Publish(WriteParts(id, world));
    ASSERT_TRUE(published) << published.error().message();
  }
  CheckpointReader Open(const std::string& id) {
    auto reader = CheckpointReader::Open(RealFileSystem(), root_, id);
    if (!reader) ADD_FAILURE() << reader.error().message();
    return *std::move(reader);
  }
  Error VerifyError(const std::string& id) {
    const Status verified = VerifyCheckpoint(RealFileSystem(), root_, id);
    return verified ? Error(Code::kInternal, "verified") : verified.error();
  }

  TemporaryFolder folder_;
  std::filesystem::path root_ = folder_.path() / "checkpoints";
  std::vector<float> weight_, bias_;
};

TEST_F(CheckpointTest, IdsSortByPosition) {
  EXPECT_EQ(CheckpointId(3, 120), "p003-s000000120");
  EXPECT_LT(CheckpointId(3, 999), CheckpointId(3, 1000));
  EXPECT_LT(CheckpointId(9, 1000), CheckpointId(10, 0));
}

TEST_F(CheckpointTest, ReadsAcrossPieceBorders) {
  Commit("a", 2);
  ASSERT_TRUE(VerifyCheckpoint(RealFileSystem(), root_, "a"));
  const CheckpointReader reader = Open("a");
  EXPECT_EQ(reader.manifest().header().step(), 120);
  EXPECT_EQ(reader.manifest().header().extra_json(), std::string("{\"a\":\xFF}"));
  for (std::size_t begin = 0; begin <= weight_.size(); ++begin) {
    for (std::size_t end = begin; end <= weight_.size(); ++end) {
      std::vector<float> out(end - begin);
      ASSERT_TRUE(reader.Read("generator.param/weight", static_cast<std::int64_t>(begin), out));
      ASSERT_TRUE(std::equal(out.begin(), out.end(), weight_.begin() + static_cast<long>(begin)));
    }
  }
  std::vector<float> out(3);
  EXPECT_EQ(reader.Read("generator.param/weight", 10, out).error().code(), Code::kInvalidArgument);
  EXPECT_EQ(reader.Read("generator.param/weight", -1, out).error().code(), Code::kInvalidArgument);
  EXPECT_EQ(reader.Read("generator.param/none", 0, out).error().code(), Code::kNotFound);
}

TEST_F(CheckpointTest, PartsArePlainSafetensors) {
  Commit("a", 2);
  auto part = SafetensorsFile::Open(Folder("a") / "rank-1-of-2.safetensors");
  ASSERT_TRUE(part) << part.error().message();
  EXPECT_EQ(part->metadata().at("format"), "dd2-checkpoint-part 1");
  EXPECT_EQ(part->metadata().at("slice/generator.param/bias@3-7"),
            R"({"tensor":"generator.param/bias","begin":3,"end":7,"shape":[7]})");
  EXPECT_EQ(*part->ReadF32("generator.param/bias@3-7", std::vector<std::int64_t>{4}),
            std::vector<float>(bias_.begin() + 3, bias_.end()));
  Commit("whole", 1);
  auto whole = SafetensorsFile::Open(Folder("whole") / "rank-0-of-1.safetensors");
  ASSERT_TRUE(whole) << whole.error().message();
  EXPECT_EQ(*whole->ReadF32("generator.param/weight", std::vector<std::int64_t>{3, 4}), weight_);
}

TEST_F(CheckpointTest, DigestsDoNotDependOnTheSharding) {
  std::vector<std::map<std::string, Digest128>> digests;
  for (const int world : {1, 2, 3, 16}) {
    const std::string id = "w" + std::to_string(world);
    Commit(id, world);
    auto digest = DigestByGroup(Open(id));
    ASSERT_TRUE(digest) << digest.error().message();
    digests.push_back(*digest);
  }
  EXPECT_EQ(digests[0].size(), 2U);
  EXPECT_NE(digests[0].at("generator.param"), digests[0].at("guidance.adam_m"));
  for (const auto& digest : digests) EXPECT_EQ(digest, digests[0]);
  weight_[11] = -weight_[11];
  Commit("other", 2);
  EXPECT_NE(DigestByGroup(Open("other"))->at("generator.param"), digests[0].at("generator.param"));
}

TEST_F(CheckpointTest, HoleOverlapAndShortPartAreNotPublished) {
  const proto::CheckpointManifest good = WriteParts("a", 2);
  const auto refused = [&](const proto::CheckpointManifest& manifest) {
    const Status published = Publish(manifest);
    EXPECT_FALSE(published);
    EXPECT_FALSE(std::filesystem::exists(Folder("a") / "manifest.json"));
    if (published) return std::string();
    EXPECT_EQ(published.error().code(), Code::kCorruption);
    return published.error().message();
  };
  proto::CheckpointManifest hole = good;
  hole.mutable_parts()->RemoveLast();
  EXPECT_THAT(refused(hole), HasSubstr("pieces end at 6 of 12"));
  hole = good;
  hole.mutable_parts()->DeleteSubrange(0, 1);
  EXPECT_THAT(refused(hole), HasSubstr("hole"));
  proto::CheckpointManifest overlap = good;
  overlap.mutable_parts(1)->mutable_pieces(0)->set_begin(5);
  EXPECT_THAT(refused(overlap), HasSubstr("overlaps"));
  proto::CheckpointManifest foreign = good;
  foreign.mutable_parts(1)->mutable_pieces(0)->set_tensor("generator.param/none");
  EXPECT_THAT(refused(foreign), HasSubstr("generator.param/none"));
  proto::CheckpointManifest outside = good;
  outside.mutable_parts(1)->set_file("../rank-1-of-2.safetensors");
  EXPECT_THAT(refused(outside), HasSubstr("plain file name"));
  const auto part = Folder("a") / "rank-1-of-2.safetensors";
  std::filesystem::resize_file(part, std::filesystem::file_size(part) - 1);
  EXPECT_THAT(refused(good), HasSubstr("rank-1-of-2.safetensors"));
}

TEST_F(CheckpointTest, EveryBadByteOfAPartIsFoundAndNamed) {
  Commit("a", 2);
  const auto path = Folder("a") / "rank-1-of-2.safetensors";
  const std::string good = ReadAll(path);
  for (std::size_t at = 0; at < good.size(); ++at) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x10);
    WriteAll(path, bad);
    const Error error = VerifyError("a");
    ASSERT_EQ(error.code(), Code::kCorruption) << at << ": " << error.message();
    ASSERT_THAT(error.message(), HasSubstr("rank-1-of-2.safetensors")) << at;
  }
  std::filesystem::remove(path);
  EXPECT_EQ(VerifyError("a").code(), Code::kCorruption);
  WriteAll(path, good);
  EXPECT_TRUE(VerifyCheckpoint(RealFileSystem(), root_, "a"));
}

TEST_F(CheckpointTest, EveryChangeOfTheManifestIsFound) {
  Commit("a", 1);
  const auto path = Folder("a") / "manifest.json";
  const std::string good = ReadAll(path);
  int harmless = 0;
  for (std::size_t at = 0; at < good.size(); ++at) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x01);
    WriteAll(path, bad);
    const auto manifest = ReadManifest(RealFileSystem(), root_, "a");
    // White space between the tokens says nothing; anything else must be noticed.
    if (manifest) {
      ASSERT_TRUE(good[at] == ' ' || good[at] == '\n') << at << " '" << good[at] << "'";
      ++harmless;
    } else {
      ASSERT_EQ(manifest.error().code(), Code::kCorruption) << manifest.error().message();
    }
  }
  EXPECT_LT(harmless, static_cast<int>(good.size()) / 2);
}

TEST_F(CheckpointTest, OnlyFoldersWithAManifestExist) {
  EXPECT_TRUE(ListCheckpoints(RealFileSystem(), root_)->empty());
  EXPECT_TRUE(RemoveUncommitted(RealFileSystem(), root_, ""));
  Commit("b", 2);
  Commit("a", 1);
  WriteParts("c", 2);
  WriteParts("d", 2);
  WriteAll(root_ / "notes.txt", "mine");
  EXPECT_THAT(*ListCheckpoints(RealFileSystem(), root_), ElementsAre("a", "b"));
  EXPECT_EQ(ReadManifest(RealFileSystem(), root_, "c").error().code(), Code::kNotFound);
  EXPECT_EQ(CheckpointReader::Open(RealFileSystem(), root_, "c").error().code(), Code::kNotFound);
  EXPECT_EQ(ReadManifest(RealFileSystem(), root_, "../x").error().code(), Code::kInvalidArgument);
  ASSERT_TRUE(RemoveUncommitted(RealFileSystem(), root_, "d"));
  EXPECT_FALSE(std::filesystem::exists(Folder("c")));
  EXPECT_TRUE(std::filesystem::exists(Folder("d") / "rank-0-of-2.safetensors"));
  EXPECT_TRUE(std::filesystem::exists(Folder("a") / "manifest.json"));
  EXPECT_TRUE(std::filesystem::exists(root_ / "notes.txt"));
}

TEST_F(CheckpointTest, ADeletionRemovesTheManifestFirst) {
  // Whatever call is the last one that happens, no manifest is left without its parts.
  // Manifest, its folder's sync, two parts, the folder, the sync above it.
  for (int calls = 0; calls < 7; ++calls) {
    Commit("a", 2);
    CrashingFileSystem files(folder_.path());
    files.FailAt(calls, FileFault::kCrash);
    const Status deleted = DeleteCheckpoint(files, root_, "a");
    EXPECT_EQ(static_cast<bool>(deleted), calls >= 6);
    if (calls == 0) {
      EXPECT_TRUE(VerifyCheckpoint(RealFileSystem(), root_, "a"));
    } else {
      EXPECT_TRUE(ListCheckpoints(RealFileSystem(), root_)->empty());
    }
    EXPECT_EQ(std::filesystem::exists(Folder("a")), calls < 5);
    ASSERT_TRUE(DeleteCheckpoint(RealFileSystem(), root_, "a"));
  }
  EXPECT_TRUE(DeleteCheckpoint(RealFileSystem(), root_, "never-there"));
}

TEST_F(CheckpointTest, APublicationThatStopsAnywhereIsAllOrNothing) {
  bool finished = false;
  for (int calls = 0; !finished; ++calls) {
    ASSERT_LT(calls, 20);
    const proto::CheckpointManifest manifest = WriteParts("a", 2);
    CrashingFileSystem files(folder_.path());
    files.FailAt(calls, FileFault::kCrash);
    finished = static_cast<bool>(PublishManifest(files, root_, manifest));
    const bool visible = !ListCheckpoints(RealFileSystem(), root_)->empty();
    EXPECT_TRUE(visible || !finished);
    if (visible) {
      EXPECT_TRUE(VerifyCheckpoint(RealFileSystem(), root_, "a"));
    }
    ASSERT_TRUE(DeleteCheckpoint(RealFileSystem(), root_, "a"));
  }
}

TEST_F(CheckpointTest, APartIsRefusedInACommittedFolder) {
  Commit("a", 2);
  const auto path = Folder("a") / "rank-0-of-2.safetensors";
  const std::string before = ReadAll(path);
  const auto part = WriteCheckpointPart(RealFileSystem(), Folder("a"), 0, 2, Share(0, 2));
  ASSERT_FALSE(part);
  EXPECT_EQ(part.error().code(), Code::kFailedPrecondition);
  EXPECT_THAT(part.error().message(), HasSubstr("committed"));
  EXPECT_EQ(ReadAll(path), before);
}

TEST_F(CheckpointTest, ABadPieceIsNotWritten) {
  std::vector<PieceToWrite> pieces = Share(0, 2);
  pieces[0].end += 1;
  const auto part = WriteCheckpointPart(RealFileSystem(), Folder("a"), 0, 2, pieces);
  ASSERT_FALSE(part);
  EXPECT_EQ(part.error().code(), Code::kInvalidArgument);
}

}  // namespace
}  // namespace dd2
