#include "worker/engine/commands.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "common/file.h"
#include "common/json.h"
#include "storage/npz.h"
#include "storage/safetensors.h"
#include "worker/engine/adm_command.h"
#include "worker/engine/adm_evaluation.h"
#include "worker/engine/command_frame.h"
#include "worker/engine/evaluation.h"
#include "worker/engine/evaluator.h"
#include "worker/engine/export.h"
#include "worker/engine/options.h"
#include "worker/engine/png.h"
#include "worker/kernels/torch_device.h"
#include "worker/parallel/collectives.h"

namespace dd2 {
namespace {

constexpr const char* kSampleUsage =
    "usage: dd2 sample --model PATH --out FILE [--classes all|0,1,2] [--count N] [--seed S]\n"
    "                  [--teacher DIR] [--device cpu|cuda]\n"
    "  --model PATH    an exported model: folder, or one of its files\n"
    "  --out FILE      FILE.png: a grid, rows = classes; FILE.safetensors: codes, images, labels;\n"
    "                  FILE.npz: what `dd2 eval --images` takes\n"
    "  --teacher DIR   the folder of an imported teacher, when it is not where the run had it\n"
    "  --classes LIST  classes to draw (all)\n"
    "  --count N       images of each class (10)\n"
    "  --seed S        the same seed gives the same images (1)\n"
    "  --device D      cpu, or cuda: the first GPU that CUDA_VISIBLE_DEVICES shows (cpu)\n";
constexpr const char* kEvalUsage =
    "usage: dd2 eval --model PATH [--samples N] [--seed S] [--teacher DIR] [--dataset DIR] "
    "[--device D] [--json]\n"
    "       dd2 eval --teacher DIR [--cfg-scale W] [--samples N] [--seed S] [--dataset DIR] "
    "[--device D] [--json]\n"
    "       dd2 eval --images PATH --reference FILE.npz --inception FILE [--no-cache] "
    "[--device D] [--json]\n"
    "  --model PATH    an exported model: folder, or one of its files\n"
    "  --teacher DIR   the teacher's folder, when it is not where the run had it;\n"
    "                  without --model: measures the teacher\n"
    "  --dataset DIR   Fashion-MNIST's idx files\n"
    "  --samples N     stratified over the classes (5000)\n"
    "  --seed S        (1)\n"
    "  --cfg-scale W   guidance of the teacher (1.5)\n"
    "  --device D      cpu, or cuda: the first GPU that CUDA_VISIBLE_DEVICES shows (cpu)\n"
    "  --json          one JSON object instead of a table\n"
    "FID, sFID, Inception Score, precision and recall of any images, as ADM's suite defines them:\n"
    "  --images PATH   .npz or .npy with arr_0 [N, H, W, 3] uint8, or a folder of PNGs\n"
    "  --reference F   .npz with arr_0 (images), with mu, sigma, mu_s, sigma_s, or with all of "
    "them\n"
    "  --inception F   FID's Inception: pt_inception-2015-12-05 as .pth or .safetensors\n"
    "  --no-cache      neither use nor keep features in the cache folder\n";
constexpr const char* kExportUsage =
    "usage: dd2 export RUN [--out DIR] [--checkpoint ID]\n"
    "  RUN             folder of a run\n"
    "  --out DIR       where the model goes (RUN/export)\n"
    "  --checkpoint ID (the newest; `dd2 checkpoint ls RUN` lists them)\n";

constexpr std::int64_t kMostCount = 10000;
constexpr std::int64_t kMostSamples = 1000000;
constexpr std::int64_t kMostGridSide = 32768;   // pixels
constexpr std::int64_t kClassStride = 1 << 20;  // noise positions of a class in `sample`

Result<std::vector<std::int64_t>> ParseClasses(const std::string& text, std::int64_t classes) {
  std::vector<std::int64_t> list;
  if (text == "all") {
    for (std::int64_t c = 0; c < classes; ++c) list.push_back(c);
    return list;
  }
  const char* at = text.data();
  const char* const end = text.data() + text.size();
  while (true) {
    std::int64_t value = -1;
    const auto [next, error] = std::from_chars(at, end, value);
    if (error != std::errc() || value < 0 || value >= classes || (next != end && *next != ',')) {
      return Usage("--classes must be 'all' or a list like 0,1,2 of classes from 0 to " +
                   std::to_string(classes - 1) + ", not '" + text + "'");
    }
    list.push_back(value);
    if (next == end) return list;
    at = next + 1;
  }
}

struct Drawn {
  at::Tensor codes, images;  // [N, n, C], [N, channels, H, H] on ComputeDevice()
  at::Tensor labels;         // [N] int64, in host memory
};

// Calls `take` with every chunk of images until one fails. Image i of a class depends on (seed,
// class, i) only, up to the rounding of batch shapes.
template <class Take>
Status DrawChunks(const ExportedModel& model, const std::vector<std::int64_t>& classes,
                  std::int64_t count, std::uint64_t seed, const Take& take) {
  const at::NoGradGuard no_grad;
  for (const std::int64_t c : classes) {
    for (std::int64_t begin = 0; begin < count; begin += kEvalChunk) {
      const std::int64_t end = std::min(count, begin + kEvalChunk);
      const at::Tensor noise = EvalNoise(seed, c * kClassStride + begin, c * kClassStride + end,
                                         model.network->spec().backbone);
      const at::Tensor labels = at::full({end - begin}, c, at::kLong);
      const at::Tensor codes = model.network->Generate(ToDevice(noise), ToDevice(labels));
      DD2_TRY(take(Drawn{codes, model.tokenizer->Decode(codes), labels}));
    }
  }
  return {};
}

// What `dd2 eval --images` takes: arr_0 [N, H, W, 3] uint8, arr_1 [N] the labels. Images go to the
// disk as they are drawn: 50,000 of 256 pixels are 9.8 GB.
Status WriteSampleNpz(const std::filesystem::path& path, const ExportedModel& model,
                      const std::vector<std::int64_t>& classes, std::int64_t count,
                      std::uint64_t seed) {
  const auto all = static_cast<std::int64_t>(classes.size()) * count;
  DD2_TRY_ASSIGN(const std::unique_ptr<NpzWriter> writer,
                 NpzWriter::Create(RealFileSystem(), path));
  std::vector<std::int64_t> labels;
  DD2_TRY(DrawChunks(model, classes, count, seed, [&](const Drawn& chunk) -> Status {
    const at::Tensor bytes = ImageBytes(chunk.images).cpu();
    if (labels.empty()) {
      const std::int64_t shape[] = {all, bytes.size(1), bytes.size(2), 3};
      DD2_TRY(writer->Begin("arr_0", Dtype::kU8, shape));
    }
    const auto* label = chunk.labels.const_data_ptr<std::int64_t>();
    labels.insert(labels.end(), label, label + chunk.labels.numel());
    return writer->Append(std::as_bytes(
        std::span(bytes.const_data_ptr<std::uint8_t>(), static_cast<std::size_t>(bytes.numel()))));
  }));
  DD2_TRY(writer->Begin("arr_1", Dtype::kI64, std::span(&all, 1)));
  DD2_TRY(writer->Append(std::as_bytes(std::span(labels))));
  return writer->Finish();
}

std::span<const float> Values(const at::Tensor& tensor) {
  return {tensor.const_data_ptr<float>(), static_cast<std::size_t>(tensor.numel())};
}

Status WriteTensors(const std::filesystem::path& path, const ExportedModel& model,
                    const std::vector<std::int64_t>& classes, std::int64_t count,
                    std::uint64_t seed) {
  std::vector<at::Tensor> codes, images, labels;
  DD2_TRY(DrawChunks(model, classes, count, seed, [&](const Drawn& chunk) -> Status {
    codes.push_back(chunk.codes.cpu());
    images.push_back(chunk.images.cpu());
    labels.push_back(chunk.labels.to(at::kFloat));
    return {};
  }));
  std::vector<at::Tensor> whole;  // a convolution may leave the channels last in memory
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, chunks] :
       {std::pair<const char*, const std::vector<at::Tensor>*>{"codes", &codes},
        {"images", &images},
        {"labels", &labels}}) {
    whole.push_back(at::cat(*chunks).contiguous());
    tensors.push_back(
        {.name = name, .shape = whole.back().sizes().vec(), .data = Values(whole.back())});
  }
  FileSystem& files = RealFileSystem();
  std::filesystem::path temporary = path;
  temporary += ".tmp";
  const Result<WrittenFile> written =
      WriteSafetensors(files, temporary, tensors, {{"seed", std::to_string(seed)}});
  if (!written) {
    static_cast<void>(files.Remove(temporary));
    return written.error();
  }
  return files.Rename(temporary, path);
}

