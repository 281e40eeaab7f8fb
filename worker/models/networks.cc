#include "worker/models/networks.h"

#include <cmath>
#include <limits>

#include "common/check.h"

namespace dd2 {
namespace {

constexpr double kBackboneNormEpsilon = 1e-5;
constexpr double kHeadNormEpsilon = 1e-6;
constexpr double kTimePeriod = 10000.0;  // longest sinusoid of the time embedding
constexpr double kTimeScale = 1000.0;    // t in [0, 1] -> the range the sinusoids are made for

void AddLinear(ParamLayout& layout, const std::string& name, std::int64_t in, std::int64_t out) {
  layout.Add(name + ".weight", {out, in});
  layout.Add(name + ".bias", {out});
}

void AddNorm(ParamLayout& layout, const std::string& name, std::int64_t width) {
  layout.Add(name + ".weight", {width});
  layout.Add(name + ".bias", {width});
}

at::Tensor CausalMask(std::int64_t n) {
  return at::full({n, n}, -std::numeric_limits<float>::infinity(), at::kFloat).triu(1);
}

// norm(x) * (1 + scale) + shift.
at::Tensor Modulate(const at::Tensor& normalised, const at::Tensor& shift,
                    const at::Tensor& scale) {
  return at::addcmul(shift, normalised, scale + 1.0);
}

}  // namespace

void Backbone::Declare(const BackboneSpec& spec, const std::string& prefix, ParamLayout& layout) {
  const std::int64_t d = spec.width;
  AddLinear(layout, prefix + "input.0", spec.channels, d);
  AddLinear(layout, prefix + "input.2", d, d);
  layout.Add(prefix + "positions", {spec.tokens, d});
  layout.Add(prefix + "class_embed.weight", {spec.classes + 1, d});
  layout.Add(prefix + "start", {d});
  for (std::int64_t i = 0; i < spec.layers; ++i) {
    const std::string block = prefix + "blocks." + std::to_string(i) + ".";
    AddNorm(layout, block + "norm1", d);
    AddLinear(layout, block + "qkv", d, 3 * d);
    AddLinear(layout, block + "proj", d, d);
    AddNorm(layout, block + "norm2", d);
    AddLinear(layout, block + "fc1", d, 4 * d);
    AddLinear(layout, block + "fc2", 4 * d, d);
  }
  AddNorm(layout, prefix + "norm", d);
}

Backbone::Backbone(const BackboneSpec& spec, const ParamBuffer& params, const std::string& prefix)
    : spec_(spec),
      in1_weight_(params[prefix + "input.0.weight"]),
      in1_bias_(params[prefix + "input.0.bias"]),
      in2_weight_(params[prefix + "input.2.weight"]),
      in2_bias_(params[prefix + "input.2.bias"]),
      positions_(params[prefix + "positions"]),
      classes_(params[prefix + "class_embed.weight"]),
      start_(params[prefix + "start"]),
      norm_weight_(params[prefix + "norm.weight"]),
      norm_bias_(params[prefix + "norm.bias"]),
      causal_mask_(CausalMask(spec.tokens)) {
  DD2_CHECK(spec.heads > 0 && spec.width % spec.heads == 0);
  for (std::int64_t i = 0; i < spec.layers; ++i) {
    const std::string b = prefix + "blocks." + std::to_string(i) + ".";
    blocks_.push_back({params[b + "norm1.weight"], params[b + "norm1.bias"],
                       params[b + "qkv.weight"], params[b + "qkv.bias"], params[b + "proj.weight"],
                       params[b + "proj.bias"], params[b + "norm2.weight"],
                       params[b + "norm2.bias"], params[b + "fc1.weight"], params[b + "fc1.bias"],
                       params[b + "fc2.weight"], params[b + "fc2.bias"]});
  }
}

at::Tensor Backbone::RunBlock(const Block& block, const at::Tensor& x, std::int64_t layer,
                              std::int64_t position, KvCache* cache) const {
  const std::int64_t batch = x.size(0), length = x.size(1), d = spec_.width, heads = spec_.heads;
  const std::int64_t head_width = d / heads;
  const double scale = 1.0 / std::sqrt(static_cast<double>(head_width));
  const at::Tensor normed =
      at::layer_norm(x, {d}, block.norm1_weight, block.norm1_bias, kBackboneNormEpsilon);
  const at::Tensor qkv = at::linear(normed, block.qkv_weight, block.qkv_bias)
                             .view({batch, length, 3, heads, head_width})
                             .permute({2, 0, 3, 1, 4});  // [3, B, heads, T, d / heads]
  const auto rows = [&](const at::Tensor& t) {
    return t.reshape({batch * heads, t.size(2), head_width});
  };
  const at::Tensor query = rows(qkv.select(0, 0));
  at::Tensor key = qkv.select(0, 1), value = qkv.select(0, 2), weights;
  if (cache == nullptr) {
    // Mask and 1/sqrt(width) inside the matrix product: two element-wise passes less.
    weights = at::baddbmm(causal_mask_, query, rows(key).transpose(1, 2), 1.0, scale);
  } else {
    const std::size_t index = static_cast<std::size_t>(layer);
    cache->keys[index].narrow(2, position, 1).copy_(key);
    cache->values[index].narrow(2, position, 1).copy_(value);
    key = cache->keys[index].narrow(2, 0, position + 1);
    value = cache->values[index].narrow(2, 0, position + 1);
    weights = at::bmm(query, rows(key).transpose(1, 2)).mul_(scale);
  }
  const at::Tensor mixed = at::bmm(at::softmax(weights, -1), rows(value))
                               .view({batch, heads, length, head_width})
                               .transpose(1, 2)
                               .reshape({batch, length, d});
  const at::Tensor h = x + at::linear(mixed, block.out_weight, block.out_bias);
  const at::Tensor normed2 =
      at::layer_norm(h, {d}, block.norm2_weight, block.norm2_bias, kBackboneNormEpsilon);
  const at::Tensor inner = at::gelu(at::linear(normed2, block.fc1_weight, block.fc1_bias));
  return h + at::linear(inner, block.fc2_weight, block.fc2_bias);
}

at::Tensor Backbone::Forward(const at::Tensor& q, const at::Tensor& labels) const {
  const std::int64_t batch = q.size(0), n = spec_.tokens, d = spec_.width;
  DD2_CHECK(q.dim() == 3 && q.size(1) == n && q.size(2) == spec_.channels);
  // The last token is nobody's past.
  const at::Tensor past = q.narrow(1, 0, n - 1);
  const at::Tensor inner = at::silu(at::linear(past, in1_weight_, in1_bias_));
  const at::Tensor embedded = at::linear(inner, in2_weight_, in2_bias_);
  at::Tensor x = at::cat({start_.view({1, 1, d}).expand({batch, 1, d}), embedded}, 1);
  x = x + positions_ + at::embedding(classes_, labels).unsqueeze(1);
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    x = RunBlock(blocks_[i], x, static_cast<std::int64_t>(i), 0, nullptr);
  }
  return at::layer_norm(x, {d}, norm_weight_, norm_bias_, kBackboneNormEpsilon);
}

