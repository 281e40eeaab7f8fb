#include "worker/engine/teacher_adapt.h"

#include <torch/version.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <exception>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/file.h"
#include "common/json.h"
#include "common/rng.h"
#include "worker/engine/teacher_stages.h"
#include "worker/kernels/torch_device.h"
#include "worker/models/llamagen_backbone.h"
#include "worker/models/released_teacher.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using Seconds = std::chrono::duration<double>;

constexpr std::uint32_t kPhase = static_cast<std::uint32_t>(StagePhase::kAdapt);
constexpr std::string_view kOfTrain = "teacher.safetensors";  // of `dd2 teacher train`
constexpr double kLabelDrop = 0.1;
constexpr std::int64_t kHeldOutMost = 256;
// Sequences of one pass: four of 256 tokens have 16 MB of logits each and, in GPT-B, 225 MB of
// activations. Products of so few rows leave a GPU half idle.
constexpr std::int64_t kRowsOnCpu = 4, kRowsOnGpu = 16;
// The first layer of the MLP is drawn this much wider than one that will be trained. Of gains from
// 1 to 16 this one left least, .125, of a smooth table of 16384 rows and width 768 (1: .258).
constexpr double kInputGain = 4;
constexpr double kRidge = 1e-6;               // of the mean diagonal
constexpr const char* kPrefix = "backbone.";  // of a teacher's parameters; a file has none

std::int64_t RowsAtOnce() { return ComputeDevice().is_cpu() ? kRowsOnCpu : kRowsOnGpu; }

// Trains the whole network on tokens.
class AdaptStage : public TrainingStage {
 public:
  // Initial values are the caller's to write into params().master().
  AdaptStage(const AdaptSettings& settings, const BackboneSpec& spec, const at::Tensor& codebook,
             const at::Tensor& tokens, const at::Tensor& labels)
      : settings_(settings),
        spec_(spec),
        codebook_(codebook),
        tokens_(tokens),
        labels_(labels),
        params_(Teacher::Layout(spec, codebook.size(0)), settings.shards) {
    for (int i = 0; i < settings.shards; ++i) {
      models_.emplace_back(spec, codebook.size(0), params_.shard(i));
    }
  }
  std::string_view name() const override { return "adapt"; }
  std::int64_t steps() const override { return settings_.steps; }
  std::int64_t batch() const override { return settings_.batch; }
  double LearningRate(std::int64_t /*step*/) const override { return settings_.learning_rate; }
  AdamSettings adam() const override {
    return {.beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .weight_decay = 0.05, .clip_norm = 1};
  }
  ShardedParams& params() override { return params_; }

  double ShardStep(int shard, std::int64_t step) override {
    const std::int64_t rows = batch() / settings_.shards;
    at::Tensor chosen = at::empty({rows}, at::kLong);
    at::Tensor labels = at::empty({rows}, at::kLong);
    for (std::int64_t i = 0; i < rows; ++i) {
      RngKey key{settings_.seed, kPhase, RngUse::kDataOrder, static_cast<std::uint64_t>(step),
                 static_cast<std::uint64_t>(shard * rows + i)};
      const auto sequence =
          static_cast<std::int64_t>(UniformInt(key, static_cast<std::uint64_t>(tokens_.size(0))));
      chosen.data_ptr<std::int64_t>()[i] = sequence;
      float drop = 0;
      key.use = RngUse::kLabelDrop;
      FillUniform(key, {&drop, 1});
      labels.data_ptr<std::int64_t>()[i] = static_cast<double>(drop) < kLabelDrop
                                               ? spec_.classes
                                               : labels_.data_ptr<std::int64_t>()[sequence];
    }
    const at::Tensor tokens = tokens_.index_select(0, chosen);
    const Teacher& model = models_[static_cast<std::size_t>(shard)];
    double sum = 0;
    for (std::int64_t begin = 0; begin < rows; begin += RowsAtOnce()) {
      const std::int64_t count = std::min(RowsAtOnce(), rows - begin);
      const at::Tensor part = ToDevice(tokens.narrow(0, begin, count));
      const at::Tensor classes = ToDevice(labels.narrow(0, begin, count));
      const at::Tensor logits = model.Logits(model.Hidden(CodesOf(codebook_, part), classes));
      const at::Tensor loss = at::cross_entropy_loss(logits.flatten(0, 1), part.flatten()) *
                              (static_cast<double>(count) / static_cast<double>(rows));
      loss.backward();
      sum += loss.item<double>();
    }
    return sum;
  }

 private:
  const AdaptSettings& settings_;
  const BackboneSpec spec_;
  const at::Tensor codebook_, tokens_, labels_;  // tokens and labels in host memory
  ShardedParams params_;
  std::vector<Teacher> models_;
};

