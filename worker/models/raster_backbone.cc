#include "worker/models/raster_backbone.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "common/check.h"
#include "worker/models/attention_kernel.h"
#include "worker/models/fused.h"

namespace dd2 {
namespace {

constexpr double kNormEpsilon = 1e-5;

NormAffine NormOf(const at::Tensor& weight, const at::Tensor& bias) {
  return {Values(weight), Values(bias), static_cast<float>(kNormEpsilon)};
}

AttentionShape AttentionOf(const BackboneSpec& spec, std::int64_t rows) {
  return {.batch = rows / spec.tokens,
          .tokens = spec.tokens,
          .heads = spec.heads,
          .head_width = spec.width / spec.heads};
}

}  // namespace

// What the backward pass of a block reads; rows are tokens. [rows, d] where nothing else is said.
struct RasterBackbone::BlockTrace {
  at::Tensor x, stats1, normed1;
  at::Tensor qkv;  // [rows, 3 d], without its bias
  at::Tensor mixed;
  at::Tensor h, stats2, normed2;
  at::Tensor pre, inner;  // [rows, 4 d] before and after the GELU
};

// The residual stream between blocks in two parts: x and the last branch without its bias, which
// the next norm adds to it.
struct RasterBackbone::Carry {
  at::Tensor x;
  at::Tensor branch;  // undefined in front of the first block
  at::Tensor branch_bias;