at::Tensor Backbone::Step(const at::Tensor& q_previous, std::int64_t position,
                          const at::Tensor& labels, KvCache& cache) const {
  const at::NoGradGuard no_grad;
  const std::int64_t batch = labels.size(0), d = spec_.width;
  DD2_CHECK(position >= 0 && position < spec_.tokens);
  if (position == 0) {
    cache.keys.clear();
    cache.values.clear();
    for (std::int64_t i = 0; i < spec_.layers; ++i) {
      const std::vector<std::int64_t> shape = {batch, spec_.heads, spec_.tokens, d / spec_.heads};
      cache.keys.push_back(at::empty(shape, at::kFloat));
      cache.values.push_back(at::empty(shape, at::kFloat));
    }
  }
  DD2_CHECK(cache.keys.size() == blocks_.size());
  at::Tensor x = at::embedding(classes_, labels) + positions_[position];
  if (position == 0) {
    x = x + start_;
  } else {
    const at::Tensor inner = at::silu(at::linear(q_previous, in1_weight_, in1_bias_));
    x = x + at::linear(inner, in2_weight_, in2_bias_);
  }
  x = x.unsqueeze(1);
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    x = RunBlock(blocks_[i], x, static_cast<std::int64_t>(i), position, &cache);
  }
  return at::layer_norm(x, {d}, norm_weight_, norm_bias_, kBackboneNormEpsilon).squeeze(1);
}

void MlpHead::Declare(const HeadSpec& spec, const std::string& prefix, ParamLayout& layout) {
  const std::int64_t w = spec.width;
  AddLinear(layout, prefix + "time_embed.mlp.0", spec.time_features, w);
  AddLinear(layout, prefix + "time_embed.mlp.2", w, w);
  AddLinear(layout, prefix + "cond_embed", spec.condition, w);
  AddLinear(layout, prefix + "input_proj", spec.channels, w);
  for (std::int64_t i = 0; i < spec.depth; ++i) {
    const std::string block = prefix + "res_blocks." + std::to_string(i) + ".";
    AddNorm(layout, block + "in_ln", w);
    AddLinear(layout, block + "mlp.0", w, w);
    AddLinear(layout, block + "mlp.2", w, w);
    AddLinear(layout, block + "adaLN_modulation.1", w, 3 * w);
  }
  AddLinear(layout, prefix + "final_layer.linear", w, spec.channels);
  AddLinear(layout, prefix + "final_layer.adaLN_modulation.1", w, 2 * w);
}