// Rows are classes.
Status WriteGrid(const std::filesystem::path& path, const ExportedModel& model,
                 const std::vector<std::int64_t>& classes, std::int64_t count, std::uint64_t seed) {
  const auto rows = static_cast<std::int64_t>(classes.size());
  std::vector<at::Tensor> images;
  DD2_TRY(DrawChunks(model, classes, count, seed, [&](const Drawn& chunk) -> Status {
    if (std::max(rows, count) * (chunk.images.size(-1) + 2) > kMostGridSide) {
      return Usage("a .png grid of " + std::to_string(rows) + " classes x " +
                   std::to_string(count) + " images is wider or higher than " +
                   std::to_string(kMostGridSide) +
                   " pixels: name fewer --classes, a smaller --count, or an .npz file");
    }
    images.push_back(chunk.images.cpu());
    return {};
  }));
  const at::Tensor all = at::cat(images).contiguous();
  return WritePng(path, ImageGrid(Values(all), static_cast<int>(rows), static_cast<int>(count),
                                  static_cast<int>(all.size(1)), static_cast<int>(all.size(-1))));
}

Status WriteSamples(const std::filesystem::path& out, const ExportedModel& model,
                    const std::vector<std::int64_t>& classes, std::int64_t count,
                    std::uint64_t seed) {
  if (out.extension() == ".npz") return WriteSampleNpz(out, model, classes, count, seed);
  if (out.extension() == ".safetensors") return WriteTensors(out, model, classes, count, seed);
  return WriteGrid(out, model, classes, count, seed);
}

