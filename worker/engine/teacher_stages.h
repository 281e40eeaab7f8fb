#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "common/teacher_config.h"
#include "worker/engine/dataset.h"
#include "worker/engine/teacher_stage.h"
#include "worker/models/teacher.h"

namespace dd2 {

// The stages of `dd2 teacher train` (settings and schedules: common/teacher_config.h). They
// keep references to `config` and `train`, which must outlive them. All randomness is positional:
// RngKey with the run's seed and the stage's number below as phase.
// kAdapt is that of `dd2 teacher adapt` (teacher_adapt.h).
enum class StagePhase : std::uint32_t { kClassifier = 1, kTokenizer = 2, kTeacher = 3, kAdapt = 4 };

// Batch norm uses the statistics of each shard; Finish() folds it, with the statistics of the first
// 10,000 training images, into an inference-only Classifier.
class ClassifierStage : public TrainingStage {
 public:
  ClassifierStage(const TeacherTrainConfig& config, const LabelledImages& train);
  std::string_view name() const override { return "classifier"; }
  std::int64_t steps() const override;
  std::int64_t batch() const override { return config_.classifier.batch; }
  double LearningRate(std::int64_t step) const override;
  AdamSettings adam() const override { return {}; }
  ShardedParams& params() override { return params_; }
  void BeginStep(std::int64_t step) override;
  double ShardStep(int shard, std::int64_t step) override;
  Classifier Finish() const;

 private:
  std::int64_t StepsPerEpoch() const;

  const TeacherTrainConfig& config_;
  const LabelledImages& train_;
  ShardedParams params_;
  std::vector<std::int64_t> order_;  // images of the current epoch
  std::int64_t order_epoch_ = -1;
};

// Straight-through gradient; restarts of dead codes. In raster order an EMA codebook.
class TokenizerStage : public TrainingStage {
 public:
  // Call InitCodebook before the first step.
  TokenizerStage(const TeacherTrainConfig& config, const LabelledImages& train);
  virtual void InitCodebook();
  std::string_view name() const override { return "tokenizer"; }
  std::int64_t steps() const override { return config_.tokenizer.steps; }
  std::int64_t batch() const override { return config_.tokenizer.batch; }
  double LearningRate(std::int64_t step) const override;
  AdamSettings adam() const override { return {}; }
  ShardedParams& params() override { return params_; }
  double ShardStep(int shard, std::int64_t step) override;
  void EndStep(std::int64_t step) override;
  std::vector<std::pair<std::string, at::Tensor>> ExtraState() override;
  // Sets mean and deviation of the codes that the training images use. `ids` [N, n].
  SmallTokenizer Finish(const at::Tensor& ids) const;
  SmallTokenizer Current() const;

 protected:
  struct Batch {
    at::Tensor images;  // [rows, 1, 28, 28]
    at::Tensor noise;   // [rows, 49, C] for the decoder's input, of unit variance
  };
  Batch DrawBatch(int shard, std::int64_t step) const;
  const TokenizerTraining& settings() const { return config_.tokenizer; }
  const SmallTokenizer& model(int shard) const { return models_[static_cast<std::size_t>(shard)]; }
  // Codes used less than they should be start again at latents of this step; returns which.
  std::vector<std::int64_t> DeadCodes() const;
  // A latent of this step for code j, at random.
  at::Tensor Restart(std::int64_t step, std::int64_t j, const at::Tensor& latents) const;
  // EMA of the counts by this step's choices [rows].
  void CountUses(const at::Tensor& choices);

  const TeacherTrainConfig& config_;
  const LabelledImages& train_;
  ShardedParams params_;
  std::vector<SmallTokenizer> models_;  // one per shard
  at::Tensor counts_;                   // [V] EMA of uses per batch
  at::Tensor sums_;                     // [V, C] EMA of the latents that chose a code
  std::vector<at::Tensor> latents_;     // per shard, of the current step: [rows, C]
  std::vector<at::Tensor> choices_;     // [rows]
};

// Multi-scale residual codes (models.md 1.2): the mean over the scales of the distance between the
// sum so far and the latent, both ways, trains codebook and phi.
class ScalesStage : public TokenizerStage {
 public:
  using TokenizerStage::TokenizerStage;
  void InitCodebook() override;
  double ShardStep(int shard, std::int64_t step) override;
  void EndStep(std::int64_t step) override;
  std::vector<std::pair<std::string, at::Tensor>> ExtraState() override;
};

// The one that the settings ask for, with its first codebook.
std::unique_ptr<TokenizerStage> MakeTokenizerStage(const TeacherTrainConfig& config,
                                                   const LabelledImages& train);

// Teacher-forced cross-entropy on noisy codes with dropped labels.
class PriorStage : public TrainingStage {
 public:
  // ids [N, n]: tokens of the training images.
  PriorStage(const TeacherTrainConfig& config, const at::Tensor& ids, const at::Tensor& labels,
             const Tokenizer& tokenizer);
  std::string_view name() const override { return "teacher"; }
  std::int64_t steps() const override { return config_.teacher.steps; }
  std::int64_t batch() const override { return config_.teacher.batch; }
  double LearningRate(std::int64_t step) const override;
  AdamSettings adam() const override;
  ShardedParams& params() override { return params_; }
  double ShardStep(int shard, std::int64_t step) override;
  Teacher Finish() const;

 private:
  const TeacherTrainConfig& config_;
  const at::Tensor ids_, labels_, codebook_;
  const BackboneSpec spec_;
  ShardedParams params_;
  std::vector<Teacher> models_;
};

// Mean nats per token of an unguided teacher-forced pass.
double TeacherNats(const Teacher& teacher, const at::Tensor& codebook, const at::Tensor& ids,
                   const at::Tensor& labels, ShardPool& pool);
// Tokens of images, in blocks on the pool: [N, 1, 28, 28] -> [N, n].
at::Tensor EncodeAll(const Tokenizer& tokenizer, const at::Tensor& images, ShardPool& pool);

}  // namespace dd2
