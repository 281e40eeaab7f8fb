#include <cmath>
#include <memory>
#include <utility>

#include "common/check.h"
#include "worker/kernels/torch_device.h"
#include "worker/models/fused.h"
#include "worker/models/networks.h"

namespace dd2 {
namespace {

constexpr double kNormEpsilon = 1e-6;
constexpr double kTimePeriod = 10000.0;  // longest sinusoid of the time embedding

NormLeaves FinalNorm() { return {.weight = {}, .bias = {}, .epsilon = kNormEpsilon}; }

}  // namespace

// What the backward pass of a block reads; rows are those of x, [rows, w] where nothing else is
// said. Products stand without their bias.
struct MlpHead::BlockTrace {
  at::Tensor h, stats, modulated;
  at::Tensor modulation;  // [rows, 3 w]: shift, scale, gate
  at::Tensor pre, inner;  // before and after the SiLU
  at::Tensor branch;
};

struct MlpHead::Trace {
  at::Tensor x;                                // [rows, C]
  at::Tensor sinusoids, time_pre, time_inner;  // one row, or as many as x
  at::Tensor f;                                // [rows of f, d]
  at::Tensor y_pre, y;                         // time + condition, and its SiLU
  std::vector<BlockTrace> blocks;
  at::Tensor last, last_stats, last_modulation, last_modulated;
};

void MlpHead::Declare(const HeadSpec& spec, const std::string& prefix, ParamLayout& layout) {
  const std::int64_t w = spec.width;
  layout.AddLinear(prefix + "time_embed.mlp.0", spec.time_features, w);
  layout.AddLinear(prefix + "time_embed.mlp.2", w, w);
  layout.AddLinear(prefix + "cond_embed", spec.condition, w);
  layout.AddLinear(prefix + "input_proj", spec.channels, w);
  for (std::int64_t i = 0; i < spec.depth; ++i) {
    const std::string block = prefix + "res_blocks." + std::to_string(i) + ".";
    layout.AddNorm(block + "in_ln", w);
    layout.AddLinear(block + "mlp.0", w, w);
    layout.AddLinear(block + "mlp.2", w, w);
    layout.AddLinear(block + "adaLN_modulation.1", w, 3 * w);
  }
  layout.AddLinear(prefix + "final_layer.linear", w, spec.channels);
  layout.AddLinear(prefix + "final_layer.adaLN_modulation.1", w, 2 * w);
}

MlpHead::MlpHead(const HeadSpec& spec, const ParamBuffer& params, const std::string& prefix)
    : spec_(spec) {
  DD2_CHECK(spec.time_features > 0 && spec.time_features % 2 == 0);
  const std::int64_t half = spec.time_features / 2;
  frequencies_ = ToDevice(
      at::exp(at::arange(half, at::kFloat) * (-std::log(kTimePeriod) / static_cast<double>(half))));
  weights_.bf16 = spec.bf16;
  weights_.time1_weight = params[prefix + "time_embed.mlp.0.weight"];
  weights_.time1_bias = params[prefix + "time_embed.mlp.0.bias"];
  weights_.time2_weight = params[prefix + "time_embed.mlp.2.weight"];
  weights_.time2_bias = params[prefix + "time_embed.mlp.2.bias"];
  weights_.condition_weight = params[prefix + "cond_embed.weight"];
  weights_.condition_bias = params[prefix + "cond_embed.bias"];
  weights_.input_weight = params[prefix + "input_proj.weight"];
  weights_.input_bias = params[prefix + "input_proj.bias"];
  weights_.final_weight = params[prefix + "final_layer.linear.weight"];
  weights_.final_bias = params[prefix + "final_layer.linear.bias"];
  weights_.final_modulation_weight = params[prefix + "final_layer.adaLN_modulation.1.weight"];
  weights_.final_modulation_bias = params[prefix + "final_layer.adaLN_modulation.1.bias"];
  for (std::int64_t i = 0; i < spec.depth; ++i) {
    const std::string b = prefix + "res_blocks." + std::to_string(i) + ".";
    weights_.blocks.push_back(
        {params[b + "in_ln.weight"], params[b + "in_ln.bias"], params[b + "mlp.0.weight"],
         params[b + "mlp.0.bias"], params[b + "mlp.2.weight"], params[b + "mlp.2.bias"],
         params[b + "adaLN_modulation.1.weight"], params[b + "adaLN_modulation.1.bias"]});
  }
}

at::Tensor MlpHead::Sinusoids(const at::Tensor& t) const {
  const at::Tensor angles = t * frequencies_;
  return at::cat({at::cos(angles), at::sin(angles)}, -1);
}

// y = SiLU(time MLP(t) + condition(f)). Time and condition keep their own rows until they meet: one
// time for all rows when t is one number, one condition for all draws of a token.
void MlpHead::Embed(const Weights& weights, Trace& trace) {
  trace.time_pre = Product(trace.sinusoids, weights.time1_weight, weights.bf16);
  trace.time_inner = BiasSilu(trace.time_pre, weights.time1_bias);
  trace.y_pre = AddRepeated(Product(trace.time_inner, weights.time2_weight, weights.bf16),
                            Product(trace.f, weights.condition_weight, weights.bf16),
                            weights.condition_bias, trace.x.size(0));
  trace.y = BiasSilu(trace.y_pre, weights.time2_bias);
}

// d_y -> parameters; returns d f.
at::Tensor MlpHead::EmbedBackward(const Weights& weights, const Trace& trace, const at::Tensor& d_y,
                                  bool wants_f) {
  const std::int64_t w = d_y.size(1), draws = d_y.size(0) / trace.f.size(0);
  at::Tensor sums = at::zeros({1, w}, d_y.options());
  SiluBackward(trace.y_pre, d_y, sums);
  const at::Tensor d_condition = draws == 1 ? d_y : d_y.view({draws, trace.f.size(0), w}).sum(0);
  if (weights.time1_weight.requires_grad()) {
    AddBiasGradient(weights.condition_bias, sums);
    AddBiasGradient(weights.time2_bias, sums);
    AddWeightGradient(weights.condition_weight, d_condition, trace.f, weights.bf16);
    const at::Tensor d_time = trace.time_pre.size(0) == 1 ? sums : d_y;
    AddWeightGradient(weights.time2_weight, d_time, trace.time_inner, weights.bf16);
    const at::Tensor d_pre = ProductBackward(d_time, weights.time2_weight, weights.bf16);
    SiluBackward(trace.time_pre, d_pre, GradientOf(weights.time1_bias));
    AddWeightGradient(weights.time1_weight, d_pre, trace.sinusoids, weights.bf16);
  }
  return wants_f ? ProductBackward(d_condition, weights.condition_weight, weights.bf16)
                 : at::Tensor();
}

void MlpHead::RunBlock(const ResBlock& block, const at::Tensor& y, bool bf16, BlockTrace& trace,
                       at::Tensor& h) {
  trace.h = h;
  trace.modulation = Product(y, block.modulation_weight, bf16);
  const ModulationRows modulation{trace.modulation, block.modulation_bias};
  trace.modulated =
      ModulatedNorm(h, {block.norm_weight, block.norm_bias, kNormEpsilon}, modulation, trace.stats);
  trace.pre = Product(trace.modulated, block.fc1_weight, bf16);
  trace.inner = BiasSilu(trace.pre, block.fc1_bias);
  trace.branch = Product(trace.inner, block.fc2_weight, bf16);
  h = GatedResidual(trace.h, trace.branch, block.fc2_bias, modulation);
}

// d_out of h + gate branch -> d h; adds to d_y what flows through the modulation.
at::Tensor MlpHead::BlockBackward(const ResBlock& block, const Trace& trace,
                                  const BlockTrace& block_trace, bool bf16, const at::Tensor& d_out,
                                  at::Tensor& d_y) {
  const ModulationRows modulation{block_trace.modulation, block.modulation_bias};
  at::Tensor d_modulation = at::empty_like(block_trace.modulation);
  const at::Tensor d_branch =
      GatedResidualBackward(block_trace.branch, block.fc2_bias, modulation, d_out, d_modulation);
  AddBiasGradient(block.fc2_bias, d_branch);
  AddWeightGradient(block.fc2_weight, d_branch, block_trace.inner, bf16);
  const at::Tensor d_inner = ProductBackward(d_branch, block.fc2_weight, bf16);
  SiluBackward(block_trace.pre, d_inner, GradientOf(block.fc1_bias));
  AddWeightGradient(block.fc1_weight, d_inner, block_trace.modulated, bf16);
  const at::Tensor d_modulated = ProductBackward(d_inner, block.fc1_weight, bf16);
  at::Tensor d_h = ModulatedNormBackward(block_trace.h, block_trace.stats,
                                         {block.norm_weight, block.norm_bias, kNormEpsilon},
                                         modulation, d_modulated, d_out, d_modulation);
  AddModulationGradient(block.modulation_weight, block.modulation_bias, d_modulation, trace, bf16,
                        d_y);
  return d_h;
}

void MlpHead::AddModulationGradient(const at::Tensor& weight, const at::Tensor& bias,
                                    const at::Tensor& d_modulation, const Trace& trace, bool bf16,
                                    at::Tensor& d_y) {
  AddBiasGradient(bias, d_modulation);
  AddWeightGradient(weight, d_modulation, trace.y, bf16);
  if (!d_y.defined()) return;
  if (bf16) {
    d_y.add_(ProductBackward(d_modulation, weight, bf16));
  } else {
    d_y.addmm_(d_modulation, weight);
  }
}

at::Tensor MlpHead::Run(const Weights& weights, bool keep, Trace& trace) {
  Embed(weights, trace);
  at::Tensor h = Product(trace.x, weights.input_weight).add_(weights.input_bias);
  for (const ResBlock& block : weights.blocks) {
    BlockTrace block_trace;
    RunBlock(block, trace.y, weights.bf16, block_trace, h);
    if (keep) trace.blocks.push_back(std::move(block_trace));
  }
  trace.last = h;
  trace.last_modulation = Product(trace.y, weights.final_modulation_weight, weights.bf16);
  trace.last_modulated = ModulatedNorm(
      h, FinalNorm(), {trace.last_modulation, weights.final_modulation_bias}, trace.last_stats);
  return Product(trace.last_modulated, weights.final_weight).add_(weights.final_bias);
}

class MlpHead::Backward : public torch::autograd::Node {
 public:
  Backward(const Weights& weights, Trace trace) : weights_(weights), trace_(std::move(trace)) {}

  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override {
    const at::AutoDispatchBelowAutograd below;
    DD2_CHECK(trace_.last.defined());  // a graph is walked once
    const at::Tensor& out = gradients.at(0);
    const at::Tensor d_out = out.contiguous().view({-1, out.size(-1)});
    const bool wants_x = task_should_compute_output(0), wants_f = task_should_compute_output(1);
    // Nobody may ask for what flows into time and condition: the score of frozen weights.
    at::Tensor d_y;
    if (wants_f || weights_.time1_weight.requires_grad()) d_y = at::zeros_like(trace_.y);
    at::Tensor d_h = FinalBackward(d_out, d_y);
    for (std::size_t i = weights_.blocks.size(); i-- > 0;) {
      d_h = BlockBackward(weights_.blocks[i], trace_, trace_.blocks[i], weights_.bf16, d_h, d_y);
    }
    AddBiasGradient(weights_.input_bias, d_h);
    AddWeightGradient(weights_.input_weight, d_h, trace_.x);
    at::Tensor d_x, d_f;
    if (d_y.defined()) d_f = EmbedBackward(weights_, trace_, d_y, wants_f);
    if (wants_x) d_x = ProductBackward(d_h, weights_.input_weight).view_as(out);
    if (wants_f) d_f = d_f.view(f_sizes);
    return {d_x, d_f};
  }
  void release_variables() override { trace_ = Trace(); }