  // y = norm(x + branch + bias); returns that sum.
  at::Tensor AddAndNorm(const NormAffine& norm, at::Tensor& y, at::Tensor& stats) const {
    const RowShape shape = ShapeOf(x);
    stats = EmptyStats(x);
    y = at::empty_like(x);
    Residual residual{.x = Values(x)};
    if (branch.defined()) {
      residual.branch = Values(branch);
      residual.branch_bias = Values(branch_bias);
      residual.sum = Data(branch);
    }
    ResidualNorm(shape, residual, norm, Data(y), Stats(stats));
    return branch.defined() ? branch : x;
  }
};

struct RasterBackbone::Trace {
  at::Tensor q;       // [rows, C]
  at::Tensor labels;  // [B]
  at::Tensor embed_pre, embed_inner;
  at::Tensor x;  // what enters the blocks
  std::vector<BlockTrace> blocks;
  at::Tensor last, last_stats;  // what enters the last norm
};

void RasterBackbone::Declare(const BackboneSpec& spec, const std::string& prefix,
                             ParamLayout& layout) {
  const std::int64_t d = spec.width;
  layout.AddLinear(prefix + "input.0", spec.channels, d);
  layout.AddLinear(prefix + "input.2", d, d);
  layout.Add(prefix + "positions", {spec.tokens, d});
  layout.Add(prefix + "class_embed.weight", {spec.classes + 1, d});
  layout.Add(prefix + "start", {d});
  for (std::int64_t i = 0; i < spec.layers; ++i) {
    const std::string block = prefix + "blocks." + std::to_string(i) + ".";
    layout.AddNorm(block + "norm1", d);
    layout.AddLinear(block + "qkv", d, 3 * d);
    layout.AddLinear(block + "proj", d, d);
    layout.AddNorm(block + "norm2", d);
    layout.AddLinear(block + "fc1", d, 4 * d);
    layout.AddLinear(block + "fc2", 4 * d, d);
  }
  layout.AddNorm(prefix + "norm", d);
}

RasterBackbone::RasterBackbone(const BackboneSpec& spec, const ParamBuffer& params,
                               const std::string& prefix)
    : Backbone(spec) {
  DD2_CHECK(spec.heads > 0 && spec.width % spec.heads == 0);
  weights_.in1_weight = params[prefix + "input.0.weight"];
  weights_.in1_bias = params[prefix + "input.0.bias"];
  weights_.in2_weight = params[prefix + "input.2.weight"];
  weights_.in2_bias = params[prefix + "input.2.bias"];
  weights_.positions = params[prefix + "positions"];
  weights_.classes = params[prefix + "class_embed.weight"];
  weights_.start = params[prefix + "start"];
  weights_.norm_weight = params[prefix + "norm.weight"];
  weights_.norm_bias = params[prefix + "norm.bias"];
  for (std::int64_t i = 0; i < spec.layers; ++i) {
    const std::string b = prefix + "blocks." + std::to_string(i) + ".";
    weights_.blocks.push_back(
        {params[b + "norm1.weight"], params[b + "norm1.bias"], params[b + "qkv.weight"],
         params[b + "qkv.bias"], params[b + "proj.weight"], params[b + "proj.bias"],
         params[b + "norm2.weight"], params[b + "norm2.bias"], params[b + "fc1.weight"],
         params[b + "fc1.bias"], params[b + "fc2.weight"], params[b + "fc2.bias"]});
  }
}

// x_0 = start, x_i = MLP(q_{i-1}); positions and class are added everywhere. The last token is
// nobody's past: its embedding is computed with the others and not used.
void RasterBackbone::Embed(const BackboneSpec& spec, const Weights& weights, Trace& trace) {
  const std::int64_t n = spec.tokens, d = spec.width, batch = trace.labels.numel();
  trace.embed_pre = Product(trace.q, weights.in1_weight);
  trace.embed_inner = at::empty_like(trace.embed_pre);
  BiasSilu(ShapeOf(trace.embed_pre), Data(trace.embed_pre), Values(weights.in1_bias),
           Data(trace.embed_inner));
  const at::Tensor embedded = Product(trace.embed_inner, weights.in2_weight);
  trace.x = at::empty({batch * n, d}, at::kFloat);
  const std::int64_t* labels = trace.labels.const_data_ptr<std::int64_t>();
  for (std::int64_t b = 0; b < batch; ++b) {
    const std::int64_t label = labels[b];
    DD2_CHECK(label >= 0 && label <= spec.classes);
    const float* of_class = Values(weights.classes) + label * d;
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t row = b * n + i;
      const float* position = Values(weights.positions) + i * d;
      const float* from = i == 0 ? Values(weights.start) : Values(embedded) + (row - 1) * d;
      const float* bias = Values(weights.in2_bias);
      float* out = Data(trace.x) + row * d;
      for (std::int64_t c = 0; c < d; ++c) {
        out[c] = from[c] + (i == 0 ? 0.0F : bias[c]) + (position[c] + of_class[c]);
      }
    }
  }
}

void RasterBackbone::EmbedBackward(const BackboneSpec& spec, const Weights& weights,
                                   const Trace& trace, const at::Tensor& dx, at::Tensor* d_q) {
  const std::int64_t n = spec.tokens, d = spec.width, batch = trace.labels.numel();
  const std::int64_t* labels = trace.labels.const_data_ptr<std::int64_t>();
  const RowShape one{1, d};
  // d embedded: the rows of dx, one up; zero for the last token.
  at::Tensor d_embedded = at::zeros_like(dx);
  float* d_positions = GradientData(weights.positions);
  float* d_classes = GradientData(weights.classes);
  float* d_start = GradientData(weights.start);
  for (std::int64_t b = 0; b < batch; ++b) {
    const float* rows = Values(dx) + b * n * d;
    if (d_positions != nullptr) {
      for (std::int64_t k = 0; k < n * d; ++k) d_positions[k] += rows[k];
      AddColumnSums({n, d}, rows, d_classes + labels[b] * d);
      AddColumnSums(one, rows, d_start);
    }
    std::copy(rows + d, rows + n * d, Data(d_embedded) + b * n * d);
  }
  AddBiasGradient(weights.in2_bias, d_embedded);
  AddWeightGradient(weights.in2_weight, d_embedded, trace.embed_inner);
  const at::Tensor d_pre = ProductBackward(d_embedded, weights.in2_weight);
  SiluBackward(ShapeOf(d_pre), Values(trace.embed_pre), Data(d_pre),
               GradientData(weights.in1_bias));
  AddWeightGradient(weights.in1_weight, d_pre, trace.q);
  if (d_q != nullptr) *d_q = ProductBackward(d_pre, weights.in1_weight);
}