// Mean nats per token, teacher-forced, of a network that sees table [V, d].
double Nats(const LlamaGenGpt& network, const at::Tensor& table, const at::Tensor& tokens,
            const at::Tensor& labels, ShardPool& pool) {
  const std::int64_t rows = tokens.size(0), at_once = RowsAtOnce();
  std::vector<double> parts(static_cast<std::size_t>((rows + at_once - 1) / at_once));
  pool.Run(static_cast<int>(parts.size()), [&](int b) {
    const at::NoGradGuard no_grad;
    const std::int64_t begin = b * at_once, count = std::min(at_once, rows - begin);
    const at::Tensor part = ToDevice(tokens.narrow(0, begin, count));
    const at::Tensor classes = ToDevice(labels.narrow(0, begin, count));
    const at::Tensor past = at::embedding(table, part.narrow(1, 0, part.size(1) - 1));
    const at::Tensor logits = network.Logits(network.Hidden(past, classes));
    parts[static_cast<std::size_t>(b)] =
        at::cross_entropy_loss(logits.flatten(0, 1), part.flatten()).item<double>() *
        static_cast<double>(count) / static_cast<double>(rows);
  });
  double total = 0;
  for (const double part : parts) total += part;
  return total;
}

Status Require(bool condition, const std::string& message) {
  if (condition) return {};
  return Error(Code::kInvalidArgument, message);
}

Digest128 HashOf(const at::Tensor& numbers) {
  Hasher128 hasher;
  hasher.Update(std::as_bytes(std::span(numbers.const_data_ptr<std::int64_t>(),
                                        static_cast<std::size_t>(numbers.numel()))));
  return hasher.Finish();
}

// One run of the command.
class Adapter {
 public:
  explicit Adapter(const AdaptRequest& request)
      : request_(request),
        settings_(request.settings),
        report_(request.report),
        pool_(ComputeDevice().is_cpu() ? std::min(settings_.threads, settings_.shards) : 1) {
    if (report_) return;
    report_ = [](std::string_view line) {
      std::printf("%.*s\n", static_cast<int>(line.size()), line.data());
      std::fflush(stdout);
    };
  }

  Status Run() {
    const auto begin = std::chrono::steady_clock::now();
    DD2_TRY(CheckVacant());
    FileSystem& files = RealFileSystem();
    DD2_TRY(files.MakeDirectories(StateFolder()));
    DD2_TRY_ASSIGN(const FileLock lock,
                   FileLock::Acquire(StateFolder() / "lock", "dd2 teacher adapt"));
    Status ready = CheckVacant();  // somebody else may have finished meanwhile
    if (ready) ready = Load();
    if (!ready) {
      LeaveNothing();
      return ready;
    }
    DD2_TRY_ASSIGN(const ParamBuffer adapted, Train(FitInput()));
    const Seconds spent = std::chrono::steady_clock::now() - begin;
    measured_["seconds"] = std::round(spent.count());
    DD2_TRY(Write(adapted));
    report_("wrote " + request_.out.string() + ": " + json::serialize(measured_));
    return files.RemoveTree(StateFolder());
  }

 private:
  // `dd2 teacher train` has one of another name.
  fs::path StateFolder() const { return request_.out / ".adapting"; }
  fs::path StateFile() const { return StateFolder() / "adapt.safetensors"; }

  Status CheckVacant() const {
    std::error_code ignored;
    for (const std::string_view file : {kTeacherFile, kOfTrain}) {
      if (!fs::exists(request_.out / file, ignored)) continue;
      return Error(Code::kFailedPrecondition,
                   request_.out.string() + " holds a teacher already: choose another folder");
    }
    if (request_.tokens.defined() || !fs::exists(StateFile(), ignored)) return {};
    return Error(Code::kFailedPrecondition, "an adaptation with --tokens was interrupted in " +
                                                request_.out.string() +
                                                ": give them again, or choose another folder");
  }

  // After bad input, where there is no state of an earlier call.
  void LeaveNothing() const {
    std::error_code ignored;
    if (fs::exists(StateFile(), ignored)) return;
    static_cast<void>(RealFileSystem().RemoveTree(StateFolder()));
    fs::remove(request_.out, ignored);  // if it is empty
  }

