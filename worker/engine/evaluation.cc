#include "worker/engine/evaluation.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "common/check.h"
#include "common/file.h"
#include "common/json.h"
#include "worker/engine/dataset.h"
#include "worker/engine/latency.h"
#include "worker/engine/png.h"

namespace dd2 {
namespace {

namespace json = boost::json;

constexpr const char* kClassNames[] = {"T-shirt", "Trouser", "Pullover", "Dress", "Coat",
                                       "Sandal",  "Shirt",   "Sneaker",  "Bag",   "Ankle boot"};

// images [classes * columns, channels, H, H] in rows of one class.
Status WriteGrid(const at::Tensor& images, std::int64_t columns,
                 const std::filesystem::path& path) {
  const at::Tensor flat = images.cpu().contiguous();
  const std::span<const float> values(flat.const_data_ptr<float>(),
                                      static_cast<std::size_t>(flat.numel()));
  return WritePng(
      path, ImageGrid(values, static_cast<int>(flat.size(0) / columns), static_cast<int>(columns),
                      static_cast<int>(flat.size(1)), static_cast<int>(flat.size(-1))));
}

// All of `count` images on the CPU, made a few at a time: a decoder of 256 pixels holds gigabytes.
at::Tensor MadeInPieces(std::int64_t count, const ImageSource& source) {
  std::vector<at::Tensor> pieces;
  for (std::int64_t begin = 0; begin < count; begin += kInceptionBatch) {
    pieces.push_back(source(begin, std::min(count, begin + kInceptionBatch)).cpu());
  }
  return at::cat(pieces);
}

// The classes that pictures show.
std::vector<std::int64_t> ShownClasses(std::int64_t classes) {
  const std::int64_t rows = std::min<std::int64_t>(classes, kGridRows);
  std::vector<std::int64_t> shown;
  for (std::int64_t row = 0; row < rows; ++row) shown.push_back(row * classes / rows);
  return shown;
}

// Positions of the first kGridColumns members of every shown class in `labels` [N], class by class.
// Rows have equal length: the least any class has (0 when one is missing).
at::Tensor RowsByClass(const at::Tensor& labels, std::int64_t classes, std::int64_t* columns) {
  std::vector<at::Tensor> rows;
  *columns = kGridColumns;
  for (const std::int64_t c : ShownClasses(classes)) {
    rows.push_back(labels.eq(c).nonzero().flatten());
    *columns = std::min(*columns, rows.back().size(0));
  }
  for (at::Tensor& row : rows) row = row.narrow(0, 0, *columns);
  return at::cat(rows);
}

// Images of the first sequences of each class; nothing when a class has none.
Status WriteTokenGrid(const Tokenizer& tokenizer, const at::Tensor& tokens,
                      const at::Tensor& labels, std::int64_t classes,
                      const std::filesystem::path& path) {
  std::int64_t columns = 0;
  const at::Tensor rows = RowsByClass(labels, classes, &columns);
  if (columns == 0) return {};
  const at::Tensor shown = tokens.index_select(0, rows);
  const ImageSource decode = [&](std::int64_t begin, std::int64_t end) {
    return TokenImages(tokenizer, shown.narrow(0, begin, end - begin));
  };
  return WriteGrid(MadeInPieces(shown.size(0), decode), columns, path);
}

// generator.png, and teacher.png where there are sequences.
Status WriteSampleGrids(const EvalInputs& inputs, const Tokenizer& tokenizer,
                        const at::Tensor& tokens, const at::Tensor& labels) {
  if (inputs.samples_folder.empty()) return {};
  const std::filesystem::path& folder = inputs.samples_folder;
  DD2_TRY(RealFileSystem().MakeDirectories(folder));
  DD2_TRY(WriteGeneratorGrid(*inputs.generator, tokenizer, inputs.seed, folder / "generator.png"));
  if (!tokens.defined()) return {};
  return WriteTokenGrid(tokenizer, tokens, labels, inputs.generator->spec().backbone.classes,
                        folder / "teacher.png");
}

// real.png and reconstruction.png.
Status WriteTestGrids(const EvalInputs& inputs, const EvalContext& context) {
  if (inputs.samples_folder.empty()) return {};
  const std::int64_t classes = inputs.generator->spec().backbone.classes;
  std::int64_t columns = 0;
  const at::Tensor rows = RowsByClass(context.labels(), classes, &columns);
  if (columns == 0) return {};
  DD2_TRY(WriteGrid(context.images().index_select(0, rows), columns,
                    inputs.samples_folder / "real.png"));
  return WriteTokenGrid(*context.bundle().tokenizer, context.ids(), context.labels(), classes,
                        inputs.samples_folder / "reconstruction.png");
}

void AddLatency(const EvalInputs& inputs, const TeacherBundle& bundle, std::int64_t batch,
                int repeats, json::object& out) {
  if (repeats <= 0) return;
  const LatencyPoint point =
      MeasureLatency(bundle, *inputs.generator, inputs.teacher, batch, repeats);
  const std::string name = "batch" + std::to_string(batch);
  json::value& latency = out["latency"];
  if (!latency.is_object()) latency.emplace_object();
  latency.get_object()[name] = {{"teacher_ms", point.teacher_ms},
                                {"one_step_ms", point.one_step_ms},
                                {"decode_ms", point.decode_ms},
                                {"speedup_with_decode", point.speedup_with_decode()},
                                {"repeats", repeats}};
  out["speedup_" + name] = point.speedup();
}

// Rank 0's text on every rank, or its error.
Result<std::string> ShareText(const Result<std::string>& mine, Collectives& collectives) {
  const auto world = static_cast<std::size_t>(collectives.world_size());
  const std::string text = collectives.rank() != 0 ? std::string()
                           : mine                  ? "+" + *mine
                                                   : "-" + mine.error().message();
  const std::uint64_t size = text.size();
  std::vector<std::uint64_t> sizes(world);
  DD2_TRY(collectives.AllGather(std::as_bytes(std::span(&size, 1)),
                                std::as_writable_bytes(std::span(sizes))));
  std::string padded(sizes[0], ' ');
  std::copy(text.begin(), text.end(), padded.begin());
  std::string all(sizes[0] * world, ' ');
  DD2_TRY(collectives.AllGather(std::as_bytes(std::span(padded)),
                                std::as_writable_bytes(std::span(all))));
  all.resize(sizes[0]);
  if (all.front() == '+') return all.substr(1);
  if (!mine) return mine.error();
  return Error(Code::kUnavailable, "rank 0 could not finish the evaluation: " + all.substr(1));
}

// The names that a data set of ours has.
json::array NamesOf(std::int64_t classes) {
  json::array names;
  for (std::int64_t c = 0; c < classes; ++c) {
    const bool known = static_cast<std::size_t>(c) < std::size(kClassNames);
    names.emplace_back(known ? std::string(kClassNames[c]) : "class " + std::to_string(c));
  }
  return names;
}

// The first `samples` stored sequences of the teacher, or drawn ones.
Status TeacherSequences(const EvalInputs& inputs, const EvalContext& context,
                        Collectives& collectives, at::Tensor& tokens, at::Tensor& labels) {
  tokens = inputs.teacher_tokens;
  labels = inputs.teacher_labels;
  if (!tokens.defined()) {
    DD2_TRY_ASSIGN(tokens, SampleTeacherTokens(context.bundle(), inputs.teacher, inputs.samples,
                                               inputs.seed, collectives));
    labels = StratifiedLabels(inputs.samples, inputs.generator->spec().backbone.classes);
  }
  const std::int64_t count = std::min(inputs.samples, tokens.size(0));
  tokens = tokens.narrow(0, 0, count);
  labels = labels.narrow(0, 0, count);
  return {};
}

}  // namespace

void AddClasses(const EvalPoint& point, const std::string& suffix, json::object& out) {
  const std::vector<double>& classes = point.fdr_by_class;
  if (classes.empty() ||
      !std::ranges::all_of(classes, [](double fdr) { return std::isfinite(fdr); })) {
    return;
  }
  out["fdr_by_class" + suffix] = json::value_from(classes);
}

Quality QualityOf(const EvalPoint& point) {
  return {.figures = {{"fdr", point.fdr}, {"fd", point.fd}, {"accuracy", point.accuracy}},
          .samples = point.samples};
}

Result<Quality> MeasureGenerator(const Network& network, const AdmContext& context,
                                 const Tokenizer& tokenizer, std::int64_t samples,
                                 std::uint64_t seed, Collectives& collectives) {
  const BackboneSpec& spec = network.spec().backbone;
  const at::Tensor labels = StratifiedLabels(samples, spec.classes);
  const ImageSource generate = [&](std::int64_t begin, std::int64_t end) {
    return GeneratorImages(network, tokenizer, EvalNoise(seed, begin, end, spec),
                           labels.narrow(0, begin, end - begin));
  };
  return context.Measure(samples, generate, collectives);
}

void AddQuality(const Quality& quality, const std::string& suffix, json::object& out) {
  for (const auto& [name, value] : quality.figures) {
    if (!std::isfinite(value)) continue;
    out[name == "accuracy" && suffix == "_end" ? name : name + suffix] = value;
  }
}

Status WriteGeneratorGrid(const Network& network, const Tokenizer& tokenizer, std::uint64_t seed,
                          const std::filesystem::path& path) {
  const std::vector<std::int64_t> shown = ShownClasses(network.spec().backbone.classes);
  const at::Tensor labels = at::tensor(shown, at::kLong).repeat_interleave(kGridColumns);
  const at::Tensor noise = EvalNoise(seed, 0, labels.size(0), network.spec().backbone);
  const ImageSource generate = [&](std::int64_t begin, std::int64_t end) {
    return GeneratorImages(network, tokenizer, noise.narrow(0, begin, end - begin),
                           labels.narrow(0, begin, end - begin));
  };
  return WriteGrid(MadeInPieces(labels.size(0), generate), kGridColumns, path);
}

Result<std::string> RunEvaluation(const EvalInputs& inputs, const EvalContext& context,
                                  Collectives& collectives) {
  DD2_CHECK(inputs.generator != nullptr);
  const at::NoGradGuard no_grad;
  const TeacherBundle& bundle = context.bundle();
  at::Tensor tokens, labels;
  DD2_TRY(TeacherSequences(inputs, context, collectives, tokens, labels));
  json::object out;
  DD2_TRY_ASSIGN(const EvalPoint teacher, EvaluateSequences(tokens, labels, context, collectives));
  AddQuality(QualityOf(teacher), "_teacher", out);
  AddClasses(teacher, "_teacher", out);
  out["teacher_samples"] = teacher.samples;
  DD2_TRY_ASSIGN(const EvalPoint end, EvaluateGenerator(*inputs.generator, context, inputs.samples,
                                                        inputs.seed, collectives));
  AddQuality(QualityOf(end), "_end", out);
  AddClasses(end, "_end", out);
  out["samples"] = end.samples;
  AddQuality(QualityOf(context.reconstruction_point()), "_reconstruction", out);
  out["accuracy_real"] = context.real_accuracy();
  out["test_images"] = context.images().size(0);
  out["classes"] = NamesOf(inputs.generator->spec().backbone.classes);
  Result<std::string> text = std::string();
  if (collectives.rank() == 0) {
    Status written = WriteSampleGrids(inputs, *bundle.tokenizer, tokens, labels);
    if (written) written = WriteTestGrids(inputs, context);
    if (written) {
      AddLatency(inputs, bundle, 1, inputs.latency_repeats_batch1, out);
      AddLatency(inputs, bundle, 64, inputs.latency_repeats_batch64, out);
      text = json::serialize(out);
    } else {
      text = written.error();
    }
  }
  return ShareText(text, collectives);
}

Result<std::string> RunAdmEvaluation(const EvalInputs& inputs, const AdmContext& context,
                                     const TeacherBundle& bundle, Collectives& collectives) {
  DD2_CHECK(inputs.generator != nullptr);
  const at::NoGradGuard no_grad;
  const Tokenizer& tokenizer = *bundle.tokenizer;
  json::object out;
  const at::Tensor& tokens = inputs.teacher_tokens;
  if (tokens.defined() && tokens.size(0) >= inputs.samples) {
    const ImageSource decode = [&](std::int64_t begin, std::int64_t end) {
      return TokenImages(tokenizer, tokens.narrow(0, begin, end - begin));
    };
    DD2_TRY_ASSIGN(const Quality teacher, context.Measure(inputs.samples, decode, collectives));
    AddQuality(teacher, "_teacher", out);
    out["teacher_samples"] = teacher.samples;
  }
  DD2_TRY_ASSIGN(const Quality end, MeasureGenerator(*inputs.generator, context, tokenizer,
                                                     inputs.samples, inputs.seed, collectives));
  AddQuality(end, "_end", out);
  out["samples"] = end.samples;
  Result<std::string> text = std::string();
  if (collectives.rank() == 0) {
    const Status written = WriteSampleGrids(inputs, tokenizer, tokens, inputs.teacher_labels);
    if (written) {
      AddLatency(inputs, bundle, 1, inputs.latency_repeats_batch1, out);
      text = json::serialize(out);
    } else {
      text = written.error();
    }
  }
  return ShareText(text, collectives);
}

}  // namespace dd2
