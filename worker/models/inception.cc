#include "worker/models/inception.h"

#include <algorithm>
#include <span>
#include <utility>

#include "common/check.h"
#include "storage/safetensors.h"
#include "storage/torch_file.h"
#include "worker/kernels/torch_device.h"

namespace dd2 {
namespace {

constexpr std::int64_t kSide = 299;
constexpr std::int64_t kSpatialChannels = 7;
constexpr double kNormEpsilon = 1e-3;

struct ConvShape {
  std::string name;
  std::int64_t in, out, height, width;
  std::int64_t stride = 1;
  bool padded = false;  // keeps the size; otherwise only whole windows count
};

// Every convolution in the order of the port. Each is followed by batch normalisation and ReLU.
class ConvTable {
 public:
  ConvTable() {
    Add("Conv2d_1a_3x3", 3, 32, 3, 3, 2);
    Add("Conv2d_2a_3x3", 32, 32, 3, 3);
    AddPadded("Conv2d_2b_3x3", 32, 64, 3, 3);
    Add("Conv2d_3b_1x1", 64, 80, 1, 1);
    Add("Conv2d_4a_3x3", 80, 192, 3, 3);
    AddA("Mixed_5b.", 192, 32);
    AddA("Mixed_5c.", 256, 64);
    AddA("Mixed_5d.", 288, 64);
    AddB("Mixed_6a.", 288);
    AddC("Mixed_6b.", 128);
    AddC("Mixed_6c.", 160);
    AddC("Mixed_6d.", 160);
    AddC("Mixed_6e.", 192);
    AddD("Mixed_7a.", 768);
    AddE("Mixed_7b.", 1280);
    AddE("Mixed_7c.", 2048);
  }
  const std::vector<ConvShape>& shapes() const { return shapes_; }

 private:
  void Add(const std::string& name, std::int64_t in, std::int64_t out, std::int64_t height,
           std::int64_t width, std::int64_t stride = 1) {
    shapes_.push_back({name, in, out, height, width, stride, false});
  }
  void AddPadded(const std::string& name, std::int64_t in, std::int64_t out, std::int64_t height,
                 std::int64_t width) {
    shapes_.push_back({name, in, out, height, width, 1, true});
  }
  void AddA(const std::string& block, std::int64_t in, std::int64_t pool) {
    Add(block + "branch1x1", in, 64, 1, 1);
    Add(block + "branch5x5_1", in, 48, 1, 1);
    AddPadded(block + "branch5x5_2", 48, 64, 5, 5);
    Add(block + "branch3x3dbl_1", in, 64, 1, 1);
    AddPadded(block + "branch3x3dbl_2", 64, 96, 3, 3);
    AddPadded(block + "branch3x3dbl_3", 96, 96, 3, 3);
    Add(block + "branch_pool", in, pool, 1, 1);
  }
  void AddB(const std::string& block, std::int64_t in) {
    Add(block + "branch3x3", in, 384, 3, 3, 2);
    Add(block + "branch3x3dbl_1", in, 64, 1, 1);
    AddPadded(block + "branch3x3dbl_2", 64, 96, 3, 3);
    Add(block + "branch3x3dbl_3", 96, 96, 3, 3, 2);
  }
  void AddC(const std::string& block, std::int64_t inner) {
    Add(block + "branch1x1", 768, 192, 1, 1);
    Add(block + "branch7x7_1", 768, inner, 1, 1);
    AddPadded(block + "branch7x7_2", inner, inner, 1, 7);
    AddPadded(block + "branch7x7_3", inner, 192, 7, 1);
    Add(block + "branch7x7dbl_1", 768, inner, 1, 1);
    AddPadded(block + "branch7x7dbl_2", inner, inner, 7, 1);
    AddPadded(block + "branch7x7dbl_3", inner, inner, 1, 7);
    AddPadded(block + "branch7x7dbl_4", inner, inner, 7, 1);
    AddPadded(block + "branch7x7dbl_5", inner, 192, 1, 7);
    Add(block + "branch_pool", 768, 192, 1, 1);
  }
  void AddD(const std::string& block, std::int64_t in) {
    Add(block + "branch3x3_1", in, 192, 1, 1);
    Add(block + "branch3x3_2", 192, 320, 3, 3, 2);
    Add(block + "branch7x7x3_1", in, 192, 1, 1);
    AddPadded(block + "branch7x7x3_2", 192, 192, 1, 7);
    AddPadded(block + "branch7x7x3_3", 192, 192, 7, 1);
    Add(block + "branch7x7x3_4", 192, 192, 3, 3, 2);
  }
  void AddE(const std::string& block, std::int64_t in) {
    Add(block + "branch1x1", in, 320, 1, 1);
    Add(block + "branch3x3_1", in, 384, 1, 1);
    AddPadded(block + "branch3x3_2a", 384, 384, 1, 3);
    AddPadded(block + "branch3x3_2b", 384, 384, 3, 1);
    Add(block + "branch3x3dbl_1", in, 448, 1, 1);
    AddPadded(block + "branch3x3dbl_2", 448, 384, 3, 3);
    AddPadded(block + "branch3x3dbl_3a", 384, 384, 1, 3);
    AddPadded(block + "branch3x3dbl_3b", 384, 384, 3, 1);
    Add(block + "branch_pool", in, 192, 1, 1);
  }

