#include "worker/engine/random_batch.h"

#include <algorithm>
#include <span>
#include <vector>

#include "worker/kernels/torch_device.h"

namespace dd2 {
namespace {

// Fills [m, count, width]: each sample draws its m * width values in one go.
template <class Fill>
at::Tensor DrawPerSample(RngKey key, ShardRange range, std::int64_t draws, std::int64_t width,
                         const Fill& fill) {
  at::Tensor out = at::empty({draws, range.count, width}, at::kFloat);
  float* data = out.data_ptr<float>();
  std::vector<float> values(static_cast<std::size_t>(draws * width));
  for (std::int64_t i = 0; i < range.count; ++i) {
    key.sample = static_cast<std::uint64_t>(range.first + i);
    fill(key, std::span<float>(values));
    for (std::int64_t j = 0; j < draws; ++j) {
      std::copy_n(values.data() + j * width, width, data + (j * range.count + i) * width);
    }
  }
  return out;
}

}  // namespace

at::Tensor RandomLabels(RngKey key, ShardRange range, std::int64_t classes) {
  at::Tensor labels = at::empty({range.count}, at::kLong);
  for (std::int64_t i = 0; i < range.count; ++i) {
    key.sample = static_cast<std::uint64_t>(range.first + i);
    labels.data_ptr<std::int64_t>()[i] =
        static_cast<std::int64_t>(UniformInt(key, static_cast<std::uint64_t>(classes)));
  }
  return ToDevice(labels);
}

at::Tensor RandomNoise(RngKey key, ShardRange range, std::int64_t tokens, std::int64_t channels) {
  return RandomDraws(key, range, 1, tokens, channels).squeeze(0);
}

at::Tensor RandomDraws(RngKey key, ShardRange range, std::int64_t draws, std::int64_t tokens,
                       std::int64_t channels) {
  return ToDevice(DrawPerSample(key, range, draws, tokens * channels, FillNormal)
                      .view({draws, range.count, tokens, channels}));
}

at::Tensor RandomTimes(RngKey key, ShardRange range, std::int64_t draws, std::int64_t tokens,
                       double low, double high) {
  return ToDevice(DrawPerSample(key, range, draws, tokens, FillUniform)
                      .mul_(high - low)
                      .add_(low)
                      .view({draws, range.count, tokens, 1}));
}

}  // namespace dd2
