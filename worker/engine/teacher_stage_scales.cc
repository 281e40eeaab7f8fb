// The multi-scale residual tokenizer's training (teacher_stages.h; recipe 7).

#include <algorithm>

#include "common/rng.h"
#include "worker/engine/teacher_stages.h"
#include "worker/models/vqgan.h"

namespace dd2 {
namespace {

constexpr std::uint32_t kPhase = static_cast<std::uint32_t>(StagePhase::kTokenizer);
constexpr float kFirstDeviation = 0.3F;          // of the first codebook
constexpr std::uint64_t kInitSample = 1u << 21;  // random position of that drawing
constexpr std::int64_t kRestartEvery = 50;       // steps
constexpr double kRestartShare = 0.8;            // of the steps: then the codes may settle

}  // namespace

void ScalesStage::InitCodebook() {
  // Codes serve all scales, of which only the first sees the latents themselves.
  const at::Tensor codebook = Current().raw_codebook();
  const RngKey key{config_.seed, kPhase, RngUse::kCodebookRestart, 0, kInitSample};
  FillNormal(key, {codebook.data_ptr<float>(), static_cast<std::size_t>(codebook.numel())});
  codebook.mul_(kFirstDeviation);
}

double ScalesStage::ShardStep(int shard, std::int64_t step) {
  const auto slot = static_cast<std::size_t>(shard);
  const auto [images, noise] = DrawBatch(shard, step);
  const SmallTokenizer& tokenizer = model(shard);
  const VarQuantizer& quantizer = tokenizer.path()->quantizer();
  const VarScales& scales = quantizer.scales();
  const at::Tensor codebook = tokenizer.raw_codebook();
  const at::Tensor latents =
      RowsToMap(tokenizer.EncodeLatents(images), SmallTokenizer::kSide, SmallTokenizer::kSide);
  at::Tensor rest = latents.detach(), sum = at::zeros_like(rest), distance;
  std::vector<at::Tensor> rows, choices;
  for (std::int64_t k = 0; k < scales.count(); ++k) {
    const std::int64_t side = scales.sides[static_cast<std::size_t>(k)];
    const at::Tensor map = at::adaptive_avg_pool2d(rest, {side, side});
    rows.push_back(map.permute({0, 2, 3, 1}).reshape({-1, settings().channels}));
    choices.push_back(SmallTokenizer::Nearest(rows.back(), codebook.detach()));
    const at::Tensor codes = codebook.index_select(0, choices.back())
                                 .view({images.size(0), side * side, settings().channels});
    const at::Tensor added = quantizer.Contribution(codes, k);
    sum = sum + added;
    rest = rest - added.detach();
    const at::Tensor here = (sum - latents.detach()).square().mean() +
                            (sum.detach() - latents).square().mean() * settings().commitment;
    distance = k == 0 ? here : distance + here;
  }
  latents_[slot] = at::cat(rows);
  choices_[slot] = at::cat(choices);
  // Straight-through: forward sees the sum, backward the latents.
  const at::Tensor through = latents + (sum - latents).detach();
  const at::Tensor input_noise = noise * (sum.detach().std() * settings().decoder_noise);
  const at::Tensor error =
      (tokenizer.DecodeLatents(MapToRows(through).contiguous() + input_noise) - images)
          .square()
          .mean();
  (error + distance / static_cast<double>(scales.count())).backward();
  return error.item<double>();
}

void ScalesStage::EndStep(std::int64_t step) {
  const at::NoGradGuard no_grad;
  CountUses(at::cat(choices_));
  if ((step + 1) % kRestartEvery != 0) return;
  if (static_cast<double>(step) >= kRestartShare * static_cast<double>(steps())) return;
  const at::Tensor latents = at::cat(latents_);
  const at::Tensor codebook = Current().raw_codebook();
  const float mean = counts_.mean().item<float>();
  for (const std::int64_t j : DeadCodes()) {
    counts_.data_ptr<float>()[j] = mean;
    codebook.select(0, j).copy_(Restart(step, j, latents));
  }
}

std::vector<std::pair<std::string, at::Tensor>> ScalesStage::ExtraState() {
  return {{"codebook_counts", counts_}};
}

}  // namespace dd2
