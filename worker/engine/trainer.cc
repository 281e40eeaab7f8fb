#include "worker/engine/trainer.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <span>

#include "common/check.h"
#include "proto/position.h"
#include "worker/distill/losses.h"
#include "worker/models/filters.h"

namespace dd2 {
namespace {

UpdateScalars ScalarsFor(const Wish& wish, int width) {
  UpdateScalars scalars;
  scalars.width = width;
  scalars.desired_version = wish.version;
  scalars.checkpoint_requests = wish.checkpoint_requests;
  scalars.paused = wish.paused;
  scalars.stop = wish.stop;
  return scalars;
}

Wish WishOf(const UpdateResult& result) {
  return Wish{.version = result.desired_version,
              .checkpoint_requests = result.checkpoint_requests,
              .paused = result.paused,
              .stop = result.stop};
}

// The place of this rank: the domain's part of it shows in how the state is cut.
RankLayout LayoutOf(const Collectives& collectives, const NetworkState& network) {
  return {.rank = collectives.rank(),
          .world_size = collectives.world_size(),
          .local_rank = static_cast<int>(network.begin / network.slice),
          .local_size = static_cast<int>(network.params.flat().numel() / network.slice)};
}

// decay = min(limit, (k+1)/(k+10)), k updates so far in this phase (method 3).
double EmaDecay(double limit, std::int64_t k) {
  return std::min(limit, static_cast<double>(k + 1) / static_cast<double>(k + 10));
}

// A skipped update advances neither schedule nor EMA: only these counters drive them.
void CountGuidanceUpdate(bool applied, proto::Counters& counters) {
  if (!applied) {
    counters.set_skipped_updates(counters.skipped_updates() + 1);
    return;
  }
  counters.set_guidance_updates(counters.guidance_updates() + 1);
  counters.set_phase_guidance_updates(counters.phase_guidance_updates() + 1);
}

void CountGeneratorUpdate(bool applied, proto::Counters& counters) {
  if (!applied) {
    counters.set_skipped_updates(counters.skipped_updates() + 1);
    return;
  }
  counters.set_generator_updates(counters.generator_updates() + 1);
  counters.set_phase_generator_updates(counters.phase_generator_updates() + 1);
}

}  // namespace

double LearningRate(const ScheduleConfig& schedule, std::int64_t step, std::int64_t total) {
  const auto at = static_cast<double>(step);
  double rate = schedule.peak;
  if (schedule.final_ratio < 1) {
    const double turn =
        std::numbers::pi * at / static_cast<double>(std::max<std::int64_t>(total, 1));
    rate *= schedule.final_ratio + (1 - schedule.final_ratio) * 0.5 * (1 + std::cos(turn));
  }
  if (step < schedule.warmup) {
    const double share = (at + 1) / static_cast<double>(schedule.warmup);
    rate = schedule.start + (rate - schedule.start) * share;
  }
  return rate;
}

Trainer::Trainer(const RunConfig& config, const TeacherBundle& teacher, Collectives& collectives,
                 TrainingState& state)
    : config_(config),
      teacher_(teacher),
      collectives_(collectives),
      state_(state),
      spec_(SpecFor(config.model, *teacher.teacher)),
      updater_(collectives, LayoutOf(collectives, state.guidance), config.batch.shards,
               state.guidance.params.flat().numel()),
      guidance_(spec_, state.guidance.params),
      generator_(spec_, state.generator.params) {
  head_begin_ = state.guidance.params.layout().size();
  for (const ParamSpec& spec : state.guidance.params.layout().specs()) {
    if (spec.name.starts_with("head.")) head_begin_ = std::min(head_begin_, spec.offset);
  }
}

void Trainer::Regroup(const RankLayout& ranks) { updater_.Regroup(collectives_, ranks); }

proto::HeldState Trainer::Held() const {
  proto::HeldState held;
  held.set_has_state(state_.whole);
  held.mutable_position()->set_phase(state_.phase);
  held.mutable_position()->set_step(state_.step);
  held.mutable_position()->set_updates(state_.updates);
  held.set_pending(state_.whole && updater_.has_pending());
  return held;
}

bool Trainer::SameState(const proto::Position& a, const proto::Position& b) const {
  return Same(Normalised(a, config_.phases), Normalised(b, config_.phases));
}

Status Trainer::SpreadParameters() {
  DD2_TRY(updater_.Spread(state_.generator));
  return updater_.Spread(state_.guidance);
}

const PhaseConfig& Trainer::phase() const {
  return config_.phases.at(static_cast<std::size_t>(state_.phase));
}

RngKey Trainer::Key(RngUse use, std::int64_t update) const {
  return RngKey{.seed = config_.seed,
                .phase = static_cast<std::uint32_t>(state_.phase),
                .use = use,
                .update = static_cast<std::uint64_t>(update),
                .sample = 0};
}

std::vector<ShardRange> Trainer::LocalShards(std::int64_t batch) const {
  const std::int64_t size = batch / updater_.plan().shards;
  const auto rank = static_cast<std::size_t>(collectives_.rank());
  std::vector<ShardRange> ranges;
  for (int shard = updater_.plan().first[rank]; shard < updater_.plan().first[rank + 1]; ++shard) {
    ranges.push_back({.first = shard * size, .count = size});
  }
  return ranges;
}

AdamStep Trainer::Adam(const ScheduleConfig& schedule, std::int64_t step) const {
  AdamStep adam;
  adam.learning_rate = LearningRate(schedule, step, phase().steps);
  adam.beta1 = phase().beta1;
  adam.beta2 = phase().beta2;
  adam.clip_norm = phase().clip_norm;
  return adam;
}

AdamStep Trainer::GeneratorAdam() const {
  const std::int64_t done = state_.counters.phase_generator_updates();
  AdamStep adam = Adam(phase().generator, done);
  adam.ema_decay = EmaDecay(phase().ema_max, done);
  return adam;
}

void Trainer::BoostHead(double ratio, AdamStep& adam) const {
  adam.boosted_begin = head_begin_;
  adam.boosted_end = state_.guidance.params.flat().numel();
  adam.boost = ratio;
}

void Trainer::ResetOptimiser(NetworkState& network) {
  network.adam_m.zero_();
  network.adam_v.zero_();
  network.adam_steps = 0;
  network.ema.copy_(network.params.flat().narrow(0, network.begin, network.slice));
}

Status Trainer::CopyFromEma(const NetworkState& source, NetworkState& target) {
  DD2_TRY_ASSIGN(const at::Tensor full, updater_.Gather(source.ema));
  target.params.flat().copy_(full);
  return {};
}

const PhaseConfig* Trainer::LastGeneratorPhase(std::int32_t before) const {
  for (auto i = static_cast<std::size_t>(before); i-- > 0;) {
    const PhaseKind kind = config_.phases[i].kind;
    if (kind == PhaseKind::kCsd || kind == PhaseKind::kRegress) return &config_.phases[i];
  }
  return nullptr;
}

bool Trainer::IsTuned(std::int32_t before) const {
  return std::ranges::any_of(
      std::span(config_.phases).first(static_cast<std::size_t>(before)),
      [](const PhaseConfig& phase) { return phase.kind == PhaseKind::kGts; });
}

Status Trainer::EnterPhase(std::int32_t index) {
  const at::NoGradGuard no_grad;
  TellChange();
  state_.phase = index;
  state_.step = 0;
  AdvanceSteps(state_, 0);
  state_.counters.set_phase_generator_updates(0);
  state_.counters.set_phase_guidance_updates(0);
  const PhaseConfig* trained = LastGeneratorPhase(index);
  switch (phase().kind) {
    case PhaseKind::kGts:
      if (IsTuned(index)) {
        DD2_TRY(CopyFromEma(state_.guidance, state_.guidance));
        ResetOptimiser(state_.guidance);
        return {};
      }
      // psi <- teacher backbone + fresh head (method 5.2, stage 1).
      InitHead(state_.guidance.params, "head.", config_.seed, static_cast<std::uint32_t>(index));
      CopyParams(teacher_.teacher->params(), state_.guidance.params, "backbone.");
      ResetOptimiser(state_.guidance);
      return {};
    case PhaseKind::kRegress:
    case PhaseKind::kCsd:
      if (trained != nullptr) {
        // Distillation begins with averaged weights, as it does without a regression.
        if (trained->kind == PhaseKind::kRegress) {
          DD2_TRY(CopyFromEma(state_.generator, state_.generator));
        }
        ResetOptimiser(state_.generator);
        return {};
      }
      // Both networks start from the tuned AR-diffusion network, its EMA.
      DD2_TRY(CopyFromEma(state_.guidance, state_.guidance));
      state_.generator.params.flat().copy_(state_.guidance.params.flat());
      ResetOptimiser(state_.guidance);
      ResetOptimiser(state_.generator);
      return {};
    case PhaseKind::kAlign:
      // theta <- EMA, then frozen while the guidance network catches up (method 3).
      DD2_TRY(CopyFromEma(state_.generator, state_.generator));
      ResetOptimiser(state_.generator);
      return {};
    case PhaseKind::kTeacherCheck:
    case PhaseKind::kSample:
    case PhaseKind::kEval:
    case PhaseKind::kExport: return {};
  }
  return Error(Code::kInternal, "unknown phase kind");
}

Result<at::Tensor> Trainer::GtsLossOf(TeacherData& data, const std::vector<std::uint64_t>& samples,
                                      ShardRange range, const RngKey& time,
                                      const RngKey& noise) const {
  const PhaseConfig& settings = phase();
  const BackboneSpec& shape = spec_.backbone;
  DD2_TRY_ASSIGN(const TeacherData::Batch batch, data.Load(samples));
  const at::Tensor t =
      RandomTimes(time, range, settings.draws, shape.tokens, settings.t_min, settings.t_max);
  const at::Tensor draws = RandomDraws(noise, range, settings.draws, shape.tokens, shape.channels);
  return GtsLoss(guidance_, batch.codes, batch.labels, batch.logp, teacher_.tokenizer->codebook(),
                 t, draws, HeadOnly() ? Reaches::kHead : Reaches::kAll);
}

std::vector<std::uint64_t> Trainer::StoredSamples(ShardRange range, std::int64_t update,
                                                  const TeacherData& data) const {
  const auto held_out = static_cast<std::uint64_t>(phase().validation);
  const std::uint64_t usable = static_cast<std::uint64_t>(data.size()) - held_out;
  std::vector<std::uint64_t> samples;
  RngKey order = Key(RngUse::kDataOrder, update);
  for (std::int64_t i = 0; i < range.count; ++i) {
    order.sample = static_cast<std::uint64_t>(range.first + i);
    samples.push_back(held_out + UniformInt(order, usable));
  }
  return samples;
}

Status Trainer::Commit(NetworkState& network, const AdamStep& adam, const UpdateScalars& scalars,
                       const Book& book) {
  TellChange();
  DD2_TRY_ASSIGN(const UpdateResult result, updater_.Apply(network, adam, scalars));
  book(result);
  state_.step_wish = WishOf(result);
  ++state_.updates;
  return updater_.Spread(network, adam.first);
}

void Trainer::BookMetric(const std::string& name, double value) {
  const auto found =
      std::ranges::find(state_.step_metrics, name, &std::pair<std::string, double>::first);
  if (found == state_.step_metrics.end()) {
    state_.step_metrics.emplace_back(name, value);
  } else {
    found->second += value;
  }
}

void Trainer::BookLoss(const std::string& phase, const UpdateResult& result, double learning_rate) {
  BookMetric(phase + "/loss", result.mean.at(0));
  BookMetric(phase + "/gradient_norm", result.gradient_norm);
  BookMetric(phase + "/learning_rate", learning_rate);
}

Result<StepOutcome> Trainer::Step(std::int64_t count, const Wish& wish,
                                  const std::function<Status(std::int64_t)>& update) {
  // All of them were done in an older generation: what the coordinator wants now is not known yet.
  if (state_.updates >= count) {
    DD2_TRY_ASSIGN(StepOutcome outcome, Agree(wish));
    outcome.metrics = state_.step_metrics;
    return outcome;
  }
  while (state_.updates < count) DD2_TRY(update(state_.updates));
  return StepOutcome{.metrics = state_.step_metrics, .wish = state_.step_wish};
}

Result<StepOutcome> Trainer::GtsStep(TeacherData& data, const Wish& wish) {
  return Step(1, wish, [&](std::int64_t) { return GtsUpdate(data, wish); });
}

Status Trainer::GtsUpdate(TeacherData& data, const Wish& wish) {
  TellFrozen(NetworkRole::kGenerator);
  const PhaseConfig& settings = phase();
  const std::int64_t update = state_.step;
  const std::int64_t first = HeadOnly() ? head_begin_ : 0;
  UpdateScalars scalars = ScalarsFor(wish, 1);
  const std::vector<ShardRange> ranges = LocalShards(settings.batch);
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    state_.guidance.params.BindGradient(updater_.GradientOfShard(static_cast<int>(i), first));
    DD2_TRY_ASSIGN(const at::Tensor loss,
                   GtsLossOf(data, StoredSamples(ranges[i], update, data), ranges[i],
                             Key(RngUse::kTime, update), Key(RngUse::kForwardNoise, update)));
    // Read while this shard is computed.
    if (i + 1 < ranges.size()) {
      data.Expect(StoredSamples(ranges[i + 1], update, data));
    } else if (update + 1 < settings.steps) {
      data.Expect(StoredSamples(ranges.front(), update + 1, data));
    }
    loss.backward();
    scalars.per_shard.push_back(loss.item<double>());
  }
  AdamStep adam = Adam(settings.guidance, state_.counters.phase_guidance_updates());
  adam.ema_decay = EmaDecay(settings.ema_max, state_.counters.phase_guidance_updates());
  BoostHead(settings.head_lr_ratio, adam);
  adam.first = first;
  return Commit(state_.guidance, adam, scalars, [&](const UpdateResult& result) {
    CountGuidanceUpdate(result.applied, state_.counters);
    BookLoss("gts", result, adam.learning_rate);
  });
}

