#include "tests/gpu/rival_case.h"

#include <fstream>
#include <string>

#include "common/file.h"
#include "tests/gpu/random_networks.h"
#include "worker/distill/losses.h"
#include "worker/models/filters.h"
#include "worker/models/networks.h"

namespace dd2 {
namespace {

// Every parameter counts, also those that begin as zeros.
void Spread(const ParamBuffer& params, double deviation) {
  const at::NoGradGuard no_grad;
  params.flat().copy_(at::randn_like(params.flat()) * deviation);
}

struct Trained {
  explicit Trained(const NetworkSpec& spec)
      : params(Network::Layout(spec), /*requires_grad=*/true), network(spec, params) {
    Spread(params, 0.1);
    gradient = at::zeros_like(params.flat());
    params.BindGradient(gradient);
  }
  double GradientNorm() const { return gradient.norm().item<double>(); }

  ParamBuffer params;
  at::Tensor gradient;
  Network network;
};

// As tensors of a file, by name.
ParamBuffer Inputs(const Size& size, std::int64_t tokens) {
  ParamLayout layout;
  layout.Add("noise", {size.batch, tokens, kChannels});
  layout.Add("labels", {size.batch});
  for (const std::string of : {"guidance.", "generator."}) {
    const std::int64_t draws = of == "guidance." ? size.draws : 1;
    layout.Add(of + "t", {draws, size.batch, tokens, 1});
    layout.Add(of + "draws", {draws, size.batch, tokens, kChannels});
  }
  ParamBuffer inputs(layout, /*requires_grad=*/false);
  Spread(inputs, 1);
  inputs["labels"].copy_(at::randint(kClasses, {size.batch}));
  for (const char* of : {"guidance.t", "generator.t"}) inputs[of].uniform_(0.05, 0.98);
  return inputs;
}

}  // namespace

Status WriteRivalCase(const std::filesystem::path& folder) {
  at::manual_seed(1);
  const TeacherBundle teacher = RandomTeacher(kTiny, kPrecisionFp32);
  Spread(teacher.teacher->params(), 0.2);
  const RunConfig config = ConfigOf(kTiny, 1, kPrecisionFp32);
  const NetworkSpec spec = SpecFor(config.model, *teacher.teacher);
  Trained guidance(spec), generator(spec);
  const ParamBuffer inputs = Inputs(kTiny, spec.backbone.tokens);
  const at::Tensor labels = inputs["labels"].to(at::kLong);

  const at::Tensor q = generator.network.Generate(inputs["noise"], labels);
  const at::Tensor fcs =
      FcsLoss(guidance.network, q, labels, inputs["guidance.t"], inputs["guidance.draws"]);
  fcs.backward();
  guidance.params.SetRequiresGrad(false);
  at::Tensor logp, features;
  {
    const at::NoGradGuard no_grad;
    const at::Tensor hidden =
        teacher.teacher->GuidedHidden(q.detach(), labels, config.teacher.cfg_scale);
    logp = FilterLogits(teacher.teacher->Logits(hidden), config.teacher);
    features = guidance.network.Features(q.detach(), labels);
  }
  const CsdLossResult csd =
      CsdLoss(guidance.network, q, features, logp, teacher.tokenizer->codebook(),
              inputs["generator.t"], inputs["generator.draws"], config.phases.at(1).sid_alpha);
  q.backward(csd.gradient);

  DD2_TRY(RealFileSystem().MakeDirectories(folder));
  DD2_TRY(SaveParams(folder / "teacher.safetensors", teacher.teacher->params(), {}));
  DD2_TRY(SaveParams(folder / "tokenizer.safetensors", teacher.tokenizer->params(), {}));
  DD2_TRY(SaveParams(folder / "guidance.safetensors", guidance.params, {}));
  DD2_TRY(SaveParams(folder / "generator.safetensors", generator.params, {}));
  DD2_TRY(SaveParams(folder / "inputs.safetensors", inputs, {}));
  const boost::json::object found{{"fcs", fcs.item<double>()},
                                  {"sid", csd.loss},
                                  {"dmu", csd.mean_difference},
                                  {"guidance_gradient", guidance.GradientNorm()},
                                  {"generator_gradient", generator.GradientNorm()}};
  std::ofstream(folder / "case.json")
      << boost::json::serialize(boost::json::object{{"size", Describe(kTiny)}, {"found", found}});
  return {};
}

}  // namespace dd2
