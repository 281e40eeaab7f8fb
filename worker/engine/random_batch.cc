#include "worker/engine/random_batch.h"

#include <algorithm>
#include <span>
#include <vector>

#include "common/check.h"
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

// The same by the kernel of a GPU.
at::Tensor DrawOnDevice(const RngKey& key, ShardRange range, std::int64_t draws, std::int64_t width,
                        bool normal) {
  DD2_CHECK(key.phase < (1U << 16) && key.update < (1ULL << 32) && range.first >= 0 &&
            range.first + range.count <= (std::int64_t{1} << 32));
  at::Tensor out = at::empty({draws, range.count, width}, OnDevice());
  if (out.numel() == 0) return out;
  const Dd2RandomField field{.seed = key.seed,
                             .phase = key.phase,
                             .use = static_cast<std::uint32_t>(key.use),
                             .update = static_cast<std::uint32_t>(key.update),
                             .first_sample = static_cast<std::uint32_t>(range.first),
                             .normal = normal ? 1 : 0,
                             .draws = draws,
                             .samples = range.count,
                             .width = width,
                             .d_out = out.mutable_data_ptr<float>()};
  CheckKernel(DeviceKernels().random(&field, nullptr));
  return out;
}

at::Tensor Normals(const RngKey& key, ShardRange range, std::int64_t draws, std::int64_t width) {
  if (!ComputeDevice().is_cpu()) return DrawOnDevice(key, range, draws, width, true);
  return DrawPerSample(key, range, draws, width, FillNormal);
}

at::Tensor Uniforms(const RngKey& key, ShardRange range, std::int64_t draws, std::int64_t width) {
  if (!ComputeDevice().is_cpu()) return DrawOnDevice(key, range, draws, width, false);
  return DrawPerSample(key, range, draws, width, FillUniform);
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
  return Normals(key, range, draws, tokens * channels).view({draws, range.count, tokens, channels});
}

at::Tensor RandomTimes(RngKey key, ShardRange range, std::int64_t draws, std::int64_t tokens,
                       double low, double high) {
  return Uniforms(key, range, draws, tokens)
      .mul_(high - low)
      .add_(low)
      .view({draws, range.count, tokens, 1});
}

}  // namespace dd2
