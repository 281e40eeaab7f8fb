#include "worker/engine/evaluator.h"

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/rng.h"
#include "worker/engine/dataset.h"
#include "worker/kernels/torch_device.h"

namespace dd2 {
namespace {

constexpr std::int64_t kFeatures = 64;

std::span<const std::byte> AsBytes(const at::Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()};
}
std::span<std::byte> AsWritableBytes(at::Tensor& tensor) {
  return {static_cast<std::byte*>(tensor.mutable_data_ptr()), tensor.nbytes()};
}

// Fills rows of a [count, width] tensor chunk by chunk on the rank that owns each, and gives every
// rank all of them. fill(begin, end) -> [end - begin, width] of `dtype`.
Result<at::Tensor> GatherChunks(std::int64_t count, std::int64_t width, at::ScalarType dtype,
                                const ImageSource& fill, Collectives& collectives) {
  const std::int64_t chunks = (count + kEvalChunk - 1) / kEvalChunk;
  const std::int64_t world = collectives.world_size();
  const std::int64_t turns = (chunks + world - 1) / world;
  at::Tensor mine = at::zeros({turns, kEvalChunk, width}, dtype);
  for (std::int64_t turn = 0; turn < turns; ++turn) {
    const std::int64_t begin = (turn * world + collectives.rank()) * kEvalChunk;
    const std::int64_t end = std::min(count, begin + kEvalChunk);
    if (begin < end) mine[turn].narrow(0, 0, end - begin).copy_(fill(begin, end));
  }
  at::Tensor all = at::empty({world, turns, kEvalChunk, width}, dtype);
  DD2_TRY(collectives.AllGather(AsBytes(mine), AsWritableBytes(all)));
  // Chunk c = turn * world + rank: turns outermost puts the chunks in order.
  return all.transpose(0, 1).reshape({turns * world * kEvalChunk, width}).narrow(0, 0, count);
}

double ShareEqual(const at::Tensor& predictions, const at::Tensor& labels) {
  return predictions.eq(labels).to(at::kDouble).mean().item<double>();
}

// Of the features [N, 64] of each class of `labels` [N]; empty when a class has fewer than 2.
std::vector<FeatureStats> StatsByClass(const at::Tensor& features, const at::Tensor& labels,
                                       std::int64_t classes) {
  std::vector<FeatureStats> stats;
  for (std::int64_t c = 0; c < classes; ++c) {
    const at::Tensor members = labels.eq(c).nonzero().flatten();
    if (members.size(0) < 2) return {};
    stats.push_back(ComputeFeatureStats(features.index_select(0, members)));
  }
  return stats;
}

}  // namespace

Result<ScoredImages> ScoreImages(const Classifier& classifier, std::int64_t count,
                                 const ImageSource& source, Collectives& collectives) {
  const at::NoGradGuard no_grad;
  // Features and the class in one row, so that one exchange carries both.
  const ImageSource score = [&](std::int64_t begin, std::int64_t end) {
    const at::Tensor features = classifier.Features(ToDevice(source(begin, end)));
    const at::Tensor classes = classifier.Logits(features).argmax(1, true);
    return at::cat({features, classes.to(at::kFloat)}, 1);
  };
  DD2_TRY_ASSIGN(const at::Tensor rows,
                 GatherChunks(count, kFeatures + 1, at::kFloat, score, collectives));
  return ScoredImages{.features = rows.narrow(1, 0, kFeatures).contiguous(),
                      .predictions = rows.select(1, kFeatures).to(at::kLong)};
}

Status CheckMeasurable(const TeacherBundle& bundle) {
  if (bundle.classifier) return {};
  return Error(Code::kFailedPrecondition,
               "an imported teacher has no evaluation network: set eval.inception and "
               "eval.reference (FID), or take the phase eval and eval_every out of the "
               "configuration");
}

