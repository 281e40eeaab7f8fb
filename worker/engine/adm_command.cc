#include "worker/engine/adm_command.h"

#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>

#include "common/json.h"
#include "worker/engine/adm_evaluation.h"
#include "worker/engine/command_frame.h"
#include "worker/engine/image_set.h"
#include "worker/engine/options.h"
#include "worker/models/inception.h"
#include "worker/parallel/collectives.h"

namespace dd2 {
namespace {

using Clock = std::chrono::steady_clock;

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
    if (terminal_ && shown_ != begun_) std::fputc('\n', stderr);
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

// The features of `images`, with progress on standard error while they are computed.
AdmSetOptions OptionsFor(const std::string& what, const ImageSet& images, bool use_cache) {
  const auto progress = std::make_shared<Progress>(what, images.count());
  return {.use_cache = use_cache,
          .progress = [progress](std::int64_t done) { progress->Show(done); },
          .warn =
              [what](const std::string& line) {
                std::fprintf(stderr, "%s: %s\n", what.c_str(), line.c_str());
              }};
}

boost::json::value NumberOrNull(std::optional<double> number) {
  if (!number || !std::isfinite(*number)) return nullptr;
  return *number;
}

void Print(const AdmFigures& figures, bool as_json) {
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
  const std::unique_ptr<Collectives> alone = NewLocalCollectives();
  // What is wrong with any input is said before the hours of computing.
  DD2_TRY_ASSIGN(const std::unique_ptr<ImageSet> images,
                 ImageSet::Open(options.Text("--images", "")));
  DD2_TRY(CheckAdmCount("--images", images->count()));
  DD2_TRY_ASSIGN(AdmReference reference, OpenAdmReference(options.Text("--reference", "")));
  DD2_TRY(TakeDevice(options));
  DD2_TRY_ASSIGN(const Inception inception, Inception::Load(options.Text("--inception", "")));
  if (images->count() < kUnbiasedEnough) {
    std::fprintf(stderr,
                 "warning: FID of %lld images is biased upwards; compare %s only with figures of "
                 "equally many\n",
                 static_cast<long long>(images->count()), FidLabel(images->count()).c_str());
  }
  if (reference.images != nullptr) {
    const AdmSetOptions request = OptionsFor("reference", *reference.images, use_cache);
    DD2_TRY(CompleteAdmReference(reference, inception, request, *alone));
  }
  DD2_TRY_ASSIGN(const AdmSet samples,
                 AdmSetOf(*images, inception, OptionsFor("samples", *images, use_cache), *alone));
  DD2_TRY_ASSIGN(const AdmFigures figures, CompareAdm(samples, reference, inception, *alone));
  Print(figures, options.Has("--json"));
  return {};
}

}  // namespace dd2
