#pragma once

#include <memory>
#include <utility>

#include "worker/models/networks.h"
#include "worker/models/teacher.h"

namespace dd2 {

// A teacher with random weights and small networks, for tests of what is built around models.
inline TeacherBundle MakeTinyTeacher(std::uint64_t seed) {
  constexpr std::int64_t kCodes = 16;
  BackboneSpec spec;
  spec.width = 16;
  spec.layers = 1;
  spec.heads = 2;
  TeacherBundle bundle;
  ParamBuffer tokenizer(Tokenizer::Layout(kCodes, spec.channels), false);
  InitUniformFanIn(tokenizer, "", seed, 1);
  // Codes that are told apart, of unit variance, so that encoding uses several of them.
  tokenizer["codebook"].copy_(
      at::linspace(-1, 1, kCodes * spec.channels).sin().mul(2).reshape({kCodes, spec.channels}));
  tokenizer["mean"].zero_();
  tokenizer["std"].fill_(1);
  bundle.tokenizer = std::make_unique<Tokenizer>(kCodes, spec.channels, tokenizer);
  ParamBuffer teacher(Teacher::Layout(spec, kCodes), false);
  InitUniformFanIn(teacher, "", seed, 2);
  bundle.teacher = std::make_unique<Teacher>(spec, kCodes, teacher);
  ParamBuffer classifier(Classifier::Layout(), false);
  InitUniformFanIn(classifier, "", seed, 3);
  bundle.classifier = std::make_unique<Classifier>(classifier);
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