void RasterBackbone::RunBlock(const BackboneSpec& spec, const Block& block, BlockTrace& trace,
                              Carry& carry) {
  const std::int64_t rows = carry.x.size(0);
  trace.x =
      carry.AddAndNorm(NormOf(block.norm1_weight, block.norm1_bias), trace.normed1, trace.stats1);
  trace.qkv = Product(trace.normed1, block.qkv_weight);
  trace.mixed = at::empty_like(trace.x);
  CausalAttention(AttentionOf(spec, rows), Values(trace.qkv), Values(block.qkv_bias),
                  Data(trace.mixed));
  carry = {trace.x, Product(trace.mixed, block.out_weight), block.out_bias};
  trace.h =
      carry.AddAndNorm(NormOf(block.norm2_weight, block.norm2_bias), trace.normed2, trace.stats2);
  trace.pre = Product(trace.normed2, block.fc1_weight);
  trace.inner = at::empty_like(trace.pre);
  BiasGelu(ShapeOf(trace.pre), Data(trace.pre), Values(block.fc1_bias), Data(trace.inner));
  carry = {trace.h, Product(trace.inner, block.fc2_weight), block.fc2_bias};
}

// d_out [rows, d] of x + attention + MLP -> d x.
at::Tensor RasterBackbone::BlockBackward(const BackboneSpec& spec, const Block& block,
                                         const BlockTrace& trace, const at::Tensor& d_out) {
  const RowShape shape = ShapeOf(d_out);
  AddBiasGradient(block.fc2_bias, d_out);
  AddWeightGradient(block.fc2_weight, d_out, trace.inner);
  const at::Tensor d_inner = ProductBackward(d_out, block.fc2_weight);
  GeluBackward(ShapeOf(d_inner), Values(trace.pre), Data(d_inner), GradientData(block.fc1_bias));
  AddWeightGradient(block.fc1_weight, d_inner, trace.normed2);
  const at::Tensor d_h = ProductBackward(d_inner, block.fc1_weight);
  NormBackward(shape, Values(trace.h), Stats(trace.stats2),
               NormOf(block.norm2_weight, block.norm2_bias), Values(d_h), Values(d_out), Data(d_h),
               NormGradientsOf(block.norm2_weight, block.norm2_bias));

  AddBiasGradient(block.out_bias, d_h);
  AddWeightGradient(block.out_weight, d_h, trace.mixed);
  const at::Tensor d_mixed = ProductBackward(d_h, block.out_weight);
  const at::Tensor d_qkv = at::empty_like(trace.qkv);
  CausalAttentionBackward(AttentionOf(spec, shape.rows), Values(trace.qkv), Values(block.qkv_bias),
                          Values(d_mixed), Data(d_qkv));
  AddBiasGradient(block.qkv_bias, d_qkv);
  AddWeightGradient(block.qkv_weight, d_qkv, trace.normed1);
  at::Tensor d_x = ProductBackward(d_qkv, block.qkv_weight);
  NormBackward(shape, Values(trace.x), Stats(trace.stats1),
               NormOf(block.norm1_weight, block.norm1_bias), Values(d_x), Values(d_h), Data(d_x),
               NormGradientsOf(block.norm1_weight, block.norm1_bias));
  return d_x;
}

at::Tensor RasterBackbone::Run(const BackboneSpec& spec, const Weights& weights, bool keep,
                               Trace& trace) {
  Embed(spec, weights, trace);
  Carry carry{trace.x, {}, {}};
  for (const Block& block : weights.blocks) {
    BlockTrace block_trace;
    RunBlock(spec, block, block_trace, carry);
    if (keep) trace.blocks.push_back(std::move(block_trace));
  }
  at::Tensor out;
  trace.last =
      carry.AddAndNorm(NormOf(weights.norm_weight, weights.norm_bias), out, trace.last_stats);
  return out;
}

