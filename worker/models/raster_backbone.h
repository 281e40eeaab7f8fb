#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "worker/models/backbone.h"

namespace dd2 {

// A transformer in raster order: pre-LN blocks with GELU MLP (x4), learned positions and start
// vector, class embedding added at every position, an input MLP on continuous codes instead of an
// embedding table (recipe 2).
//
// Parameters: input.{0,2}.* (MLP on codes), positions [n, d], class_embed.weight [classes + 1, d],
// start [d], blocks.L.{norm1,qkv,proj,norm2,fc1,fc2}.*, norm.*; qkv.weight stacks q, k, v, each
// heads x (d / heads). Weights of linear layers are [out, in].
class RasterBackbone : public Backbone {
 public:
  static void Declare(const BackboneSpec& spec, const std::string& prefix, ParamLayout& layout);
  // Takes the tensors named prefix + "..." of `params` (shared storage).
  RasterBackbone(const BackboneSpec& spec, const ParamBuffer& params, const std::string& prefix);

  // One node of autograd's graph.
  at::Tensor Forward(const at::Tensor& q, const at::Tensor& labels) const override;
  at::Tensor Step(const at::Tensor& q_previous, std::int64_t group, const at::Tensor& labels,
                  KvCache& cache) const override;

 private:
  // The same on a GPU, where the library's operators and their backward passes do it.
  at::Tensor ForwardByOperators(const at::Tensor& q, const at::Tensor& labels) const;
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
  Weights weights_;
};

}  // namespace dd2
