#include "worker/engine/adm_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>

#include "storage/npz.h"
#include "tests/unit/storage_testing.h"
#include "worker/engine/adm_cache.h"
#include "worker/engine/adm_evaluation.h"
#include "worker/engine/image_set.h"
#include "worker/models/inception.h"
#include "worker/models/teacher.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;

const fs::path kGolden = DD2_SOURCE_DIR "/tests/golden";

void WriteImages(const fs::path& path, std::int64_t count) {
  const at::Tensor images = at::arange(count * 2 * 3 * 3, at::kLong).to(at::kByte);
  const ArrayToWrite array{
      .name = "arr_0",
      .dtype = Dtype::kU8,
      .shape = {count, 2, 3, 3},
      .bytes = std::as_bytes(std::span(images.const_data_ptr<std::uint8_t>(),
                                       static_cast<std::size_t>(images.numel())))};
  ASSERT_TRUE(WriteNpz(RealFileSystem(), path, std::span(&array, 1)));
}

TEST(ImageSet, ReadsArraysInPieces) {
  for (const char* name : {"npz/arrays.npz", "npz/deflated.npz", "npz/plain.npy"}) {
    const auto images = ImageSet::Open(kGolden / name);
    ASSERT_TRUE(images) << images.error().message();
    EXPECT_EQ((*images)->count(), 3);
    EXPECT_EQ((*images)->height(), 4);
    EXPECT_EQ((*images)->width(), 5);
    const at::Tensor all = at::arange(180, at::kLong).mul(7).remainder(256).view({3, 4, 5, 3});
    const auto last = (*images)->Read(1, 3);  // skips the first
    ASSERT_TRUE(last);
    EXPECT_TRUE(last->equal(all.narrow(0, 1, 2).to(at::kByte)));
  }
}

TEST(ImageSet, ReadsAFolderByName) {
  const TemporaryFolder folder;
  fs::copy_file(kGolden / "png/palette.png", folder.path() / "10.png");
  fs::copy_file(kGolden / "png/grey.png", folder.path() / "2.png");
  WriteAll(folder.path() / "labels.txt", "not an image");
  const auto images = ImageSet::Open(folder.path());
  ASSERT_TRUE(images) << images.error().message();
  EXPECT_EQ((*images)->count(), 2);
  const auto both = (*images)->Read(0, 2);
  ASSERT_TRUE(both);
  EXPECT_EQ((*both)[0][0][1][2].item<int>(), 128);
  EXPECT_EQ((*both)[1][0][1][2].item<int>(), 200);
  const auto before = (*images)->Digest();
  fs::rename(folder.path() / "2.png", folder.path() / "3.png");
  const auto renamed = ImageSet::Open(folder.path());
  ASSERT_TRUE(before && renamed);
  EXPECT_NE((*renamed)->Digest()->Hex(), before->Hex());
}

TEST(ImageSet, RefusesWhatIsNoSetOfImages) {
  const TemporaryFolder folder;
  EXPECT_EQ(ImageSet::Open(folder.path()).error().code(), Code::kInvalidArgument);  // empty
  EXPECT_EQ(ImageSet::Open(folder.path() / "none.npz").error().code(), Code::kNotFound);
  const std::vector<float> values(12);
  const ArrayToWrite array{.name = "arr_0",
                           .dtype = Dtype::kF32,
                           .shape = {2, 1, 2, 3},
                           .bytes = std::as_bytes(std::span(values))};
  ASSERT_TRUE(WriteNpz(RealFileSystem(), folder.path() / "float.npz", std::span(&array, 1)));
  const auto images = ImageSet::Open(folder.path() / "float.npz");
  ASSERT_FALSE(images);
  EXPECT_NE(images.error().message().find("uint8"), std::string::npos);
}

AdmSet SomeSet(std::int64_t count) {
  const auto stats = [&](std::int64_t width) {
    return FeatureStats{.mean = at::arange(width, at::kDouble) / 7,
                        .covariance = at::arange(width * width, at::kDouble).view({width, width}),
                        .count = count};
  };
  return {.pool = at::arange(count * Inception::kPool, at::kFloat).view({count, -1}),
          .pool_stats = stats(Inception::kPool),
          .spatial_stats = stats(Inception::kSpatial)};
}

