#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "worker/models/backbone.h"
#include "worker/models/param_buffer.h"
#include "worker/torch.h"

namespace dd2 {

// Shapes in comments as in backbone.h; w width of the head, m (t, eps) draws.

// MAR's SimpleMLPAdaLN (models.md 3) with the names of the released files: time_embed, cond_embed,
// input_proj, res_blocks, final_layer. Rows are independent.
struct HeadSpec {
  std::int64_t channels = 4;     // C in and out (velocity, no variance)
  std::int64_t condition = 128;  // d
  std::int64_t width = 128;      // w
  std::int64_t depth = 3;
  std::int64_t time_features = 64;  // sinusoids: cos first, then sin
  // Matrix products in bf16, from fp32 weights, whose gradients are fp32 again; but for those that
  // x goes in and the velocity comes out by.
  bool bf16 = false;
};

class MlpHead {
 public:
  static void Declare(const HeadSpec& spec, const std::string& prefix, ParamLayout& layout);
  MlpHead(const HeadSpec& spec, const ParamBuffer& params, const std::string& prefix);

  // x [..., C], t [..., 1] as fed to the sinusoid (1000 t for t in [0, 1]), f [..., d] -> velocity
  // [..., C]. A row is a row of x; t has as many or one, and the rows of f repeat (draws of the
  // same tokens). One node of autograd's graph, with Backbone::Forward's rule; no gradient reaches
  // t.
  at::Tensor Forward(const at::Tensor& x, const at::Tensor& t, const at::Tensor& f) const;
  // What enters the time embedding: t [..., 1] -> [..., time_features].
  at::Tensor Sinusoids(const at::Tensor& t) const;
  const HeadSpec& spec() const { return spec_; }

 private:
  struct ResBlock {
    at::Tensor norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias;
    at::Tensor modulation_weight, modulation_bias;
  };
  struct Weights {
    at::Tensor time1_weight, time1_bias, time2_weight, time2_bias, condition_weight, condition_bias;
    at::Tensor input_weight, input_bias;
    std::vector<ResBlock> blocks;
    at::Tensor final_weight, final_bias, final_modulation_weight, final_modulation_bias;
    bool bf16 = false;
  };
  struct BlockTrace;
  struct Trace;
  class Backward;
  static void Embed(const Weights& weights, Trace& trace);
  static at::Tensor EmbedBackward(const Weights& weights, const Trace& trace, const at::Tensor& d_y,
                                  bool wants_f);
  static void RunBlock(const ResBlock& block, const at::Tensor& y, bool bf16, BlockTrace& trace,
                       at::Tensor& h);
  static at::Tensor BlockBackward(const ResBlock& block, const Trace& trace,
                                  const BlockTrace& block_trace, bool bf16, const at::Tensor& d_out,
                                  at::Tensor& d_y);
  static void AddModulationGradient(const at::Tensor& weight, const at::Tensor& bias,
                                    const at::Tensor& d_modulation, const Trace& trace, bool bf16,
                                    at::Tensor& d_y);
  static at::Tensor Run(const Weights& weights, bool keep, Trace& trace);
  HeadSpec spec_;
  at::Tensor frequencies_;  // [time_features / 2]
  Weights weights_;
};

// The AR-diffusion network: generator = guidance network = backbone + MLP head (method 2, 3).
struct NetworkSpec {
  BackboneSpec backbone;
  HeadSpec head;
};

class Network {
 public:
  static ParamLayout Layout(const NetworkSpec& spec);  // "backbone.*", then "head.*"
  Network(const NetworkSpec& spec, const ParamBuffer& params);

  // f_i from q_<i: [B, n, C], [B] -> [B, n, d].
  at::Tensor Features(const at::Tensor& q, const at::Tensor& labels) const;
  // v(x_t, t | f): x [m, B, n, C], t [m, B, n, 1] in [0, 1], f [B, n, d] -> [m, B, n, C].
  at::Tensor Velocity(const at::Tensor& x, const at::Tensor& t, const at::Tensor& f) const;
  // One-step generation q = eps - v(eps, 1 | f(eps)) (paper 3.3, E.1): [B, n, C] -> [B, n, C].
  at::Tensor Generate(const at::Tensor& noise, const at::Tensor& labels) const;
  const NetworkSpec& spec() const { return spec_; }
  const ParamBuffer& params() const { return params_; }
  const Backbone& backbone() const { return *backbone_; }
  const MlpHead& head() const { return head_; }

 private:
  NetworkSpec spec_;
  ParamBuffer params_;
  std::shared_ptr<const Backbone> backbone_;
  MlpHead head_;
};

// Initial values, by position: a function of (seed, phase, index of the parameter in its layout),
// so every process gets the same bits. Only parameters whose name starts with `prefix` are written.
//
// Backbone, tokenizer, classifier and output layers: weights and biases of linear and convolution
// layers U(-1/sqrt(fan_in), 1/sqrt(fan_in)); norms 1 and 0; embeddings, positions and start vector
// N(0, 0.02^2).
void InitUniformFanIn(const ParamBuffer& params, const std::string& prefix, std::uint64_t seed,
                      std::uint32_t phase);
// VAR's (models.md 1.3): weights, embeddings and positions N(0, 1 / (3 d)), biases 0, temperatures
// ln 4; the output layer smaller by 0.02, projections back into the residual stream by
// 1 / sqrt(2 layers), modulations by 0.5 and their gates by 1e-3.
void InitVar(const ParamBuffer& params, const BackboneSpec& spec, std::uint64_t seed,
             std::uint32_t phase);
// MLP head: Xavier-uniform weights, zero biases, norms 1 and 0; every modulation layer and the
// final output layer zero, so that the head returns 0 and its blocks are identities (as in MAR).
void InitHead(const ParamBuffer& params, const std::string& prefix, std::uint64_t seed,
              std::uint32_t phase);
// A whole network from scratch: backbone and head.
void InitNetwork(const ParamBuffer& params, std::uint64_t seed, std::uint32_t phase);
// Copies the parameters named prefix + x of `from` into the same names of `to` (teacher's backbone
// into a new network). Aborts when a name or shape of `to` has no equal in `from`.
void CopyParams(const ParamBuffer& from, const ParamBuffer& to, const std::string& prefix);

}  // namespace dd2
