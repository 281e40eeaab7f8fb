#include "tests/gpu/random_networks.h"

#include <memory>
#include <string>

#include "worker/models/code_path.h"
#include "worker/models/networks.h"

namespace dd2 {
namespace {

constexpr std::int64_t kPhis = 4;

// What the trainer needs of a tokenizer: no images are made here.
class RandomCodes final : public Tokenizer {
 public:
  RandomCodes(const TokenizerSpec& spec, const ParamBuffer& params) : Tokenizer(spec, params) {
    codebook_ = params["quantize.embedding.weight"];
    path_ = std::make_shared<const CodePath>(VarQuantizer(spec.scales, params, "quantize."),
                                             at::zeros({spec.channels}, codebook_.options()),
                                             at::ones({spec.channels}, codebook_.options()));
  }
  at::Tensor Encode(const at::Tensor&) const override { return {}; }
  at::Tensor Decode(const at::Tensor&) const override { return {}; }
  bool travels() const override { return false; }
  std::int64_t image_side() const override { return 0; }
};

}  // namespace

TeacherBundle RandomTeacher(const Size& size, std::string_view precision) {
  TokenizerSpec tokens{
      .codes = size.codes, .channels = kChannels, .scales = VarScales::WithPhis(size.sides, kPhis)};
  ParamLayout layout;
  VarQuantizer::Declare(tokens.scales, size.codes, kChannels, "quantize.", layout);
  const ParamBuffer codes(layout, false);
  InitUniformFanIn(codes, "", 1, 1);
  TeacherBundle bundle;
  bundle.tokenizer = std::make_unique<RandomCodes>(tokens, codes);
  BackboneSpec spec{.channels = kChannels,
                    .width = size.width,
                    .layers = size.layers,
                    .heads = size.heads,
                    .tokens = tokens.tokens(),
                    .classes = kClasses,
                    .kind = BackboneKind::kVar};
  spec.sides = size.sides;
  spec.path = bundle.tokenizer->path();
  spec.mode.bf16 = precision == kPrecisionBf16;
  const ParamBuffer teacher(Teacher::Layout(spec, size.codes), false);
  InitVar(teacher, spec, 1, 2);
  bundle.teacher = std::make_unique<Teacher>(spec, size.codes, teacher);
  return bundle;
}

RunConfig ConfigOf(const Size& size, int shards, std::string_view precision) {
  RunConfig config;
  config.teacher.cfg_scale = 2;
  config.teacher.top_k = static_cast<int>(size.codes / 4);
  config.teacher.top_p = 0.95;
  config.teacher.precision = precision;
  config.batch.shards = shards;
  config.model = {.head_width = static_cast<int>(size.head_width),
                  .head_depth = static_cast<int>(size.head_depth),
                  .time_features = kTimeFeatures,
                  .precision = std::string(precision)};
  for (const PhaseKind kind : {PhaseKind::kGts, PhaseKind::kCsd, PhaseKind::kAlign}) {
    PhaseConfig phase = DefaultPhase(kind);
    phase.steps = 1000;
    phase.batch = size.batch * shards;
    phase.draws = size.draws;
    phase.guidance_updates = 1;
    phase.generator_draws = 1;
    phase.guidance.peak = phase.generator.peak = 1e-4;
    config.phases.push_back(phase);
  }
  return config;
}

boost::json::object Describe(const Size& size) {
  const RunConfig config = ConfigOf(size, 1, kPrecisionFp32);
  const VarScales scales = VarScales::WithPhis(size.sides, kPhis);
  return {{"layers", size.layers},
          {"width", size.width},
          {"heads", size.heads},
          {"codes", size.codes},
          {"channels", kChannels},
          {"classes", kClasses},
          {"tokens", scales.tokens()},
          {"sides", boost::json::value_from(size.sides)},
          {"phi_of_scale", boost::json::value_from(scales.phi_of_scale)},
          {"head_width", size.head_width},
          {"head_depth", size.head_depth},
          {"time_features", kTimeFeatures},
          {"batch", size.batch},
          {"draws", size.draws},
          {"cfg_scale", config.teacher.cfg_scale},
          {"top_k", config.teacher.top_k},
          {"top_p", config.teacher.top_p},
          {"sid_alpha", config.phases.at(1).sid_alpha}};
}

}  // namespace dd2
