#pragma once

#include <string>

#include "worker/models/backbone.h"
#include "worker/models/var_transformer.h"

namespace dd2 {

// VAR's transformer behind the interface of the distillation: it takes codes [B, n, C] of all
// scales, teacher's, generator's or noise (method 2, layout A), and makes the transformer's rows of
// them by spec.path. Parameters as VarTransformer names them; its vocabulary head is there for a
// teacher alone.
class VarBackbone : public Backbone {
 public:
  static void Declare(const BackboneSpec& spec, const std::string& prefix, ParamLayout& layout);
  // The head of a teacher with `codes` codes.
  static void DeclareHead(const BackboneSpec& spec, std::int64_t codes, const std::string& prefix,
                          ParamLayout& layout);
  VarBackbone(const BackboneSpec& spec, const ParamBuffer& params, const std::string& prefix);

  at::Tensor Forward(const at::Tensor& q, const at::Tensor& labels) const override;
  at::Tensor Step(const at::Tensor& q_previous, std::int64_t group, const at::Tensor& labels,
                  KvCache& cache) const override;
  const VarTransformer& transformer() const { return transformer_; }

 private:
  VarTransformer transformer_;
};

}  // namespace dd2