Result<EvalContext> EvalContext::Create(const TeacherBundle& bundle,
                                        const std::filesystem::path& dataset,
                                        Collectives& collectives) {
  DD2_TRY_ASSIGN(const LabelledImages test, LoadFashionMnist(dataset, Split::kTest));
  return FromImages(bundle, test.images, test.labels, collectives);
}

Result<EvalContext> EvalContext::Create(const TeacherBundle& bundle,
                                        const std::filesystem::path& dataset) {
  const std::unique_ptr<Collectives> alone = NewLocalCollectives();
  return Create(bundle, dataset, *alone);
}

Result<EvalContext> EvalContext::FromImages(const TeacherBundle& bundle, const at::Tensor& images,
                                            const at::Tensor& labels, Collectives& collectives) {
  DD2_TRY(CheckMeasurable(bundle));
  const std::int64_t count = images.size(0);
  DD2_CHECK(images.dim() == 4 && count >= 2 && labels.size(0) == count);
  const at::NoGradGuard no_grad;
  EvalContext context;
  context.bundle_ = &bundle;
  context.images_ = images.contiguous();
  context.labels_ = labels.to(at::kLong);
  const Tokenizer& tokenizer = *bundle.tokenizer;
  const ImageSource encode = [&](std::int64_t begin, std::int64_t end) {
    return tokenizer.Encode(ToDevice(context.images_.narrow(0, begin, end - begin))).flatten(1);
  };
  const std::int64_t tokens = bundle.teacher->backbone().spec().tokens;
  DD2_TRY_ASSIGN(context.ids_, GatherChunks(count, tokens, at::kLong, encode, collectives));
  const ImageSource real = [&](std::int64_t begin, std::int64_t end) {
    return context.images_.narrow(0, begin, end - begin);
  };
  DD2_TRY_ASSIGN(const ScoredImages real_scores,
                 ScoreImages(*bundle.classifier, count, real, collectives));
  context.real_ = ComputeFeatureStats(real_scores.features);
  context.real_accuracy_ = ShareEqual(real_scores.predictions, context.labels_);
  const ImageSource decode = [&](std::int64_t begin, std::int64_t end) {
    return TokenImages(tokenizer, context.ids_.narrow(0, begin, end - begin));
  };
  DD2_TRY_ASSIGN(const ScoredImages scores,
                 ScoreImages(*bundle.classifier, count, decode, collectives));
  context.reconstruction_ = ComputeFeatureStats(scores.features);
  context.reconstruction_by_class_ =
      StatsByClass(scores.features, context.labels_, bundle.teacher->backbone().spec().classes);
  context.reconstruction_point_ = {.fd = FrechetDistance(context.reconstruction_, context.real_),
                                   .fdr = 0,
                                   .accuracy = ShareEqual(scores.predictions, context.labels_),
                                   .samples = count};
  return context;
}

EvalPoint EvalContext::Measure(const ScoredImages& scored, const at::Tensor& labels) const {
  const FeatureStats stats = ComputeFeatureStats(scored.features);
  EvalPoint point{.fd = FrechetDistance(stats, real_),
                  .fdr = FrechetDistance(stats, reconstruction_),
                  .accuracy = ShareEqual(scored.predictions, labels),
                  .samples = stats.count};
  const std::vector<FeatureStats>& references = reconstruction_by_class_;
  const std::vector<FeatureStats> classes =
      StatsByClass(scored.features, labels, static_cast<std::int64_t>(references.size()));
  for (std::size_t c = 0; c < classes.size(); ++c) {
    point.fdr_by_class.push_back(FrechetDistance(classes[c], references[c]));
  }
  return point;
}

at::Tensor StratifiedLabels(std::int64_t samples, std::int64_t classes) {
  return at::arange(samples, at::kLong).remainder(classes);
}

