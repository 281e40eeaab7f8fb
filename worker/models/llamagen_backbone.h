#pragma once

#include <string>

#include "worker/models/backbone.h"
#include "worker/models/llamagen_gpt.h"

namespace dd2 {

// What stands for LlamaGen's table of embeddings where codes are continuous (method 4.3: an MLP on
// the code vector, whose shape the paper does not give; this one is ours and that of our raster
// backbone): Linear(C, d), SiLU, Linear(d, d). Parameters prefix + {0,2}.{weight,bias}.
class CodeMlp {
 public:
  static void Declare(std::int64_t channels, std::int64_t width, const std::string& prefix,
                      ParamLayout& layout);
  CodeMlp(const ParamBuffer& params, const std::string& prefix);
  at::Tensor Inner(const at::Tensor& codes) const;    // what enters the second layer
  at::Tensor Forward(const at::Tensor& codes) const;  // [..., C] -> [..., d]

 private:
  at::Tensor in_weight_, in_bias_, out_weight_, out_bias_;
};

// LlamaGen's transformer behind the interface of the distillation: continuous codes enter through
// the MLP "input.". Other parameters as LlamaGenGpt names them; its output layer, which has no
// bias, is there for a teacher alone.
class LlamaGenBackbone : public Backbone {
 public:
  static void Declare(const BackboneSpec& spec, const std::string& prefix, ParamLayout& layout);
  // The output layer of a teacher with `codes` codes: prefix + "output.weight".
  static void DeclareHead(const BackboneSpec& spec, std::int64_t codes, const std::string& prefix,
                          ParamLayout& layout);
  LlamaGenBackbone(const BackboneSpec& spec, const ParamBuffer& params, const std::string& prefix);

  // What enters the output layer, behind the final norm.
  at::Tensor Forward(const at::Tensor& q, const at::Tensor& labels) const override;
  at::Tensor Step(const at::Tensor& q_previous, std::int64_t group, const at::Tensor& labels,
                  KvCache& cache) const override;

 private:
  LlamaGenGpt transformer_;
  CodeMlp input_;
};

}  // namespace dd2
