#include "worker/engine/teacher_stage.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <exception>
#include <map>
#include <mutex>
#include <thread>

#include "common/check.h"
#include "common/file.h"
#include "storage/safetensors.h"
#include "worker/engine/flat_adam.h"
#include "worker/kernels/torch_device.h"

namespace dd2 {

struct ShardPool::Impl {
  explicit Impl(int thread_count)
      : threads(thread_count), start(thread_count), done(thread_count) {}

  void RunShardsOf(int thread) {
    try {
      for (int shard = thread; shard < shards; shard += threads) (*work)(shard);
    } catch (...) {
      const std::lock_guard lock(mutex);
      problem = std::current_exception();
    }
  }

  const int threads;
  std::barrier<> start, done;
  // Written by the caller in front of `start`, read by the threads behind it.
  const std::function<void(int)>* work = nullptr;
  int shards = 0;
  bool stopping = false;
  std::mutex mutex;
  std::exception_ptr problem;  // guarded by mutex
  std::vector<std::thread> helpers;
};

ShardPool::ShardPool(int threads) : impl_(std::make_unique<Impl>(std::max(threads, 1))) {
  at::set_num_threads(1);
  for (int i = 1; i < impl_->threads; ++i) {
    impl_->helpers.emplace_back([impl = impl_.get(), i] {
      at::set_num_threads(1);
      while (true) {
        impl->start.arrive_and_wait();
        if (impl->stopping) return;
        impl->RunShardsOf(i);
        impl->done.arrive_and_wait();
      }
    });
  }
}

ShardPool::~ShardPool() {
  impl_->stopping = true;
  impl_->start.arrive_and_wait();
  for (std::thread& helper : impl_->helpers) helper.join();
}

void ShardPool::Run(int shards, const std::function<void(int)>& work) {
  impl_->work = &work;
  impl_->shards = shards;
  impl_->problem = nullptr;
  impl_->start.arrive_and_wait();
  impl_->RunShardsOf(0);
  impl_->done.arrive_and_wait();
  if (impl_->problem) std::rethrow_exception(impl_->problem);
}

ShardedParams::ShardedParams(const ParamLayout& layout, int shards)
    : master_(layout, /*requires_grad=*/false) {
  for (int i = 0; i < shards; ++i) {
    shards_.push_back(master_.Alias(/*requires_grad=*/true));
    gradients_.push_back(at::zeros({layout.size()}, OnDevice()));
    shards_.back().BindGradient(gradients_.back());
  }
}

namespace {

using Seconds = std::chrono::duration<double>;

// The resumable state of a stage as one safetensors file.
class StageFile {
 public:
  StageFile(const StageRun& run, TrainingStage& stage, const FlatAdam& adam) : run_(run) {
    tensors_.emplace_back("params", stage.params().master().flat());
    tensors_.emplace_back("adam_m", adam.m());
    tensors_.emplace_back("adam_v", adam.v());
    for (auto& extra : stage.ExtraState()) tensors_.push_back(std::move(extra));
  }

  Status Save(std::int64_t steps_done) const {
    std::vector<at::Tensor> host;
    std::vector<TensorToWrite> writes;
    for (const auto& [name, tensor] : tensors_) {
      host.push_back(tensor.cpu());
      const std::size_t numel = static_cast<std::size_t>(tensor.numel());
      writes.push_back({name, tensor.sizes().vec(), {host.back().data_ptr<float>(), numel}});
    }
    FileSystem& files = RealFileSystem();
    std::filesystem::path temporary = run_.state_file;
    temporary += ".tmp";
    const std::map<std::string, std::string> metadata = {
        {"settings", run_.settings}, {"steps_done", std::to_string(steps_done)}};
    auto written = WriteSafetensors(files, temporary, writes, metadata);
    if (!written) return written.error();
    DD2_TRY(files.Rename(temporary, run_.state_file));
    return files.SyncDirectory(run_.state_file.parent_path());
  }

  // Steps done so far; 0 when there is no state.
  Result<std::int64_t> Load() const {
    auto file = SafetensorsFile::Open(run_.state_file);
    if (!file && file.error().code() == Code::kNotFound) return std::int64_t{0};
    if (!file) return file.error().Wrap("remove it to train from the start");
    const auto settings = file->metadata().find("settings");
    const auto steps = file->metadata().find("steps_done");
    if (settings == file->metadata().end() || steps == file->metadata().end() ||
        settings->second != run_.settings) {
      return Error(Code::kFailedPrecondition,
                   "'" + run_.state_file.string() +
                       "' was made with other settings: restore them to go on, or remove the "
                       "folder to train from the start");
    }
    for (const auto& [name, tensor] : tensors_) {
      DD2_TRY_ASSIGN(std::vector<float> values, file->ReadF32(name, tensor.sizes().vec()));
      tensor.copy_(at::from_blob(values.data(), tensor.sizes(), at::kFloat));
    }
    return static_cast<std::int64_t>(std::stoll(steps->second));
  }

 private:
  const StageRun& run_;
  std::vector<std::pair<std::string, at::Tensor>> tensors_;
};

std::string ProgressLine(const TrainingStage& stage, std::int64_t done, std::int64_t first,
                         double loss, double seconds) {
  const double per_step = seconds / static_cast<double>(done - first);
  const double left = per_step * static_cast<double>(stage.steps() - done);
  char line[160];
  std::snprintf(
      line, sizeof line, "%.*s  step %lld/%lld  loss %.4f  %.0f images/s  %.0f min %02.0f s left",
      static_cast<int>(stage.name().size()), stage.name().data(), static_cast<long long>(done),
      static_cast<long long>(stage.steps()), loss, static_cast<double>(stage.batch()) / per_step,
      std::floor(left / 60), std::fmod(left, 60));
  return line;
}

}  // namespace

Status RunStage(TrainingStage& stage, const StageRun& run, ShardPool& pool,
                const ReportLine& report) {
  const ShardedParams& params = stage.params();
  FlatAdam adam(params, stage.adam());
  const StageFile file(run, stage, adam);
  DD2_TRY_ASSIGN(const std::int64_t first, file.Load());
  if (first > 0) {
    report(std::string(stage.name()) + "  resumed after step " + std::to_string(first));
  }
  const auto begin = std::chrono::steady_clock::now();
  std::vector<double> losses(static_cast<std::size_t>(params.shards()));
  double running = 0;
  for (std::int64_t step = first; step < stage.steps(); ++step) {
    stage.BeginStep(step);
    pool.Run(params.shards(), [&](int shard) {
      params.gradient(shard).zero_();
      losses[static_cast<std::size_t>(shard)] = stage.ShardStep(shard, step);
    });
    adam.Step(step, stage.LearningRate(step));
    stage.EndStep(step);
    double loss = 0;
    for (const double part : losses) loss += part / static_cast<double>(losses.size());
    if (!std::isfinite(loss)) {
      return Error(Code::kInternal, std::string(stage.name()) +
                                        ": the loss is not finite at step " + std::to_string(step) +
                                        "; lower the learning rate");
    }
    running = step == first ? loss : 0.98 * running + 0.02 * loss;
    const std::int64_t done = step + 1;
    if (done % run.report_every == 0 || done == stage.steps()) {
      const Seconds spent = std::chrono::steady_clock::now() - begin;
      report(ProgressLine(stage, done, first, running, spent.count()));
    }
    if (done % run.save_every == 0 || done == stage.steps()) DD2_TRY(file.Save(done));
  }
  return {};
}

}  // namespace dd2
