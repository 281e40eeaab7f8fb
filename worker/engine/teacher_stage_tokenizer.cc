#include <algorithm>
#include <numeric>

#include "common/rng.h"
#include "worker/engine/teacher_stages.h"

namespace dd2 {
namespace {

constexpr std::uint32_t kPhase = static_cast<std::uint32_t>(StagePhase::kTokenizer);
constexpr double kFinalRate = 1e-5;
constexpr std::int64_t kInitImages = 512;        // whose latents the first codebook is drawn from
constexpr std::uint64_t kInitSample = 1u << 20;  // random positions of that drawing: [.., + V)

TokenizerSpec SpecOf(const TokenizerTraining& settings) {
  TokenizerSpec spec{.codes = settings.codes, .channels = settings.channels, .scales = {}};
  const std::vector<std::int64_t> sides = ParseScales(settings.scales);
  if (!sides.empty()) spec.scales = VarScales::WithPhis(sides, settings.phis);
  return spec;
}

}  // namespace

TokenizerStage::TokenizerStage(const TeacherTrainConfig& config, const LabelledImages& train)
    : config_(config),
      train_(train),
      params_(SmallTokenizer::Layout(SpecOf(config.tokenizer)), config.shards),
      latents_(static_cast<std::size_t>(config.shards)),
      choices_(static_cast<std::size_t>(config.shards)) {
  const TokenizerTraining& settings = config.tokenizer;
  InitUniformFanIn(params_.master(), "", config.seed, kPhase);
  params_.master()["std"].fill_(1.0);
  for (int i = 0; i < config.shards; ++i) {
    models_.emplace_back(SpecOf(settings), params_.shard(i));
  }
  counts_ = at::ones({settings.codes}, at::kFloat);
}

void TokenizerStage::InitCodebook() {
  const at::NoGradGuard no_grad;
  const TokenizerTraining& settings = config_.tokenizer;
  const std::int64_t images = std::min(kInitImages, train_.count());
  const at::Tensor latents =
      Current().EncodeLatents(train_.images.narrow(0, 0, images)).view({-1, settings.channels});
  std::vector<std::int64_t> rows(static_cast<std::size_t>(latents.size(0)));
  std::iota(rows.begin(), rows.end(), std::int64_t{0});
  RngKey key{config_.seed, kPhase, RngUse::kCodebookRestart, 0, 0};
  for (std::size_t j = 0; j < static_cast<std::size_t>(settings.codes); ++j) {
    key.sample = kInitSample + j;
    std::swap(rows[j], rows[j + UniformInt(key, rows.size() - j)]);
  }
  const at::Tensor chosen = at::from_blob(rows.data(), {settings.codes}, at::kLong);
  const at::Tensor codebook = Current().raw_codebook();
  codebook.copy_(latents.index_select(0, chosen));
  sums_ = codebook.clone();
}

double TokenizerStage::LearningRate(std::int64_t step) const {
  const double progress = static_cast<double>(step) / static_cast<double>(steps());
  return config_.tokenizer.learning_rate * std::min(1.0, 2.0 * (1.0 - progress)) + kFinalRate;
}

TokenizerStage::Batch TokenizerStage::DrawBatch(int shard, std::int64_t step) const {
  const std::int64_t rows = config_.tokenizer.batch / config_.shards;
  at::Tensor indices = at::empty({rows}, at::kLong);
  at::Tensor noise = at::empty({rows, 49, settings().channels}, at::kFloat);
  const std::size_t noise_row = static_cast<std::size_t>(49 * settings().channels);
  for (std::int64_t i = 0; i < rows; ++i) {
    RngKey key{config_.seed, kPhase, RngUse::kDataOrder, static_cast<std::uint64_t>(step),
               static_cast<std::uint64_t>(shard * rows + i)};
    indices.data_ptr<std::int64_t>()[i] =
        static_cast<std::int64_t>(UniformInt(key, static_cast<std::uint64_t>(train_.count())));
    key.use = RngUse::kInputNoise;
    FillNormal(key, {noise.data_ptr<float>() + static_cast<std::size_t>(i) * noise_row, noise_row});
  }
  return {train_.images.index_select(0, indices), noise};
}

double TokenizerStage::ShardStep(int shard, std::int64_t step) {
  const std::size_t slot = static_cast<std::size_t>(shard);
  const auto [images, noise] = DrawBatch(shard, step);
  const at::Tensor latents = model(shard).EncodeLatents(images);
  at::Tensor codes, input_noise;
  {
    const at::NoGradGuard no_grad;
    const at::Tensor codebook = params_.master()["codebook"];
    latents_[slot] = latents.detach().view({-1, settings().channels});
    choices_[slot] = SmallTokenizer::Nearest(latents_[slot], codebook);
    codes = codebook.index_select(0, choices_[slot]).view_as(latents);
    input_noise = noise * (codes.std() * settings().decoder_noise);
  }
  const at::Tensor commitment = (latents - codes).square().mean();
  // Straight-through: forward sees the code, backward the latent.
  const at::Tensor decoder_input = latents + ((codes - latents).detach() + input_noise);
  const at::Tensor error = (model(shard).DecodeLatents(decoder_input) - images).square().mean();
  (error + commitment * settings().commitment).backward();
  return error.item<double>();
}

void TokenizerStage::CountUses(const at::Tensor& choices) {
  const double decay = settings().codebook_decay;
  const at::Tensor uses = at::bincount(choices, {}, settings().codes).to(at::kFloat);
  counts_.mul_(decay).add_(uses, 1.0 - decay);
}

std::vector<std::int64_t> TokenizerStage::DeadCodes() const {
  const float limit = static_cast<float>(settings().dead_code_ratio) * counts_.mean().item<float>();
  std::vector<std::int64_t> dead;
  for (std::int64_t j = 0; j < settings().codes; ++j) {
    if (counts_.const_data_ptr<float>()[j] < limit) dead.push_back(j);
  }
  return dead;
}

at::Tensor TokenizerStage::Restart(std::int64_t step, std::int64_t j,
                                   const at::Tensor& latents) const {
  const RngKey key{config_.seed, kPhase, RngUse::kCodebookRestart, static_cast<std::uint64_t>(step),
                   static_cast<std::uint64_t>(j)};
  const std::uint64_t row = UniformInt(key, static_cast<std::uint64_t>(latents.size(0)));
  return latents.select(0, static_cast<std::int64_t>(row));
}

void TokenizerStage::EndStep(std::int64_t step) {
  const at::NoGradGuard no_grad;
  const at::Tensor latents = at::cat(latents_);
  const at::Tensor choices = at::cat(choices_);
  const double decay = settings().codebook_decay;
  const at::Tensor sums = at::zeros_like(sums_).index_add_(0, choices, latents);
  CountUses(choices);
  sums_.mul_(decay).add_(sums, 1.0 - decay);
  const float mean = counts_.mean().item<float>();
  for (const std::int64_t j : DeadCodes()) {
    counts_.data_ptr<float>()[j] = mean;
    sums_.select(0, j).copy_(Restart(step, j, latents) * mean);
  }
  params_.master()["codebook"].copy_(sums_ / counts_.unsqueeze(1));
}

std::vector<std::pair<std::string, at::Tensor>> TokenizerStage::ExtraState() {
  return {{"codebook_counts", counts_}, {"codebook_sums", sums_}};
}

SmallTokenizer TokenizerStage::Current() const {
  return SmallTokenizer(SpecOf(config_.tokenizer), params_.master());
}

SmallTokenizer TokenizerStage::Finish(const at::Tensor& ids) const {
  const at::NoGradGuard no_grad;
  const ParamBuffer& params = params_.master();
  const std::int64_t codes = config_.tokenizer.codes;
  const at::Tensor share =
      (at::bincount(ids.flatten(), {}, codes).to(at::kDouble) / static_cast<double>(ids.numel()))
          .unsqueeze(1);
  const at::Tensor codebook = Current().raw_codebook().to(at::kDouble);
  const at::Tensor mean = (codebook * share).sum(0);
  params["mean"].copy_(mean);
  params["std"].copy_(((codebook - mean).square() * share).sum(0).sqrt());
  return Current();
}

std::unique_ptr<TokenizerStage> MakeTokenizerStage(const TeacherTrainConfig& config,
                                                   const LabelledImages& train) {
  std::unique_ptr<TokenizerStage> stage;
  if (config.tokenizer.scales.empty()) {
    stage = std::make_unique<TokenizerStage>(config, train);
  } else {
    stage = std::make_unique<ScalesStage>(config, train);
  }
  stage->InitCodebook();
  return stage;
}

}  // namespace dd2