class RasterBackbone::Backward : public torch::autograd::Node {
 public:
  Backward(const BackboneSpec& spec, const Weights& weights, Trace trace)
      : spec_(spec), weights_(weights), trace_(std::move(trace)) {}

  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override {
    const at::AutoDispatchBelowAutograd below;
    DD2_CHECK(trace_.last.defined());  // a graph is walked once
    const at::Tensor d_out = gradients.at(0).contiguous().view({-1, spec_.width});
    at::Tensor d_x = at::empty_like(d_out);
    NormBackward(ShapeOf(d_out), Values(trace_.last), Stats(trace_.last_stats),
                 NormOf(weights_.norm_weight, weights_.norm_bias), Values(d_out), nullptr,
                 Data(d_x), NormGradientsOf(weights_.norm_weight, weights_.norm_bias));
    for (std::size_t i = weights_.blocks.size(); i-- > 0;) {
      d_x = BlockBackward(spec_, weights_.blocks[i], trace_.blocks[i], d_x);
    }
    at::Tensor d_q;
    const bool wants_q = task_should_compute_output(0);
    EmbedBackward(spec_, weights_, trace_, d_x, wants_q ? &d_q : nullptr);
    if (wants_q) d_q = d_q.view({-1, spec_.tokens, spec_.channels});
    return {d_q};
  }
  void release_variables() override { trace_ = Trace(); }

 private:
  const BackboneSpec spec_;
  const Weights weights_;
  Trace trace_;
};

at::Tensor RasterBackbone::ForwardByOperators(const at::Tensor& q, const at::Tensor& labels) const {
  const std::int64_t batch = q.size(0), n = spec_.tokens, d = spec_.width;
  const auto norm = [d](const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
    return at::layer_norm(x, {d}, weight, bias, kNormEpsilon);
  };
  const at::Tensor inner =
      at::silu(at::linear(q.narrow(1, 0, n - 1), weights_.in1_weight, weights_.in1_bias));
  const at::Tensor past = at::linear(inner, weights_.in2_weight, weights_.in2_bias);
  at::Tensor x = at::cat({weights_.start.view({1, 1, d}).expand({batch, 1, d}), past}, 1) +
                 (weights_.positions + at::embedding(weights_.classes, labels).unsqueeze(1));
  for (const Block& block : weights_.blocks) {
    const std::vector<at::Tensor> qkv =
        at::linear(norm(x, block.norm1_weight, block.norm1_bias), block.qkv_weight, block.qkv_bias)
            .view({batch, n, 3, spec_.heads, d / spec_.heads})
            .permute({2, 0, 3, 1, 4})
            .unbind(0);
    const at::Tensor mixed = at::scaled_dot_product_attention(
        qkv[0], qkv[1], qkv[2], std::nullopt, /*dropout_p=*/0.0, /*is_causal=*/true);
    x = x +
        at::linear(mixed.transpose(1, 2).reshape({batch, n, d}), block.out_weight, block.out_bias);
    const at::Tensor wide = at::gelu(at::linear(norm(x, block.norm2_weight, block.norm2_bias),
                                                block.fc1_weight, block.fc1_bias));
    x = x + at::linear(wide, block.fc2_weight, block.fc2_bias);
  }
  return norm(x, weights_.norm_weight, weights_.norm_bias);
}

