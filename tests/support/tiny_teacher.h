#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "common/rng.h"
#include "worker/models/networks.h"
#include "worker/models/teacher.h"

namespace dd2 {

// A teacher with random weights and small networks, for tests of what is built around models. With
// `sides` it is a multi-scale one.
inline TeacherBundle MakeTinyTeacher(std::uint64_t seed,
                                     const std::vector<std::int64_t>& sides = {}) {
  BackboneSpec spec;
  spec.width = 16;
  spec.layers = 1;
  spec.heads = 2;
  TokenizerSpec tokens{.codes = 16, .channels = spec.channels, .scales = {}};
  if (!sides.empty()) tokens.scales = VarScales::WithPhis(sides, 2);
  TeacherBundle bundle;
  ParamBuffer tokenizer(SmallTokenizer::Layout(tokens), false);
  InitUniformFanIn(tokenizer, "", seed, 1);
  // Codes that are told apart, of unit variance, so that encoding uses several of them.
  tokenizer[sides.empty() ? "codebook" : "quantize.embedding.weight"].copy_(
      at::linspace(-1, 1, tokens.codes * tokens.channels)
          .sin()
          .mul(2)
          .reshape({tokens.codes, tokens.channels}));
  tokenizer["mean"].zero_();
  tokenizer["std"].fill_(1);
  bundle.tokenizer = std::make_unique<SmallTokenizer>(tokens, tokenizer);
  if (!sides.empty()) {
    spec.kind = BackboneKind::kVar;
    spec.sides = sides;
    spec.tokens = tokens.tokens();
    spec.path = bundle.tokenizer->path();
  }
  ParamBuffer teacher(Teacher::Layout(spec, tokens.codes), false);
  InitUniformFanIn(teacher, "", seed, 2);
  // VAR's own initial values hide the blocks behind gates near zero.
  const at::Tensor host = teacher.HostFlat();
  for (const ParamSpec& param : teacher.layout().specs()) {
    if (sides.empty()) break;
    FillNormal({seed, 2, RngUse::kParameterInit, 0, static_cast<std::uint64_t>(param.offset)},
               {host.data_ptr<float>() + param.offset, static_cast<std::size_t>(param.numel)});
    host.narrow(0, param.offset, param.numel).mul_(0.3);
  }
  teacher.SetFlat(host);
  bundle.teacher = std::make_unique<Teacher>(spec, tokens.codes, teacher);
  ParamBuffer classifier(Classifier::Layout(), false);
  InitUniformFanIn(classifier, "", seed, 3);
  bundle.classifier = std::make_unique<Classifier>(classifier);
  return bundle;
}

// The same tokenizer with a LlamaGen that takes its codes.
inline TeacherBundle MakeTinyLlamaGen(std::uint64_t seed) {
  TeacherBundle bundle = MakeTinyTeacher(seed);
  BackboneSpec spec = bundle.teacher->backbone().spec();
  spec.kind = BackboneKind::kLlamaGen;
  spec.ffn_hidden = 24;
  ParamBuffer teacher(Teacher::Layout(spec, bundle.teacher->codes()), false);
  InitUniformFanIn(teacher, "", seed, 2);
  bundle.teacher = std::make_unique<Teacher>(spec, bundle.teacher->codes(), teacher);
  return bundle;
}

inline NetworkSpec TinyNetworkSpec(const TeacherBundle& bundle) {
  NetworkSpec spec;
  spec.backbone = bundle.teacher->backbone().spec();
  spec.head = HeadSpec{.channels = spec.backbone.channels,
                       .condition = spec.backbone.width,
                       .width = 16,
                       .depth = 1,
                       .time_features = 8};
  return spec;
}

// A generator with random weights; the head's output layer too, so that it does something.
inline ParamBuffer MakeTinyGenerator(const NetworkSpec& spec, std::uint64_t seed) {
  ParamBuffer params(Network::Layout(spec), false);
  InitUniformFanIn(params, "", seed, 4);
  return params;
}

}  // namespace dd2
