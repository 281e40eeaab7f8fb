#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/result.h"
#include "worker/models/param_buffer.h"
#include "worker/torch.h"

namespace dd2 {

// The training loop of `dd2 teacher train` and `dd2 teacher adapt`: data-parallel over threads of
// one process, with bits that depend on the number of virtual shards but not on the number of
// threads, resumable from states written every so many steps. Networks lie on ComputeDevice(); a
// GPU wants a pool of one thread.

// One line about progress, without a line end.
using ReportLine = std::function<void(std::string_view)>;

// Fixed threads that run the shards of a step. Each computes with one ATen thread, so a shard's
// bits do not depend on where it runs. Shard i runs on thread i % threads; the caller is thread 0.
class ShardPool {
 public:
  explicit ShardPool(int threads);
  ~ShardPool();
  ShardPool(const ShardPool&) = delete;
  ShardPool& operator=(const ShardPool&) = delete;
  // Calls work(0) ... work(shards - 1) and returns when all have. What work throws is rethrown.
  void Run(int shards, const std::function<void(int)>& work);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Parameters shared by all shards, with leaves and a gradient buffer for each.
class ShardedParams {
 public:
  ShardedParams(const ParamLayout& layout, int shards);
  const ParamBuffer& master() const { return master_; }  // requires no gradient
  const ParamBuffer& shard(int i) const { return shards_[static_cast<std::size_t>(i)]; }
  at::Tensor gradient(int i) const { return gradients_[static_cast<std::size_t>(i)]; }
  int shards() const { return static_cast<int>(shards_.size()); }

 private:
  ParamBuffer master_;
  std::vector<ParamBuffer> shards_;
  std::vector<at::Tensor> gradients_;
};

// Adam with decoupled weight decay on matrices, as in PyTorch's AdamW.
struct AdamSettings {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0;  // on parameters with more than one dimension
  double clip_norm = 0;     // 0: none
};

// What is trained. Not thread-safe except where said.
class TrainingStage {
 public:
  virtual ~TrainingStage() = default;
  virtual std::string_view name() const = 0;  // "tokenizer": in progress lines and file names
  virtual std::int64_t steps() const = 0;
  virtual std::int64_t batch() const = 0;
  virtual double LearningRate(std::int64_t step) const = 0;
  virtual AdamSettings adam() const = 0;
  virtual ShardedParams& params() = 0;
  // Called once per step before any shard, on the calling thread.
  virtual void BeginStep(std::int64_t /*step*/) {}
  // Loss of one shard, a mean over its images, whose gradient is left in params().gradient(shard).
  // Called from several threads at once, for different shards.
  virtual double ShardStep(int shard, std::int64_t step) = 0;
  // After the optimiser's step.
  virtual void EndStep(std::int64_t /*step*/) {}
  // What must survive a restart besides parameters and optimiser: contiguous fp32, updated in
  // place.
  virtual std::vector<std::pair<std::string, at::Tensor>> ExtraState() { return {}; }
};

struct StageRun {
  std::filesystem::path state_file;  // written atomically every `save_every` steps, and at the end
  std::string settings;              // what determines the bits; a state of others is refused
  int save_every = 200;
  int report_every = 50;
};

// Trains `stage` from its initial values, or from run.state_file when that exists. Afterwards
// params().master() holds the trained values. kFailedPrecondition: the state file was made with
// other settings. Never leaves a half-written state.
Status RunStage(TrainingStage& stage, const StageRun& run, ShardPool& pool,
                const ReportLine& report);

}  // namespace dd2
