#include <algorithm>
#include <cmath>
#include <numbers>

#include "common/rng.h"
#include "worker/engine/teacher_stages.h"

namespace dd2 {
namespace {

constexpr std::uint32_t kPhase = static_cast<std::uint32_t>(StagePhase::kTeacher);
constexpr std::int64_t kBlock = 500;  // images of a validation or encoding block

BackboneSpec SpecOf(const PriorTraining& settings, const Tokenizer& tokenizer) {
  BackboneSpec spec;
  spec.channels = tokenizer.spec().channels;
  spec.tokens = tokenizer.spec().tokens();
  if (tokenizer.path()) {
    spec.kind = BackboneKind::kVar;
    spec.sides = tokenizer.spec().scales.sides;
    spec.path = tokenizer.path();
  }
  spec.width = settings.width;
  spec.layers = settings.layers;
  spec.heads = settings.heads;
  return spec;
}

std::int64_t Blocks(std::int64_t count) { return (count + kBlock - 1) / kBlock; }

// Rows of block b of a tensor.
at::Tensor BlockOf(const at::Tensor& all, std::int64_t b) {
  return all.narrow(0, b * kBlock, std::min(kBlock, all.size(0) - b * kBlock));
}

}  // namespace

PriorStage::PriorStage(const TeacherTrainConfig& config, const at::Tensor& ids,
                       const at::Tensor& labels, const Tokenizer& tokenizer)
    : config_(config),
      ids_(ids),
      labels_(labels),
      codebook_(tokenizer.codebook()),
      spec_(SpecOf(config.teacher, tokenizer)),
      params_(Teacher::Layout(spec_, codebook_.size(0)), config.shards) {
  Teacher::Init(spec_, params_.master(), config.seed, kPhase);
  for (int i = 0; i < config.shards; ++i) {
    models_.emplace_back(spec_, codebook_.size(0), params_.shard(i));
  }
}

double PriorStage::LearningRate(std::int64_t step) const {
  const PriorTraining& settings = config_.teacher;
  const double warmup = std::max(1, settings.warmup);
  const double progress = static_cast<double>(step) / static_cast<double>(settings.steps);
  const double cosine = 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  return settings.learning_rate * std::min(1.0, static_cast<double>(step + 1) / warmup) *
         (cosine * (1.0 - settings.final_ratio) + settings.final_ratio);
}

AdamSettings PriorStage::adam() const {
  const PriorTraining& settings = config_.teacher;
  return {settings.beta1, settings.beta2, 1e-8, settings.weight_decay, settings.clip_norm};
}

double PriorStage::ShardStep(int shard, std::int64_t step) {
  const PriorTraining& settings = config_.teacher;
  const std::int64_t rows = batch() / config_.shards;
  at::Tensor indices = at::empty({rows}, at::kLong);
  at::Tensor labels = at::empty({rows}, at::kLong);
  at::Tensor noise = at::empty({rows, spec_.tokens, spec_.channels}, at::kFloat);
  const std::size_t noise_row = static_cast<std::size_t>(spec_.tokens * spec_.channels);
  for (std::int64_t i = 0; i < rows; ++i) {
    RngKey key{config_.seed, kPhase, RngUse::kDataOrder, static_cast<std::uint64_t>(step),
               static_cast<std::uint64_t>(shard * rows + i)};
    const std::int64_t image =
        static_cast<std::int64_t>(UniformInt(key, static_cast<std::uint64_t>(ids_.size(0))));
    indices.data_ptr<std::int64_t>()[i] = image;
    float drop = 0;
    key.use = RngUse::kLabelDrop;
    FillUniform(key, {&drop, 1});
    labels.data_ptr<std::int64_t>()[i] = static_cast<double>(drop) < settings.label_drop
                                             ? spec_.classes
                                             : labels_.data_ptr<std::int64_t>()[image];
    key.use = RngUse::kInputNoise;
    FillNormal(key, {noise.data_ptr<float>() + static_cast<std::size_t>(i) * noise_row, noise_row});
  }
  const at::Tensor targets = ids_.index_select(0, indices).flatten();
  const at::Tensor codes = codebook_.index_select(0, targets).view_as(noise);
  const Teacher& model = models_[static_cast<std::size_t>(shard)];
  const at::Tensor logits =
      model.Logits(model.Hidden(codes + noise * settings.input_noise, labels));
  const at::Tensor loss = at::cross_entropy_loss(logits.flatten(0, 1), targets);
  loss.backward();
  return loss.item<double>();
}

Teacher PriorStage::Finish() const { return Teacher(spec_, codebook_.size(0), params_.master()); }

double TeacherNats(const Teacher& teacher, const at::Tensor& codebook, const at::Tensor& ids,
                   const at::Tensor& labels, ShardPool& pool) {
  std::vector<double> nats(static_cast<std::size_t>(Blocks(ids.size(0))));
  pool.Run(static_cast<int>(nats.size()), [&](int b) {
    const at::NoGradGuard no_grad;
    const at::Tensor block = BlockOf(ids, b);
    const at::Tensor codes = codebook.index_select(0, block.flatten())
                                 .view({block.size(0), block.size(1), codebook.size(1)});
    const at::Tensor logits = teacher.Logits(teacher.Hidden(codes, BlockOf(labels, b)));
    const at::Tensor loss = at::cross_entropy_loss(logits.flatten(0, 1), block.flatten());
    nats[static_cast<std::size_t>(b)] =
        loss.item<double>() * static_cast<double>(block.size(0)) / static_cast<double>(ids.size(0));
  });
  double total = 0;
  for (const double part : nats) total += part;
  return total;
}

at::Tensor EncodeAll(const Tokenizer& tokenizer, const at::Tensor& images, ShardPool& pool) {
  std::vector<at::Tensor> parts(static_cast<std::size_t>(Blocks(images.size(0))));
  pool.Run(static_cast<int>(parts.size()), [&](int b) {
    parts[static_cast<std::size_t>(b)] = tokenizer.Encode(BlockOf(images, b));
  });
  return at::cat(parts);
}

}  // namespace dd2