  std::vector<ConvShape> shapes_;
};

// The border divides by the number of real neighbours, as TensorFlow does it.
at::Tensor NeighbourMean(const at::Tensor& x) {
  return at::avg_pool2d(x, {3, 3}, {1, 1}, {1, 1}, /*ceil_mode=*/false,
                        /*count_include_pad=*/false);
}

at::Tensor Halve(const at::Tensor& x) { return at::max_pool2d(x, {3, 3}, {2, 2}); }

// The two neighbours of each output position, and how far it is from the first.
struct Taps {
  at::Tensor low, high;  // [out] int64
  at::Tensor share;      // [out] fp32
};

Taps TapsFor(std::int64_t in, std::int64_t out) {
  const auto scale = static_cast<float>(in) / static_cast<float>(out);
  const at::Tensor position = at::arange(out, at::kFloat) * scale;
  Taps taps;
  const at::Tensor low = position.to(at::kLong).clamp_max(in - 1);
  taps.low = ToDevice(low);
  taps.high = ToDevice((low + 1).clamp_max(in - 1));
  taps.share = ToDevice(position - low);
  return taps;
}

// `host`: what HostFlat() gives.
std::span<std::byte> ValuesOf(const at::Tensor& host, const ParamSpec& spec) {
  return std::as_writable_bytes(
      std::span(host.data_ptr<float>() + spec.offset, static_cast<std::size_t>(spec.numel)));
}

// Every tensor of the layout by `read`, which is kNotFound where the file has none of that name.
template <class Read>
Result<ParamBuffer> ReadTensors(const std::filesystem::path& path, const Read& read) {
  ParamBuffer params(Inception::Layout(), /*requires_grad=*/false);
  const at::Tensor host = params.HostFlat();
  for (const ParamSpec& spec : params.layout().specs()) {
    const Result<std::vector<float>> values = read(spec);
    if (!values) {
      if (values.error().code() != Code::kNotFound) return values.error().Wrap(path.string());
      return Error(Code::kInvalidArgument,
                   "'" + path.string() + "' has no tensor '" + spec.name +
                       "': it is not the FID network pt_inception-2015-12-05");
    }
    std::ranges::copy(std::as_bytes(std::span(*values)), ValuesOf(host, spec).begin());
  }
  params.SetFlat(host);
  return params;
}

Result<ParamBuffer> ReadSafetensors(const std::filesystem::path& path) {
  DD2_TRY_ASSIGN(const SafetensorsFile file, SafetensorsFile::Open(path));
  return ReadTensors(path,
                     [&](const ParamSpec& spec) { return file.ReadF32(spec.name, spec.shape); });
}

Result<ParamBuffer> ReadTorchFile(const std::filesystem::path& path) {
  DD2_TRY_ASSIGN(const TorchFile file, TorchFile::Open(path));
  if (const Status whole = file.CheckSums([](std::uint64_t) {}); !whole) {
    return whole.error().Wrap(path.string());
  }
  return ReadTensors(path, [&](const ParamSpec& spec) -> Result<std::vector<float>> {
    const auto found = std::ranges::find_if(file.tensors(), [&](const TorchTensor& tensor) {
      return tensor.group.empty() && tensor.name == spec.name;
    });
    if (found == file.tensors().end()) return Error(Code::kNotFound, spec.name);
    if (found->shape != spec.shape) {
      return Error(Code::kInvalidArgument,
                   "tensor '" + spec.name + "' has another shape than in the FID network");
    }
    std::vector<float> values(static_cast<std::size_t>(spec.numel));
    DD2_TRY(file.Read(*found, 0, values));
    return values;
  });
}

}  // namespace

at::Tensor ResizeLikeTensorFlow1(const at::Tensor& images, std::int64_t side) {
  const Taps across = TapsFor(images.size(3), side);
  const at::Tensor left = images.index_select(3, across.low);
  const at::Tensor rows = left + (images.index_select(3, across.high) - left) * across.share;
  const Taps down = TapsFor(images.size(2), side);
  const at::Tensor top = rows.index_select(2, down.low);
  return top + (rows.index_select(2, down.high) - top) * down.share.unsqueeze(1);
}

ParamLayout Inception::Layout() {
  const ConvTable table;
  ParamLayout layout;
  for (const ConvShape& shape : table.shapes()) {
    layout.Add(shape.name + ".conv.weight", {shape.out, shape.in, shape.height, shape.width});
    layout.AddNorm(shape.name + ".bn", shape.out);
    layout.Add(shape.name + ".bn.running_mean", {shape.out});
    layout.Add(shape.name + ".bn.running_var", {shape.out});
  }
  layout.Add("fc.weight", {kClasses, kPool});
  return layout;
}

Inception::Inception(const ParamBuffer& params)
    : last_weight_(params["fc.weight"].to(at::kCPU, at::kFloat, false, /*copy=*/true)) {
  const at::NoGradGuard no_grad;
  Hasher128 hasher;
  const at::Tensor host = params.HostFlat();
  for (const ParamSpec& spec : params.layout().specs()) hasher.Update(ValuesOf(host, spec));
  digest_ = hasher.Finish();
  const ConvTable table;
  for (const ConvShape& shape : table.shapes()) {
    const auto get = [&](const char* part) { return params[shape.name + part].to(at::kDouble); };
    const at::Tensor gain = get(".bn.weight") / (get(".bn.running_var") + kNormEpsilon).sqrt();
    const at::Tensor weight = get(".conv.weight") * gain.view({-1, 1, 1, 1});
    const at::Tensor bias = get(".bn.bias") - get(".bn.running_mean") * gain;
    Conv conv{.weight = weight.to(at::kFloat).contiguous(at::MemoryFormat::ChannelsLast),
              .bias = bias.to(at::kFloat),
              .stride = shape.stride,
              .padding = {0, 0}};
    if (shape.padded) conv.padding = {shape.height / 2, shape.width / 2};
    convs_.emplace(shape.name, std::move(conv));
  }
}

Result<Inception> Inception::Load(const std::filesystem::path& path) {
  Result<ParamBuffer> params =
      path.extension() == ".safetensors" ? ReadSafetensors(path) : ReadTorchFile(path);
  if (!params) return params.error();
  return Inception(*params);
}

at::Tensor Inception::Run(const std::string& name, at::Tensor x) const {
  const auto found = convs_.find(name);
  DD2_CHECK_MSG(found != convs_.end(), name);
  const Conv& conv = found->second;
  return at::conv2d(x, conv.weight, conv.bias, {conv.stride, conv.stride}, conv.padding).relu_();
}

at::Tensor Inception::Chain(const std::string& prefix, std::initializer_list<const char*> names,
                            at::Tensor x) const {
  for (const char* name : names) x = Run(prefix + name, x);
  return x;
}

at::Tensor Inception::BlockA(const std::string& name, const at::Tensor& x) const {
  return at::cat({Run(name + "branch1x1", x), Chain(name + "branch5x5_", {"1", "2"}, x),
                  Chain(name + "branch3x3dbl_", {"1", "2", "3"}, x),
                  Run(name + "branch_pool", NeighbourMean(x))},
                 1);
}

at::Tensor Inception::BlockB(const std::string& name, const at::Tensor& x) const {
  return at::cat(
      {Run(name + "branch3x3", x), Chain(name + "branch3x3dbl_", {"1", "2", "3"}, x), Halve(x)}, 1);
}

at::Tensor Inception::BlockC(const std::string& name, const at::Tensor& x) const {
  return at::cat({Run(name + "branch1x1", x), Chain(name + "branch7x7_", {"1", "2", "3"}, x),
                  Chain(name + "branch7x7dbl_", {"1", "2", "3", "4", "5"}, x),
                  Run(name + "branch_pool", NeighbourMean(x))},
                 1);
}

at::Tensor Inception::BlockD(const std::string& name, const at::Tensor& x) const {
  return at::cat({Chain(name + "branch3x3_", {"1", "2"}, x),
                  Chain(name + "branch7x7x3_", {"1", "2", "3", "4"}, x), Halve(x)},
                 1);
}

at::Tensor Inception::BlockE(const std::string& name, const at::Tensor& x, bool max_pool) const {
  const at::Tensor wide = Run(name + "branch3x3_1", x);
  const at::Tensor deep = Chain(name + "branch3x3dbl_", {"1", "2"}, x);
  const at::Tensor pooled = max_pool ? at::max_pool2d(x, {3, 3}, {1, 1}, {1, 1}) : NeighbourMean(x);
  return at::cat({Run(name + "branch1x1", x), Run(name + "branch3x3_2a", wide),
                  Run(name + "branch3x3_2b", wide), Run(name + "branch3x3dbl_3a", deep),
                  Run(name + "branch3x3dbl_3b", deep), Run(name + "branch_pool", pooled)},
                 1);
}

InceptionFeatures Inception::Features(const at::Tensor& images) const {
  DD2_CHECK(images.dim() == 4 && images.size(3) == 3 && images.scalar_type() == at::kByte);
  const at::NoGradGuard no_grad;
  const at::Tensor pixels = ToDevice(images).permute({0, 3, 1, 2}).to(at::kFloat).contiguous();
  at::Tensor x = (ResizeLikeTensorFlow1(pixels, kSide) - 128) / 128;
  x = x.contiguous(at::MemoryFormat::ChannelsLast);
  x = Halve(Chain("Conv2d_", {"1a_3x3", "2a_3x3", "2b_3x3"}, x));
  x = Halve(Chain("Conv2d_", {"3b_1x1", "4a_3x3"}, x));
  x = BlockA("Mixed_5d.", BlockA("Mixed_5c.", BlockA("Mixed_5b.", x)));
  x = BlockC("Mixed_6c.", BlockC("Mixed_6b.", BlockB("Mixed_6a.", x)));
  x = BlockC("Mixed_6d.", x);
  InceptionFeatures features;
  // The first branch of 6d comes first in its output.
  features.spatial = x.narrow(1, 0, kSpatialChannels).permute({0, 2, 3, 1}).flatten(1).contiguous();
  x = BlockD("Mixed_7a.", BlockC("Mixed_6e.", x));
  x = BlockE("Mixed_7c.", BlockE("Mixed_7b.", x, /*max_pool=*/false), /*max_pool=*/true);
  features.pool = x.mean({2, 3}).contiguous();
  return features;
}

}  // namespace dd2
