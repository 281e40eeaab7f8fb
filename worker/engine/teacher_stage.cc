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
    gradients_.push_back(at::zeros({layout.size()}, at::kFloat));
    shards_.back().BindGradient(gradients_.back());
  }
}

namespace {

using Seconds = std::chrono::duration<double>;

// The optimiser over the flat buffer of a stage.
class FlatAdam {
 public:
  FlatAdam(ShardedParams& params, const AdamSettings& settings)
      : params_(params),
        settings_(settings),
        m_(at::zeros_like(params.master().flat())),
        v_(at::zeros_like(params.master().flat())),
        gradient_(at::zeros_like(params.master().flat())) {}

  const at::Tensor& m() const { return m_; }
  const at::Tensor& v() const { return v_; }

  // `step` counts from 0.
  void Step(std::int64_t step, double learning_rate) {
    SumGradients();
    const double scale = ClipScale();
    const double correction1 = 1.0 - std::pow(settings_.beta1, static_cast<double>(step + 1));
    const double correction2 = 1.0 - std::pow(settings_.beta2, static_cast<double>(step + 1));
    float* parameter = params_.master().flat().data_ptr<float>();
    float* m = m_.data_ptr<float>();
    float* v = v_.data_ptr<float>();
    const float* gradient = gradient_.data_ptr<float>();
    const float b1 = static_cast<float>(settings_.beta1),
                c1 = static_cast<float>(1 - settings_.beta1);
    const float b2 = static_cast<float>(settings_.beta2),
                c2 = static_cast<float>(1 - settings_.beta2);
    const float rate = static_cast<float>(learning_rate / correction1);
    const float root = static_cast<float>(1.0 / std::sqrt(correction2));
    const float epsilon = static_cast<float>(settings_.epsilon);
    const float factor = static_cast<float>(scale);
    for (const ParamSpec& spec : params_.master().layout().specs()) {
      const bool decays = spec.shape.size() > 1;
      const float keep =
          static_cast<float>(decays ? 1.0 - learning_rate * settings_.weight_decay : 1.0);
      for (std::int64_t i = spec.offset; i < spec.offset + spec.numel; ++i) {
        const float g = gradient[i] * factor;
        m[i] = b1 * m[i] + c1 * g;
        v[i] = b2 * v[i] + c2 * g * g;
        parameter[i] = keep * parameter[i] - rate * m[i] / (std::sqrt(v[i]) * root + epsilon);
      }
    }
  }

 private:
  // Mean over the shards, always added in the order of the shards.
  void SumGradients() {
    float* sum = gradient_.data_ptr<float>();
    const std::int64_t n = params_.master().layout().size();
    const float share = 1.0F / static_cast<float>(params_.shards());
    std::fill(sum, sum + n, 0.0F);
    for (int shard = 0; shard < params_.shards(); ++shard) {
      const float* part = params_.gradient(shard).data_ptr<float>();
      for (std::int64_t i = 0; i < n; ++i) sum[i] += part[i];
    }
    for (std::int64_t i = 0; i < n; ++i) sum[i] *= share;
  }

  double ClipScale() const {
    if (settings_.clip_norm <= 0) return 1.0;
    double squares = 0;
    const float* gradient = gradient_.data_ptr<float>();
    for (std::int64_t i = 0; i < gradient_.numel(); ++i) {
      squares += static_cast<double>(gradient[i]) * static_cast<double>(gradient[i]);
    }
    return std::min(1.0, settings_.clip_norm / (std::sqrt(squares) + 1e-6));
  }

  ShardedParams& params_;
  const AdamSettings settings_;
  at::Tensor m_, v_, gradient_;
};

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
    std::vector<TensorToWrite> writes;
    for (const auto& [name, tensor] : tensors_) {
      const std::size_t numel = static_cast<std::size_t>(tensor.numel());
      writes.push_back({name, tensor.sizes().vec(), {tensor.data_ptr<float>(), numel}});
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
      DD2_TRY_ASSIGN(const std::vector<float> values, file->ReadF32(name, tensor.sizes().vec()));
      std::copy(values.begin(), values.end(), tensor.data_ptr<float>());
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
  ShardedParams& params = stage.params();
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
