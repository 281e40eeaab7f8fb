#include "worker/engine/image_set.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/file.h"
#include "storage/npz.h"
#include "worker/engine/png.h"

namespace dd2 {
namespace {

constexpr std::size_t kHashBytes = std::size_t{8} << 20;
constexpr std::int64_t kMaxSide = 8192;

Status HashFile(const std::filesystem::path& path, Hasher128& hasher) {
  std::ifstream file(path, std::ios::binary);
  std::vector<char> piece(kHashBytes);
  while (file) {
    file.read(piece.data(), static_cast<std::streamsize>(piece.size()));
    const auto got = static_cast<std::size_t>(file.gcount());
    hasher.Update(std::as_bytes(std::span(piece).first(got)));
  }
  if (file.eof()) return {};
  return Error(Code::kUnavailable, "cannot read " + path.string());
}

class ArrayImages final : public ImageSet {
 public:
  static Result<std::unique_ptr<ImageSet>> Open(const std::filesystem::path& path) {
    DD2_TRY_ASSIGN(const NpzFile file, NpzFile::Open(path));
    Result<NpyReader> reader = file.Array("arr_0");
    if (!reader) return reader.error().Wrap("images are read from the array arr_0");
    const std::vector<std::int64_t> shape = reader->shape();
    if (reader->dtype() != Dtype::kU8 || shape.size() != 4 || shape[3] != 3 ||
        std::ranges::min(shape) < 1 || std::max(shape[1], shape[2]) > kMaxSide) {
      return Error(Code::kInvalidArgument, path.string() +
                                               ": arr_0 must be uint8 of shape [images, height, "
                                               "width, 3], at most 8192 x 8192");
    }
    auto images = std::make_unique<ArrayImages>(path, std::move(*reader));
    images->count_ = shape[0];
    images->height_ = shape[1];
    images->width_ = shape[2];
    return std::unique_ptr<ImageSet>(std::move(images));
  }
  ArrayImages(std::filesystem::path path, NpyReader reader)
      : path_(std::move(path)), reader_(std::move(reader)) {}

  Result<at::Tensor> Read(std::int64_t begin, std::int64_t end) override {
    const std::int64_t bytes = height_ * width_ * 3;
    DD2_TRY(reader_.Skip(static_cast<std::uint64_t>((begin - next_) * bytes)));
    at::Tensor images = at::empty({end - begin, height_, width_, 3}, at::kByte);
    DD2_TRY(reader_.Read(std::as_writable_bytes(
        std::span(images.data_ptr<std::uint8_t>(), static_cast<std::size_t>(images.numel())))));
    next_ = end;
    return images;
  }

  Result<Digest128> Digest() const override {
    Hasher128 hasher;
    DD2_TRY(HashFile(path_, hasher));
    return hasher.Finish();
  }

 private:
  std::filesystem::path path_;
  NpyReader reader_;
  std::int64_t next_ = 0;
};

class PngFolder final : public ImageSet {
 public:
  static Result<std::unique_ptr<ImageSet>> Open(const std::filesystem::path& path) {
    DD2_TRY_ASSIGN(std::vector<std::string> names, RealFileSystem().List(path));
    std::erase_if(names, [](const std::string& name) { return !name.ends_with(".png"); });
    if (names.empty()) {
      return Error(Code::kInvalidArgument, "folder " + path.string() + " holds no .png files");
    }
    DD2_TRY_ASSIGN(const Picture first, ReadRgbPng(path / names.front()));
    auto images = std::make_unique<PngFolder>(path, std::move(names));
    images->count_ = static_cast<std::int64_t>(images->names_.size());
    images->height_ = first.height;
    images->width_ = first.width;
    return std::unique_ptr<ImageSet>(std::move(images));
  }
  PngFolder(std::filesystem::path path, std::vector<std::string> names)
      : path_(std::move(path)), names_(std::move(names)) {}

  Result<at::Tensor> Read(std::int64_t begin, std::int64_t end) override {
    at::Tensor images = at::empty({end - begin, height_, width_, 3}, at::kByte);
    auto* target = images.data_ptr<std::uint8_t>();
    for (std::int64_t i = begin; i < end; ++i) {
      const std::filesystem::path file = path_ / names_[static_cast<std::size_t>(i)];
      DD2_TRY_ASSIGN(const Picture image, ReadRgbPng(file));
      if (image.height != height_ || image.width != width_) {
        return Error(Code::kInvalidArgument,
                     file.string() + " has " + std::to_string(image.width) + " x " +
                         std::to_string(image.height) + " pixels, the first image of the folder " +
                         std::to_string(width_) + " x " + std::to_string(height_) +
                         ": all images of a set must be equally large");
      }
      target = std::ranges::copy(image.pixels, target).out;
    }
    return images;
  }

  Result<Digest128> Digest() const override {
    Hasher128 hasher;
    for (const std::string& name : names_) {
      hasher.UpdateField(name);
      DD2_TRY(HashFile(path_ / name, hasher));
    }
    return hasher.Finish();
  }

 private:
  std::filesystem::path path_;
  std::vector<std::string> names_;  // sorted
};

}  // namespace

Result<std::unique_ptr<ImageSet>> ImageSet::Open(const std::filesystem::path& path) {
  std::error_code failure;
  if (std::filesystem::is_directory(path, failure)) return PngFolder::Open(path);
  return ArrayImages::Open(path);
}

}  // namespace dd2
