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

namespace dd2 {

// The pretrained class-conditional AR teacher: backbone + linear output layer d -> V. Frozen.
class Teacher {
 public:
  static ParamLayout Layout(const BackboneSpec& spec,
                            std::int64_t codes);  // "backbone.*", "head.*"
  Teacher(const BackboneSpec& spec, std::int64_t codes, const ParamBuffer& params);
  // Initial values for training.
  static void Init(const ParamBuffer& params, std::uint64_t seed, std::uint32_t phase);

  // Final features of a teacher-forced pass: q [B, n, C] (continuous or codes) -> [B, n, d].
  at::Tensor Hidden(const at::Tensor& q, const at::Tensor& labels) const;
  // Guided hidden g = u + w (c - u): classifier-free guidance is linear and so is the output layer,
  // so Logits(g) are the guided logits (method 7.3). One pass when w == 1.
  at::Tensor GuidedHidden(const at::Tensor& q, const at::Tensor& labels, double cfg_scale) const;
  at::Tensor Logits(const at::Tensor& hidden) const;  // [..., d] -> [..., V]
  const Backbone& backbone() const { return backbone_; }
  const ParamBuffer& params() const { return params_; }
  std::int64_t codes() const { return codes_; }

 private:
  std::int64_t codes_;
  ParamBuffer params_;
  Backbone backbone_;
  at::Tensor head_weight_, head_bias_;
};

// The shape of generator and guidance network for this teacher.
NetworkSpec SpecFor(const ModelConfig& model, const Teacher& teacher);

// A block of teacher sequences drawn with a KV cache.
struct SampledBlock {
  at::Tensor tokens;  // [B, n] int64
  at::Tensor hidden;  // [B, n, d] guided hidden vectors the tokens were drawn from (fp32)
};
// Chooses the tokens [B] of position `position` from filtered guided logits [B, V].
using TokenDraw = std::function<at::Tensor(const at::Tensor& logits, std::int64_t position)>;
SampledBlock SampleTeacher(const Teacher& teacher, const at::Tensor& codebook,
                           const at::Tensor& labels, const TokenDraw& draw,
                           const TeacherConfig& config);
// uniforms [B, n]: token = inverse CDF of softmax(filtered guided logits) at it. labels [B].
SampledBlock SampleTeacher(const Teacher& teacher, const at::Tensor& codebook,
                           const at::Tensor& labels, const at::Tensor& uniforms,
                           const TeacherConfig& config);

// The VQ tokenizer: 28x28x1 images in [-1, 1] <-> 7x7 codes of C channels (recipe 2). Codes outside
// this class are standardised (zero mean, unit variance per channel); it undoes that itself.
// Parameters: encoder.*, decoder.* (convolutions), codebook [V, C] (raw), mean [C], std [C] of the
// raw codes that the training images use.
class Tokenizer {
 public:
  static ParamLayout Layout(std::int64_t codes, std::int64_t channels);
  Tokenizer(std::int64_t codes, std::int64_t channels, const ParamBuffer& params);
  at::Tensor Encode(const at::Tensor& images) const;  // [B, 1, 28, 28] -> ids [B, 49] int64
  at::Tensor Decode(
      const at::Tensor& codes) const;  // standardised [B, 49, C] -> [B, 1, 28, 28], clamped
  const at::Tensor& codebook() const { return codebook_; }  // standardised [V, C]
  // The raw halves, for training: images -> latents [B, 49, C] and back, both with autograd.
  at::Tensor EncodeLatents(const at::Tensor& images) const;
  at::Tensor DecodeLatents(const at::Tensor& latents) const;
  // Nearest raw code of every row: latents [N, C], codebook [V, C] -> [N] int64.
  static at::Tensor Nearest(const at::Tensor& latents, const at::Tensor& codebook);
  std::int64_t codes() const { return codes_; }
  std::int64_t channels() const { return channels_; }
  const ParamBuffer& params() const { return params_; }

 private:
  std::int64_t codes_, channels_;
  ParamBuffer params_;
  at::Tensor codebook_;
};

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
// classifier.safetensors, card.json.
struct TeacherBundle {
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<Teacher> teacher;
  std::unique_ptr<Classifier> classifier;
  Digest128 teacher_digest;  // of the weights of teacher and tokenizer (names, shapes, bytes)
  std::string card_json;     // measured quality, seeds, versions
};
// kNotFound / kCorruption / kInvalidArgument with file and reason: missing, truncated, foreign
// file, wrong shape.
Result<TeacherBundle> LoadTeacherBundle(const std::filesystem::path& folder);

// Parses a folder's safetensors files alone, as LoadTeacherBundle does.
Result<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::filesystem::path& file);
Result<std::unique_ptr<Teacher>> LoadTeacher(const std::filesystem::path& file);
Result<std::unique_ptr<Classifier>> LoadClassifier(const std::filesystem::path& file);
// And write them, with the metadata that loading needs plus `metadata`.
using FileMetadata = std::vector<std::pair<std::string, std::string>>;
Status SaveTokenizer(const std::filesystem::path& file, const Tokenizer& tokenizer,
                     FileMetadata metadata);
Status SaveTeacher(const std::filesystem::path& file, const Teacher& teacher,
                   FileMetadata metadata);
Status SaveClassifier(const std::filesystem::path& file, const Classifier& classifier,
                      FileMetadata metadata);

// Reads every parameter of `layout` from a safetensors file into a new buffer.
Result<ParamBuffer> LoadParams(const std::filesystem::path& file, const ParamLayout& layout);
// Writes them (whole tensors, by name) with `metadata`.
Status SaveParams(const std::filesystem::path& file, const ParamBuffer& params,
                  const std::vector<std::pair<std::string, std::string>>& metadata);

}  // namespace dd2
