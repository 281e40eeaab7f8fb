#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "storage/safetensors.h"
#include "tests/unit/storage_testing.h"

namespace dd2 {
namespace {

using testing::HasSubstr;

// A file from header text and data, header as given (no padding).
std::string FileOf(const std::string& header, const std::string& data) {
  const std::uint64_t length = header.size();
  std::string content(sizeof(length), '\0');
  std::memcpy(content.data(), &length, sizeof(length));
  return content + header + data;
}

class SafetensorsTest : public testing::Test {
 protected:
  SafetensorsTest() : a_(6), b_(5), c_(17) {
    std::iota(a_.begin(), a_.end(), 0.5F);
    std::iota(b_.begin(), b_.end(), -3.0F);
    std::iota(c_.begin(), c_.end(), 100.0F);
  }
  WrittenFile WriteThree() {
    const TensorToWrite tensors[] = {{"z.first", {2, 3}, a_},
                                     {"a.second", {5}, b_},
                                     {"scalar", {}, std::span(c_).first(1)},
                                     {"empty", {0, 4}, {}},
                                     {"m.third", {17, 1}, c_}};
    auto written = WriteSafetensors(RealFileSystem(), path_, tensors, {{"kind", "test \"x\""}});
    EXPECT_TRUE(written) << written.error().message();
    return *written;
  }
  Error OpenError(const std::string& content) {
    WriteAll(path_, content);
    auto file = SafetensorsFile::Open(path_);
    if (file) return Error(Code::kInternal, "opened");
    EXPECT_THAT(file.error().message(), HasSubstr(path_.string()));
    return file.error();
  }

  TemporaryFolder folder_;
  std::filesystem::path path_ = folder_.path() / "x.safetensors";
  std::vector<float> a_, b_, c_;
};

TEST_F(SafetensorsTest, RoundTripKeepsValuesShapesMetadataAndHash) {
  const WrittenFile written = WriteThree();
  auto file = SafetensorsFile::Open(path_);
  ASSERT_TRUE(file) << file.error().message();
  EXPECT_EQ(file->tensors().size(), 5U);
  EXPECT_EQ(file->metadata().at("kind"), "test \"x\"");
  EXPECT_EQ(*file->ReadF32("z.first", std::vector<std::int64_t>{2, 3}), a_);
  EXPECT_EQ(*file->ReadF32("a.second", std::vector<std::int64_t>{5}), b_);
  EXPECT_EQ(*file->ReadF32("m.third", std::vector<std::int64_t>{17, 1}), c_);
  EXPECT_EQ(file->ReadF32("scalar", {})->at(0), 100.0F);
  EXPECT_TRUE(file->ReadF32("empty", std::vector<std::int64_t>{0, 4})->empty());
  EXPECT_EQ(file->FileHash(), written.hash);
  EXPECT_EQ(file->FileHash(), Hash128(ReadAll(path_)));
  EXPECT_EQ(file->size_bytes(), written.size_bytes);
  EXPECT_EQ(std::filesystem::file_size(path_), written.size_bytes);
  SafetensorsFile moved = std::move(*file);
  std::vector<float> two(2);
  ASSERT_TRUE(moved.ReadBytes("a.second", 8, std::as_writable_bytes(std::span(two))));
  EXPECT_EQ(two, std::vector<float>(b_.begin() + 2, b_.begin() + 4));
}

TEST_F(SafetensorsTest, DataIsAlignedAndTheHeaderIsPaddedWithSpaces) {
  WriteThree();
  auto file = SafetensorsFile::Open(path_);
  ASSERT_TRUE(file);
  for (const auto& [name, info] : file->tensors()) EXPECT_EQ(info.offset % 64, 0U) << name;
  const std::string content = ReadAll(path_);
  std::uint64_t length = 0;
  std::memcpy(&length, content.data(), sizeof(length));
  EXPECT_EQ((length + 8) % 64, 0U);
  const std::string header = content.substr(8, length);
  EXPECT_EQ(header.front(), '{');
  EXPECT_EQ(header.find_last_not_of(' '), header.rfind('}'));
}

TEST_F(SafetensorsTest, EveryTruncationIsRefused) {
  WriteThree();
  const std::string content = ReadAll(path_);
  for (std::size_t size = 0; size < content.size(); ++size) {
    const Error error = OpenError(content.substr(0, size));
    ASSERT_EQ(error.code(), Code::kCorruption) << size << ": " << error.message();
  }
  EXPECT_EQ(OpenError(content + "x").code(), Code::kCorruption);
}

TEST_F(SafetensorsTest, OverlapsHolesAndForeignFilesAreRefused) {
  const auto two = [](const std::string& first, const std::string& second) {
    return R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[)" + first +
           R"(]},"b":{"dtype":"F32","shape":[2],"data_offsets":[)" + second + "]}}";
  };
  WriteAll(path_, FileOf(two("0,8", "8,16"), std::string(16, 'x')));
  EXPECT_TRUE(SafetensorsFile::Open(path_));
  EXPECT_THAT(OpenError(FileOf(two("0,8", "4,12"), std::string(12, 'x'))).message(),
              HasSubstr("overlap"));
  EXPECT_THAT(OpenError(FileOf(two("0,8", "12,20"), std::string(20, 'x'))).message(),
              HasSubstr("hole"));
  EXPECT_THAT(OpenError(FileOf(two("0,8", "8,16"), std::string(15, 'x'))).message(),
              HasSubstr("truncated"));
  for (const char* header :
       {"[]", "{", "{}garbage", R"({"a":1})", R"({"a":{"dtype":"F32","shape":[2]}})",
        R"({"a":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}})",
        R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})",
        R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})",
        R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})",
        R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}})",
        R"({"__metadata__":{"k":3},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})"}) {
    EXPECT_EQ(OpenError(FileOf(header, std::string(8, 'x'))).code(), Code::kCorruption) << header;
  }
  EXPECT_THAT(OpenError(std::string("PK\x03\x04 a zip of somebody else, not ours")).message(),
              HasSubstr("not a safetensors file"));
  EXPECT_EQ(SafetensorsFile::Open(folder_.path() / "none").error().code(), Code::kNotFound);
  EXPECT_EQ(SafetensorsFile::Open(folder_.path()).error().code(), Code::kCorruption);
}

