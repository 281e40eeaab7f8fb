#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "common/result.h"

namespace dd2 {

// An 8-bit picture, row-major.
struct Picture {
  int width = 0;
  int height = 0;
  int channels = 1;                  // 1: grey; 3: red, green, blue
  std::vector<std::uint8_t> pixels;  // [height * width * channels]
};

// Lays `rows` x `columns` square pictures out in reading order. images: [rows * columns, channels,
// side, side] values in [-1, 1] (-1 black; outside is clamped, NaN black). Every cell is side + 2
// pixels wide and high: a margin of one pixel around each picture, so that row r starts at
// r * (side + 2).
Picture ImageGrid(std::span<const float> images, int rows, int columns, int channels, int side);

// The bytes of a PNG file. kInvalidArgument: empty picture; kInternal: libpng refused.
Result<std::string> EncodePng(const Picture& picture);

// Encodes and writes atomically: `path` never holds half a picture.
Status WritePng(const std::filesystem::path& path, const Picture& picture);

// Reads a PNG as 8-bit grey (tests, tools). kNotFound, kCorruption.
Result<Picture> ReadGreyPng(const std::filesystem::path& path);

// Reads a PNG of any colour type as 8-bit RGB; grey becomes three equal channels. kNotFound,
// kCorruption; kInvalidArgument: transparent, or larger than 8192 x 8192.
Result<Picture> ReadRgbPng(const std::filesystem::path& path);

}  // namespace dd2
