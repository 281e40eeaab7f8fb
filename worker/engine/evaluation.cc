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

// images [classes * columns, 1, 28, 28] in rows of one class.
Status WriteGrid(const at::Tensor& images, std::int64_t columns,
                 const std::filesystem::path& path) {
  const at::Tensor flat = images.cpu().contiguous();
  const std::span<const float> values(flat.const_data_ptr<float>(),
                                      static_cast<std::size_t>(flat.numel()));
  return WritePng(
      path, ImageGrid(values, static_cast<int>(flat.size(0) / columns), static_cast<int>(columns),
                      static_cast<int>(flat.size(1)), static_cast<int>(flat.size(-1))));
}

// Positions of the first kGridColumns members of every class in `labels` [N], class by class. Rows
// have equal length: the least any class has (0 when one is missing).
at::Tensor RowsByClass(const at::Tensor& labels, std::int64_t classes, std::int64_t* columns) {
  std::vector<at::Tensor> rows;
  *columns = kGridColumns;
  for (std::int64_t c = 0; c < classes; ++c) {
    rows.push_back(labels.eq(c).nonzero().flatten());
    *columns = std::min(*columns, rows.back().size(0));
  }
  for (at::Tensor& row : rows) row = row.narrow(0, 0, *columns);
  return at::cat(rows);
}

Status WriteSampleGrids(const EvalInputs& inputs, const at::Tensor& tokens,
                        const at::Tensor& labels) {
  if (inputs.samples_folder.empty()) return {};
  const EvalContext& context = *inputs.context;
  const Tokenizer& tokenizer = *context.bundle().tokenizer;
  const std::int64_t classes = inputs.generator->spec().backbone.classes;
  const std::filesystem::path& folder = inputs.samples_folder;
  DD2_TRY(RealFileSystem().MakeDirectories(folder));
  DD2_TRY(WriteGeneratorGrid(*inputs.generator, tokenizer, inputs.seed, folder / "generator.png"));
  if (inputs.start != nullptr) {
    DD2_TRY(WriteGeneratorGrid(*inputs.start, tokenizer, inputs.seed, folder / "start.png"));
  }
  std::int64_t columns = 0;
  at::Tensor rows = RowsByClass(labels, classes, &columns);
  if (columns > 0) {
    const at::Tensor images = TokenImages(tokenizer, tokens.index_select(0, rows));
    DD2_TRY(WriteGrid(images, columns, folder / "teacher.png"));
  }
  rows = RowsByClass(context.labels(), classes, &columns);
  if (columns > 0) {
    DD2_TRY(WriteGrid(context.images().index_select(0, rows), columns, folder / "real.png"));
    const at::Tensor images = TokenImages(tokenizer, context.ids().index_select(0, rows));
    DD2_TRY(WriteGrid(images, columns, folder / "reconstruction.png"));
  }
  return {};
}

// Adds the distances, and the accuracy under `accuracy`.
void AddPoint(const EvalPoint& point, const std::string& suffix, const std::string& accuracy,
              json::object& out) {
  AddDistances(point, "_" + suffix, out);
  out[accuracy] = point.accuracy;
}

void AddLatency(const EvalInputs& inputs, json::object& out) {
  json::object latency;
  for (const std::int64_t batch : {std::int64_t{1}, std::int64_t{64}}) {
    const int repeats = batch == 1 ? inputs.latency_repeats_batch1 : inputs.latency_repeats_batch64;
    if (repeats <= 0) continue;
    const LatencyPoint point =
        MeasureLatency(inputs.context->bundle(), *inputs.generator, inputs.teacher, batch, repeats);
    const std::string name = "batch" + std::to_string(batch);
    latency[name] = {{"teacher_ms", point.teacher_ms},
                     {"one_step_ms", point.one_step_ms},
                     {"decode_ms", point.decode_ms},
                     {"speedup_with_decode", point.speedup_with_decode()},
                     {"repeats", repeats}};
    out["speedup_" + name] = point.speedup();
  }
  if (!latency.empty()) out["latency"] = std::move(latency);
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

}  // namespace

