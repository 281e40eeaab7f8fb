#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "worker/models/param_buffer.h"
#include "worker/torch.h"

namespace dd2 {

// Shapes in comments: B sequences, n tokens of a sequence, C channels of a code, V codes, d width
// of the backbone, w width of the head, m (t, eps) draws. All tensors fp32, labels int64.

// The raster AR transformer that teacher, generator and guidance network share: pre-LN blocks with
// GELU MLP (x4), learned positions and start vector, class embedding added at every position, an
// input MLP on continuous codes instead of an embedding table (recipe 2).
struct BackboneSpec {
  std::int64_t channels = 4;  // C
  std::int64_t width = 128;   // d
  std::int64_t layers = 4;
  std::int64_t heads = 4;
  std::int64_t tokens = 49;   // n
  std::int64_t classes = 10;  // label `classes` is the null class of classifier-free guidance
};

// Keys and values of the tokens seen so far: per layer [B, heads, n, d / heads], filled up to the
// current position. For inference only (filled in place, no autograd).
struct KvCache {
  std::vector<at::Tensor> keys;
  std::vector<at::Tensor> values;

  // Makes room for sequences of `shape` = [B, heads, n, d / heads].
  void Reset(std::int64_t layers, at::IntArrayRef shape, const at::TensorOptions& options);
  // Stores new keys and values [B, heads, l, d / heads] from `position` on; returns those of all
  // positions up to the new ones, [B, heads, position + l, d / heads].
  std::pair<at::Tensor, at::Tensor> Append(std::int64_t layer, std::int64_t position,
                                           const at::Tensor& new_keys,
                                           const at::Tensor& new_values);
};

// Parameters: input.{0,2}.* (MLP on codes), positions [n, d], class_embed.weight [classes + 1, d],
// start [d], blocks.L.{norm1,qkv,proj,norm2,fc1,fc2}.*, norm.*; qkv.weight stacks q, k, v, each
// heads x (d / heads). Weights of linear layers are [out, in].
class Backbone {
 public:
  static void Declare(const BackboneSpec& spec, const std::string& prefix, ParamLayout& layout);
  // Takes the tensors named prefix + "..." of `params` (shared storage).
  Backbone(const BackboneSpec& spec, const ParamBuffer& params, const std::string& prefix);

  // q [B, n, C], labels [B] -> features [B, n, d]; feature i sees q_<i and the class only. One node
  // of autograd's graph, which adds the gradients of the parameters to their .grad itself: call
  // backward(), not grad() with respect to parameters.
  at::Tensor Forward(const at::Tensor& q, const at::Tensor& labels) const;
  // One token of sampling: q_previous [B, C] (ignored at position 0) -> feature [B, d].
  at::Tensor Step(const at::Tensor& q_previous, std::int64_t position, const at::Tensor& labels,
                  KvCache& cache) const;
  const BackboneSpec& spec() const { return spec_; }

 private:
  struct Block {
    at::Tensor norm1_weight, norm1_bias, qkv_weight, qkv_bias, out_weight, out_bias;
    at::Tensor norm2_weight, norm2_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias;
  };
  // Handles on the parameters; a backward pass keeps its own.
  struct Weights {
    at::Tensor in1_weight, in1_bias, in2_weight, in2_bias, positions, classes, start;
    std::vector<Block> blocks;
    at::Tensor norm_weight, norm_bias;
  };
  struct Carry;
  struct BlockTrace;
  struct Trace;
  class Backward;
  static void Embed(const BackboneSpec& spec, const Weights& weights, Trace& trace);
  static void EmbedBackward(const BackboneSpec& spec, const Weights& weights, const Trace& trace,
                            const at::Tensor& dx, at::Tensor* d_q);
  static void RunBlock(const BackboneSpec& spec, const Block& block, BlockTrace& trace,
                       Carry& carry);
  static at::Tensor BlockBackward(const BackboneSpec& spec, const Block& block,
                                  const BlockTrace& trace, const at::Tensor& d_out);
  // `keep`: fill trace.blocks for a backward pass.
  static at::Tensor Run(const BackboneSpec& spec, const Weights& weights, bool keep, Trace& trace);
  at::Tensor StepBlock(const Block& block, const at::Tensor& x, std::int64_t layer,
                       std::int64_t position, KvCache& cache) const;
  BackboneSpec spec_;
  Weights weights_;
};

// MAR's SimpleMLPAdaLN (models.md 3) with the names of the released files: time_embed, cond_embed,
// input_proj, res_blocks, final_layer. Rows are independent.
struct HeadSpec {
  std::int64_t channels = 4;     // C in and out (velocity, no variance)
  std::int64_t condition = 128;  // d
  std::int64_t width = 128;      // w
  std::int64_t depth = 3;
  std::int64_t time_features = 64;  // sinusoids: cos first, then sin
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
  };
  struct BlockTrace;
  struct Trace;
  class Backward;
  static void Embed(const Weights& weights, Trace& trace);
  static at::Tensor EmbedBackward(const Weights& weights, const Trace& trace, const at::Tensor& d_y,
                                  bool wants_f);
  static void RunBlock(const ResBlock& block, const at::Tensor& y, BlockTrace& trace,
                       at::Tensor& h);
  static at::Tensor BlockBackward(const ResBlock& block, const Trace& trace,
                                  const BlockTrace& block_trace, const at::Tensor& d_out,
                                  at::Tensor& d_y);
  static void AddModulationGradient(const at::Tensor& weight, const at::Tensor& bias,
                                    const at::Tensor& d_modulation, const Trace& trace,
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
  const Backbone& backbone() const { return backbone_; }
  const MlpHead& head() const { return head_; }

 private:
  NetworkSpec spec_;
  ParamBuffer params_;
  Backbone backbone_;
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
