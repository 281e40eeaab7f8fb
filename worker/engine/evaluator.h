#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <vector>

#include "common/result.h"
#include "worker/engine/frechet.h"
#include "worker/models/networks.h"
#include "worker/models/teacher.h"
#include "worker/parallel/collectives.h"
#include "worker/torch.h"

namespace dd2 {

// How good a set of class-conditional images is (recipe.md): FD is the Frechet distance between
// 64-d penultimate features of the evaluation CNN to the 10,000 real test images; FDr the same to
// the tokenizer's reconstructions of them (without the tokenizer's blur: the number to watch);
// accuracy is the share of images that the CNN gives the class they were asked for.
struct EvalPoint {
  double fd = 0;
  double fdr = 0;
  double accuracy = 0;
  std::int64_t samples = 0;  // both distances fall with the sample count: always quote it
  // FDr of each class against the reconstructions of that class: one that stands out has lost a
  // mode. Empty when a class has fewer than 2 images on either side.
  std::vector<double> fdr_by_class{};
};

// Images are made and classified in chunks of this many, chunk c by rank c mod world size, so that
// the bits do not depend on who computes.
inline constexpr std::int64_t kEvalChunk = 250;

// Features [N, 64] fp32 and predicted classes [N] int64 of a set of images.
struct ScoredImages {
  at::Tensor features;
  at::Tensor predictions;
};
// Makes images [begin, end) of a set: [end - begin, 1, 28, 28] in [-1, 1].
using ImageSource = std::function<at::Tensor(std::int64_t begin, std::int64_t end)>;
// Collective: all ranks call it with the same arguments and get the same result.
Result<ScoredImages> ScoreImages(const Classifier& classifier, std::int64_t count,
                                 const ImageSource& source, Collectives& collectives);

// kFailedPrecondition: the teacher has no evaluation network.
Status CheckMeasurable(const TeacherBundle& bundle);

// The test set, its reconstructions and their statistics. Immutable once created; belongs to the
// compute thread. Borrows the bundle.
class EvalContext {
 public:
  // Reads the test split under `dataset` and scores it and its reconstructions. Collective.
  // kNotFound, kCorruption: the data set is not there or damaged.
  static Result<EvalContext> Create(const TeacherBundle& bundle,
                                    const std::filesystem::path& dataset, Collectives& collectives);
  static Result<EvalContext> Create(const TeacherBundle& bundle,
                                    const std::filesystem::path& dataset);  // alone
  // The same from images [N, 1, 28, 28] and labels [N] that the caller has (tests, a first part of
  // the test split); N >= 2.
  static Result<EvalContext> FromImages(const TeacherBundle& bundle, const at::Tensor& images,
                                        const at::Tensor& labels, Collectives& collectives);

  const TeacherBundle& bundle() const { return *bundle_; }
  const at::Tensor& images() const { return images_; }  // [N, 1, 28, 28] real
  const at::Tensor& labels() const { return labels_; }  // [N]
  const at::Tensor& ids() const { return ids_; }        // [N, n] codes of the reconstructions
  const FeatureStats& real() const { return real_; }
  const FeatureStats& reconstruction() const { return reconstruction_; }
  // fd and accuracy of the reconstructions themselves (fdr = 0), and the CNN's accuracy on real
  // images.
  const EvalPoint& reconstruction_point() const { return reconstruction_point_; }
  double real_accuracy() const { return real_accuracy_; }
  // Distances and accuracy of scored images with requested classes `labels` [N].
  EvalPoint Measure(const ScoredImages& scored, const at::Tensor& labels) const;

 private:
  EvalContext() = default;
  const TeacherBundle* bundle_ = nullptr;
  at::Tensor images_, labels_, ids_;
  FeatureStats real_, reconstruction_;
  std::vector<FeatureStats> reconstruction_by_class_;
  EvalPoint reconstruction_point_;
  double real_accuracy_ = 0;
};

// Classes of an evaluation: 0, 1, ..., classes - 1, 0, 1, ... [samples].
at::Tensor StratifiedLabels(std::int64_t samples, std::int64_t classes);
// Noise [end - begin, n, C] of evaluation samples [begin, end): by position, RngUse::kEvalNoise.
at::Tensor EvalNoise(std::uint64_t seed, std::int64_t begin, std::int64_t end,
                     const BackboneSpec& spec);
// One-step images, decoded raw (no snapping to codes): noise [B, n, C], labels [B] -> [B, 1, 28,
// 28].
at::Tensor GeneratorImages(const Network& network, const Tokenizer& tokenizer,
                           const at::Tensor& noise, const at::Tensor& labels);
// Images of code sequences: tokens [B, n] int64 -> [B, 1, 28, 28].
at::Tensor TokenImages(const Tokenizer& tokenizer, const at::Tensor& tokens);

// One-step quality of a network (its EMA weights) over `samples` stratified samples. Collective.
Result<EvalPoint> EvaluateGenerator(const Network& network, const EvalContext& context,
                                    std::int64_t samples, std::uint64_t seed,
                                    Collectives& collectives);
// Quality of code sequences: tokens [N, n] int64, labels [N], N >= 2. Collective: every rank holds
// all of them.
Result<EvalPoint> EvaluateSequences(const at::Tensor& tokens, const at::Tensor& labels,
                                    const EvalContext& context, Collectives& collectives);
// Draws `samples` stratified sequences from the teacher (RngUse::kTeacherToken by position) in
// chunks spread over the ranks: [samples, n] int64 on every rank. Collective.
Result<at::Tensor> SampleTeacherTokens(const TeacherBundle& bundle, const TeacherConfig& config,
                                       std::int64_t samples, std::uint64_t seed,
                                       Collectives& collectives);

}  // namespace dd2