Result<StepOutcome> Trainer::RegressStep(TeacherData& data, const Wish& wish) {
  return Step(1, wish, [&](std::int64_t) { return RegressUpdate(data, wish); });
}

Status Trainer::RegressUpdate(TeacherData& data, const Wish& wish) {
  TellFrozen(NetworkRole::kGuidance);
  UpdateScalars scalars = ScalarsFor(wish, 1);
  int local = 0;
  for (const ShardRange& range : LocalShards(phase().batch)) {
    const std::vector<std::uint64_t> samples = StoredSamples(range, state_.step, data);
    DD2_TRY_ASSIGN(const auto tokens_labels, data.Tokens(samples));
    const auto& [tokens, labels] = tokens_labels;
    state_.generator.params.BindGradient(updater_.GradientOfShard(local++));
    const at::Tensor loss = at::mse_loss(generator_.Generate(data.TrajectoryNoise(samples), labels),
                                         CodesOf(teacher_.tokenizer->codebook(), tokens));
    loss.backward();
    scalars.per_shard.push_back(loss.item<double>());
  }
  AdamStep adam = GeneratorAdam();
  BoostHead(phase().head_lr_ratio, adam);
  return Commit(state_.generator, adam, scalars, [&](const UpdateResult& result) {
    CountGeneratorUpdate(result.applied, state_.counters);
    BookLoss("regress", result, adam.learning_rate);
  });
}

