#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "common/hash.h"
#include "common/result.h"
#include "worker/torch.h"

namespace dd2 {

// Equally large RGB images on the disk, read as they are needed: 50,000 of 256 x 256 are 9.8 GB.
class ImageSet {
 public:
  // `path`: a folder of PNG files (taken by name), or an .npz or .npy file whose arr_0 is uint8
  // [N, H, W, 3]. kNotFound; kCorruption; kInvalidArgument: other shapes or types, no images.
  static Result<std::unique_ptr<ImageSet>> Open(const std::filesystem::path& path);
  virtual ~ImageSet() = default;

  std::int64_t count() const { return count_; }
  std::int64_t height() const { return height_; }
  std::int64_t width() const { return width_; }
  // Images [begin, end): [end - begin, H, W, 3] uint8. `begin` never goes back.
  virtual Result<at::Tensor> Read(std::int64_t begin, std::int64_t end) = 0;
  // Of all bytes of the files, so it reads them once. The same images in another format, or under
  // other names, have another digest.
  virtual Result<Digest128> Digest() const = 0;

 protected:
  std::int64_t count_ = 0;
  std::int64_t height_ = 0;
  std::int64_t width_ = 0;
};

}  // namespace dd2
