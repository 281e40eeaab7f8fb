#include "worker/models/var_backbone.h"

#include "common/check.h"
#include "worker/models/code_path.h"

namespace dd2 {
namespace {

VarSpec TransformerSpec(const BackboneSpec& spec, std::int64_t codes) {
  VarSpec var;
  var.depth = spec.layers;
  var.width = spec.width;
  var.heads = spec.heads;
  var.channels = spec.channels;
  var.classes = spec.classes;
  var.vocabulary = codes;
  var.sides = spec.sides;
  return var;
}

}  // namespace

void VarBackbone::Declare(const BackboneSpec& spec, const std::string& prefix,
                          ParamLayout& layout) {
  VarTransformer::DeclareBackbone(TransformerSpec(spec, 0), prefix, layout);
}

void VarBackbone::DeclareHead(const BackboneSpec& spec, std::int64_t codes,
                              const std::string& prefix, ParamLayout& layout) {
  VarTransformer::DeclareHead(TransformerSpec(spec, codes), prefix, layout);
}

VarBackbone::VarBackbone(const BackboneSpec& spec, const ParamBuffer& params,
                         const std::string& prefix)
    : Backbone(spec), transformer_(TransformerSpec(spec, 0), params, prefix) {
  DD2_CHECK_MSG(spec.path != nullptr, "a multi-scale backbone without its tokenizer's path");
  DD2_CHECK(transformer_.spec().tokens() == spec.tokens);
}

at::Tensor VarBackbone::Forward(const at::Tensor& q, const at::Tensor& labels) const {
  DD2_CHECK(q.dim() == 3 && q.size(1) == spec_.tokens && q.size(2) == spec_.channels);
  return transformer_.Hidden(spec_.path->Rows(q), labels, spec_.mode);
}

at::Tensor VarBackbone::Step(const at::Tensor& q_previous, std::int64_t group,
                             const at::Tensor& labels, KvCache& cache) const {
  const at::NoGradGuard no_grad;
  at::Tensor rows;
  if (group == 0) {
    cache.sum = at::Tensor();
  } else {
    rows = spec_.path->NextRows(q_previous, group - 1, cache.sum);
  }
  return transformer_.Step(group, rows, labels, cache);
}

}  // namespace dd2
