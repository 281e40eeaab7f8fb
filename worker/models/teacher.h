#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/hash.h"
#include "common/result.h"
#include "common/run_config.h"
#include "worker/models/networks.h"
#include "worker/models/small_tokenizer.h"

namespace dd2 {

class VarTransformer;

// The pretrained class-conditional AR teacher: backbone + linear output layer d -> V, in front of
// it VAR's class-conditional norm (models.md 1.3). Frozen.
class Teacher {
 public:
  // "backbone.*", "head.*"; of VAR and LlamaGen all in "backbone.*".
  static ParamLayout Layout(const BackboneSpec& spec, std::int64_t codes);
  Teacher(const BackboneSpec& spec, std::int64_t codes, const ParamBuffer& params);
  // Initial values for training.
  static void Init(const BackboneSpec& spec, const ParamBuffer& params, std::uint64_t seed,
                   std::uint32_t phase);

  // What enters the output layer in a teacher-forced pass: q [B, n, C] (continuous or codes) ->
  // [B, n, d].
  at::Tensor Hidden(const at::Tensor& q, const at::Tensor& labels) const;
  // Guided hidden g = u + w (c - u): classifier-free guidance is linear and so is the output layer,
  // so Logits(g) are the guided logits (method 7.3). w of a token is Strength(its group). One pass
  // when nothing is guided.
  at::Tensor GuidedHidden(const at::Tensor& q, const at::Tensor& labels, double cfg_scale) const;
  at::Tensor Logits(const at::Tensor& hidden) const;  // [..., d] -> [..., V]
  // w for a group of tokens: cfg_scale itself in raster order; by scales it rises from 1 at the
  // first to 1 + cfg_scale at the last one (method 1.5).
  double Strength(std::int64_t group, double cfg_scale) const;
  bool IsGuided(double cfg_scale) const;
  // One group of sampling, as Backbone::Step, in front of the output layer.
  at::Tensor HiddenStep(const at::Tensor& q_previous, std::int64_t group, const at::Tensor& labels,
                        KvCache& cache) const;
  const Backbone& backbone() const { return *backbone_; }
  const ParamBuffer& params() const { return params_; }
  std::int64_t codes() const { return codes_; }

 private:
  std::int64_t codes_;
  ParamBuffer params_;
  std::shared_ptr<const Backbone> backbone_;
  const VarTransformer* var_ = nullptr;  // the backbone's, with its own head
  at::Tensor head_weight_, head_bias_;   // the others; LlamaGen has no bias
};

// The shape of generator and guidance network for this teacher.
NetworkSpec SpecFor(const ModelConfig& model, const Teacher& teacher);

// A block of teacher sequences drawn with a KV cache.
struct SampledBlock {
  at::Tensor tokens;  // [B, n] int64
  at::Tensor hidden;  // [B, n, d] guided hidden vectors the tokens were drawn from (fp32)
};
// Groups of tokens one after the other. Chooses the tokens [B] of position `position` from filtered
// guided logits [B, V]; labels, codes, logits and tokens are on one device.
using TokenDraw = std::function<at::Tensor(const at::Tensor& logits, std::int64_t position)>;
SampledBlock SampleTeacher(const Teacher& teacher, const at::Tensor& codebook,
                           const at::Tensor& labels, const TokenDraw& draw,
                           const TeacherConfig& config);
// uniforms [B, n]: token = inverse CDF of softmax(filtered guided logits) at it. labels [B].
SampledBlock SampleTeacher(const Teacher& teacher, const at::Tensor& codebook,
                           const at::Tensor& labels, const at::Tensor& uniforms,
                           const TeacherConfig& config);

// The evaluation CNN: 64 penultimate ReLU features and 10 class logits (recipe 2; batch norm folded
// or in inference form).
class Classifier {
 public:
  static ParamLayout Layout();
  explicit Classifier(const ParamBuffer& params);
  at::Tensor Features(const at::Tensor& images) const;  // [B, 1, 28, 28] -> [B, 64]
  at::Tensor Logits(const at::Tensor& features) const;  // [B, 64] -> [B, 10]
  const ParamBuffer& params() const { return params_; }

 private:
  ParamBuffer params_;
};

// Everything a run takes from the folder of a teacher: tokenizer.safetensors, teacher.safetensors,
// classifier.safetensors, card.json of `dd2 teacher train`; or what `dd2 teacher import` wrote,
// which has no classifier and an empty card.
struct TeacherBundle {
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<Teacher> teacher;
  std::unique_ptr<Classifier> classifier;
  Digest128 teacher_digest;  // of the weights of teacher and tokenizer (names, shapes, bytes)
  std::string card_json;     // measured quality, seeds, versions
};
// kNotFound / kCorruption / kInvalidArgument with file and reason: missing, truncated, foreign
// file, wrong shape.
// `bf16`: the teacher's passes over whole sequences (Teacher::Hidden) compute their blocks as
// PassMode::bf16 says, unless it is one in raster order.
Result<TeacherBundle> LoadTeacherBundle(const std::filesystem::path& folder, bool bf16 = false);

// Parses a folder's safetensors files alone, as LoadTeacherBundle does.
Result<std::unique_ptr<SmallTokenizer>> LoadTokenizer(const std::filesystem::path& file);
// `path`: the tokenizer's, which a multi-scale teacher needs.
Result<std::unique_ptr<Teacher>> LoadTeacher(const std::filesystem::path& file,
                                             std::shared_ptr<const CodePath> path,
                                             bool bf16 = false);
Result<std::unique_ptr<Classifier>> LoadClassifier(const std::filesystem::path& file);
// And write them, with the metadata that loading needs plus `metadata`.
using FileMetadata = std::vector<std::pair<std::string, std::string>>;
Status SaveTokenizer(const std::filesystem::path& file, const Tokenizer& tokenizer,
                     FileMetadata metadata);
Status SaveTeacher(const std::filesystem::path& file, const Teacher& teacher,
                   FileMetadata metadata);
Status SaveClassifier(const std::filesystem::path& file, const Classifier& classifier,
                      FileMetadata metadata);

// Of weights and scales.
Digest128 TokenizerDigest(const Tokenizer& tokenizer);

// Reads every parameter of `layout` from a safetensors file into a new buffer. The file's names are
// those of the layout without `prefix`.
Result<ParamBuffer> LoadParams(const std::filesystem::path& file, const ParamLayout& layout,
                               const std::string& prefix = "");
// Writes them (whole tensors, by name) with `metadata`.
Status SaveParams(const std::filesystem::path& file, const ParamBuffer& params,
                  const std::vector<std::pair<std::string, std::string>>& metadata);

}  // namespace dd2
