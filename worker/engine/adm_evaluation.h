#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "common/result.h"
#include "common/run_config.h"
#include "worker/engine/adm_metrics.h"
#include "worker/engine/evaluator.h"
#include "worker/engine/image_set.h"
#include "worker/engine/quality.h"
#include "worker/models/inception.h"
#include "worker/parallel/collectives.h"
#include "worker/torch.h"

namespace dd2 {

// ADM's figures (adm_metrics.h) of images against a reference file, by the Inception network: what
// `dd2 eval --images` prints, and what a run is judged by where eval.inception is set.

// Images in the network at once: 250 MB of feature maps. Part of the bits.
inline constexpr std::int64_t kInceptionBatch = 25;

struct AdmSetOptions {
  bool use_cache = true;
  // Called with the number of images that are done, of those of this rank; may be empty.
  std::function<void(std::int64_t done)> progress{};
  // Gets a line about a cache that cannot be used; may be empty.
  std::function<void(const std::string& line)> warn{};
};
// Features of all images of a set: from the cache folder (adm_cache.h), or computed, each rank its
// blocks, and kept there. Collective.
Result<AdmSet> AdmSetOf(ImageSet& images, const Inception& inception, const AdmSetOptions& options,
                        Collectives& collectives);

// [B, 1 or 3, H, W] in [-1, 1] -> [B, H, W, 3] uint8, as an image file would have it.
at::Tensor ImageBytes(const at::Tensor& images);
// Features of `count` images that `source` makes, kInceptionBatch at a time, the same ones together
// on any number of ranks. Collective.
Result<AdmSet> AdmSetOfMade(std::int64_t count, const ImageSource& source,
                            const Inception& inception, Collectives& collectives);

// What a reference file gives; what is absent cannot be compared with.
struct AdmReference {
  std::unique_ptr<ImageSet> images;
  std::optional<FeatureStats> pool_stats;
  std::optional<FeatureStats> spatial_stats;
  at::Tensor pool;  // [M, 2048] of its images
};
// Its statistics and the head of its images. kNotFound; kCorruption; kInvalidArgument: neither
// images nor statistics, or fewer images than 4.
Result<AdmReference> OpenAdmReference(const std::filesystem::path& path);
// Adds what its images give and the file does not say. Collective.
Status CompleteAdmReference(AdmReference& reference, const Inception& inception,
                            const AdmSetOptions& options, Collectives& collectives);
// kInvalidArgument: fewer than a third neighbour needs.
Status CheckAdmCount(const std::string& what, std::int64_t count);

struct AdmFigures {
  std::int64_t samples = 0;
  double fid = 0;
  std::optional<double> spatial_fid;  // the reference has images, or mu_s and sigma_s
  InceptionScoreResult score;
  std::optional<PrecisionRecallResult> shares;  // the reference has images
};
// With a completed reference. Collective: every rank gets the same.
Result<AdmFigures> CompareAdm(const AdmSet& samples, const AdmReference& reference,
                              const Inception& inception, Collectives& collectives);
// "fid", "sfid", "inception_score", "precision", "recall", as far as they are there.
Quality QualityOf(const AdmFigures& figures);

// Inception and a reference: the judge of a run. Belongs to the compute thread.
class AdmContext {
 public:
  // Reads both files, on every rank by itself. kNotFound, kCorruption, kInvalidArgument: what is
  // wrong with either.
  static Result<AdmContext> Load(const EvalConfig& config);
  // Before Measure, again where a rank has not: what the reference's images give. Collective.
  // kFailedPrecondition: the ranks have other files.
  Status Complete(Collectives& collectives);
  bool complete() const { return complete_; }
  void set_incomplete() { complete_ = false; }
  // Collective.
  Result<Quality> Measure(std::int64_t count, const ImageSource& source,
                          Collectives& collectives) const;

 private:
  AdmContext(std::filesystem::path path, Inception inception, AdmReference reference)
      : path_(std::move(path)),
        inception_(std::move(inception)),
        reference_(std::move(reference)) {}
  std::filesystem::path path_;  // of the reference
  Inception inception_;
  AdmReference reference_;
  bool complete_ = false;
};

}  // namespace dd2
