#include "worker/models/vqgan.h"

#include <cmath>
#include <utility>

#include "common/check.h"

namespace dd2 {
namespace {

constexpr std::int64_t kNormGroups = 32;
constexpr double kNormEpsilon = 1e-6;
constexpr std::int64_t kEncoderBlocks = 2;  // residual blocks per level
constexpr std::int64_t kDecoderBlocks = 3;
constexpr std::int64_t kColours = 3;

}  // namespace

// Both halves as lists of steps, in order of execution.
class Vqgan::Planner {
 public:
  // `part`: "encoder." or "decoder."; `width`: channels of its input.
  Planner(const VqganSpec& spec, std::string part, std::int64_t width)
      : spec_(spec), part_(std::move(part)), width_(width) {}

  void Add(Kind kind, const std::string& name, std::int64_t out) {
    steps_.push_back({kind, part_ + name, width_, out});
    width_ = out;
  }
  void Keep(Kind kind, const std::string& name) { Add(kind, name, width_); }

  // Residual blocks of a level, each followed by attention at the lowest resolution. `order`: place
  // of the level in the order of execution.
  void AddLevel(std::size_t level, std::size_t order, std::int64_t blocks) {
    const bool var = spec_.names == VqganNames::kVar;
    const std::string var_stem = part_ == "encoder." ? "down." : "up.";
    const std::string stem =
        var ? var_stem + std::to_string(level) : "conv_blocks." + std::to_string(order);
    const std::int64_t out = spec_.width * spec_.multipliers[level];
    for (std::int64_t i = 0; i < blocks; ++i) {
      Add(Kind::kResidual, stem + (var ? ".block." : ".res.") + std::to_string(i), out);
      if (level + 1 == spec_.multipliers.size()) {
        Keep(Kind::kAttention, stem + ".attn." + std::to_string(i));
      }
    }
    // The last level of either half keeps its resolution.
    if (order + 1 == spec_.multipliers.size()) return;
    if (part_ == "encoder.") {
      Keep(Kind::kDown, stem + ".downsample.conv");
    } else {
      Keep(Kind::kUp, stem + ".upsample.conv");
    }
  }

  void AddMiddle() {
    const bool var = spec_.names == VqganNames::kVar;
    Keep(Kind::kResidual, var ? "mid.block_1" : "mid.0");
    Keep(Kind::kAttention, var ? "mid.attn_1" : "mid.1");
    Keep(Kind::kResidual, var ? "mid.block_2" : "mid.2");
  }

  std::vector<Step> Take() { return std::move(steps_); }

