#include "worker/engine/adm_evaluation.h"

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "common/log.h"
#include "storage/npz.h"
#include "worker/engine/adm_cache.h"

namespace dd2 {
namespace {

constexpr std::int64_t kFewestImages = 4;  // a third neighbour must exist

// Gives the bytes of images [begin, end) of a set: [end - begin, H, W, 3].
using ByteSource = std::function<Result<at::Tensor>(std::int64_t begin, std::int64_t end)>;

Result<AdmSet> Compute(std::int64_t count, const ByteSource& images, const Inception& inception,
                       const std::function<void(std::int64_t)>& progress,
                       Collectives& collectives) {
  const std::int64_t first = BlocksOfRank(count, collectives).begin * kAdmBlock;
  const AdmSource source = [&](std::int64_t begin, std::int64_t end) -> Result<AdmFeatures> {
    std::vector<at::Tensor> pool;
    std::vector<at::Tensor> spatial;
    for (std::int64_t at = begin; at < end; at += kInceptionBatch) {
      const std::int64_t next = std::min(end, at + kInceptionBatch);
      DD2_TRY_ASSIGN(const at::Tensor batch, images(at, next));
      const InceptionFeatures features = inception.Features(batch);
      pool.push_back(features.pool.cpu());
      spatial.push_back(features.spatial.cpu());
      if (progress) progress(next - first);
    }
    return AdmFeatures{.pool = at::cat(pool), .spatial = at::cat(spatial)};
  };
  return CollectAdmSet(count, Inception::kPool, Inception::kSpatial, source, collectives);
}

Result<AdmSet> Kept(const ImageSet& images, const Inception& inception) {
  DD2_TRY_ASSIGN(const Digest128 digest, images.Digest());
  return LoadAdmSet(AdmCacheFolder(), AdmCacheKey(digest, inception.digest()), images.count());
}

Status Keep(const ImageSet& images, const Inception& inception, const AdmSet& set) {
  DD2_TRY_ASSIGN(const Digest128 digest, images.Digest());
  return StoreAdmSet(AdmCacheFolder(), AdmCacheKey(digest, inception.digest()), set);
}

// What distinguishes references, without reading all their images.
Digest128 IdentityOf(const AdmReference& reference) {
  Hasher128 hasher;
  if (reference.images != nullptr) {
    const std::int64_t shape[] = {reference.images->count(), reference.images->height(),
                                  reference.images->width()};
    hasher.Update(std::as_bytes(std::span(shape)));
  }
  for (const auto& stats : {reference.pool_stats, reference.spatial_stats}) {
    if (!stats) continue;
    hasher.Update(
        {static_cast<const std::byte*>(stats->mean.const_data_ptr()), stats->mean.nbytes()});
  }
  return hasher.Finish();
}

// Ranks with other files would not even make the same calls.
Status CheckEqual(const Inception& inception, const AdmReference& reference,
                  Collectives& collectives) {
  const std::string mine = inception.digest().Hex() + IdentityOf(reference).Hex();
  std::string all(mine.size() * static_cast<std::size_t>(collectives.world_size()), ' ');
  DD2_TRY(collectives.AllGather(std::as_bytes(std::span(mine)),
                                std::as_writable_bytes(std::span(all))));
  for (std::size_t begin = 0; begin < all.size(); begin += mine.size()) {
    if (all.compare(begin, mine.size(), all, 0, mine.size()) == 0) continue;
    return Error(Code::kFailedPrecondition,
                 "eval.inception or eval.reference is another file on rank " +
                     std::to_string(begin / mine.size()) +
                     " than on rank 0: give all machines the same");
  }
  return {};
}

}  // namespace

Result<AdmSet> AdmSetOf(ImageSet& images, const Inception& inception, const AdmSetOptions& options,
                        Collectives& collectives) {
  const auto warn = [&](const std::string& line) {
    if (options.warn) options.warn(line);
  };
  if (options.use_cache) {
    Result<AdmSet> kept = Kept(images, inception);
    if (!kept && kept.error().code() != Code::kNotFound) {
      warn("computed again, " + kept.error().message());
    }
    // Machines may have caches of their own.
    DD2_TRY_ASSIGN(const std::int64_t all_have, Smallest(kept ? 1 : 0, collectives));
    if (all_have == 1) return kept;
  }
  const ByteSource read = [&](std::int64_t begin, std::int64_t end) {
    return images.Read(begin, end);
  };
  DD2_TRY_ASSIGN(AdmSet set,
                 Compute(images.count(), read, inception, options.progress, collectives));
  if (options.use_cache && collectives.rank() == 0) {
    if (const Status kept = Keep(images, inception, set); !kept) {
      warn("not kept in " + AdmCacheFolder().string() + ": " + kept.error().message());
    }
  }
  return set;
}

at::Tensor ImageBytes(const at::Tensor& images) {
  return ((images + 1) * 127.5)
      .round()
      .clamp(0, 255)
      .to(at::kByte)
      .permute({0, 2, 3, 1})
      .expand({-1, -1, -1, 3})
      .contiguous();
}

Result<AdmSet> AdmSetOfMade(std::int64_t count, const ImageSource& source,
                            const Inception& inception, Collectives& collectives) {
  const at::NoGradGuard no_grad;
  const ByteSource make = [&](std::int64_t begin, std::int64_t end) -> Result<at::Tensor> {
    return ImageBytes(source(begin, end));
  };
  return Compute(count, make, inception, {}, collectives);
}

Status CheckAdmCount(const std::string& what, std::int64_t count) {
  if (count >= kFewestImages) return {};
  return Error(Code::kInvalidArgument, what + " has " + std::to_string(count) +
                                           " images, at least 4 are needed (50,000 is customary)");
}

Result<AdmReference> OpenAdmReference(const std::filesystem::path& path) {
  DD2_TRY_ASSIGN(const NpzFile file, NpzFile::Open(path));
  AdmReference reference;
  if (file.Has("mu")) {
    DD2_TRY_ASSIGN(reference.pool_stats, ReadStats(file, "mu", "sigma", Inception::kPool));
  }
  if (file.Has("mu_s")) {
    DD2_TRY_ASSIGN(reference.spatial_stats,
                   ReadStats(file, "mu_s", "sigma_s", Inception::kSpatial));
  }
  if (file.Has("arr_0")) {
    DD2_TRY_ASSIGN(reference.images, ImageSet::Open(path));
    DD2_TRY(CheckAdmCount("the reference " + path.string(), reference.images->count()));
  } else if (!reference.pool_stats) {
    return Error(Code::kInvalidArgument,
                 path.string() +
                     " has neither images (arr_0) nor statistics (mu, sigma): take ADM's "
                     "VIRTUAL_imagenet256_labeled.npz, or numpy.savez('ref.npz', images)");
  }
  return reference;
}

Status CompleteAdmReference(AdmReference& reference, const Inception& inception,
                            const AdmSetOptions& options, Collectives& collectives) {
  if (reference.images == nullptr) return {};
  DD2_TRY_ASSIGN(const AdmSet set, AdmSetOf(*reference.images, inception, options, collectives));
  reference.pool = set.pool;
  if (!reference.pool_stats) reference.pool_stats = set.pool_stats;
  if (!reference.spatial_stats) reference.spatial_stats = set.spatial_stats;
  return {};
}

Result<AdmFigures> CompareAdm(const AdmSet& samples, const AdmReference& reference,
                              const Inception& inception, Collectives& collectives) {
  AdmFigures figures{.samples = samples.count(), .spatial_fid = {}, .score = {}, .shares = {}};
  figures.fid = FrechetDistance(samples.pool_stats, *reference.pool_stats);
  if (reference.spatial_stats) {
    figures.spatial_fid = FrechetDistance(samples.spatial_stats, *reference.spatial_stats);
  }
  figures.score = InceptionScore(samples.pool, inception.last_weight());
  if (reference.pool.defined()) {
    DD2_TRY_ASSIGN(figures.shares, PrecisionRecall(reference.pool, samples.pool, collectives));
  }
  return figures;
}

Quality QualityOf(const AdmFigures& figures) {
  Quality quality{.figures = {{"fid", figures.fid}}, .samples = figures.samples};
  if (figures.spatial_fid) quality.figures.emplace_back("sfid", *figures.spatial_fid);
  quality.figures.emplace_back("inception_score", figures.score.mean);
  if (figures.shares) {
    quality.figures.emplace_back("precision", figures.shares->precision);
    quality.figures.emplace_back("recall", figures.shares->recall);
  }
  return quality;
}

Result<AdmContext> AdmContext::Load(const EvalConfig& config) {
  Result<AdmReference> reference = OpenAdmReference(config.reference);
  if (!reference) return reference.error().Wrap("eval.reference");
  Result<Inception> inception = Inception::Load(config.inception);
  if (!inception) return inception.error().Wrap("eval.inception");
  return AdmContext(config.reference, std::move(*inception), std::move(*reference));
}

Status AdmContext::Complete(Collectives& collectives) {
  DD2_TRY(CheckEqual(inception_, reference_, collectives));
  if (reference_.images != nullptr) {
    DD2_TRY_ASSIGN(reference_.images, ImageSet::Open(path_));  // an earlier try may have read on
  }
  const AdmSetOptions options{
      .warn = [](const std::string& line) { LogWarning("features of eval.reference: " + line); }};
  DD2_TRY(CompleteAdmReference(reference_, inception_, options, collectives));
  complete_ = true;
  return {};
}

Result<Quality> AdmContext::Measure(std::int64_t count, const ImageSource& source,
                                    Collectives& collectives) const {
  DD2_TRY_ASSIGN(const AdmSet set, AdmSetOfMade(count, source, inception_, collectives));
  DD2_TRY_ASSIGN(const AdmFigures figures, CompareAdm(set, reference_, inception_, collectives));
  return QualityOf(figures);
}

}  // namespace dd2