Result<double> Trainer::ValidationLoss(TeacherData& data) {
  const at::NoGradGuard no_grad;
  const std::int64_t count = phase().validation;
  DD2_CHECK(count > 0);
  const std::int64_t at_once = phase().batch / updater_.plan().shards;
  const auto rank = static_cast<std::size_t>(collectives_.rank());
  UpdateScalars scalars = ScalarsFor(Wish(), 1);
  // Each virtual shard takes its part, so that neither shapes nor sums depend on who computes it.
  for (std::int64_t shard = updater_.plan().first[rank]; shard < updater_.plan().first[rank + 1];
       ++shard) {
    const std::int64_t end = (shard + 1) * count / updater_.plan().shards;
    double sum = 0;
    ShardRange range;
    for (range.first = shard * count / updater_.plan().shards; range.first < end;
         range.first += range.count) {
      range.count = std::min(at_once, end - range.first);
      std::vector<std::uint64_t> samples(static_cast<std::size_t>(range.count));
      std::iota(samples.begin(), samples.end(), static_cast<std::uint64_t>(range.first));
      DD2_TRY_ASSIGN(const at::Tensor loss,
                     GtsLossOf(data, samples, range, Key(RngUse::kValidationTime, 0),
                               Key(RngUse::kValidationNoise, 0)));
      sum += loss.item<double>() * static_cast<double>(range.count);
    }
    scalars.per_shard.push_back(sum);
  }
  DD2_TRY_ASSIGN(const UpdateResult result, updater_.ExchangeScalars(scalars));
  return result.mean.at(0) * updater_.plan().shards / static_cast<double>(count);
}

