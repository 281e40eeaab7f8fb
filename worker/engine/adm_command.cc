#include "worker/engine/adm_command.h"

#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>

#include "common/json.h"
#include "storage/npz.h"
#include "worker/engine/adm_cache.h"
#include "worker/engine/adm_metrics.h"
#include "worker/engine/command_frame.h"
#include "worker/engine/image_set.h"
#include "worker/engine/options.h"
#include "worker/models/inception.h"

namespace dd2 {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kBatch = 25;        // images in the network at once: 250 MB of feature maps
constexpr std::int64_t kFewestImages = 4;  // a third neighbour must exist
constexpr std::int64_t kUnbiasedEnough = 10000;
constexpr std::int64_t kCustomary = 50000;
constexpr std::chrono::seconds kQuiet{10};  // between lines of progress without a terminal

// How far the network is, on standard error: one line that changes, or a line now and then.
class Progress {
 public:
  Progress(std::string what, std::int64_t count)
      : what_(std::move(what)), count_(count), terminal_(::isatty(STDERR_FILENO) == 1) {}
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() {
    if (terminal_) std::fputc('\n', stderr);
  }

  void Show(std::int64_t done) {
    const Clock::time_point now = Clock::now();
    if (!terminal_ && done < count_ && now - shown_ < kQuiet) return;
    shown_ = now;
    const double rate =
        static_cast<double>(done) / std::chrono::duration<double>(now - begun_).count();
    const double left = static_cast<double>(count_ - done) / rate / 60;
    std::fprintf(stderr, "%s%s: %lld of %lld images, %.1f a second, %.0f minutes left%s",
                 terminal_ ? "\r" : "", what_.c_str(), static_cast<long long>(done),
                 static_cast<long long>(count_), rate, std::ceil(left), terminal_ ? "  " : "\n");
  }

 private:
  std::string what_;
  std::int64_t count_;
  bool terminal_;
  Clock::time_point begun_ = Clock::now();
  Clock::time_point shown_ = begun_;
};

Result<AdmSet> ComputeSet(const std::string& what, ImageSet& images, const Inception& inception) {
  Progress progress(what, images.count());
  const AdmSource source = [&](std::int64_t begin, std::int64_t end) -> Result<AdmFeatures> {
    std::vector<at::Tensor> pool;
    std::vector<at::Tensor> spatial;
    for (std::int64_t at = begin; at < end; at += kBatch) {
      DD2_TRY_ASSIGN(const at::Tensor batch, images.Read(at, std::min(end, at + kBatch)));
      const InceptionFeatures features = inception.Features(batch);
      pool.push_back(features.pool);
      spatial.push_back(features.spatial);
      progress.Show(at + batch.size(0));
    }
    return AdmFeatures{.pool = at::cat(pool).cpu(), .spatial = at::cat(spatial).cpu()};
  };
  const std::unique_ptr<Collectives> alone = NewLocalCollectives();
  return CollectAdmSet(images.count(), Inception::kPool, Inception::kSpatial, source, *alone);
}

// The set from the cache, or computed and kept there.
Result<AdmSet> SetOf(const std::string& what, ImageSet& images, const Inception& inception,
                     bool use_cache) {
  if (!use_cache) return ComputeSet(what, images, inception);
  DD2_TRY_ASSIGN(const Digest128 digest, images.Digest());
  const Digest128 key = AdmCacheKey(digest, inception.digest());
  const std::filesystem::path folder = AdmCacheFolder();
  Result<AdmSet> kept = LoadAdmSet(folder, key, images.count());
  if (kept) return kept;
  if (kept.error().code() != Code::kNotFound) {
    std::fprintf(stderr, "%s: computed again, %s\n", what.c_str(), kept.error().message().c_str());
  }
  DD2_TRY_ASSIGN(AdmSet set, ComputeSet(what, images, inception));
  if (const Status stored = StoreAdmSet(folder, key, set); !stored) {
    std::fprintf(stderr, "%s: not kept in %s: %s\n", what.c_str(), folder.c_str(),
                 stored.error().message().c_str());
  }
  return set;
}

// What the reference file gives; absent parts cannot be measured against.
struct Reference {
  std::unique_ptr<ImageSet> images;
  std::optional<FeatureStats> pool_stats;
  std::optional<FeatureStats> spatial_stats;
  std::optional<at::Tensor> pool;
};

Result<Reference> OpenReference(const std::filesystem::path& path) {
  DD2_TRY_ASSIGN(const NpzFile file, NpzFile::Open(path));
  Reference reference;
  if (file.Has("mu")) {
    DD2_TRY_ASSIGN(reference.pool_stats, ReadStats(file, "mu", "sigma", Inception::kPool));
  }
  if (file.Has("mu_s")) {
    DD2_TRY_ASSIGN(reference.spatial_stats,
                   ReadStats(file, "mu_s", "sigma_s", Inception::kSpatial));
  }
  if (file.Has("arr_0")) {
    DD2_TRY_ASSIGN(reference.images, ImageSet::Open(path));
  } else if (!reference.pool_stats) {
    return Error(Code::kInvalidArgument,
                 path.string() +
                     " has neither images (arr_0) nor statistics (mu, sigma): take ADM's "
                     "VIRTUAL_imagenet256_labeled.npz, or numpy.savez('ref.npz', images)");
  }
  return reference;
}

Status Complete(Reference& reference, const Inception& inception, bool use_cache) {
  if (reference.images == nullptr) return {};
  DD2_TRY_ASSIGN(const AdmSet set, SetOf("reference", *reference.images, inception, use_cache));
  reference.pool = set.pool;
  if (!reference.pool_stats) reference.pool_stats = set.pool_stats;
  if (!reference.spatial_stats) reference.spatial_stats = set.spatial_stats;
  return {};
}

Status CheckCount(const std::string& what, const ImageSet& images) {
  if (images.count() >= kFewestImages) return {};
  return Error(Code::kInvalidArgument, what + " has " + std::to_string(images.count()) +
                                           " images, at least 4 are needed (50,000 is customary)");
}

boost::json::value NumberOrNull(std::optional<double> number) {
  if (!number || !std::isfinite(*number)) return nullptr;
  return *number;
}

struct Figures {
  std::int64_t samples = 0;
  double fid = 0;
  std::optional<double> spatial_fid;
  InceptionScoreResult score;
  std::optional<PrecisionRecallResult> shares;
};

Result<Figures> Compare(const AdmSet& samples, const Reference& reference,
                        const Inception& inception) {
  Figures figures{.samples = samples.count(), .spatial_fid = {}, .score = {}, .shares = {}};
  figures.fid = FrechetDistance(samples.pool_stats, *reference.pool_stats);
  if (reference.spatial_stats) {
    figures.spatial_fid = FrechetDistance(samples.spatial_stats, *reference.spatial_stats);
  }
  figures.score = InceptionScore(samples.pool, inception.last_weight());
  if (reference.pool) {
    const std::unique_ptr<Collectives> alone = NewLocalCollectives();
    DD2_TRY_ASSIGN(figures.shares, PrecisionRecall(*reference.pool, samples.pool, *alone));
  }
  return figures;
}

void Print(const Figures& figures, bool as_json) {
  const std::string label = FidLabel(figures.samples);
  std::optional<double> precision;
  std::optional<double> recall;
  if (figures.shares) {
    precision = figures.shares->precision;
    recall = figures.shares->recall;
  }
  if (as_json) {
    const boost::json::object out{
        {"label", label},
        {"samples", figures.samples},
        {"fid", NumberOrNull(figures.fid)},
        {"sfid", NumberOrNull(figures.spatial_fid)},
        {"inception_score", NumberOrNull(figures.score.mean)},
        {"inception_score_deviation", NumberOrNull(figures.score.deviation)},
        {"precision", NumberOrNull(precision)},
        {"recall", NumberOrNull(recall)}};
    std::printf("%s\n", boost::json::serialize(out).c_str());
    return;
  }
  const auto line = [](const std::string& name, std::optional<double> value, const char* missing) {
    if (value) {
      std::printf("%-16s %.4f\n", name.c_str(), *value);
    } else {
      std::printf("%-16s - (the reference has no %s)\n", name.c_str(), missing);
    }
  };
  std::printf("%-16s %lld\n", "samples", static_cast<long long>(figures.samples));
  line(label, figures.fid, "");
  line("s" + label, figures.spatial_fid, "mu_s and sigma_s, nor images");
  std::printf("%-16s %.4f +- %.4f\n", "Inception Score", figures.score.mean,
              figures.score.deviation);
  line("precision", precision, "images");
  line("recall", recall, "images");
}

}  // namespace