TEST(AdmCache, GivesBackWhatItKept) {
  const TemporaryFolder folder;
  const Digest128 key = AdmCacheKey({1, 2}, {3, 4});
  EXPECT_EQ(LoadAdmSet(folder.path(), key, 5).error().code(), Code::kNotFound);
  const AdmSet set = SomeSet(5);
  ASSERT_TRUE(StoreAdmSet(folder.path(), key, set));
  const auto kept = LoadAdmSet(folder.path(), key, 5);
  ASSERT_TRUE(kept) << kept.error().message();
  EXPECT_TRUE(kept->pool.equal(set.pool));
  EXPECT_EQ(kept->pool_stats.count, 5);
  EXPECT_TRUE(kept->pool_stats.mean.equal(set.pool_stats.mean));
  EXPECT_TRUE(kept->pool_stats.covariance.equal(set.pool_stats.covariance));
  EXPECT_TRUE(kept->spatial_stats.mean.equal(set.spatial_stats.mean));
  EXPECT_TRUE(kept->spatial_stats.covariance.equal(set.spatial_stats.covariance));
  // One file, and nothing temporary beside it.
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1);
  EXPECT_EQ(LoadAdmSet(folder.path(), key, 6).error().code(), Code::kInvalidArgument);
  EXPECT_NE(AdmCacheKey({1, 2}, {3, 5}), key);
  EXPECT_NE(AdmCacheKey({1, 3}, {3, 4}), key);
}

TEST(AdmCache, NoticesDamage) {
  const TemporaryFolder folder;
  const Digest128 key = AdmCacheKey({1, 2}, {3, 4});
  ASSERT_TRUE(StoreAdmSet(folder.path(), key, SomeSet(5)));
  const fs::path path = folder.path() / (key.Hex() + ".npz");
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(1 << 20).put('!').flush();  // somewhere in sigma
  EXPECT_EQ(LoadAdmSet(folder.path(), key, 5).error().code(), Code::kCorruption);
}

// A judge of random weights; variances must be positive.
ParamBuffer SomeParams() {
  at::manual_seed(7);
  ParamBuffer params(Inception::Layout(), /*requires_grad=*/false);
  params.flat().normal_(0, 0.05);
  for (const ParamSpec& spec : params.layout().specs()) {
    if (spec.name.ends_with("running_var")) at::Tensor(params[spec.name]).fill_(1);
  }
  return params;
}

TEST(AdmEvaluation, JudgesMadeImagesAsThoseOfAFile) {
  const TemporaryFolder folder;
  const Inception inception(SomeParams());
  const at::Tensor images = at::rand({30, 1, 8, 8}) * 2.2 - 1.1;  // some are beyond black and white
  const at::Tensor bytes = ImageBytes(images);
  ASSERT_EQ(bytes.sizes().vec(), (std::vector<std::int64_t>{30, 8, 8, 3}));
  EXPECT_EQ(bytes[3][2][5][1].item<int>(),
            std::clamp(std::lround((images[3][0][2][5].item<double>() + 1) * 127.5), 0L, 255L));
  const ArrayToWrite array{
      .name = "arr_0",
      .dtype = Dtype::kU8,
      .shape = bytes.sizes().vec(),
      .bytes = std::as_bytes(std::span(bytes.const_data_ptr<std::uint8_t>(),
                                       static_cast<std::size_t>(bytes.numel())))};
  const fs::path path = folder.path() / "images.npz";
  ASSERT_TRUE(WriteNpz(RealFileSystem(), path, std::span(&array, 1)));
  const auto file = ImageSet::Open(path);
  ASSERT_TRUE(file);
  const auto alone = NewLocalCollectives();
  std::int64_t last = 0;
  const AdmSetOptions options{.use_cache = false,
                              .progress = [&](std::int64_t done) { last = done; }};
  const auto of_file = AdmSetOf(**file, inception, options, *alone);
  const ImageSource source = [&](std::int64_t begin, std::int64_t end) {
    return images.narrow(0, begin, end - begin);
  };
  const auto made = AdmSetOfMade(30, source, inception, *alone);
  ASSERT_TRUE(of_file && made);
  EXPECT_EQ(last, 30);
  EXPECT_EQ(made->count(), 30);
  EXPECT_TRUE(made->pool.equal(of_file->pool));
  EXPECT_TRUE(made->pool_stats.mean.equal(of_file->pool_stats.mean));
  EXPECT_TRUE(made->spatial_stats.covariance.equal(of_file->spatial_stats.covariance));
}