TEST_F(SafetensorsTest, WrongDtypeShapeOrNameSaysBoth) {
  WriteThree();
  auto file = SafetensorsFile::Open(path_);
  ASSERT_TRUE(file);
  const auto shape = file->ReadF32("z.first", std::vector<std::int64_t>{3, 2});
  ASSERT_FALSE(shape);
  EXPECT_EQ(shape.error().code(), Code::kInvalidArgument);
  EXPECT_THAT(shape.error().message(), HasSubstr("F32 [2, 3], expected F32 [3, 2]"));
  EXPECT_EQ(file->ReadF32("none", {}).error().code(), Code::kNotFound);
  std::byte bytes[9];
  EXPECT_EQ(file->ReadBytes("none", 0, bytes).error().code(), Code::kNotFound);
  WriteAll(path_, FileOf(R"({"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}})",
                         std::string(8, '\1')));
  auto other = SafetensorsFile::Open(path_);
  ASSERT_TRUE(other) << other.error().message();
  const auto dtype = other->ReadF32("a", std::vector<std::int64_t>{1});
  ASSERT_FALSE(dtype);
  EXPECT_THAT(dtype.error().message(), HasSubstr("I64 [1], expected F32 [1]"));
  EXPECT_TRUE(other->ReadBytes("a", 0, std::span(bytes).first(8)));
  EXPECT_TRUE(other->ReadBytes("a", 8, std::span(bytes).first(0)));
  EXPECT_EQ(other->ReadBytes("a", 0, bytes).error().code(), Code::kInvalidArgument);
  EXPECT_EQ(other->ReadBytes("a", 9, std::span(bytes).first(0)).error().code(),
            Code::kInvalidArgument);
  // What is gone since it was opened is told, not made up.
  std::filesystem::resize_file(path_, std::filesystem::file_size(path_) - 1);
  EXPECT_EQ(other->ReadBytes("a", 0, std::span(bytes).first(8)).error().code(), Code::kCorruption);
  EXPECT_EQ(other->FileHash().error().code(), Code::kCorruption);
}

TEST_F(SafetensorsTest, BadTensorsAreNotWritten) {
  const TensorToWrite wrong_shape[] = {{"a", {7}, a_}};
  const TensorToWrite twice[] = {{"a", {6}, a_}, {"a", {5}, b_}};
  const TensorToWrite reserved[] = {{"__metadata__", {6}, a_}};
  for (const std::span<const TensorToWrite> tensors :
       {std::span<const TensorToWrite>(wrong_shape), std::span<const TensorToWrite>(twice),
        std::span<const TensorToWrite>(reserved)}) {
    auto written = WriteSafetensors(RealFileSystem(), path_, tensors, {});
    ASSERT_FALSE(written);
    EXPECT_EQ(written.error().code(), Code::kInvalidArgument);
    EXPECT_FALSE(std::filesystem::exists(path_));
  }
}

}  // namespace
}  // namespace dd2
