#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "common/hash.h"
#include "common/result.h"
#include "worker/models/param_buffer.h"
#include "worker/torch.h"

namespace dd2 {

// What FID, sFID and the Inception Score look at, of a batch of images. On ComputeDevice().
struct InceptionFeatures {
  at::Tensor pool;     // [B, 2048]: mean of the last feature map ("pool_3")
  at::Tensor spatial;  // [B, 2023]: first 7 channels of "mixed_6/conv", in the order y, x, channel
};

// The Inception-v3 of 2015 that FID is defined by (TensorFlow's classify_image_graph_def, models.md
// 6.1), for inference. It differs from torchvision's network: average pools inside the blocks do
// not count the padding, the last block pools by maximum, there are 1008 classes, and images are
// enlarged as TensorFlow 1 did it. Tensors have the names of the PyTorch port of these weights
// (pt_inception-2015-12-05: "Mixed_5b.branch1x1.conv.weight", ...). Immutable, so usable from
// several threads.
class Inception {
 public:
  static constexpr std::int64_t kPool = 2048;
  static constexpr std::int64_t kSpatial = 17 * 17 * 7;
  static constexpr std::int64_t kClasses = 1008;

  // In the order of the port; fc.bias is not used.
  static ParamLayout Layout();
  // Folds batch normalisation into the convolutions.
  explicit Inception(const ParamBuffer& params);
  // Reads a .safetensors file, or the .pth as it is published (torch_file.h: nothing in it is run).
  // Tensors outside the layout (fc.bias, num_batches_tracked) are passed over. kNotFound;
  // kCorruption: damaged, or neither kind of file; kInvalidArgument: another network.
  static Result<Inception> Load(const std::filesystem::path& path);

  // images [B, H, W, 3] uint8, any size, in host memory or on ComputeDevice(). B matters for the
  // last bits: use equal batches where bits must be equal.
  InceptionFeatures Features(const at::Tensor& images) const;
  // [1008, 2048], in host memory. The score's logits are pool times it, without bias.
  const at::Tensor& last_weight() const { return last_weight_; }
  // Of all tensors of the layout: the same from either kind of file.
  const Digest128& digest() const { return digest_; }

 private:
  struct Conv {
    at::Tensor weight;  // [out, in, height, width]
    at::Tensor bias;    // [out]
    std::int64_t stride = 1;
    std::vector<std::int64_t> padding;  // up and down, left and right
  };
  at::Tensor Run(const std::string& name, at::Tensor x) const;
  // Convolutions one after the other: prefix + each of `names`.
  at::Tensor Chain(const std::string& prefix, std::initializer_list<const char*> names,
                   at::Tensor x) const;
  at::Tensor BlockA(const std::string& name, const at::Tensor& x) const;
  at::Tensor BlockB(const std::string& name, const at::Tensor& x) const;
  at::Tensor BlockC(const std::string& name, const at::Tensor& x) const;
  at::Tensor BlockD(const std::string& name, const at::Tensor& x) const;
  at::Tensor BlockE(const std::string& name, const at::Tensor& x, bool max_pool) const;

  std::map<std::string, Conv> convs_;
  at::Tensor last_weight_;
  Digest128 digest_;
};

// [B, C, H, W] fp32 on ComputeDevice() -> [B, C, side, side], as TensorFlow 1's ResizeBilinear
// without align_corners: output y reads at y * H / side, with no half-pixel shift.
at::Tensor ResizeLikeTensorFlow1(const at::Tensor& images, std::int64_t side);

}  // namespace dd2
