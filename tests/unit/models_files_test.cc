#include <gmock/gmock.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "common/file.h"
#include "tests/support/tiny_teacher.h"
#include "worker/models/teacher.h"

namespace dd2 {
namespace {

using ::testing::HasSubstr;

class BundleFilesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() /
              ("dd2-bundle-" + std::to_string(::getpid()) + "-" +
               ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    ASSERT_TRUE(SaveTokenizer(folder_ / "tokenizer.safetensors", *bundle_.tokenizer, {}));
    ASSERT_TRUE(SaveTeacher(folder_ / "teacher.safetensors", *bundle_.teacher, {{"seed", "4"}}));
    ASSERT_TRUE(SaveClassifier(folder_ / "classifier.safetensors", *bundle_.classifier, {}));
    WriteText("card.json", "{}\n");
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void WriteText(const char* name, const std::string& text) const {
    std::ofstream(folder_ / name, std::ios::binary) << text;
  }
  void ExpectRefused(Code code, const std::string& reason) const {
    const auto loaded = LoadTeacherBundle(folder_);
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().code(), code) << loaded.error().message();
    EXPECT_THAT(loaded.error().message(), HasSubstr(reason));
  }

  const TeacherBundle bundle_ = MakeTinyTeacher(4);
  std::filesystem::path folder_;
};

TEST_F(BundleFilesTest, RoundTripKeepsBitsAndShapes) {
  const auto loaded = LoadTeacherBundle(folder_);
  ASSERT_TRUE(loaded) << loaded.error().message();
  EXPECT_TRUE(at::equal(loaded->teacher->params().flat(), bundle_.teacher->params().flat()));
  EXPECT_TRUE(at::equal(loaded->tokenizer->codebook(), bundle_.tokenizer->codebook()));
  EXPECT_TRUE(at::equal(loaded->classifier->params().flat(), bundle_.classifier->params().flat()));
  EXPECT_EQ(loaded->teacher->codes(), 16);
  EXPECT_EQ(loaded->teacher->backbone().spec().heads, 2);
  EXPECT_EQ(loaded->card_json, "{}\n");
  EXPECT_FALSE(loaded->teacher->params()["head.weight"].requires_grad());
}

TEST_F(BundleFilesTest, DigestNamesTheWeights) {
  const auto first = LoadTeacherBundle(folder_);
  ASSERT_TRUE(SaveTeacher(folder_ / "teacher.safetensors", *bundle_.teacher, {{"seed", "5"}}));
  WriteText("card.json", "{\"other\": 1}");
  const auto same_weights = LoadTeacherBundle(folder_);
  bundle_.teacher->params()["head.bias"][3] += 1e-3;
  ASSERT_TRUE(SaveTeacher(folder_ / "teacher.safetensors", *bundle_.teacher, {}));
  const auto changed = LoadTeacherBundle(folder_);
  ASSERT_TRUE(first && same_weights && changed);
  EXPECT_EQ(first->teacher_digest, same_weights->teacher_digest);
  EXPECT_NE(first->teacher_digest, changed->teacher_digest);
}

TEST_F(BundleFilesTest, MissingFile) {
  std::filesystem::remove(folder_ / "classifier.safetensors");
  ExpectRefused(Code::kNotFound, "classifier.safetensors");
}

TEST_F(BundleFilesTest, TruncatedFile) {
  const auto path = folder_ / "teacher.safetensors";
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 100);
  ExpectRefused(Code::kCorruption, "teacher.safetensors");
}

TEST_F(BundleFilesTest, NotSafetensorsAtAll) {
  WriteText("tokenizer.safetensors", "this is no tensor file, whatever its name says");
  ExpectRefused(Code::kCorruption, "tokenizer.safetensors");
}

TEST_F(BundleFilesTest, ForeignFile) {
  ASSERT_TRUE(SaveParams(folder_ / "teacher.safetensors", bundle_.teacher->params(), {}));
  ExpectRefused(Code::kInvalidArgument, "was not written by dd2");
}

TEST_F(BundleFilesTest, OneFileInPlaceOfAnother) {
  std::filesystem::copy_file(folder_ / "classifier.safetensors", folder_ / "teacher.safetensors",
                             std::filesystem::copy_options::overwrite_existing);
  ExpectRefused(Code::kInvalidArgument, "holds a 'classifier', expected a 'teacher'");
}

TEST_F(BundleFilesTest, WrongShape) {
  // Says 17 codes, holds 16.
  ASSERT_TRUE(SaveParams(folder_ / "tokenizer.safetensors", bundle_.tokenizer->params(),
                         {{"dd2.kind", "tokenizer"}, {"codes", "17"}, {"channels", "4"}}));
  ExpectRefused(Code::kInvalidArgument, "'codebook' has shape [16, 4], expected [17, 4]");
}

TEST_F(BundleFilesTest, MissingTensor) {
  ParamLayout layout;
  layout.Add("conv1.weight", {32, 1, 3, 3});
  ASSERT_TRUE(SaveParams(folder_ / "classifier.safetensors", ParamBuffer(layout, false),
                         {{"dd2.kind", "classifier"}}));
  ExpectRefused(Code::kInvalidArgument, "has no tensor 'conv1.bias'");
}

TEST_F(BundleFilesTest, SenselessMetadata) {
  for (const std::string codes : {"", "-1", "12 codes", "999999999999999999999", "0"}) {
    ASSERT_TRUE(SaveParams(folder_ / "tokenizer.safetensors", bundle_.tokenizer->params(),
                           {{"dd2.kind", "tokenizer"}, {"codes", codes}, {"channels", "4"}}));
    ExpectRefused(Code::kInvalidArgument, "metadata 'codes' is '" + codes + "'");
  }
}

TEST_F(BundleFilesTest, TokenizerOfAnotherTeacher) {
  ParamBuffer params(SmallTokenizer::Layout({.codes = 8, .channels = 4, .scales = {}}), false);
  params["std"].fill_(1);
  ASSERT_TRUE(SaveTokenizer(folder_ / "tokenizer.safetensors",
                            SmallTokenizer({.codes = 8, .channels = 4, .scales = {}}, params), {}));
  ExpectRefused(Code::kInvalidArgument,
                "8 codes of 4 channels against 49 tokens of 16 codes of 4 channels");
}

TEST_F(BundleFilesTest, EveryCutOfAFileIsRefused) {
  const auto path = folder_ / "tokenizer.safetensors";
  const auto whole = RealFileSystem().Read(path);
  ASSERT_TRUE(whole);
  for (std::size_t length = 0; length < whole->size(); length += 1 + length / 7) {
    WriteText("tokenizer.safetensors", whole->substr(0, length));
    const auto loaded = LoadTokenizer(path);
    ASSERT_FALSE(loaded) << length << " bytes";
    EXPECT_EQ(loaded.error().code(), Code::kCorruption) << loaded.error().message();
  }
}

}  // namespace
}  // namespace dd2