Status Trainer::GuidanceUpdate(std::int64_t update, std::int64_t schedule_step, const Wish& wish,
                               const Book& book) {
  const PhaseConfig& settings = phase();
  const BackboneSpec& shape = spec_.backbone;
  UpdateScalars scalars = ScalarsFor(wish, 1);
  int local = 0;
  for (const ShardRange& range : LocalShards(settings.batch)) {
    const at::Tensor labels = RandomLabels(Key(RngUse::kLabel, update), range, shape.classes);
    const at::Tensor noise =
        RandomNoise(Key(RngUse::kGeneratorNoise, update), range, shape.tokens, shape.channels);
    at::Tensor q;
    {
      const at::NoGradGuard no_grad;
      q = generator_.Generate(noise, labels);
    }
    const at::Tensor t = RandomTimes(Key(RngUse::kTime, update), range, settings.draws,
                                     shape.tokens, settings.t_min, settings.t_max);
    const at::Tensor draws = RandomDraws(Key(RngUse::kForwardNoise, update), range, settings.draws,
                                         shape.tokens, shape.channels);
    state_.guidance.params.BindGradient(updater_.GradientOfShard(local++));
    const at::Tensor loss = FcsLoss(guidance_, q, labels, t, draws);
    loss.backward();
    scalars.per_shard.push_back(loss.item<double>());
  }
  const AdamStep adam = Adam(settings.guidance, schedule_step);
  return Commit(state_.guidance, adam, scalars, [&](const UpdateResult& result) {
    CountGuidanceUpdate(result.applied, state_.counters);
    book(result);
  });
}

