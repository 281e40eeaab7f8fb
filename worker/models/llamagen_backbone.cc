#include "worker/models/llamagen_backbone.h"

#include <cmath>

#include "common/check.h"

namespace dd2 {
namespace {

LlamaGenSpec TransformerSpec(const BackboneSpec& spec, std::int64_t codes) {
  LlamaGenSpec gpt;
  gpt.layers = spec.layers;
  gpt.heads = spec.heads;
  gpt.width = spec.width;
  gpt.ffn_hidden = spec.ffn_hidden;
  gpt.classes = spec.classes;
  gpt.vocabulary = codes;
  gpt.grid = std::lround(std::sqrt(spec.tokens));
  return gpt;
}

}  // namespace

void CodeMlp::Declare(std::int64_t channels, std::int64_t width, const std::string& prefix,
                      ParamLayout& layout) {
  layout.AddLinear(prefix + "0", channels, width);
  layout.AddLinear(prefix + "2", width, width);
}

CodeMlp::CodeMlp(const ParamBuffer& params, const std::string& prefix)
    : in_weight_(params[prefix + "0.weight"]),
      in_bias_(params[prefix + "0.bias"]),
      out_weight_(params[prefix + "2.weight"]),
      out_bias_(params[prefix + "2.bias"]) {}

at::Tensor CodeMlp::Inner(const at::Tensor& codes) const {
  return at::silu(at::linear(codes, in_weight_, in_bias_));
}

at::Tensor CodeMlp::Forward(const at::Tensor& codes) const {
  return at::linear(Inner(codes), out_weight_, out_bias_);
}

void LlamaGenBackbone::Declare(const BackboneSpec& spec, const std::string& prefix,
                               ParamLayout& layout) {
  LlamaGenGpt::DeclareBackbone(TransformerSpec(spec, 0), prefix, layout);
  CodeMlp::Declare(spec.channels, spec.width, prefix + "input.", layout);
}

void LlamaGenBackbone::DeclareHead(const BackboneSpec& spec, std::int64_t codes,
                                   const std::string& prefix, ParamLayout& layout) {
  LlamaGenGpt::DeclareHead(TransformerSpec(spec, codes), prefix, layout);
}

LlamaGenBackbone::LlamaGenBackbone(const BackboneSpec& spec, const ParamBuffer& params,
                                   const std::string& prefix)
    : Backbone(spec),
      transformer_(TransformerSpec(spec, 0), params, prefix),
      input_(params, prefix + "input.") {
  DD2_CHECK_MSG(transformer_.spec().tokens() == spec.tokens, "the tokens are no square");
}

at::Tensor LlamaGenBackbone::Forward(const at::Tensor& q, const at::Tensor& labels) const {
  DD2_CHECK(q.dim() == 3 && q.size(1) == spec_.tokens && q.size(2) == spec_.channels);
  return transformer_.Hidden(input_.Forward(q.narrow(1, 0, spec_.tokens - 1)), labels, spec_.mode);
}

at::Tensor LlamaGenBackbone::Step(const at::Tensor& q_previous, std::int64_t group,
                                  const at::Tensor& labels, KvCache& cache) const {
  const at::NoGradGuard no_grad;
  const at::Tensor previous = group == 0 ? at::Tensor() : input_.Forward(q_previous.select(1, 0));
  return transformer_.Step(previous, group, labels, cache).unsqueeze(1);
}

}  // namespace dd2
