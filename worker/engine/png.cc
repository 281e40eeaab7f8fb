#include "worker/engine/png.h"

#include <png.h>

#include <algorithm>
#include <cmath>

#include "common/check.h"
#include "common/file.h"

namespace dd2 {
namespace {

constexpr std::uint8_t kMargin = 24;  // nearly black: cells stay apart on a black ground

std::uint8_t ToGrey(float value) {
  if (!(value > -1.0F)) return 0;  // also NaN
  return static_cast<std::uint8_t>(std::lround((std::min(value, 1.0F) + 1.0F) * 127.5F));
}

constexpr std::uint32_t kMaxSide = 8192;

png_image NewHeader() {
  png_image header{};
  header.version = PNG_IMAGE_VERSION;
  header.format = PNG_FORMAT_GRAY;
  return header;
}

}  // namespace

GreyImage ImageGrid(std::span<const float> images, int rows, int columns, int side) {
  DD2_CHECK(rows > 0 && columns > 0 && side > 0);
  const auto cells = static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns);
  const auto area = static_cast<std::size_t>(side) * static_cast<std::size_t>(side);
  DD2_CHECK(images.size() == cells * area);
  const int pitch = side + 2;
  GreyImage grid{.width = columns * pitch, .height = rows * pitch, .pixels = {}};
  const auto width = static_cast<std::size_t>(grid.width);
  grid.pixels.assign(width * static_cast<std::size_t>(grid.height), kMargin);
  for (std::size_t cell = 0; cell < cells; ++cell) {
    const std::size_t top =
        cell / static_cast<std::size_t>(columns) * static_cast<std::size_t>(pitch);
    const std::size_t left =
        cell % static_cast<std::size_t>(columns) * static_cast<std::size_t>(pitch);
    for (std::size_t i = 0; i < area; ++i) {
      const std::size_t y = top + 1 + i / static_cast<std::size_t>(side);
      const std::size_t x = left + 1 + i % static_cast<std::size_t>(side);
      grid.pixels[y * width + x] = ToGrey(images[cell * area + i]);
    }
  }
  return grid;
}

Result<std::string> EncodeGreyPng(const GreyImage& image) {
  if (image.width <= 0 || image.height <= 0) {
    return Error(Code::kInvalidArgument, "cannot write a PNG of " + std::to_string(image.width) +
                                             " x " + std::to_string(image.height) + " pixels");
  }
  DD2_CHECK(image.pixels.size() ==
            static_cast<std::size_t>(image.width) * static_cast<std::size_t>(image.height));
  png_image header = NewHeader();
  header.width = static_cast<png_uint_32>(image.width);
  header.height = static_cast<png_uint_32>(image.height);
  png_alloc_size_t size = 0;
  std::string bytes;
  if (png_image_write_to_memory(&header, nullptr, &size, 0, image.pixels.data(), 0, nullptr) != 0) {
    bytes.resize(size);
    if (png_image_write_to_memory(&header, bytes.data(), &size, 0, image.pixels.data(), 0,
                                  nullptr) != 0) {
      bytes.resize(size);
      return bytes;
    }
  }
  return Error(Code::kInternal, std::string("libpng: ") + header.message);
}

Status WriteGreyPng(const std::filesystem::path& path, const GreyImage& image) {
  DD2_TRY_ASSIGN(const std::string bytes, EncodeGreyPng(image));
  return WriteFileAtomically(RealFileSystem(), path, bytes);
}

Result<GreyImage> ReadGreyPng(const std::filesystem::path& path) {
  DD2_TRY_ASSIGN(const std::string bytes, RealFileSystem().Read(path));
  png_image header = NewHeader();
  if (png_image_begin_read_from_memory(&header, bytes.data(), bytes.size()) == 0) {
    return Error(Code::kCorruption, path.string() + " is not a readable PNG: " + header.message);
  }
  header.format = PNG_FORMAT_GRAY;
  GreyImage image{.width = static_cast<int>(header.width),
                  .height = static_cast<int>(header.height),
                  .pixels = std::vector<std::uint8_t>(PNG_IMAGE_SIZE(header))};
  if (png_image_finish_read(&header, nullptr, image.pixels.data(), 0, nullptr) == 0) {
    return Error(Code::kCorruption, path.string() + " is not a readable PNG: " + header.message);
  }
  return image;
}

Result<RgbImage> ReadRgbPng(const std::filesystem::path& path) {
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
  header.format = PNG_FORMAT_RGB;
  RgbImage image{.width = static_cast<int>(header.width),
                 .height = static_cast<int>(header.height),
                 .pixels = std::vector<std::uint8_t>(PNG_IMAGE_SIZE(header))};
  if (png_image_finish_read(&header, nullptr, image.pixels.data(), 0, nullptr) == 0) {
    return Error(Code::kCorruption, path.string() + " is not a readable PNG: " + header.message);
  }
  return image;
}

}  // namespace dd2