  Status Load() {
    DD2_TRY_ASSIGN(description_, ReadTeacherDescription(RealFileSystem(), request_.teacher));
    DD2_TRY_ASSIGN(network_, LoadLlamaGen(request_.teacher));
    DD2_TRY(Require(description_.transformer->sizes.code_channels == 0,
                    request_.teacher.string() + " is adapted already"));
    DD2_TRY_ASSIGN(const auto tokenizer, LoadReleasedTokenizer(request_.teacher));
    codebook_ = tokenizer->codebook();
    DD2_TRY(Require(codebook_.size(0) == network_.spec.vocabulary,
                    request_.teacher.string() + ": transformer and tokenizer do not fit"));
    const LlamaGenSpec& gpt = network_.spec;
    spec_ = {.channels = codebook_.size(1),
             .width = gpt.width,
             .layers = gpt.layers,
             .heads = gpt.heads,
             .tokens = gpt.tokens(),
             .classes = gpt.classes,
             .kind = BackboneKind::kLlamaGen,
             .ffn_hidden = gpt.ffn_hidden};
    return CheckTokens();
  }

  Status CheckTokens() {
    if (!request_.tokens.defined()) return {};
    const std::int64_t rows = request_.tokens.size(0);
    DD2_TRY(Require(request_.tokens.size(1) == spec_.tokens && request_.labels.size(0) == rows,
                    "tokens must be [N, " + std::to_string(spec_.tokens) + "], labels [N]"));
    held_out_ = settings_.held_out > 0 ? settings_.held_out
                                       : std::clamp<std::int64_t>(rows / 10, 1, kHeldOutMost);
    DD2_TRY(Require(held_out_ < rows, std::to_string(rows) + " sequences, of which " +
                                          std::to_string(held_out_) +
                                          " are held out: none is left to train on"));
    return Require(settings_.batch % settings_.shards == 0,
                   "the batch is " + std::to_string(settings_.batch) +
                       ", expected a multiple of shards = " + std::to_string(settings_.shards));
  }

  // What determines the bits.
  json::object Settings() const {
    json::object all{{"teacher", description_.digest().Hex()}, {"seed", settings_.seed}};
    if (const std::string kind = ComputeKind(); !kind.empty()) all["device"] = kind;
    if (!request_.tokens.defined()) return all;
    all["shards"] = settings_.shards;
    all["steps"] = settings_.steps;
    all["batch"] = settings_.batch;
    all["learning_rate"] = settings_.learning_rate;
    all["sequences"] = request_.tokens.size(0);
    all["held_out"] = held_out_;
    all["tokens"] = HashOf(request_.tokens).Hex();
    all["labels"] = HashOf(request_.labels).Hex();
    return all;
  }

  // The MLP's parameters, by the names of a teacher.
  ParamBuffer FitInput() {
    const at::NoGradGuard no_grad;
    const std::string input = std::string(kPrefix) + "input.";
    ParamLayout layout;
    CodeMlp::Declare(spec_.channels, spec_.width, input, layout);
    const ParamBuffer params(layout, /*requires_grad=*/false);
    InitUniformFanIn(params, "", settings_.seed, kPhase);
    for (const char* name : {"0.weight", "0.bias"}) {
      at::Tensor(params[input + name]).mul_(kInputGain);
    }
    const CodeMlp mlp(params, input);
    // Least squares by the normal equations, in fp64 on the CPU; the last row of the solution is
    // the bias.
    const at::Tensor inner = mlp.Inner(codebook_).cpu();
    const at::Tensor rows =
        at::cat({inner, at::ones({inner.size(0), 1}, at::kFloat)}, 1).to(at::kDouble);
    at::Tensor gram = rows.t().matmul(rows);
    gram.diagonal().add_(gram.diagonal().mean() * kRidge);
    const at::Tensor table = network_.table.cpu().to(at::kDouble);
    const at::Tensor solution =
        at::cholesky_solve(rows.t().matmul(table), at::linalg_cholesky(gram));
    at::Tensor(params[input + "2.weight"]).copy_(solution.narrow(0, 0, spec_.width).t());
    at::Tensor(params[input + "2.bias"]).copy_(solution.select(0, spec_.width));
    const double error = (mlp.Forward(codebook_) - network_.table).square().mean().item<double>() /
                         network_.table.square().mean().item<double>();
    measured_["input_fit_error"] = error;
    report_("adapt  the fit leaves " + std::to_string(error) + " of the table's mean square");
    return params;
  }

  // The released network with the fitted MLP.
  void Start(const ParamBuffer& fitted, const ParamBuffer& to) const {
    const std::size_t prefix = std::string_view(kPrefix).size();
    for (const ParamSpec& param : to.layout().specs()) {
      const std::string name = param.name.substr(prefix);
      const bool released = network_.params.layout().Contains(name);
      at::Tensor(to[param.name]).copy_(released ? network_.params[name] : fitted[param.name]);
    }
  }

