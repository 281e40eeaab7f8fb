#include "worker/engine/phase_steps.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/version.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "common/config.h"
#include "common/json.h"
#include "worker/engine/dataset.h"
#include "worker/engine/evaluation.h"
#include "worker/engine/export.h"
#include "worker/kernels/torch_device.h"

namespace dd2 {
namespace {

// The card's figure is over the whole test set, the check's over its first images. Weights of
// another teacher or another data set are off by far more.
constexpr double kQualityTolerance = 0.15;  // nats per token
constexpr std::int64_t kCheckImages = 1000;
// Blocks between two exchanges of the sample phase: how long a pause or stop may have to wait.
constexpr std::int64_t kBlocksPerStep = 8;

// Figures of the eval phase that are metrics too, as far as the judge gives them.
constexpr const char* kEvalMetrics[] = {
    "fdr", "fd", "accuracy", "fid", "sfid", "inception_score", "precision", "recall"};

// The last sample phase at or before `phase`.
std::optional<std::int32_t> SamplePhaseFor(const RunConfig& config, std::int32_t phase) {
  for (std::int32_t i = phase; i >= 0; --i) {
    if (config.phases[static_cast<std::size_t>(i)].kind == PhaseKind::kSample) return i;
  }
  return std::nullopt;
}

}  // namespace

PhaseSteps::PhaseSteps(const WorkerOptions& options, const RunConfig& config,
                       const TeacherBundle& teacher, Collectives& collectives, TrainingState& state,
                       std::string teacher_mode, std::optional<AdmContext> adm)
    : options_(options),
      config_(config),
      teacher_(teacher),
      collectives_(collectives),
      state_(state),
      teacher_mode_(std::move(teacher_mode)),
      trainer_(config, teacher, collectives, state),
      judge_(config, teacher, collectives, std::move(adm)) {}

PhaseSteps::~PhaseSteps() = default;

const PhaseConfig& PhaseSteps::phase() const {
  return config_.phases.at(static_cast<std::size_t>(state_.phase));
}

CacheStats PhaseSteps::cache_stats() const { return cache_ ? cache_->stats() : CacheStats(); }

Status PhaseSteps::EnterPhase(std::int32_t index) {
  DD2_TRY(trainer_.EnterPhase(index));
  if (phase().kind == PhaseKind::kSample) {
    data_.reset();
    sequences_loaded_ = false;
  }
  const bool distils = phase().kind == PhaseKind::kCsd || phase().kind == PhaseKind::kRegress;
  if (!distils || !judge_.able()) return {};
  if (!state_.start) DD2_TRY(EvaluateStart());
  return ShowStart();
}

Status PhaseSteps::Regroup(const RankLayout& ranks) {
  trainer_.Regroup(ranks);
  return judge_.Regroup();
}

Result<PhaseStepResult> PhaseSteps::Run(std::int64_t lease_end, const Wish& wish) {
  switch (phase().kind) {
    case PhaseKind::kTeacherCheck: return TeacherCheck(wish);
    case PhaseKind::kSample: return Sample(lease_end, wish);
    case PhaseKind::kGts: return Gts(wish);
    case PhaseKind::kRegress: return Regress(wish);
    case PhaseKind::kCsd: return Csd(wish);
    case PhaseKind::kAlign: {
      PhaseStepResult result;
      DD2_TRY_ASSIGN(result.outcome, trainer_.AlignStep(wish));
      return result;
    }
    case PhaseKind::kEval: return Evaluate(wish);
    case PhaseKind::kExport: return Export(wish);
  }
  return Error(Code::kInternal, "unknown phase kind");
}

Result<TeacherData*> PhaseSteps::Data() {
  if (data_) return data_.get();
  const std::optional<std::int32_t> index = SamplePhaseFor(config_, state_.phase);
  if (!index)
    return Error(Code::kInvalidArgument,
                 "no sample phase before " + std::string(PhaseKindName(phase().kind)));
  const PhaseConfig& sample = config_.phases[static_cast<std::size_t>(*index)];
  if (config_.cache.enabled && !cache_) {
    DD2_TRY_ASSIGN(cache_, ScoreCache::Open(ScoreCacheFolder(config_), collectives_.rank()));
  }
  data_ = std::make_unique<TeacherData>(TeacherDataSpec{.sampling = config_.teacher,
                                                        .seed = config_.seed,
                                                        .phase = static_cast<std::uint32_t>(*index),
                                                        .sequences = sample.sequences,
                                                        .block = sample.block,
                                                        .ode_steps = sample.ode_steps,
                                                        .use_cache = config_.cache.enabled,
                                                        .numeric_mode = teacher_mode_},
                                        teacher_, cache_.get());
  sequences_loaded_ = false;
  return data_.get();
}

// An imported teacher was compared with its digests when it was loaded; it has no quality that
// could be compared.
Result<PhaseStepResult> PhaseSteps::ImportedTeacherCheck(const Wish& wish) {
  PhaseStepResult result;
  DD2_TRY_ASSIGN(result.outcome, trainer_.Agree(wish));
  result.result_json = boost::json::serialize(
      boost::json::object{{"teacher_digest", teacher_.teacher_digest.Hex()}});
  return result;
}

Result<PhaseStepResult> PhaseSteps::TeacherCheck(const Wish& wish) {
  DD2_TRY(judge_.Prepare());
  if (!teacher_.classifier) return ImportedTeacherCheck(wish);
  DD2_TRY_ASSIGN(const EvalContext* reference, judge_.TestImages());
  const at::NoGradGuard no_grad;
  const std::int64_t count = std::min(kCheckImages, reference->images().size(0));
  const at::Tensor ids = ToDevice(reference->ids().narrow(0, 0, count));
  const at::Tensor codes = CodesOf(teacher_.tokenizer->codebook(), ids);
  const at::Tensor logits = teacher_.teacher->Logits(
      teacher_.teacher->Hidden(codes, ToDevice(reference->labels().narrow(0, 0, count))));
  const double nats =
      at::log_softmax(logits, -1).gather(-1, ids.unsqueeze(-1)).mean().neg().item<double>();
  boost::system::error_code failure;
  const boost::json::value card = boost::json::parse(teacher_.card_json, failure);
  const boost::json::value* stated =
      failure ? nullptr : card.find_pointer("/measured/teacher_test_nats_per_token", failure);
  if (stated == nullptr || !stated->is_number()) {
    return Error(Code::kCorruption,
                 "card.json of the teacher states no teacher_test_nats_per_token: "
                 "train it again with `dd2 teacher train`");
  }
  const double promised = stated->to_number<double>();
  if (!(std::abs(nats - promised) < kQualityTolerance)) {
    return Error(Code::kFailedPrecondition, "the teacher gives " + std::to_string(nats) +
                                                " nats/token on the test images, its "
                                                "card says " +
                                                std::to_string(promised) +
                                                ": weights and card do not belong together");
  }
  PhaseStepResult result;
  DD2_TRY_ASSIGN(result.outcome, trainer_.Agree(wish));
  result.outcome.metrics = {{"teacher_check/nats_per_token", nats}};
  result.result_json = boost::json::serialize(boost::json::object{
      {"teacher_digest", teacher_.teacher_digest.Hex()}, {"nats_per_token", nats}});
  return result;
}

Result<PhaseStepResult> PhaseSteps::Sample(std::int64_t lease_end, const Wish& wish) {
  DD2_TRY_ASSIGN(TeacherData * data, Data());
  // Ranks that were told of a lease twice (a coordinator came back) may see it cut differently.
  DD2_TRY_ASSIGN(const std::int64_t end,
                 Smallest(std::min(lease_end, state_.step + kBlocksPerStep), collectives_));
  PhaseStepResult result;
  result.steps_done = end - state_.step;
  for (std::int64_t block = state_.step; block < end; ++block) {
    const int owner = OwnerOfBlock(data->settings(), static_cast<std::uint64_t>(block),
                                   collectives_.world_size());
    if (owner == collectives_.rank()) DD2_TRY(data->EnsureBlock(static_cast<int>(block)));
  }
  DD2_TRY_ASSIGN(result.outcome, trainer_.Agree(wish));
  if (end < phase().steps) return result;
  // All ranks together: what the cache gave and what the teacher had to compute.
  const CacheStats mine = data->stats();
  std::vector<CacheStats> all(static_cast<std::size_t>(collectives_.world_size()));
  DD2_TRY(collectives_.AllGather(std::as_bytes(std::span(&mine, 1)),
                                 std::as_writable_bytes(std::span(all))));
  CacheStats sum;
  for (const CacheStats& stats : all) {
    sum.hits += stats.hits;
    sum.misses += stats.misses;
    sum.corrupt += stats.corrupt;
    sum.written += stats.written;
  }
  boost::json::object cache{{"hits", sum.hits},
                            {"misses", sum.misses},
                            {"corrupt", sum.corrupt},
                            {"written", sum.written}};
  result.result_json = boost::json::serialize(boost::json::object{{"cache", std::move(cache)}});
  return result;
}

Result<TeacherData*> PhaseSteps::LoadedData() {
  DD2_TRY_ASSIGN(TeacherData * data, Data());
  if (!sequences_loaded_) {
    DD2_TRY(data->LoadSequences());
    sequences_loaded_ = true;
  }
  return data;
}

Result<PhaseStepResult> PhaseSteps::Regress(const Wish& wish) {
  DD2_TRY_ASSIGN(TeacherData * data, LoadedData());
  PhaseStepResult result;
  DD2_TRY_ASSIGN(result.outcome, trainer_.RegressStep(*data, wish));
  if (state_.step + 1 == phase().steps && judge_.able()) {
    DD2_TRY(AddCurvePoint(result.outcome.metrics));
  }
  return result;
}

Result<PhaseStepResult> PhaseSteps::Gts(const Wish& wish) {
  DD2_TRY_ASSIGN(TeacherData * data, LoadedData());
  PhaseStepResult result;
  DD2_TRY_ASSIGN(result.outcome, trainer_.GtsStep(*data, wish));
  const std::int64_t done = state_.step + 1;
  const std::int64_t every = phase().checkpoint_every;
  const bool border = done == phase().steps || (every > 0 && done % every == 0);
  if (border && phase().validation > 0) {
    DD2_TRY_ASSIGN(const double loss, trainer_.ValidationLoss(*data));
    result.outcome.metrics.emplace_back("gts/validation_loss", loss);
  }
  return result;
}

Result<PhaseStepResult> PhaseSteps::Csd(const Wish& wish) {
  PhaseStepResult result;
  DD2_TRY_ASSIGN(result.outcome, trainer_.CsdCycle(wish));
  const std::int64_t done = state_.step + 1;
  if (phase().eval_every > 0 && done % phase().eval_every == 0) {
    DD2_TRY(AddCurvePoint(result.outcome.metrics));
  }
  return result;
}

Status PhaseSteps::AddCurvePoint(Metrics& metrics) {
  DD2_TRY_ASSIGN(const ParamBuffer ema, trainer_.GatherGeneratorEma());
  DD2_TRY_ASSIGN(const Quality point, judge_.CurvePoint(Network(trainer_.spec(), ema)));
  for (const auto& [name, value] : point.figures) metrics.emplace_back("eval/" + name, value);
  return {};
}

// The one-step quality of the tuned AR-diffusion network: where distillation starts from.
Status PhaseSteps::EvaluateStart() {
  DD2_TRY_ASSIGN(const ParamBuffer ema, trainer_.GatherGeneratorEma());
  DD2_TRY_ASSIGN(state_.start, judge_.CurvePoint(Network(trainer_.spec(), ema)));
  return {};
}

Status PhaseSteps::ShowStart() {
  const auto phases = std::span(config_.phases).first(static_cast<std::size_t>(state_.phase));
  const bool first = std::ranges::none_of(phases, [](const PhaseConfig& earlier) {
    return earlier.kind == PhaseKind::kCsd || earlier.kind == PhaseKind::kRegress;
  });
  if (collectives_.rank() != 0 || !first) return {};
  const std::filesystem::path folder = options_.run / "samples";
  // The rank that evaluated it may have been lost before it drew: so whoever is rank 0 now does.
  if (std::filesystem::exists(folder / "start.png")) return {};
  DD2_TRY(RealFileSystem().MakeDirectories(folder));
  // A phase begins with parameters equal to their average.
  ParamBuffer copy = state_.generator.params.Alias(false);
  return WriteGeneratorGrid(Network(trainer_.spec(), copy), *teacher_.tokenizer, config_.seed,
                            folder / "start.png");
}

Result<PhaseStepResult> PhaseSteps::Evaluate(const Wish& wish) {
  DD2_TRY_ASSIGN(const ParamBuffer ema, trainer_.GatherGeneratorEma());
  const Network generator(trainer_.spec(), ema);
  EvalInputs inputs;
  inputs.generator = &generator;
  inputs.teacher = config_.teacher;
  inputs.samples = config_.eval.samples;
  inputs.seed = config_.seed;
  inputs.samples_folder = options_.run / "samples";
  DD2_TRY(AddTeacherSequences(inputs));
  PhaseStepResult result;
  DD2_TRY_ASSIGN(const std::string text, judge_.Final(inputs));
  boost::json::object fields = boost::json::parse(text).as_object();
  if (state_.start) {
    AddQuality(*state_.start, "_start", fields);
    fields["samples_start"] = state_.start->samples;
  }
  for (const char* name : kEvalMetrics) {
    const std::string field =
        std::string_view(name) == "accuracy" ? name : std::string(name) + "_end";
    const boost::json::value* value = fields.if_contains(field);
    if (value == nullptr) continue;
    result.outcome.metrics.emplace_back(std::string("eval/") + name, value->to_number<double>());
  }
  DD2_TRY_ASSIGN(const StepOutcome agreed, trainer_.Agree(wish));
  result.outcome.wish = agreed.wish;
  result.result_json = boost::json::serialize(fields);
  return result;
}

// Sequences that the sample phase left are as good as new ones, where there are enough. Those of
// a flow are a little sharper than the teacher's law (recipe 1): not taken.
Status PhaseSteps::AddTeacherSequences(EvalInputs& inputs) {
  const std::optional<std::int32_t> sample = SamplePhaseFor(config_, state_.phase);
  if (!sample || config_.phases[static_cast<std::size_t>(*sample)].ode_steps > 0) return {};
  DD2_TRY_ASSIGN(TeacherData * data, Data());
  if (data->size() < inputs.samples) return {};
  DD2_TRY(data->LoadSequences());
  std::vector<std::uint64_t> samples(static_cast<std::size_t>(inputs.samples));
  std::iota(samples.begin(), samples.end(), std::uint64_t{0});
  DD2_TRY_ASSIGN(const auto tokens, data->Tokens(samples));
  inputs.teacher_tokens = tokens.first.cpu();
  inputs.teacher_labels = tokens.second.cpu();
  return {};
}

Result<PhaseStepResult> PhaseSteps::Export(const Wish& wish) {
  DD2_TRY_ASSIGN(const ParamBuffer ema, trainer_.GatherGeneratorEma());
  if (collectives_.rank() == 0) {
    DD2_TRY(WriteExport(options_.run / "export", trainer_.spec(), ema, config_, teacher_));
  }
  PhaseStepResult result;
  DD2_TRY_ASSIGN(result.outcome, trainer_.Agree(wish));
  result.result_json = boost::json::serialize(boost::json::object{{"export", "export"}});
  return result;
}

void SetComputeThreads(int threads) { at::set_num_threads(threads); }

std::string TorchBuild() {
  return std::string("torch=") + TORCH_VERSION + " cpu=" + at::get_cpu_capability();
}

}  // namespace dd2