Status Trainer::GeneratorUpdate(std::int64_t update, const Wish& wish, const Book& book) {
  const PhaseConfig& settings = phase();
  const BackboneSpec& shape = spec_.backbone;
  UpdateScalars scalars = ScalarsFor(wish, 2);
  state_.guidance.params.SetRequiresGrad(false);
  int local = 0;
  for (const ShardRange& range : LocalShards(settings.batch)) {
    const at::Tensor labels = RandomLabels(Key(RngUse::kLabel, update), range, shape.classes);
    const at::Tensor noise =
        RandomNoise(Key(RngUse::kGeneratorNoise, update), range, shape.tokens, shape.channels);
    state_.generator.params.BindGradient(updater_.GradientOfShard(local++));
    const at::Tensor q = generator_.Generate(noise, labels);
    const at::Tensor prefix = q.detach();
    at::Tensor logp;
    at::Tensor features;
    {
      const at::NoGradGuard no_grad;
      const at::Tensor hidden =
          teacher_.teacher->GuidedHidden(prefix, labels, config_.teacher.cfg_scale);
      logp = FilterLogits(teacher_.teacher->Logits(hidden), config_.teacher);
      features = guidance_.Features(prefix, labels);
    }
    const at::Tensor t =
        RandomTimes(Key(RngUse::kTime, update), range, settings.generator_draws, shape.tokens,
                    settings.generator_t_min, settings.generator_t_max);
    const at::Tensor draws = RandomDraws(Key(RngUse::kForwardNoise, update), range,
                                         settings.generator_draws, shape.tokens, shape.channels);
    const CsdLossResult loss =
        CsdLoss(guidance_, prefix, features, logp, teacher_.tokenizer->codebook(), t, draws,
                settings.sid_alpha);
    q.backward(loss.gradient);
    scalars.per_shard.push_back(loss.loss);
    scalars.per_shard.push_back(loss.mean_difference);
  }
  state_.guidance.params.SetRequiresGrad(true);
  return Commit(state_.generator, GeneratorAdam(), scalars, [&](const UpdateResult& result) {
    CountGeneratorUpdate(result.applied, state_.counters);
    book(result);
  });
}