MlpHead::MlpHead(const HeadSpec& spec, const ParamBuffer& params, const std::string& prefix)
    : spec_(spec),
      time1_weight_(params[prefix + "time_embed.mlp.0.weight"]),
      time1_bias_(params[prefix + "time_embed.mlp.0.bias"]),
      time2_weight_(params[prefix + "time_embed.mlp.2.weight"]),
      time2_bias_(params[prefix + "time_embed.mlp.2.bias"]),
      condition_weight_(params[prefix + "cond_embed.weight"]),
      condition_bias_(params[prefix + "cond_embed.bias"]),
      input_weight_(params[prefix + "input_proj.weight"]),
      input_bias_(params[prefix + "input_proj.bias"]),
      final_weight_(params[prefix + "final_layer.linear.weight"]),
      final_bias_(params[prefix + "final_layer.linear.bias"]),
      final_modulation_weight_(params[prefix + "final_layer.adaLN_modulation.1.weight"]),
      final_modulation_bias_(params[prefix + "final_layer.adaLN_modulation.1.bias"]) {
  DD2_CHECK(spec.time_features > 0 && spec.time_features % 2 == 0);
  const std::int64_t half = spec.time_features / 2;
  frequencies_ =
      at::exp(at::arange(half, at::kFloat) * (-std::log(kTimePeriod) / static_cast<double>(half)));
  for (std::int64_t i = 0; i < spec.depth; ++i) {
    const std::string b = prefix + "res_blocks." + std::to_string(i) + ".";
    blocks_.push_back(
        {params[b + "in_ln.weight"], params[b + "in_ln.bias"], params[b + "mlp.0.weight"],
         params[b + "mlp.0.bias"], params[b + "mlp.2.weight"], params[b + "mlp.2.bias"],
         params[b + "adaLN_modulation.1.weight"], params[b + "adaLN_modulation.1.bias"]});
  }
}

at::Tensor MlpHead::Sinusoids(const at::Tensor& t) const {
  const at::Tensor angles = t * frequencies_;
  return at::cat({at::cos(angles), at::sin(angles)}, -1);
}

at::Tensor MlpHead::Forward(const at::Tensor& x, const at::Tensor& t, const at::Tensor& f) const {
  const std::int64_t w = spec_.width;
  const at::Tensor time = at::linear(at::silu(at::linear(Sinusoids(t), time1_weight_, time1_bias_)),
                                     time2_weight_, time2_bias_);
  // Time and condition keep their own (smaller) shapes as long as they can.
  const at::Tensor y = at::silu(time + at::linear(f, condition_weight_, condition_bias_));
  at::Tensor h = at::linear(x, input_weight_, input_bias_);
  for (const ResBlock& block : blocks_) {
    const std::vector<at::Tensor> modulation =
        at::linear(y, block.modulation_weight, block.modulation_bias).chunk(3, -1);
    const at::Tensor normed =
        at::layer_norm(h, {w}, block.norm_weight, block.norm_bias, kHeadNormEpsilon);
    const at::Tensor inner = at::silu(at::linear(Modulate(normed, modulation[0], modulation[1]),
                                                 block.fc1_weight, block.fc1_bias));
    h = at::addcmul(h, modulation[2], at::linear(inner, block.fc2_weight, block.fc2_bias));
  }
  const std::vector<at::Tensor> modulation =
      at::linear(y, final_modulation_weight_, final_modulation_bias_).chunk(2, -1);
  const at::Tensor normed = at::layer_norm(h, {w}, {}, {}, kHeadNormEpsilon);
  return at::linear(Modulate(normed, modulation[0], modulation[1]), final_weight_, final_bias_);
}

ParamLayout Network::Layout(const NetworkSpec& spec) {
  ParamLayout layout;
  Backbone::Declare(spec.backbone, "backbone.", layout);
  MlpHead::Declare(spec.head, "head.", layout);
  return layout;
}

Network::Network(const NetworkSpec& spec, const ParamBuffer& params)
    : spec_(spec),
      params_(params),
      backbone_(spec.backbone, params, "backbone."),
      head_(spec.head, params, "head.") {
  DD2_CHECK(spec.backbone.channels == spec.head.channels);
  DD2_CHECK(spec.backbone.width == spec.head.condition);
}

at::Tensor Network::Features(const at::Tensor& q, const at::Tensor& labels) const {
  return backbone_.Forward(q, labels);
}

at::Tensor Network::Velocity(const at::Tensor& x, const at::Tensor& t, const at::Tensor& f) const {
  return head_.Forward(x, t * kTimeScale, f);
}

at::Tensor Network::Generate(const at::Tensor& noise, const at::Tensor& labels) const {
  const at::Tensor one = at::ones({1, 1, 1}, at::kFloat);
  return noise - Velocity(noise, one, Features(noise, labels));
}

}  // namespace dd2
