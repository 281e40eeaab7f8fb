#include "worker/engine/png.h"

#include <png.h>

#include <algorithm>
#include <cmath>

#include "common/check.h"
#include "common/file.h"

namespace dd2 {
namespace {

constexpr std::uint8_t kMargin = 24;  // nearly black: cells stay apart on a black ground

std::uint8_t ToByte(float value) {
  if (!(value > -1.0F)) return 0;  // also NaN
  return static_cast<std::uint8_t>(std::lround((std::min(value, 1.0F) + 1.0F) * 127.5F));
}

constexpr std::uint32_t kMaxSide = 8192;

png_image NewHeader() {
  png_image header{};
  header.version = PNG_IMAGE_VERSION;
  return header;
}

// The second half of reading: `header` describes the file, its bytes become pixels of `channels`.
Result<Picture> FinishReading(png_image& header, int channels, const std::filesystem::path& path) {
  header.format = channels == 1 ? PNG_FORMAT_GRAY : PNG_FORMAT_RGB;
  Picture picture{.width = static_cast<int>(header.width),
                  .height = static_cast<int>(header.height),
                  .channels = channels,
                  .pixels = std::vector<std::uint8_t>(PNG_IMAGE_SIZE(header))};
  if (png_image_finish_read(&header, nullptr, picture.pixels.data(), 0, nullptr) == 0) {
    return Error(Code::kCorruption, path.string() + " is not a readable PNG: " + header.message);
  }
  return picture;
}

}  // namespace

Picture ImageGrid(std::span<const float> images, int rows, int columns, int channels, int side) {
  DD2_CHECK(rows > 0 && columns > 0 && channels > 0 && side > 0);
  const auto depth = static_cast<std::size_t>(channels);
  const auto edge = static_cast<std::size_t>(side);
  const auto across = static_cast<std::size_t>(columns);
  const std::size_t cells = static_cast<std::size_t>(rows) * across;
  DD2_CHECK(images.size() == cells * depth * edge * edge);
  const int pitch = side + 2;
  Picture grid{
      .width = columns * pitch, .height = rows * pitch, .channels = channels, .pixels = {}};
  const auto width = static_cast<std::size_t>(grid.width);
  grid.pixels.assign(width * static_cast<std::size_t>(grid.height) * depth, kMargin);
  for (std::size_t cell = 0; cell < cells; ++cell) {
    const std::size_t top = cell / across * (edge + 2) + 1;
    const std::size_t left = cell % across * (edge + 2) + 1;
    for (std::size_t i = 0; i < depth * edge * edge; ++i) {
      const std::size_t channel = i / (edge * edge);
      const std::size_t y = top + i / edge % edge;
      const std::size_t x = left + i % edge;
      grid.pixels[(y * width + x) * depth + channel] =
          ToByte(images[cell * depth * edge * edge + i]);
    }
  }
  return grid;
}

Result<std::string> EncodePng(const Picture& picture) {
  if (picture.width <= 0 || picture.height <= 0) {
    return Error(Code::kInvalidArgument, "cannot write a PNG of " + std::to_string(picture.width) +
                                             " x " + std::to_string(picture.height) + " pixels");
  }
  DD2_CHECK(picture.pixels.size() == static_cast<std::size_t>(picture.width) *
                                         static_cast<std::size_t>(picture.height) *
                                         static_cast<std::size_t>(picture.channels));
  DD2_CHECK(picture.channels == 1 || picture.channels == 3);
  png_image header = NewHeader();
  header.format = picture.channels == 1 ? PNG_FORMAT_GRAY : PNG_FORMAT_RGB;
  header.width = static_cast<png_uint_32>(picture.width);
  header.height = static_cast<png_uint_32>(picture.height);
  png_alloc_size_t size = 0;
  std::string bytes;
  if (png_image_write_to_memory(&header, nullptr, &size, 0, picture.pixels.data(), 0, nullptr) !=
      0) {
    bytes.resize(size);
    if (png_image_write_to_memory(&header, bytes.data(), &size, 0, picture.pixels.data(), 0,
                                  nullptr) != 0) {
      bytes.resize(size);
      return bytes;
    }
  }
  return Error(Code::kInternal, std::string("libpng: ") + header.message);
}

Status WritePng(const std::filesystem::path& path, const Picture& picture) {
  DD2_TRY_ASSIGN(const std::string bytes, EncodePng(picture));
  return WriteFileAtomically(RealFileSystem(), path, bytes);
}

Result<Picture> ReadGreyPng(const std::filesystem::path& path) {
  DD2_TRY_ASSIGN(const std::string bytes, RealFileSystem().Read(path));
  png_image header = NewHeader();
  if (png_image_begin_read_from_memory(&header, bytes.data(), bytes.size()) == 0) {
    return Error(Code::kCorruption, path.string() + " is not a readable PNG: " + header.message);
  }
  return FinishReading(header, 1, path);
}

Result<Picture> ReadRgbPng(const std::filesystem::path& path) {
  DD2_TRY_ASSIGN(const std::string bytes, RealFileSystem().Read(path));
  png_image header = NewHeader();
  if (png_image_begin_read_from_memory(&header, bytes.data(), bytes.size()) == 0) {
    return Error(Code::kCorruption, path.string() + " is not a readable PNG: " + header.message);
  }
  const bool transparent = (header.format & PNG_FORMAT_FLAG_ALPHA) != 0;
  if (transparent || header.width > kMaxSide || header.height > kMaxSide) {
    png_image_free(&header);
    return Error(Code::kInvalidArgument,
                 path.string() +
                     (transparent ? " has a transparent channel" : " is larger than 8192 x 8192") +
                     ": convert it to a plain RGB image");
  }
  return FinishReading(header, 3, path);
}

}  // namespace dd2
