#include "worker/engine/png.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

namespace dd2 {
namespace {

TEST(ImageGrid, RowsColumnsMarginsAndClamping) {
  // Two rows of three 2 x 2 pictures; cell c is filled with one value.
  const float fills[] = {-1, 1, 0, -7, 3, NAN};
  std::vector<float> images;
  for (const float fill : fills) images.insert(images.end(), 4, fill);
  const Picture grid = ImageGrid(images, 2, 3, 1, 2);
  ASSERT_EQ(grid.width, 12);
  ASSERT_EQ(grid.height, 8);
  const int expected[] = {0, 255, 128, 0, 255, 0};
  for (int cell = 0; cell < 6; ++cell) {
    const int top = cell / 3 * 4;
    const int left = cell % 3 * 4;
    for (const auto& [y, x] :
         {std::pair{1, 1}, std::pair{1, 2}, std::pair{2, 1}, std::pair{2, 2}}) {
      EXPECT_EQ(grid.pixels[static_cast<std::size_t>((top + y) * 12 + left + x)], expected[cell]);
    }
    EXPECT_EQ(grid.pixels[static_cast<std::size_t>(top * 12 + left)], 24);
  }
}

TEST(ImageGrid, ColoursStandBesideEachOther) {
  // Two pictures of 1 x 1 pixels: one plane for each colour.
  const float images[] = {-1, 0, 1, 1, -1, -1};
  const Picture grid = ImageGrid(images, 1, 2, 3, 1);
  ASSERT_EQ(grid.pixels.size(), 3U * 6 * 3);
  const auto pixel = [&](std::size_t y, std::size_t x) {
    const auto first = grid.pixels.begin() + static_cast<std::ptrdiff_t>((y * 6 + x) * 3);
    return std::vector<std::uint8_t>(first, first + 3);
  };
  EXPECT_EQ(pixel(1, 1), (std::vector<std::uint8_t>{0, 128, 255}));
  EXPECT_EQ(pixel(1, 4), (std::vector<std::uint8_t>{255, 0, 0}));
  EXPECT_EQ(pixel(1, 2), (std::vector<std::uint8_t>{24, 24, 24}));
  const std::filesystem::path path = std::filesystem::path(::testing::TempDir()) / "colours.png";
  ASSERT_TRUE(WritePng(path, grid));
  const Result<Picture> read = ReadRgbPng(path);
  ASSERT_TRUE(read);
  EXPECT_EQ(read->width, 6);
  EXPECT_EQ(read->pixels, grid.pixels);
  std::filesystem::remove(path);
}

TEST(GreyPng, ReadsBackWhatItWrote) {
  Picture image{.width = 37, .height = 5, .channels = 1, .pixels = {}};
  for (int i = 0; i < 37 * 5; ++i) image.pixels.push_back(static_cast<std::uint8_t>(i * 7));
  const std::filesystem::path path = std::filesystem::path(::testing::TempDir()) / "grey.png";
  ASSERT_TRUE(WritePng(path, image));
  const Result<Picture> read = ReadGreyPng(path);
  ASSERT_TRUE(read);
  EXPECT_EQ(read->width, 37);
  EXPECT_EQ(read->height, 5);
  EXPECT_EQ(read->pixels, image.pixels);
  std::filesystem::resize_file(path, std::filesystem::file_size(path) / 2);
  const Result<Picture> damaged = ReadGreyPng(path);
  ASSERT_FALSE(damaged);
  EXPECT_EQ(damaged.error().code(), Code::kCorruption);
  std::filesystem::remove(path);
  EXPECT_EQ(ReadGreyPng(path).error().code(), Code::kNotFound);
}

TEST(RgbPng, ReadsEveryColourTypeButTransparent) {
  // Written by Pillow: 2 x 1 pixels (10, 20, 30), (255, 0, 128), and with a palette.
  const std::filesystem::path folder = DD2_SOURCE_DIR "/tests/golden/png";
  for (const char* name : {"rgb.png", "palette.png"}) {
    const Result<Picture> image = ReadRgbPng(folder / name);
    ASSERT_TRUE(image) << image.error().message();
    EXPECT_EQ(image->width, 2);
    EXPECT_EQ(image->height, 1);
    EXPECT_EQ(image->pixels, (std::vector<std::uint8_t>{10, 20, 30, 255, 0, 128})) << name;
  }
  const Result<Picture> grey = ReadRgbPng(folder / "grey.png");
  ASSERT_TRUE(grey);
  EXPECT_EQ(grey->pixels, (std::vector<std::uint8_t>{7, 7, 7, 200, 200, 200}));
  const Result<Picture> transparent = ReadRgbPng(folder / "transparent.png");
  ASSERT_FALSE(transparent);
  EXPECT_EQ(transparent.error().code(), Code::kInvalidArgument);
  EXPECT_EQ(ReadRgbPng(folder / "nowhere.png").error().code(), Code::kNotFound);
}

TEST(GreyPng, RefusesAnEmptyPicture) {
  EXPECT_EQ(EncodePng({}).error().code(), Code::kInvalidArgument);
}

}  // namespace
}  // namespace dd2