Status Sample(const std::vector<std::string>& arguments) {
  DD2_TRY_ASSIGN(const Options options,
                 Options::Parse(arguments,
                                {"--model", "--teacher", "--out", "--classes", "--count", "--seed",
                                 kDeviceOption},
                                {}, 0));
  if (!options.Has("--model")) return Usage("--model is missing: a folder that `dd2 export` wrote");
  const std::filesystem::path out = options.Text("--out", "");
  if (out.extension() != ".png" && out.extension() != ".npz" && out.extension() != ".safetensors") {
    return Usage("--out must name a .png, .npz or .safetensors file, not '" + out.string() + "'");
  }
  DD2_TRY_ASSIGN(const auto count, options.Get<std::int64_t>("--count", 10, 1, kMostCount));
  DD2_TRY_ASSIGN(const auto seed, options.Get<std::uint64_t>("--seed", 1, 0, UINT64_MAX));
  DD2_TRY(TakeDevice(options));
  DD2_TRY_ASSIGN(const ExportedModel model,
                 LoadExport(options.Text("--model", ""), options.Text("--teacher", "")));
  DD2_TRY_ASSIGN(
      const std::vector<std::int64_t> classes,
      ParseClasses(options.Text("--classes", "all"), model.network->spec().backbone.classes));
  DD2_TRY(WriteSamples(out, model, classes, count, seed));
  std::printf("%lld images of %zu classes in %s\n",
              static_cast<long long>(count) * static_cast<long long>(classes.size()),
              classes.size(), out.c_str());
  return {};
}

void PrintPoint(const EvalPoint& point, const EvalContext& context, std::uint64_t seed,
                bool as_json) {
  const EvalPoint& reference = context.reconstruction_point();
  if (as_json) {
    boost::json::object out{{"samples", point.samples},
                            {"seed", seed},
                            {"fd_reconstruction", reference.fd},
                            {"accuracy_reconstruction", reference.accuracy},
                            {"test_images", context.images().size(0)}};
    AddQuality(QualityOf(point), "", out);
    AddClasses(point, "", out);
    std::printf("%s\n", boost::json::serialize(out).c_str());
    return;
  }
  std::printf("samples         %lld (seed %llu, stratified)\n",
              static_cast<long long>(point.samples), static_cast<unsigned long long>(seed));
  std::printf("FDr             %.2f\nFD              %.2f\nclass accuracy  %.1f %%\n", point.fdr,
              point.fd, point.accuracy * 100);
  for (std::size_t c = 0; c < point.fdr_by_class.size(); ++c) {
    std::printf("%s%.1f", c == 0 ? "FDr by class    " : "  ", point.fdr_by_class[c]);
  }
  if (!point.fdr_by_class.empty()) std::printf("\n");
  std::printf(
      "for comparison, tokenizer reconstructions of %lld test images: FD %.2f, accuracy %.1f %%\n",
      static_cast<long long>(reference.samples), reference.fd, reference.accuracy * 100);
}

