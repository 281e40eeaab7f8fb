#include "worker/models/var_transformer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "common/check.h"
#include "worker/kernels/torch_device.h"

namespace dd2 {
namespace {

// Gates, scales and shifts, each [B, 1, d].
std::vector<at::Tensor> Modulation(const at::Tensor& condition, const at::Tensor& weight,
                                   const at::Tensor& bias, std::int64_t parts) {
  at::Tensor rows = at::linear(condition, weight, bias);
  if (!rows.is_cpu()) rows = rows.to(at::kFloat);
  return rows.view({-1, 1, parts, condition.size(1)}).unbind(2);
}

at::Tensor Mix(const VarSpec& spec, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
               const std::optional<at::Tensor>& mask) {
  const double head_width = static_cast<double>(spec.width) / static_cast<double>(spec.heads);
  const double scale = spec.attn_l2_norm ? 1.0 : 0.25 / std::sqrt(head_width);
  return at::scaled_dot_product_attention(q, k, v, mask, /*dropout_p=*/0.0, /*is_causal=*/false,
                                          scale);
}

// [L] int64: the scale of every token.
at::Tensor LevelOfToken(const VarSpec& spec) {
  at::Tensor levels = at::empty({spec.tokens()}, at::kLong);
  for (std::int64_t scale = 0; scale < spec.scales(); ++scale) {
    levels.narrow(0, spec.TokensBefore(scale), spec.ScaleTokens(scale)).fill_(scale);
  }
  return levels;
}

at::Tensor MaskOf(const at::Tensor& levels) {
  const at::Tensor later = levels.unsqueeze(1) < levels.unsqueeze(0);
  return at::zeros(later.sizes(), at::kFloat)
      .masked_fill(later, -std::numeric_limits<float>::infinity());
}

}  // namespace

std::int64_t VarSpec::ScaleTokens(std::int64_t scale) const {
  const std::int64_t side = sides.at(static_cast<std::size_t>(scale));
  return side * side;
}

std::int64_t VarSpec::TokensBefore(std::int64_t scale) const {
  std::int64_t tokens = 0;
  for (std::int64_t k = 0; k < scale; ++k) tokens += ScaleTokens(k);
  return tokens;
}

void VarTransformer::DeclareBackbone(const VarSpec& spec, const std::string& prefix,
                                     ParamLayout& layout) {
  const std::int64_t d = spec.width;
  DD2_CHECK(d % spec.heads == 0 && spec.scales() > 0);
  layout.Add(prefix + "pos_start", {1, spec.ScaleTokens(0), d});
  layout.Add(prefix + "pos_1LC", {1, spec.tokens(), d});
  layout.AddLinear(prefix + "word_embed", spec.channels, d);
  layout.Add(prefix + "class_emb.weight", {spec.classes + 1, d});
  layout.Add(prefix + "lvl_embed.weight", {spec.scales(), d});
  for (std::int64_t i = 0; i < spec.depth; ++i) {
    const std::string block = prefix + "blocks." + std::to_string(i) + ".";
    if (spec.attn_l2_norm) layout.Add(block + "attn.scale_mul_1H11", {1, spec.heads, 1, 1});
    layout.Add(block + "attn.q_bias", {d});
    layout.Add(block + "attn.v_bias", {d});
    layout.Add(block + "attn.mat_qkv.weight", {3 * d, d});
    layout.AddLinear(block + "attn.proj", d, d);
    layout.AddLinear(block + "ffn.fc1", d, 4 * d);
    layout.AddLinear(block + "ffn.fc2", 4 * d, d);
    layout.AddLinear(block + "ada_lin.1", d, 6 * d);
  }
}

void VarTransformer::DeclareHead(const VarSpec& spec, const std::string& prefix,
                                 ParamLayout& layout) {
  layout.AddLinear(prefix + "head_nm.ada_lin.1", spec.width, 2 * spec.width);
  layout.AddLinear(prefix + "head", spec.width, spec.vocabulary);
}

VarTransformer::VarTransformer(const VarSpec& spec, const ParamBuffer& params,
                               const std::string& prefix)
    : spec_(spec),
      pos_start_(params[prefix + "pos_start"]),
      positions_(params[prefix + "pos_1LC"]),
      levels_(params[prefix + "lvl_embed.weight"]),
      classes_(params[prefix + "class_emb.weight"]),
      word_weight_(params[prefix + "word_embed.weight"]),
      word_bias_(params[prefix + "word_embed.bias"]) {
  for (std::int64_t i = 0; i < spec.depth; ++i) {
    const std::string b = prefix + "blocks." + std::to_string(i) + ".";
    blocks_.push_back(
        {params[b + "ada_lin.1.weight"], params[b + "ada_lin.1.bias"],
         spec.attn_l2_norm ? params[b + "attn.scale_mul_1H11"] : at::Tensor(),
         params[b + "attn.q_bias"], params[b + "attn.v_bias"], params[b + "attn.mat_qkv.weight"],
         params[b + "attn.proj.weight"], params[b + "attn.proj.bias"], params[b + "ffn.fc1.weight"],
         params[b + "ffn.fc1.bias"], params[b + "ffn.fc2.weight"], params[b + "ffn.fc2.bias"]});
  }
  if (params.layout().Contains(prefix + "head.weight")) {
    head_ada_weight_ = params[prefix + "head_nm.ada_lin.1.weight"];
    head_ada_bias_ = params[prefix + "head_nm.ada_lin.1.bias"];
    head_weight_ = params[prefix + "head.weight"];
    head_bias_ = params[prefix + "head.bias"];
  }
  const at::Tensor levels = LevelOfToken(spec);
  level_of_token_ = levels.to(positions_.device());
  mask_ = MaskOf(levels).to(positions_.device());
}

// The keys have no bias.
QueriesKeysValues VarTransformer::Project(const VarSpec& spec, const Block& block,
                                          const at::Tensor& x) {
  const at::Tensor bias = at::cat({block.q_bias, at::zeros_like(block.q_bias), block.v_bias});
  const at::Tensor qkv = at::linear(x, block.qkv_weight, bias)
                             .view({x.size(0), x.size(1), 3, spec.heads, spec.width / spec.heads});
  if (!spec.attn_l2_norm) return Split(qkv);
  return UnitLength(qkv, block.scale_mul.clamp_max(std::log(100.0)).exp());
}

at::Tensor VarTransformer::Forward(const VarSpec& spec, const Block& block, const at::Tensor& x,
                                   const at::Tensor& condition, const Attend& attend) {
  // Gates, scales, shifts; of each the first is attention's.
  const std::vector<at::Tensor> ada = Modulation(condition, block.ada_weight, block.ada_bias, 6);
  const Branched attention = AdaptiveNorm(x, ada[2], ada[4]);
  const QueriesKeysValues qkv = Project(spec, block, attention.input);
  const at::Tensor mixed = attend(qkv).transpose(1, 2).reshape(x.sizes());
  const at::Tensor h =
      AddGated(attention.stream, at::linear(mixed, block.proj_weight, block.proj_bias), ada[0]);
  const Branched ffn = AdaptiveNorm(h, ada[3], ada[5]);
  const at::Tensor inner =
      at::gelu(at::linear(ffn.input, block.fc1_weight, block.fc1_bias), "tanh");
  return AddGated(ffn.stream, at::linear(inner, block.fc2_weight, block.fc2_bias), ada[1]);
}

// What enters the blocks at the tokens of `scale_count` scales: rows are those of all of them but
// scale 0, which starts from the class.
at::Tensor VarTransformer::Embed(std::int64_t first_scale, std::int64_t scale_count,
                                 const at::Tensor& rows, const at::Tensor& of_class) const {
  const std::int64_t first = spec_.TokensBefore(first_scale);
  const std::int64_t count = spec_.TokensBefore(first_scale + scale_count) - first;
  std::vector<at::Tensor> parts;
  if (first_scale == 0) parts.push_back(of_class.unsqueeze(1) + pos_start_);
  if (first_scale + scale_count > 1) {
    DD2_CHECK(rows.dim() == 3 && rows.size(0) == of_class.size(0) &&
              rows.size(2) == spec_.channels);
    parts.push_back(at::linear(rows, word_weight_, word_bias_));
  }
  const at::Tensor x = at::cat(parts, 1);
  DD2_CHECK(x.size(1) == count);
  return x + (at::embedding(levels_, level_of_token_.narrow(0, first, count)) +
              positions_.narrow(1, first, count));
}

at::Tensor VarTransformer::Hidden(const at::Tensor& rows, const at::Tensor& labels,
                                  PassMode mode) const {
  const at::Tensor of_class = at::embedding(classes_, labels);
  const at::Tensor condition = at::silu(of_class);
  at::Tensor x = Embed(0, spec_.scales(), rows, of_class);
  for (const Block& block : blocks_) {
    const BlockFunction forward = [spec = spec_, block,
                                   mask = mask_](const std::vector<at::Tensor>& inputs) {
      return Forward(spec, block, inputs[0], inputs[1], [&](const QueriesKeysValues& qkv) {
        return Mix(spec, qkv.q, qkv.k, qkv.v, mask);
      });
    };
    x = RunBlock(forward, {x, condition}, mode);
  }
  return x;
}

at::Tensor VarTransformer::Step(std::int64_t scale, const at::Tensor& rows,
                                const at::Tensor& labels, KvCache& cache) const {
  const at::NoGradGuard no_grad;
  const std::int64_t first = spec_.TokensBefore(scale);
  const at::Tensor of_class = at::embedding(classes_, labels);
  const at::Tensor condition = at::silu(of_class);
  if (scale == 0) {
    cache.Reset(spec_.depth,
                {labels.size(0), spec_.heads, spec_.tokens(), spec_.width / spec_.heads},
                of_class.options());
  }
  at::Tensor x = Embed(scale, 1, rows, of_class);
  for (std::int64_t i = 0; i < spec_.depth; ++i) {
    x = Forward(spec_, blocks_[static_cast<std::size_t>(i)], x, condition,
                [&](const QueriesKeysValues& qkv) {
                  const auto [keys, values] = cache.Append(i, first, qkv.k, qkv.v);
                  return Mix(spec_, qkv.q, keys, values, std::nullopt);
                });
  }
  return x;
}

at::Tensor VarTransformer::HeadInput(const at::Tensor& hidden, const at::Tensor& labels) const {
  DD2_CHECK(head_weight_.defined());
  const at::Tensor condition = at::silu(at::embedding(classes_, labels));
  const std::vector<at::Tensor> ada = Modulation(condition, head_ada_weight_, head_ada_bias_, 2);
  return AdaptiveNorm(hidden, ada[0], ada[1]).input;
}

at::Tensor VarTransformer::Logits(const at::Tensor& head_input) const {
  DD2_CHECK(head_weight_.defined());
  return at::linear(head_input, head_weight_, head_bias_);
}

double ScaleGuidance(const VarSpec& spec, std::int64_t scale, double cfg) {
  const auto steps = static_cast<double>(std::max<std::int64_t>(spec.scales() - 1, 1));
  return 1.0 + cfg * static_cast<double>(scale) / steps;
}

at::Tensor GuidanceRamp(const VarSpec& spec, double cfg) {
  at::Tensor ramp = at::empty({spec.tokens()}, at::kFloat);
  for (std::int64_t scale = 0; scale < spec.scales(); ++scale) {
    ramp.narrow(0, spec.TokensBefore(scale), spec.ScaleTokens(scale))
        .fill_(ScaleGuidance(spec, scale, cfg));
  }
  return ToDevice(ramp);
}

}  // namespace dd2
