#pragma once

#include <cstdint>
#include <filesystem>

#include "common/result.h"
#include "worker/torch.h"

namespace dd2 {

// Images with their classes, in the order of the files.
struct LabelledImages {
  at::Tensor images;  // [N, 1, 28, 28] fp32 in [-1, 1]
  at::Tensor labels;  // [N] int64, 0..9
  std::int64_t count() const { return images.size(0); }
};

enum class Split : std::uint8_t { kTrain, kTest };  // 60,000 and 10,000 images

// Reads Fashion-MNIST (or any data set in MNIST's gzip-compressed IDX files with 28 x 28 images and
// ten classes) from `folder`. `limit` > 0: only the first so many. kNotFound: the files are not
// there (the message names the Debian package); kCorruption: damaged or another format.
Result<LabelledImages> LoadFashionMnist(const std::filesystem::path& folder, Split split,
                                        std::int64_t limit = 0);

}  // namespace dd2