// The folder that --teacher names or the model remembers, checked against the model's digest.
Result<TeacherBundle> TeacherFor(const ExportedModel& model, const std::string& folder) {
  Result<TeacherBundle> bundle = LoadTeacherBundle(folder);
  if (!bundle) {
    return bundle.error().Wrap("eval needs the teacher's classifier and tokenizer (--teacher DIR)");
  }
  if (bundle->teacher_digest.Hex() != model.teacher_digest) {
    return Error(Code::kFailedPrecondition,
                 "the teacher in " + folder + " has digest " + bundle->teacher_digest.Hex() +
                     ", the model was distilled from " + model.teacher_digest +
                     ": name the right folder with --teacher");
  }
  return bundle;
}

Status Eval(const std::vector<std::string>& arguments) {
  if (std::ranges::find(arguments, "--images") != arguments.end()) return EvalImages(arguments);
  DD2_TRY_ASSIGN(const Options options,
                 Options::Parse(arguments,
                                {"--model", "--teacher", "--dataset", "--samples", "--seed",
                                 "--cfg-scale", kDeviceOption},
                                {"--json"}, 0));
  if (!options.Has("--model") && !options.Has("--teacher")) {
    return Usage("--model PATH (an exported model) or --teacher DIR is missing");
  }
  DD2_TRY_ASSIGN(const auto samples, options.Get<std::int64_t>("--samples", 5000, 2, kMostSamples));
  DD2_TRY_ASSIGN(const auto seed, options.Get<std::uint64_t>("--seed", 1, 0, UINT64_MAX));
  TeacherConfig config;
  DD2_TRY_ASSIGN(config.cfg_scale, options.Get<double>("--cfg-scale", config.cfg_scale, 0, 100));
  DD2_TRY(TakeDevice(options));
  const std::unique_ptr<Collectives> alone = NewLocalCollectives();
  const bool as_json = options.Has("--json");
  if (options.Has("--model")) {
    DD2_TRY_ASSIGN(const ExportedModel model,
                   LoadExport(options.Text("--model", ""), options.Text("--teacher", "")));
    DD2_TRY_ASSIGN(const TeacherBundle bundle,
                   TeacherFor(model, options.Text("--teacher", model.teacher.path)));
    DD2_TRY_ASSIGN(const EvalContext context,
                   EvalContext::Create(bundle, options.Text("--dataset", model.dataset), *alone));
    DD2_TRY_ASSIGN(const EvalPoint point,
                   EvaluateGenerator(*model.network, context, samples, seed, *alone));
    PrintPoint(point, context, seed, as_json);
    return {};
  }
  DD2_TRY_ASSIGN(const TeacherBundle bundle, LoadTeacherBundle(options.Text("--teacher", "")));
  DD2_TRY_ASSIGN(
      const EvalContext context,
      EvalContext::Create(bundle, options.Text("--dataset", DatasetConfig().path), *alone));
  DD2_TRY_ASSIGN(const at::Tensor tokens,
                 SampleTeacherTokens(bundle, config, samples, seed, *alone));
  const at::Tensor labels = StratifiedLabels(samples, bundle.teacher->backbone().spec().classes);
  DD2_TRY_ASSIGN(const EvalPoint point, EvaluateSequences(tokens, labels, context, *alone));
  PrintPoint(point, context, seed, as_json);
  return {};
}

Status Export(const std::vector<std::string>& arguments) {
  DD2_TRY_ASSIGN(const Options options,
                 Options::Parse(arguments, {"--out", "--checkpoint"}, {}, 1));
  if (options.positionals().empty()) return Usage("the folder of a run is missing");
  const std::filesystem::path run = options.positionals().front();
  const std::filesystem::path out = options.Text("--out", (run / "export").string());
  DD2_TRY_ASSIGN(const std::string id,
                 ExportCheckpoint(run, options.Text("--checkpoint", ""), out));
  std::printf("the generator of checkpoint %s is in %s\n", id.c_str(), out.c_str());
  return {};
}

}  // namespace

int SampleCommand(const std::vector<std::string>& arguments) {
  return RunCommand(arguments, kSampleUsage, [&] { return Sample(arguments); });
}

int EvalCommand(const std::vector<std::string>& arguments) {
  return RunCommand(arguments, kEvalUsage, [&] { return Eval(arguments); });
}

int ExportCommand(const std::vector<std::string>& arguments) {
  return RunCommand(arguments, kExportUsage, [&] { return Export(arguments); });
}

}  // namespace dd2
