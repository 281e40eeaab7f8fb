#include "worker/models/teacher.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "worker/models/filters.h"
#include "worker/models/llamagen_backbone.h"
#include "worker/models/var_backbone.h"

namespace dd2 {
namespace {

// Labels for one guided pass over [conditional; unconditional].
at::Tensor WithNullLabels(const at::Tensor& labels, std::int64_t null_class) {
  return at::cat({labels, at::full_like(labels, null_class)});
}

// g = u + w (c - u) of a pass over [conditional; unconditional]; w a number or [n, 1].
template <class Strength>
at::Tensor Guide(const at::Tensor& both, const Strength& w) {
  const std::vector<at::Tensor> halves = both.chunk(2, 0);
  return halves[1] + (halves[0] - halves[1]) * w;
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

// InverseCdf of each row by the operators of a device: uniform [B, 1].
at::Tensor DrawThere(const at::Tensor& logits, const at::Tensor& uniform) {
  const std::int64_t codes = logits.size(1);
  const at::Tensor probabilities = at::softmax(logits, -1).to(at::kDouble);
  const at::Tensor running = RunningSums(probabilities);
  const at::Tensor target = uniform.to(at::kDouble) * running.narrow(1, codes - 1, 1);
  const at::Tensor possible = probabilities > 0;
  const at::Tensor number = at::arange(codes, uniform.options().dtype(at::kLong));
  const at::Tensor crosses = number.masked_fill(~(possible & (running > target)), codes);
  const at::Tensor last_possible = number.masked_fill(~possible, 0).amax(-1);
  return at::minimum(crosses.amin(-1), last_possible);
}

// logits [B, V], uniforms [B, n] at column `position`, on one device -> tokens [B] there.
at::Tensor DrawTokens(const at::Tensor& logits, const at::Tensor& uniforms, std::int64_t position) {
  if (!logits.is_cpu()) return DrawThere(logits, uniforms.narrow(1, position, 1));
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
  DeclareBackbone(spec, "backbone.", layout);
  if (spec.kind == BackboneKind::kVar) {
    VarBackbone::DeclareHead(spec, codes, "backbone.", layout);
    return layout;
  }
  if (spec.kind == BackboneKind::kLlamaGen) {
    LlamaGenBackbone::DeclareHead(spec, codes, "backbone.", layout);
    return layout;
  }
  layout.Add("head.weight", {codes, spec.width});
  layout.Add("head.bias", {codes});
  return layout;
}

Teacher::Teacher(const BackboneSpec& spec, std::int64_t codes, const ParamBuffer& params)
    : codes_(codes), params_(params), backbone_(MakeBackbone(spec, params, "backbone.")) {
  if (spec.kind == BackboneKind::kVar) {
    var_ = &static_cast<const VarBackbone&>(*backbone_).transformer();
    return;
  }
  if (spec.kind == BackboneKind::kLlamaGen) {
    head_weight_ = params["backbone.output.weight"];
    return;
  }
  head_weight_ = params["head.weight"];
  head_bias_ = params["head.bias"];
}

void Teacher::Init(const BackboneSpec& spec, const ParamBuffer& params, std::uint64_t seed,
                   std::uint32_t phase) {
  if (spec.kind == BackboneKind::kVar) return InitVar(params, spec, seed, phase);
  InitUniformFanIn(params, "", seed, phase);
}

at::Tensor Teacher::Hidden(const at::Tensor& q, const at::Tensor& labels) const {
  const at::Tensor features = backbone_->Forward(q, labels);
  return var_ == nullptr ? features : var_->HeadInput(features, labels);
}

at::Tensor Teacher::HiddenStep(const at::Tensor& q_previous, std::int64_t group,
                               const at::Tensor& labels, KvCache& cache) const {
  const at::Tensor features = backbone_->Step(q_previous, group, labels, cache);
  return var_ == nullptr ? features : var_->HeadInput(features, labels);
}

double Teacher::Strength(std::int64_t group, double cfg_scale) const {
  return var_ == nullptr ? cfg_scale : ScaleGuidance(var_->spec(), group, cfg_scale);
}

bool Teacher::IsGuided(double cfg_scale) const {
  return cfg_scale != (var_ == nullptr ? 1.0 : 0.0);
}

at::Tensor Teacher::GuidedHidden(const at::Tensor& q, const at::Tensor& labels,
                                 double cfg_scale) const {
  if (!IsGuided(cfg_scale)) return Hidden(q, labels);
  // Also what both halves share goes through twice: convolutions of other batches round otherwise.
  const at::Tensor both =
      Hidden(at::cat({q, q}), WithNullLabels(labels, backbone_->spec().classes));
  if (var_ == nullptr) return Guide(both, cfg_scale);
  return Guide(both, GuidanceRamp(var_->spec(), cfg_scale).unsqueeze(1));
}

at::Tensor Teacher::Logits(const at::Tensor& hidden) const {
  return var_ == nullptr ? at::linear(hidden, head_weight_, head_bias_) : var_->Logits(hidden);
}

NetworkSpec SpecFor(const ModelConfig& model, const Teacher& teacher) {
  NetworkSpec spec;
  spec.backbone = teacher.backbone().spec();
  spec.backbone.mode = {
      .activations = model.recompute ? Activations::kRecompute : Activations::kKeep,
      .bf16 = model.precision == kPrecisionBf16};
  spec.head = HeadSpec{.channels = spec.backbone.channels,
                       .condition = spec.backbone.width,
                       .width = model.head_width,
                       .depth = model.head_depth,
                       .time_features = model.time_features,
                       .bf16 = spec.backbone.mode.bf16};
  return spec;
}

SampledBlock SampleTeacher(const Teacher& teacher, const at::Tensor& codebook,
                           const at::Tensor& labels, const at::Tensor& uniforms,
                           const TeacherConfig& config) {
  DD2_CHECK(uniforms.dim() == 2 && uniforms.size(0) == labels.size(0) &&
            uniforms.size(1) == teacher.backbone().spec().tokens);
  const at::Tensor dense = uniforms.to(labels.device()).contiguous();
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
  const bool guided = teacher.IsGuided(config.cfg_scale);
  const at::Tensor pass_labels = guided ? WithNullLabels(labels, spec.classes) : labels;
  SampledBlock block;
  block.tokens = at::empty({batch, spec.tokens}, labels.options());
  block.hidden = at::empty({batch, spec.tokens, spec.width}, codebook.options());
  KvCache cache;
  at::Tensor previous;
  const std::vector<TokenGroup> groups = GroupsOf(spec);
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const auto [begin, size] = groups[g];
    const auto group = static_cast<std::int64_t>(g);
    at::Tensor hidden = teacher.HiddenStep(previous, group, pass_labels, cache);
    if (guided) hidden = Guide(hidden, teacher.Strength(group, config.cfg_scale));
    const at::Tensor logits = FilterLogits(teacher.Logits(hidden), config);
    const at::Tensor tokens = block.tokens.narrow(1, begin, size);
    for (std::int64_t i = 0; i < size; ++i) {
      tokens.select(1, i).copy_(draw(logits.select(1, i), begin + i));
    }
    block.hidden.narrow(1, begin, size).copy_(hidden);
    const at::Tensor codes =
        codebook.index_select(0, tokens.flatten()).view({batch, size, spec.channels});
    previous = guided ? at::cat({codes, codes}) : codes;
  }
  return block;
}

}  // namespace dd2
