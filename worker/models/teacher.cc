#include "worker/models/teacher.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "worker/models/filters.h"

namespace dd2 {
namespace {

// Labels for one guided pass over [conditional; unconditional].
at::Tensor WithNullLabels(const at::Tensor& labels, std::int64_t null_class) {
  return at::cat({labels, at::full_like(labels, null_class)});
}

// g = u + w (c - u) of a pass over [conditional; unconditional].
at::Tensor Guide(const at::Tensor& both, double cfg_scale) {
  const std::vector<at::Tensor> halves = both.chunk(2, 0);
  return halves[1] + (halves[0] - halves[1]) * cfg_scale;
}

// First code whose cumulative probability exceeds u times the total. Never a code of probability 0.
std::int64_t InverseCdf(const float* probabilities, std::int64_t codes, double uniform) {
  double total = 0;
  for (std::int64_t j = 0; j < codes; ++j) total += static_cast<double>(probabilities[j]);
  const double target = uniform * total;
  double running = 0;
  std::int64_t last_possible = 0;
  for (std::int64_t j = 0; j < codes; ++j) {
    running += static_cast<double>(probabilities[j]);
    if (running > target) return j;
    if (probabilities[j] > 0) last_possible = j;
  }
  return last_possible;
}

// logits [B, V], uniforms [B, n] at column `position` -> tokens [B].
at::Tensor DrawTokens(const at::Tensor& logits, const at::Tensor& uniforms, std::int64_t position) {
  const at::Tensor probabilities = at::softmax(logits, -1).contiguous();
  const std::int64_t batch = probabilities.size(0), codes = probabilities.size(1);
  at::Tensor tokens = at::empty({batch}, at::kLong);
  const float* row = probabilities.data_ptr<float>();
  const float* uniform = uniforms.data_ptr<float>() + position;
  std::int64_t* token = tokens.data_ptr<std::int64_t>();
  for (std::int64_t b = 0; b < batch; ++b) {
    token[b] = InverseCdf(row + b * codes, codes, uniform[b * uniforms.size(1)]);
  }
  return tokens;
}

}  // namespace

ParamLayout Teacher::Layout(const BackboneSpec& spec, std::int64_t codes) {
  ParamLayout layout;
  Backbone::Declare(spec, "backbone.", layout);
  layout.Add("head.weight", {codes, spec.width});
  layout.Add("head.bias", {codes});
  return layout;
}

Teacher::Teacher(const BackboneSpec& spec, std::int64_t codes, const ParamBuffer& params)
    : codes_(codes),
      params_(params),
      backbone_(spec, params, "backbone."),
      head_weight_(params["head.weight"]),
      head_bias_(params["head.bias"]) {}

void Teacher::Init(const ParamBuffer& params, std::uint64_t seed, std::uint32_t phase) {
  InitUniformFanIn(params, "", seed, phase);
}

at::Tensor Teacher::Hidden(const at::Tensor& q, const at::Tensor& labels) const {
  return backbone_.Forward(q, labels);
}

at::Tensor Teacher::GuidedHidden(const at::Tensor& q, const at::Tensor& labels,
                                 double cfg_scale) const {
  if (cfg_scale == 1.0) return Hidden(q, labels);
  const at::Tensor both = Hidden(at::cat({q, q}), WithNullLabels(labels, backbone_.spec().classes));
  return Guide(both, cfg_scale);
}

at::Tensor Teacher::Logits(const at::Tensor& hidden) const {
  return at::linear(hidden, head_weight_, head_bias_);
}

NetworkSpec SpecFor(const ModelConfig& model, const Teacher& teacher) {
  NetworkSpec spec;
  spec.backbone = teacher.backbone().spec();
  spec.head = HeadSpec{.channels = spec.backbone.channels,
                       .condition = spec.backbone.width,
                       .width = model.head_width,
                       .depth = model.head_depth,
                       .time_features = model.time_features};
  return spec;
}

SampledBlock SampleTeacher(const Teacher& teacher, const at::Tensor& codebook,
                           const at::Tensor& labels, const at::Tensor& uniforms,
                           const TeacherConfig& config) {
  DD2_CHECK(uniforms.dim() == 2 && uniforms.size(0) == labels.size(0) &&
            uniforms.size(1) == teacher.backbone().spec().tokens);
  const at::Tensor dense = uniforms.contiguous();
  const TokenDraw draw = [&dense](const at::Tensor& logits, std::int64_t position) {
    return DrawTokens(logits, dense, position);
  };
  return SampleTeacher(teacher, codebook, labels, draw, config);
}

SampledBlock SampleTeacher(const Teacher& teacher, const at::Tensor& codebook,
                           const at::Tensor& labels, const TokenDraw& draw,
                           const TeacherConfig& config) {
  const at::NoGradGuard no_grad;
  const BackboneSpec& spec = teacher.backbone().spec();
  const std::int64_t batch = labels.size(0);
  const bool guided = config.cfg_scale != 1.0;
  const at::Tensor pass_labels = guided ? WithNullLabels(labels, spec.classes) : labels;
  SampledBlock block;
  block.tokens = at::empty({batch, spec.tokens}, at::kLong);
  block.hidden = at::empty({batch, spec.tokens, spec.width}, at::kFloat);
  KvCache cache;
  at::Tensor previous;
  for (std::int64_t i = 0; i < spec.tokens; ++i) {
    at::Tensor hidden = teacher.backbone().Step(previous, i, pass_labels, cache);
    if (guided) hidden = Guide(hidden, config.cfg_scale);
    const at::Tensor tokens = draw(FilterLogits(teacher.Logits(hidden), config), i);
    block.hidden.select(1, i).copy_(hidden);
    block.tokens.select(1, i).copy_(tokens);
    const at::Tensor codes = codebook.index_select(0, tokens);
    previous = guided ? at::cat({codes, codes}) : codes;
  }
  return block;
}

}  // namespace dd2