 private:
  const VqganSpec& spec_;
  std::string part_;
  std::int64_t width_;  // channels so far
  std::vector<Step> steps_;
};

std::vector<Vqgan::Step> Vqgan::EncoderSteps(const VqganSpec& spec) {
  Planner planner(spec, "encoder.", kColours);
  planner.Add(Kind::kConv, "conv_in", spec.width);
  for (std::size_t level = 0; level < spec.multipliers.size(); ++level) {
    planner.AddLevel(level, level, kEncoderBlocks);
  }
  planner.AddMiddle();
  planner.Add(Kind::kOut, "", spec.latent);
  return planner.Take();
}

std::vector<Vqgan::Step> Vqgan::DecoderSteps(const VqganSpec& spec) {
  Planner planner(spec, "decoder.", spec.latent);
  planner.Add(Kind::kConv, "conv_in", spec.width * spec.multipliers.back());
  planner.AddMiddle();
  const std::size_t levels = spec.multipliers.size();
  for (std::size_t order = 0; order < levels; ++order) {
    planner.AddLevel(levels - 1 - order, order, kDecoderBlocks);
  }
  planner.Add(Kind::kOut, "", kColours);
  return planner.Take();
}

void Vqgan::DeclareStep(const VqganSpec& spec, const Step& step, ParamLayout& layout) {
  const std::string& name = step.name;
  switch (step.kind) {
    case Kind::kConv:
    case Kind::kDown:
    case Kind::kUp: layout.AddConv(name, step.in, step.out, 3); break;
    case Kind::kResidual:
      layout.AddNorm(name + ".norm1", step.in);
      layout.AddConv(name + ".conv1", step.in, step.out, 3);
      layout.AddNorm(name + ".norm2", step.out);
      layout.AddConv(name + ".conv2", step.out, step.out, 3);
      if (step.in != step.out) layout.AddConv(name + ".nin_shortcut", step.in, step.out, 1);
      break;
    case Kind::kAttention:
      layout.AddNorm(name + ".norm", step.in);
      if (spec.names == VqganNames::kVar) {
        layout.AddConv(name + ".qkv", step.in, 3 * step.in, 1);
      } else {
        for (const char* part : {".q", ".k", ".v"}) {
          layout.AddConv(name + part, step.in, step.in, 1);
        }
      }
      layout.AddConv(name + ".proj_out", step.in, step.in, 1);
      break;
    case Kind::kOut:
      layout.AddNorm(name + "norm_out", step.in);
      layout.AddConv(name + "conv_out", step.in, step.out, 3);
      break;
  }
}

void Vqgan::Declare(const VqganSpec& spec, ParamLayout& layout) {
  for (const Step& step : EncoderSteps(spec)) DeclareStep(spec, step, layout);
  for (const Step& step : DecoderSteps(spec)) DeclareStep(spec, step, layout);
}

Vqgan::Vqgan(const VqganSpec& spec, const ParamBuffer& params)
    : spec_(spec), params_(params), encoder_(EncoderSteps(spec)), decoder_(DecoderSteps(spec)) {}

at::Tensor Vqgan::Encode(const at::Tensor& images) const {
  DD2_CHECK(images.dim() == 4 && images.size(1) == kColours);
  DD2_CHECK(images.size(2) % spec_.Factor() == 0 && images.size(3) % spec_.Factor() == 0);
  return Run(encoder_, images);
}

at::Tensor Vqgan::Decode(const at::Tensor& latents) const {
  DD2_CHECK(latents.dim() == 4 && latents.size(1) == spec_.latent);
  return Run(decoder_, latents);
}

at::Tensor Vqgan::Run(const std::vector<Step>& steps, at::Tensor x) const {
  for (const Step& step : steps) {
    switch (step.kind) {
      case Kind::kConv: x = Conv(step.name, x); break;
      case Kind::kResidual: x = Residual(step, x); break;
      case Kind::kAttention: x = Attention(step.name, x); break;
      case Kind::kDown:
        // Zeros on the right and below only; padding 1 on all sides would shift the grid.
        x = at::conv2d(at::constant_pad_nd(x, {0, 1, 0, 1}), params_[step.name + ".weight"],
                       params_[step.name + ".bias"], /*stride=*/2);
        break;
      case Kind::kUp:
        x = Conv(step.name, at::upsample_nearest2d(x, {2 * x.size(2), 2 * x.size(3)}));
        break;
      case Kind::kOut: x = Conv(step.name + "conv_out", NormSilu(step.name + "norm_out", x)); break;
    }
  }
  return x;
}

at::Tensor Vqgan::Conv(const std::string& name, const at::Tensor& x) const {
  const at::Tensor& weight = params_[name + ".weight"];
  return at::conv2d(x, weight, params_[name + ".bias"], /*stride=*/1,
                    /*padding=*/weight.size(2) / 2);
}

at::Tensor Vqgan::Norm(const std::string& name, const at::Tensor& x) const {
  // A convolution may leave the channels last, which a device without a kernel of its own refuses.
  return at::group_norm(x.is_cpu() ? x : x.contiguous(), kNormGroups, params_[name + ".weight"],
                        params_[name + ".bias"], kNormEpsilon);
}

at::Tensor Vqgan::NormSilu(const std::string& name, const at::Tensor& x) const {
  return at::silu(Norm(name, x));
}

at::Tensor Vqgan::Residual(const Step& step, const at::Tensor& x) const {
  at::Tensor h = Conv(step.name + ".conv1", NormSilu(step.name + ".norm1", x));
  h = Conv(step.name + ".conv2", NormSilu(step.name + ".norm2", h));
  return (step.in == step.out ? x : Conv(step.name + ".nin_shortcut", x)) + h;
}

at::Tensor Vqgan::Attention(const std::string& name, const at::Tensor& x) const {
  const at::Tensor normed = Norm(name + ".norm", x);
  std::vector<at::Tensor> qkv;
  if (spec_.names == VqganNames::kVar) {
    qkv = Conv(name + ".qkv", normed).chunk(3, 1);
  } else {
    qkv = {Conv(name + ".q", normed), Conv(name + ".k", normed), Conv(name + ".v", normed)};
  }
  for (at::Tensor& part : qkv) part = part.flatten(2);  // [B, C, h w]
  const double scale = 1 / std::sqrt(static_cast<double>(x.size(1)));
  const at::Tensor weights = (at::bmm(qkv[0].transpose(1, 2), qkv[1]) * scale).softmax(-1);
  const at::Tensor mixed = at::bmm(qkv[2], weights.transpose(1, 2)).view_as(x);
  return x + Conv(name + ".proj_out", mixed);
}

at::Tensor NearestCodes(const at::Tensor& rows, const at::Tensor& codebook) {
  const at::Tensor squares =
      rows.square().sum(1, /*keepdim=*/true) + codebook.square().sum(1);  // [N, V]
  return at::addmm(squares, rows, codebook.t(), 1.0, -2.0).argmin(1);
}

at::Tensor MapToRows(const at::Tensor& map) { return map.flatten(2).transpose(1, 2); }

at::Tensor RowsToMap(const at::Tensor& rows, std::int64_t height, std::int64_t width) {
  return rows.transpose(1, 2).reshape({rows.size(0), rows.size(2), height, width});
}

}  // namespace dd2