  double HeldOutNats(const LlamaGenGpt& network, const at::Tensor& table) {
    const std::int64_t first = request_.tokens.size(0) - held_out_;
    return Nats(network, table, request_.tokens.narrow(0, first, held_out_),
                request_.labels.narrow(0, first, held_out_), pool_);
  }
  double HeldOutNats(const ParamBuffer& params) {
    return HeldOutNats(LlamaGenGpt(network_.spec, params, kPrefix),
                       CodeMlp(params, std::string(kPrefix) + "input.").Forward(codebook_));
  }

  Result<ParamBuffer> Train(const ParamBuffer& fitted) {
    if (!request_.tokens.defined()) {
      ParamBuffer params(Teacher::Layout(spec_, codebook_.size(0)), /*requires_grad=*/false);
      Start(fitted, params);
      return params;
    }
    const std::int64_t rows = request_.tokens.size(0) - held_out_;
    AdaptStage stage(settings_, spec_, codebook_, request_.tokens.narrow(0, 0, rows),
                     request_.labels.narrow(0, 0, rows));
    Start(fitted, stage.params().master());
    const double before =
        HeldOutNats(LlamaGenGpt(network_.spec, network_.params, ""), network_.table);
    const double start = HeldOutNats(stage.params().master());
    report_("adapt  nats per token of held-out sequences: " + std::to_string(before) +
            " with the table, " + std::to_string(start) + " with the fitted MLP");
    network_.params = ParamBuffer();  // the training needs its memory
    network_.table = at::Tensor();
    const StageRun run{.state_file = StateFile(),
                       .settings = json::serialize(Settings()),
                       .save_every = settings_.save_every,
                       .report_every = settings_.report_every};
    DD2_TRY(RunStage(stage, run, pool_, report_));
    const double after = HeldOutNats(stage.params().master());
    if (!std::isfinite(after)) {
      return Error(Code::kInternal, "the adaptation diverged: lower --lr, in another folder");
    }
    report_("adapt  nats per token of held-out sequences: " + std::to_string(after));
    measured_["nats_per_token_table"] = before;
    measured_["nats_per_token_fitted"] = start;
    measured_["nats_per_token_adapted"] = after;
    return stage.params().master();
  }

  Status Write(const ParamBuffer& params) {
    TeacherDescription teacher = description_;
    TeacherSizes sizes = teacher.transformer->sizes;
    sizes.code_channels = spec_.channels;
    const std::string name = "adapted " + teacher.transformer->name;
    const std::vector<TensorShape> layout = LayoutOf(sizes);
    const at::Tensor host = params.HostFlat();
    const auto read = [&](std::size_t index, std::int64_t begin, std::span<float> out) -> Status {
      const ParamSpec& param = params.layout().Find(kPrefix + layout[index].name);
      std::copy_n(host.const_data_ptr<float>() + param.offset + begin, out.size(), out.begin());
      return {};
    };
    FileSystem& files = RealFileSystem();
    const fs::path temporary = StateFolder() / kTransformerFile;
    DD2_TRY_ASSIGN(teacher.transformer,
                   WriteTeacherNetwork(files, temporary, sizes, name, layout, read));
    DD2_TRY(files.Rename(temporary, request_.out / kTransformerFile));
    DD2_TRY_ASSIGN(const std::string tokenizer, files.Read(request_.teacher / kTokenizerFile));
    DD2_TRY(WriteFileAtomically(files, request_.out / kTokenizerFile, tokenizer));
    const json::object card{{"name", name},
                            {"adapted_from", description_.digest().Hex()},
                            {"versions", {{"dd2", DD2_VERSION}, {"libtorch", TORCH_VERSION}}},
                            {"settings", Settings()},
                            {"measured", measured_}};
    DD2_TRY(WriteFileAtomically(files, request_.out / "card.json", json::serialize(card) + "\n"));
    return WriteFileAtomically(files, request_.out / kTeacherFile,
                               json::serialize(ToJson(teacher)) + "\n");
  }

  const AdaptRequest& request_;
  const AdaptSettings& settings_;
  ReportLine report_;
  ShardPool pool_;
  TeacherDescription description_;
  LlamaGenNetwork network_;
  at::Tensor codebook_;
  BackboneSpec spec_;
  std::int64_t held_out_ = 0;
  json::object measured_;
};

}  // namespace

Status AdaptTeacher(const AdaptRequest& request) {
  try {
    return Adapter(request).Run();
  } catch (const c10::OutOfMemoryError& problem) {
    return Error(Code::kResourceExhausted,
                 std::string("the adaptation needs more memory, less with fewer --shards: ") +
                     problem.what_without_backtrace());
  } catch (const c10::Error& problem) {
    return Error(Code::kInternal,
                 std::string("the adaptation stopped: ") + problem.what_without_backtrace());
  } catch (const std::exception& problem) {
    return Error(Code::kInternal, std::string("the adaptation stopped: ") + problem.what());
  }
}

}  // namespace dd2
