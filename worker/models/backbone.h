#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "worker/models/param_buffer.h"
#include "worker/models/recompute.h"
#include "worker/torch.h"

namespace dd2 {

class CodePath;

// Shapes in comments: B sequences, n tokens of a sequence, C channels of a code, V codes, d width
// of the backbone. Tensors fp32 (PassMode::bf16: but for the inside of blocks), labels int64.

enum class BackboneKind : std::uint8_t {
  kRaster,    // token by token (raster_backbone.h)
  kVar,       // scale by scale (var_backbone.h)
  kLlamaGen,  // token by token (llamagen_backbone.h)
};

// The AR transformer that teacher, generator and guidance network share.
struct BackboneSpec {
  std::int64_t channels = 4;  // C
  std::int64_t width = 128;   // d
  std::int64_t layers = 4;
  std::int64_t heads = 4;
  std::int64_t tokens = 49;   // n
  std::int64_t classes = 10;  // label `classes` is the null class of classifier-free guidance
  BackboneKind kind = BackboneKind::kRaster;
  std::int64_t ffn_hidden = 0;           // kLlamaGen: inner width of the MLPs
  std::vector<std::int64_t> sides = {};  // kVar: of the scales; tokens = sum of their squares
  std::shared_ptr<const CodePath> path =
      nullptr;         // kVar: from codes to the transformer's rows. Frozen
  PassMode mode = {};  // of Forward, but for kRaster; a step of sampling is fp32
};

// "raster", "var", "llamagen": the words of files.
const char* BackboneKindName(BackboneKind kind);

// Tokens that are drawn together, given all earlier groups: one, or a scale.
struct TokenGroup {
  std::int64_t begin = 0;
  std::int64_t size = 1;
};
std::vector<TokenGroup> GroupsOf(const BackboneSpec& spec);

// What sampling keeps between two steps. For inference only (filled in place, no autograd).
struct KvCache {
  std::vector<at::Tensor> keys;  // per layer [B, heads, n, d / heads], filled up to the group
  std::vector<at::Tensor> values;
  at::Tensor sum;  // kVar: f_hat of the scales so far (code_path.h)

  // Makes room for sequences of `shape` = [B, heads, n, d / heads].
  void Reset(std::int64_t layers, at::IntArrayRef shape, const at::TensorOptions& options);
  // Stores new keys and values [B, heads, l, d / heads] from `position` on; returns those of all
  // positions up to the new ones, [B, heads, position + l, d / heads].
  std::pair<at::Tensor, at::Tensor> Append(std::int64_t layer, std::int64_t position,
                                           const at::Tensor& new_keys,
                                           const at::Tensor& new_values);
};

class Backbone {
 public:
  virtual ~Backbone() = default;

  // q [B, n, C], labels [B] -> features [B, n, d]; a feature sees the tokens of earlier groups and
  // the class only. Adds the gradients of the parameters to their .grad: call backward(), not
  // grad() with respect to parameters.
  virtual at::Tensor Forward(const at::Tensor& q, const at::Tensor& labels) const = 0;
  // One group of sampling, from the first one on: q_previous [B, size, C] of the group before
  // (ignored at the first one) -> features [B, size, d].
  virtual at::Tensor Step(const at::Tensor& q_previous, std::int64_t group,
                          const at::Tensor& labels, KvCache& cache) const = 0;
  const BackboneSpec& spec() const { return spec_; }

 protected:
  explicit Backbone(BackboneSpec spec) : spec_(std::move(spec)) {}
  const BackboneSpec spec_;
};

void DeclareBackbone(const BackboneSpec& spec, const std::string& prefix, ParamLayout& layout);
// Takes the tensors named prefix + "..." of `params` (shared storage).
std::shared_ptr<const Backbone> MakeBackbone(const BackboneSpec& spec, const ParamBuffer& params,
                                             const std::string& prefix);

}  // namespace dd2
