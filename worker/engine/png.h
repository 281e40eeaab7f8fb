#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "common/result.h"

namespace dd2 {

// An 8-bit grey picture, row-major.
struct GreyImage {
  int width = 0;
  int height = 0;
  std::vector<std::uint8_t> pixels;  // [height * width]
};

// Lays `rows` x `columns` square pictures out in reading order. images: [rows * columns, side,
// side] values in [-1, 1] (-1 black; outside is clamped, NaN black). Every cell is side + 2 pixels
// wide and high: a margin of one pixel around each picture, so that row r starts at r * (side + 2).
GreyImage ImageGrid(std::span<const float> images, int rows, int columns, int side);

// The bytes of a PNG file. kInvalidArgument: empty picture; kInternal: libpng refused.
Result<std::string> EncodeGreyPng(const GreyImage& image);

// Encodes and writes atomically: `path` never holds half a picture.
Status WriteGreyPng(const std::filesystem::path& path, const GreyImage& image);

// Reads a PNG as 8-bit grey (tests, tools). kNotFound, kCorruption.
Result<GreyImage> ReadGreyPng(const std::filesystem::path& path);

// An 8-bit colour picture, row-major.
struct RgbImage {
  int width = 0;
  int height = 0;
  std::vector<std::uint8_t> pixels;  // [height * width * 3]
};
// Reads a PNG of any colour type as 8-bit RGB; grey becomes three equal channels. kNotFound,
// kCorruption; kInvalidArgument: transparent, or larger than 8192 x 8192.
Result<RgbImage> ReadRgbPng(const std::filesystem::path& path);

}  // namespace dd2