at::Tensor RasterBackbone::Forward(const at::Tensor& q, const at::Tensor& labels) const {
  DD2_CHECK(q.dim() == 3 && q.size(1) == spec_.tokens && q.size(2) == spec_.channels);
  if (!q.is_cpu()) return ForwardByOperators(q, labels);
  const bool keep =
      at::GradMode::is_enabled() && (q.requires_grad() || weights_.in1_weight.requires_grad());
  Trace trace;
  at::Tensor out;
  {
    const at::AutoDispatchBelowAutograd below;
    trace.q = q.detach().contiguous().view({-1, spec_.channels});
    trace.labels = labels.contiguous();
    out = Run(spec_, weights_, keep, trace).view({q.size(0), spec_.tokens, spec_.width});
  }
  if (!keep) return out;
  const auto node = std::shared_ptr<Backward>(new Backward(spec_, weights_, std::move(trace)),
                                              torch::autograd::deleteNode);
  node->set_next_edges(torch::autograd::collect_next_edges(q));
  torch::autograd::set_history(out, node);
  return out;
}

// One token against the keys and values of those before it. Library operators: a step of sampling
// is a few rows wide and has no backward pass.
at::Tensor RasterBackbone::StepBlock(const Block& block, const at::Tensor& x, std::int64_t layer,
                                     std::int64_t position, KvCache& cache) const {
  const std::int64_t batch = x.size(0), d = spec_.width, heads = spec_.heads;
  const std::int64_t head_width = d / heads;
  const double scale = 1.0 / std::sqrt(static_cast<double>(head_width));
  const at::Tensor normed =
      at::layer_norm(x, {d}, block.norm1_weight, block.norm1_bias, kNormEpsilon);
  const at::Tensor qkv =
      at::linear(normed, block.qkv_weight, block.qkv_bias).view({batch, 3, heads, 1, head_width});
  const auto [keys, values] = cache.Append(layer, position, qkv.select(1, 1), qkv.select(1, 2));
  const auto flat = [&](const at::Tensor& past) {
    return past.reshape({batch * heads, position + 1, head_width});
  };
  const at::Tensor query = qkv.select(1, 0).reshape({batch * heads, 1, head_width});
  const at::Tensor weights = at::bmm(query, flat(keys).transpose(1, 2)).mul_(scale).softmax(-1);
  const at::Tensor mixed = at::bmm(weights, flat(values)).view({batch, d});
  const at::Tensor h = x + at::linear(mixed, block.out_weight, block.out_bias);
  const at::Tensor normed2 =
      at::layer_norm(h, {d}, block.norm2_weight, block.norm2_bias, kNormEpsilon);
  const at::Tensor inner = at::gelu(at::linear(normed2, block.fc1_weight, block.fc1_bias));
  return h + at::linear(inner, block.fc2_weight, block.fc2_bias);
}

at::Tensor RasterBackbone::Step(const at::Tensor& q_previous, std::int64_t group,
                                const at::Tensor& labels, KvCache& cache) const {
  const at::NoGradGuard no_grad;
  const std::int64_t batch = labels.size(0), d = spec_.width, position = group;
  DD2_CHECK(position >= 0 && position < spec_.tokens);
  if (position == 0) {
    cache.Reset(spec_.layers, {batch, spec_.heads, spec_.tokens, d / spec_.heads},
                weights_.start.options());
  }
  DD2_CHECK(cache.keys.size() == weights_.blocks.size());
  at::Tensor x = at::embedding(weights_.classes, labels) + weights_.positions[position];
  if (position == 0) {
    x = x + weights_.start;
  } else {
    const at::Tensor inner =
        at::silu(at::linear(q_previous.select(1, 0), weights_.in1_weight, weights_.in1_bias));
    x = x + at::linear(inner, weights_.in2_weight, weights_.in2_bias);
  }
  for (std::size_t i = 0; i < weights_.blocks.size(); ++i) {
    x = StepBlock(weights_.blocks[i], x, static_cast<std::int64_t>(i), position, cache);
  }
  return at::layer_norm(x, {d}, weights_.norm_weight, weights_.norm_bias, kNormEpsilon)
      .unsqueeze(1);
}

}  // namespace dd2