std::string FidLabel(std::int64_t samples) {
  if (samples == kCustomary) return "FID";
  return "FID-" +
         (samples % 1000 == 0 ? std::to_string(samples / 1000) + "k" : std::to_string(samples));
}

Status EvalImages(const std::vector<std::string>& arguments) {
  DD2_TRY_ASSIGN(
      const Options options,
      Options::Parse(arguments, {"--images", "--reference", "--inception", kDeviceOption},
                     {"--json", "--no-cache"}, 0));
  if (!options.Has("--reference")) {
    return Usage("--reference FILE.npz is missing: ADM's VIRTUAL_imagenet256_labeled.npz or alike");
  }
  if (!options.Has("--inception")) {
    return Usage(
        "--inception FILE is missing: the weights pt_inception-2015-12-05 of FID's network, "
        "as .pth or .safetensors");
  }
  const bool use_cache = !options.Has("--no-cache");
  // What is wrong with any input is said before the hours of computing.
  DD2_TRY_ASSIGN(const std::unique_ptr<ImageSet> images,
                 ImageSet::Open(options.Text("--images", "")));
  DD2_TRY(CheckCount("--images", *images));
  DD2_TRY_ASSIGN(Reference reference, OpenReference(options.Text("--reference", "")));
  if (reference.images != nullptr) DD2_TRY(CheckCount("--reference", *reference.images));
  DD2_TRY(TakeDevice(options));
  DD2_TRY_ASSIGN(const Inception inception, Inception::Load(options.Text("--inception", "")));
  if (images->count() < kUnbiasedEnough) {
    std::fprintf(stderr,
                 "warning: FID of %lld images is biased upwards; compare %s only with figures of "
                 "equally many\n",
                 static_cast<long long>(images->count()), FidLabel(images->count()).c_str());
  }
  DD2_TRY(Complete(reference, inception, use_cache));
  DD2_TRY_ASSIGN(const AdmSet samples, SetOf("samples", *images, inception, use_cache));
  DD2_TRY_ASSIGN(const Figures figures, Compare(samples, reference, inception));
  Print(figures, options.Has("--json"));
  return {};
}

}  // namespace dd2