Result<StepOutcome> Trainer::CsdCycle(const Wish& wish) {
  return Step(phase().guidance_updates + 1, wish,
              [&](std::int64_t k) { return CsdUpdate(k, wish); });
}

Status Trainer::CsdUpdate(std::int64_t k, const Wish& wish) {
  const std::int64_t guidance_updates = phase().guidance_updates;
  const std::int64_t update = state_.step * (guidance_updates + 1) + k;
  if (k < guidance_updates) {
    const std::int64_t cycle = state_.counters.phase_guidance_updates() / guidance_updates;
    return GuidanceUpdate(update, cycle, wish, [&](const UpdateResult& result) {
      BookMetric("csd/fcs", result.mean.at(0) / static_cast<double>(guidance_updates));
      if (k + 1 == guidance_updates) BookMetric("csd/guidance_norm", result.gradient_norm);
    });
  }
  TellFrozen(NetworkRole::kGuidance);
  return GeneratorUpdate(update, wish, [&](const UpdateResult& result) {
    state_.counters.set_outer_cycles(state_.counters.outer_cycles() + 1);
    BookMetric("csd/sid", result.mean.at(0));
    BookMetric("csd/dmu", result.mean.at(1));
    BookMetric("csd/generator_norm", result.gradient_norm);
  });
}

Result<StepOutcome> Trainer::AlignStep(const Wish& wish) {
  return Step(1, wish, [&](std::int64_t) { return AlignUpdate(wish); });
}

Status Trainer::AlignUpdate(const Wish& wish) {
  TellFrozen(NetworkRole::kGenerator);
  const std::int64_t done = state_.counters.phase_guidance_updates();
  return GuidanceUpdate(state_.step, done, wish, [&](const UpdateResult& result) {
    BookMetric("align/fcs", result.mean.at(0));
    BookMetric("align/guidance_norm", result.gradient_norm);
  });
}

Result<StepOutcome> Trainer::Agree(const Wish& wish) {
  DD2_TRY_ASSIGN(const UpdateResult result, updater_.ExchangeScalars(ScalarsFor(wish, 0)));
  StepOutcome outcome;
  outcome.wish = WishOf(result);
  return outcome;
}

Result<ParamBuffer> Trainer::GatherGeneratorEma() {
  DD2_TRY_ASSIGN(const at::Tensor full, updater_.Gather(state_.generator.ema));
  ParamBuffer copy(state_.generator.params.layout(), false, full.numel());
  copy.flat().copy_(full);
  return copy;
}

}  // namespace dd2
