#include "worker/engine/dataset.h"

#include <gmock/gmock.h>
#include <unistd.h>
#include <zlib.h>

#include <string>

namespace dd2 {
namespace {

using ::testing::HasSubstr;

std::string Word(std::uint32_t value) {
  std::string bytes;
  for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(value >> shift & 0xFFU);
  return bytes;
}

class DatasetTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() /
              ("dd2-dataset-" + std::to_string(::getpid()) + "-" +
               ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void WriteGzip(const char* name, const std::string& content) const {
    gzFile file = gzopen((folder_ / name).c_str(), "wb");
    ASSERT_NE(file, nullptr);
    gzwrite(file, content.data(), static_cast<unsigned>(content.size()));
    gzclose(file);
  }
  void WriteSet(std::uint32_t count, const std::string& labels) const {
    std::string images = Word(0x803) + Word(count) + Word(28) + Word(28);
    for (std::uint32_t i = 0; i < count * 784; ++i) images += static_cast<char>(i % 256);
    WriteGzip("t10k-images-idx3-ubyte.gz", images);
    WriteGzip("t10k-labels-idx1-ubyte.gz",
              Word(0x801) + Word(static_cast<std::uint32_t>(labels.size())) + labels);
  }
  void ExpectRefused(Code code, const std::string& reason) const {
    const auto loaded = LoadFashionMnist(folder_, Split::kTest);
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().code(), code);
    EXPECT_THAT(loaded.error().message(), HasSubstr(reason));
  }

  std::filesystem::path folder_;
};

TEST_F(DatasetTest, ReadsPixelsAndLabelsInOrder) {
  WriteSet(3, std::string("\x02\x00\x09", 3));
  const auto set = LoadFashionMnist(folder_, Split::kTest);
  ASSERT_TRUE(set) << set.error().message();
  EXPECT_EQ(set->images.sizes(), (std::vector<std::int64_t>{3, 1, 28, 28}));
  EXPECT_TRUE(at::equal(set->labels, at::tensor({2, 0, 9}, at::kLong)));
  EXPECT_EQ(set->images[0][0][0][0].item<float>(), -1.0F);
  EXPECT_EQ(set->images[0][0][9][3].item<float>(), 1.0F);  // byte 255
  EXPECT_FLOAT_EQ(set->images[1][0][0][0].item<float>(), 784 % 256 / 127.5F - 1);
  const auto two = LoadFashionMnist(folder_, Split::kTest, 2);
  ASSERT_TRUE(two);
  EXPECT_TRUE(at::equal(two->images, set->images.narrow(0, 0, 2)));
}

TEST_F(DatasetTest, MissingFilesNameThePackage) {
  ExpectRefused(Code::kNotFound, "dataset-fashion-mnist");
}

TEST_F(DatasetTest, DamagedFiles) {
  WriteSet(2, std::string("\x02\x0A", 2));
  ExpectRefused(Code::kCorruption, "label 10");
  WriteSet(3, std::string("\x02\x01", 2));
  ExpectRefused(Code::kCorruption, "number of labels is 2, expected 3");
  WriteSet(2, std::string("\x02\x01", 2));
  WriteGzip("t10k-images-idx3-ubyte.gz", Word(0x803) + Word(2) + Word(28) + Word(28) + "short");
  ExpectRefused(Code::kCorruption, "1568 bytes wanted");
  WriteGzip("t10k-images-idx3-ubyte.gz", Word(0x801) + Word(2));
  ExpectRefused(Code::kCorruption, "magic number is 2049, expected 2051");
  WriteGzip("t10k-images-idx3-ubyte.gz", Word(0x803) + Word(2) + Word(32) + Word(32));
  ExpectRefused(Code::kCorruption, "image height is 32, expected 28");
}

}  // namespace
}  // namespace dd2