at::Tensor EvalNoise(std::uint64_t seed, std::int64_t begin, std::int64_t end,
                     const BackboneSpec& spec) {
  at::Tensor noise = at::empty({end - begin, spec.tokens, spec.channels}, at::kFloat);
  const auto size = static_cast<std::size_t>(spec.tokens * spec.channels);
  for (std::int64_t i = begin; i < end; ++i) {
    const RngKey key{.seed = seed,
                     .phase = 0,
                     .use = RngUse::kEvalNoise,
                     .update = 0,
                     .sample = static_cast<std::uint64_t>(i)};
    FillNormal(
        key, {noise.mutable_data_ptr<float>() + static_cast<std::size_t>(i - begin) * size, size});
  }
  return noise;
}

at::Tensor GeneratorImages(const Network& network, const Tokenizer& tokenizer,
                           const at::Tensor& noise, const at::Tensor& labels) {
  const at::NoGradGuard no_grad;
  return tokenizer.Decode(network.Generate(ToDevice(noise), ToDevice(labels)));
}

at::Tensor TokenImages(const Tokenizer& tokenizer, const at::Tensor& tokens) {
  const at::NoGradGuard no_grad;
  return tokenizer.Decode(at::embedding(tokenizer.codebook(), ToDevice(tokens)));
}

Result<EvalPoint> EvaluateGenerator(const Network& network, const EvalContext& context,
                                    std::int64_t samples, std::uint64_t seed,
                                    Collectives& collectives) {
  if (samples < 2) {
    return Error(Code::kInvalidArgument,
                 "an evaluation needs at least 2 samples, not " + std::to_string(samples));
  }
  const BackboneSpec& spec = network.spec().backbone;
  const at::Tensor labels = StratifiedLabels(samples, spec.classes);
  const ImageSource generate = [&](std::int64_t begin, std::int64_t end) {
    return GeneratorImages(network, *context.bundle().tokenizer, EvalNoise(seed, begin, end, spec),
                           labels.narrow(0, begin, end - begin));
  };
  DD2_TRY_ASSIGN(const ScoredImages scored,
                 ScoreImages(*context.bundle().classifier, samples, generate, collectives));
  return context.Measure(scored, labels);
}

Result<EvalPoint> EvaluateSequences(const at::Tensor& tokens, const at::Tensor& labels,
                                    const EvalContext& context, Collectives& collectives) {
  const std::int64_t count = tokens.size(0);
  DD2_CHECK(tokens.dim() == 2 && labels.size(0) == count);
  if (count < 2) {
    return Error(Code::kInvalidArgument,
                 "an evaluation needs at least 2 sequences, not " + std::to_string(count));
  }
  const ImageSource decode = [&](std::int64_t begin, std::int64_t end) {
    return TokenImages(*context.bundle().tokenizer, tokens.narrow(0, begin, end - begin));
  };
  DD2_TRY_ASSIGN(const ScoredImages scored,
                 ScoreImages(*context.bundle().classifier, count, decode, collectives));
  return context.Measure(scored, labels);
}

Result<at::Tensor> SampleTeacherTokens(const TeacherBundle& bundle, const TeacherConfig& config,
                                       std::int64_t samples, std::uint64_t seed,
                                       Collectives& collectives) {
  const at::NoGradGuard no_grad;
  const BackboneSpec& spec = bundle.teacher->backbone().spec();
  const at::Tensor labels = StratifiedLabels(samples, spec.classes);
  const ImageSource draw = [&](std::int64_t begin, std::int64_t end) {
    at::Tensor uniforms = at::empty({end - begin, spec.tokens}, at::kFloat);
    for (std::int64_t i = begin; i < end; ++i) {
      const RngKey key{.seed = seed,
                       .phase = 0,
                       .use = RngUse::kTeacherToken,
                       .update = 0,
                       .sample = static_cast<std::uint64_t>(i)};
      FillUniform(key, {uniforms.mutable_data_ptr<float>() + (i - begin) * spec.tokens,
                        static_cast<std::size_t>(spec.tokens)});
    }
    return SampleTeacher(*bundle.teacher, bundle.tokenizer->codebook(),
                         ToDevice(labels.narrow(0, begin, end - begin)), uniforms, config)
        .tokens;
  };
  return GatherChunks(samples, spec.tokens, at::kLong, draw, collectives);
}

}  // namespace dd2