  std::vector<std::int64_t> f_sizes;

 private:
  at::Tensor FinalBackward(const at::Tensor& d_out, at::Tensor& d_y) {
    AddBiasGradient(weights_.final_bias, d_out);
    AddWeightGradient(weights_.final_weight, d_out, trace_.last_modulated);
    const at::Tensor d_modulated = ProductBackward(d_out, weights_.final_weight);
    const at::Tensor d_modulation = at::empty_like(trace_.last_modulation);
    at::Tensor d_h = ModulatedNormBackward(trace_.last, trace_.last_stats, FinalNorm(),
                                           {trace_.last_modulation, weights_.final_modulation_bias},
                                           d_modulated, {}, d_modulation);
    AddModulationGradient(weights_.final_modulation_weight, weights_.final_modulation_bias,
                          d_modulation, trace_, weights_.bf16, d_y);
    return d_h;
  }

  const Weights weights_;
  Trace trace_;
};

at::Tensor MlpHead::Forward(const at::Tensor& x, const at::Tensor& t, const at::Tensor& f) const {
  const bool keep = at::GradMode::is_enabled() && (x.requires_grad() || f.requires_grad() ||
                                                   weights_.time1_weight.requires_grad());
  Trace trace;
  at::Tensor out;
  {
    const at::AutoDispatchBelowAutograd below;
    trace.x = x.detach().contiguous().view({-1, spec_.channels});
    trace.f = f.detach().contiguous().view({-1, spec_.condition});
    trace.sinusoids = Sinusoids(t.detach().reshape({-1, 1}));
    const std::int64_t rows = trace.x.size(0), times = trace.sinusoids.size(0);
    DD2_CHECK(rows % trace.f.size(0) == 0 && (times == 1 || times == rows));
    out = Run(weights_, keep, trace).view_as(x);
  }
  if (!keep) return out;
  const auto node = std::shared_ptr<Backward>(new Backward(weights_, std::move(trace)),
                                              torch::autograd::deleteNode);
  node->f_sizes = f.sizes().vec();
  node->set_next_edges(torch::autograd::collect_next_edges(x, f));
  torch::autograd::set_history(out, node);
  return out;
}

}  // namespace dd2