// Ranks that have features of the reference compute them again with one that has not.
TEST(AdmEvaluation, AReferenceIsCompletedAgain) {
  const TemporaryFolder folder;
  setenv("XDG_CACHE_HOME", folder.path().c_str(), 1);
  const EvalConfig config{.inception = folder.path() / "inception.safetensors",
                          .reference = folder.path() / "reference.npz"};
  ASSERT_TRUE(SaveParams(config.inception, SomeParams(), {}));
  WriteImages(config.reference, 5);
  const auto alone = NewLocalCollectives();
  auto context = AdmContext::Load(config);
  ASSERT_TRUE(context) << context.error().message();
  EXPECT_FALSE(context->complete());
  for (int i = 0; i < 2; ++i) {
    const Status completed = context->Complete(*alone);
    ASSERT_TRUE(completed) << completed.error().message();
    EXPECT_TRUE(context->complete());
    EXPECT_EQ(fs::remove_all(AdmCacheFolder()), 2U);  // the folder and its file
    context->set_incomplete();
  }
  WriteImages(config.reference, 3);
  EXPECT_THAT(AdmContext::Load(config).error().message(), testing::HasSubstr("eval.reference"));
}

TEST(AdmEvaluation, FiguresThatTheReferenceDoesNotAllowAreLeftOut) {
  const auto names = [](const AdmFigures& figures) {
    std::string all;
    for (const auto& [name, value] : QualityOf(figures).figures) all += name + " ";
    return all;
  };
  AdmFigures figures{.samples = 9, .spatial_fid = {}, .score = {}, .shares = {}};
  EXPECT_EQ(names(figures), "fid inception_score ");
  figures.spatial_fid = 1;
  figures.shares = PrecisionRecallResult();
  EXPECT_EQ(names(figures), "fid sfid inception_score precision recall ");
}

TEST(EvalImages, LabelsSayHowManySamples) {
  EXPECT_EQ(FidLabel(50000), "FID");
  EXPECT_EQ(FidLabel(5000), "FID-5k");
  EXPECT_EQ(FidLabel(1234), "FID-1234");
}

void ExpectRefusal(const std::vector<std::string>& arguments, const char* reason) {
  const Status status = EvalImages(arguments);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code(), Code::kInvalidArgument);
  EXPECT_NE(status.error().message().find(reason), std::string::npos) << status.error().message();
}

TEST(EvalImages, SaysWhatIsWrongBeforeItComputes) {
  const TemporaryFolder folder;
  const std::string few = folder.path() / "few.npz";
  const std::string enough = folder.path() / "enough.npz";
  WriteImages(few, 3);
  WriteImages(enough, 4);
  ExpectRefusal({"--images", enough}, "--reference");
  ExpectRefusal({"--images", enough, "--reference", enough}, "--inception");
  ExpectRefusal({"--images", few, "--reference", enough, "--inception", "w.safetensors"},
                "--images has 3 images");
  ExpectRefusal({"--images", enough, "--reference", few, "--inception", "w.safetensors"},
                "few.npz has 3 images");
  ExpectRefusal({"--images", enough, "--reference", enough, "--inception",
                 kGolden / "torch_files/state_dict.pt"},
                "not the FID network");
  // ADM's files have mu with 2048 entries; this one has 6.
  ExpectRefusal({"--images", enough, "--reference", kGolden / "npz/arrays.npz", "--inception",
                 "w.safetensors"},
                "'mu' has shape (6), expected (2048)");
  ExpectRefusal({"--images", enough, "--reference", kGolden / "npz/refused.npz", "--inception",
                 "w.safetensors"},
                "neither images");
}

}  // namespace
}  // namespace dd2
