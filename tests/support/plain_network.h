#pragma once

#include <cmath>
#include <limits>
#include <map>
#include <string>

#include "worker/models/networks.h"

namespace dd2::testing {

// The networks of worker/models written once more with library operators in double precision and
// autograd: what the hand-written passes are compared with.
class PlainNetwork {
 public:
  PlainNetwork(const NetworkSpec& spec, const ParamBuffer& params) : spec_(spec) {
    for (const ParamSpec& param : params.layout().specs()) {
      values_[param.name] =
          params[param.name].detach().to(at::kDouble).clone().requires_grad_(true);
    }
  }

  const at::Tensor& operator[](const std::string& name) const { return values_.at(name); }

  at::Tensor Features(const at::Tensor& q, const at::Tensor& labels) const {
    const BackboneSpec& spec = spec_.backbone;
    const std::int64_t batch = q.size(0), n = spec.tokens, d = spec.width;
    const at::Tensor past = q.narrow(1, 0, n - 1);
    const at::Tensor embedded =
        Linear("backbone.input.2", at::silu(Linear("backbone.input.0", past)));
    const at::Tensor start = (*this)["backbone.start"].view({1, 1, d}).expand({batch, 1, d});
    at::Tensor x = at::cat({start, embedded}, 1) + (*this)["backbone.positions"] +
                   (*this)["backbone.class_embed.weight"].index_select(0, labels).unsqueeze(1);
    for (std::int64_t i = 0; i < spec.layers; ++i) {
      const std::string block = "backbone.blocks." + std::to_string(i) + ".";
      x = x + Attention(block, Norm(block + "norm1", x, 1e-5));
      x = x +
          Linear(block + "fc2", at::gelu(Linear(block + "fc1", Norm(block + "norm2", x, 1e-5))));
    }
    return Norm("backbone.norm", x, 1e-5);
  }

  // t as in Network::Velocity.
  at::Tensor Velocity(const at::Tensor& x, const at::Tensor& t, const at::Tensor& f) const {
    const std::int64_t half = spec_.head.time_features / 2;
    const at::Tensor frequencies =
        at::exp(at::arange(half, at::kDouble) * (-std::log(10000.0) / static_cast<double>(half)));
    const at::Tensor angles = t * 1000.0 * frequencies;
    const at::Tensor sinusoids = at::cat({at::cos(angles), at::sin(angles)}, -1);
    const at::Tensor time =
        Linear("head.time_embed.mlp.2", at::silu(Linear("head.time_embed.mlp.0", sinusoids)));
    const at::Tensor y = at::silu(time + Linear("head.cond_embed", f));
    at::Tensor h = Linear("head.input_proj", x);
    for (std::int64_t i = 0; i < spec_.head.depth; ++i) {
      const std::string block = "head.res_blocks." + std::to_string(i) + ".";
      const auto m = Linear(block + "adaLN_modulation.1", y).chunk(3, -1);
      const at::Tensor normed = Norm(block + "in_ln", h, 1e-6);
      const at::Tensor inner = at::silu(Linear(block + "mlp.0", normed * (1 + m[1]) + m[0]));
      h = h + m[2] * Linear(block + "mlp.2", inner);
    }
    const auto m = Linear("head.final_layer.adaLN_modulation.1", y).chunk(2, -1);
    const at::Tensor normed = at::layer_norm(h, {h.size(-1)}, {}, {}, 1e-6);
    return Linear("head.final_layer.linear", normed * (1 + m[1]) + m[0]);
  }

 private:
  at::Tensor Linear(const std::string& name, const at::Tensor& x) const {
    return at::linear(x, (*this)[name + ".weight"], (*this)[name + ".bias"]);
  }
  at::Tensor Norm(const std::string& name, const at::Tensor& x, double epsilon) const {
    return at::layer_norm(x, {x.size(-1)}, (*this)[name + ".weight"], (*this)[name + ".bias"],
                          epsilon);
  }
  at::Tensor Attention(const std::string& block, const at::Tensor& x) const {
    const std::int64_t batch = x.size(0), n = x.size(1), heads = spec_.backbone.heads;
    const std::int64_t width = x.size(2) / heads;
    const at::Tensor qkv =
        Linear(block + "qkv", x).view({batch, n, 3, heads, width}).permute({2, 0, 3, 1, 4});
    const at::Tensor scores =
        at::matmul(qkv[0], qkv[1].transpose(-1, -2)) / std::sqrt(static_cast<double>(width));
    const at::Tensor future =
        at::full({n, n}, -std::numeric_limits<double>::infinity(), at::kDouble).triu(1);
    const at::Tensor mixed = at::matmul(at::softmax(scores + future, -1), qkv[2]);
    return Linear(block + "proj", mixed.transpose(1, 2).reshape({batch, n, heads * width}));
  }

  NetworkSpec spec_;
  std::map<std::string, at::Tensor> values_;
};

}  // namespace dd2::testing