void AddDistances(const EvalPoint& point, const std::string& suffix, boost::json::object& out) {
  if (std::isfinite(point.fdr)) out["fdr" + suffix] = point.fdr;
  if (std::isfinite(point.fd)) out["fd" + suffix] = point.fd;
  const std::vector<double>& classes = point.fdr_by_class;
  if (!classes.empty() &&
      std::ranges::all_of(classes, [](double fdr) { return std::isfinite(fdr); })) {
    out["fdr_by_class" + suffix] = json::value_from(classes);
  }
}

Status WriteGeneratorGrid(const Network& network, const Tokenizer& tokenizer, std::uint64_t seed,
                          const std::filesystem::path& path) {
  const std::int64_t classes = network.spec().backbone.classes;
  const std::int64_t count = classes * kGridColumns;
  const at::Tensor labels =
      at::arange(count, at::kLong).div(std::int64_t{kGridColumns}, "floor").to(at::kLong);
  const at::Tensor noise = EvalNoise(seed, 0, count, network.spec().backbone);
  return WriteGrid(GeneratorImages(network, tokenizer, noise, labels), kGridColumns, path);
}

Result<std::string> RunEvaluation(const EvalInputs& inputs, Collectives& collectives) {
  DD2_CHECK(inputs.context != nullptr && inputs.generator != nullptr);
  const at::NoGradGuard no_grad;
  const EvalContext& context = *inputs.context;
  at::Tensor tokens = inputs.teacher_tokens;
  at::Tensor labels = inputs.teacher_labels;
  if (!tokens.defined()) {
    DD2_TRY_ASSIGN(tokens, SampleTeacherTokens(context.bundle(), inputs.teacher, inputs.samples,
                                               inputs.seed, collectives));
    labels = StratifiedLabels(inputs.samples, inputs.generator->spec().backbone.classes);
  }
  const std::int64_t count = std::min(inputs.samples, tokens.size(0));
  tokens = tokens.narrow(0, 0, count);
  labels = labels.narrow(0, 0, count);
  json::object out;
  DD2_TRY_ASSIGN(const EvalPoint teacher, EvaluateSequences(tokens, labels, context, collectives));
  AddPoint(teacher, "teacher", "accuracy_teacher", out);
  out["teacher_samples"] = teacher.samples;
  DD2_TRY_ASSIGN(const EvalPoint end, EvaluateGenerator(*inputs.generator, context, inputs.samples,
                                                        inputs.seed, collectives));
  AddPoint(end, "end", "accuracy", out);
  out["samples"] = end.samples;
  if (inputs.start != nullptr) {
    DD2_TRY_ASSIGN(const EvalPoint start, EvaluateGenerator(*inputs.start, context, inputs.samples,
                                                            inputs.seed, collectives));
    AddPoint(start, "start", "accuracy_start", out);
    out["samples_start"] = start.samples;
  }
  AddPoint(context.reconstruction_point(), "reconstruction", "accuracy_reconstruction", out);
  out["accuracy_real"] = context.real_accuracy();
  out["test_images"] = context.images().size(0);
  json::array names;
  for (std::int64_t c = 0; c < inputs.generator->spec().backbone.classes; ++c) {
    const bool known = static_cast<std::size_t>(c) < std::size(kClassNames);
    names.emplace_back(known ? std::string(kClassNames[c]) : "class " + std::to_string(c));
  }
  out["classes"] = std::move(names);
  Result<std::string> text = std::string();
  if (collectives.rank() == 0) {
    const Status written = WriteSampleGrids(inputs, tokens, labels);
    if (written) {
      AddLatency(inputs, out);
      text = json::serialize(out);
    } else {
      text = written.error();
    }
  }
  return ShareText(text, collectives);
}

}  // namespace dd2
