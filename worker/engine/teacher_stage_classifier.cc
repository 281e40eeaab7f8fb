#include <numeric>

#include "common/check.h"
#include "common/rng.h"
#include "worker/engine/teacher_stages.h"

namespace dd2 {
namespace {

constexpr std::uint32_t kPhase = static_cast<std::uint32_t>(StagePhase::kClassifier);
constexpr double kNormEpsilon = 1e-5;
constexpr double kFinalRate = 1e-5;
constexpr std::int64_t kStatisticsImages = 10000;
constexpr std::int64_t kStatisticsBlock = 500;

// Classifier::Layout with batch norm in place of the convolutions' biases.
ParamLayout TrainingLayout() {
  const ParamLayout inference = Classifier::Layout();
  ParamLayout layout;
  for (const ParamSpec& spec : inference.specs()) {
    if (spec.name.starts_with("conv") && spec.name.ends_with(".bias")) {
      const std::string norm = "norm" + spec.name.substr(4, 1);
      layout.Add(norm + ".weight", spec.shape);
      layout.Add(norm + ".bias", spec.shape);
    } else {
      layout.Add(spec.name, spec.shape);
    }
  }
  return layout;
}

at::Tensor ConvNormPool(const ParamBuffer& params, const std::string& index, const at::Tensor& x) {
  const at::Tensor h = at::conv2d(x, params["conv" + index + ".weight"], {}, 1, 1);
  const at::Tensor normed =
      at::batch_norm(h, params["norm" + index + ".weight"], params["norm" + index + ".bias"], {},
                     {}, /*training=*/true, 0.0, kNormEpsilon, /*cudnn_enabled=*/false);
  return at::max_pool2d(at::relu(normed), 2);
}

// Mean and variance per channel of the outputs [B, channels, h, w] of many blocks.
struct ChannelStatistics {
  at::Tensor sum, squares;  // double
  double count = 0;

  void Add(const at::Tensor& block) {
    const at::Tensor mean = block.mean({0, 2, 3}).to(at::kDouble);
    const at::Tensor square = block.square().mean({0, 2, 3}).to(at::kDouble);
    sum = sum.defined() ? sum + mean : mean;
    squares = squares.defined() ? squares + square : square;
    count += 1;
  }
  at::Tensor Mean() const { return sum / count; }
  at::Tensor Variance() const { return squares / count - Mean().square(); }
};

// Writes convolution `index` of the inference form: w' = w g / sd, b' = beta - mean g / sd.
void Fold(const ParamBuffer& trained, const ParamBuffer& folded, const std::string& index,
          const ChannelStatistics& statistics) {
  const at::Tensor gain = trained["norm" + index + ".weight"].to(at::kDouble) /
                          (statistics.Variance() + kNormEpsilon).sqrt();
  const at::Tensor weight = trained["conv" + index + ".weight"];
  folded["conv" + index + ".weight"].copy_(weight * gain.view({-1, 1, 1, 1}));
  folded["conv" + index + ".bias"].copy_(trained["norm" + index + ".bias"] -
                                         statistics.Mean() * gain);
}

}  // namespace

ClassifierStage::ClassifierStage(const TeacherTrainConfig& config, const LabelledImages& train)
    : config_(config), train_(train), params_(TrainingLayout(), config.shards) {
  InitUniformFanIn(params_.master(), "", config.seed, kPhase);
}

std::int64_t ClassifierStage::StepsPerEpoch() const { return train_.count() / batch(); }

std::int64_t ClassifierStage::steps() const { return config_.classifier.epochs * StepsPerEpoch(); }

double ClassifierStage::LearningRate(std::int64_t step) const {
  const double progress = static_cast<double>(step) / static_cast<double>(steps());
  return config_.classifier.learning_rate * (1.0 - progress) + kFinalRate;
}

void ClassifierStage::BeginStep(std::int64_t step) {
  const std::int64_t epoch = step / StepsPerEpoch();
  if (epoch == order_epoch_) return;
  order_.resize(static_cast<std::size_t>(train_.count()));
  std::iota(order_.begin(), order_.end(), std::int64_t{0});
  RngKey key{config_.seed, kPhase, RngUse::kDataOrder, static_cast<std::uint64_t>(epoch), 0};
  for (std::size_t i = order_.size() - 1; i > 0; --i) {
    key.sample = i;
    std::swap(order_[i], order_[UniformInt(key, i + 1)]);
  }
  order_epoch_ = epoch;
}

double ClassifierStage::ShardStep(int shard, std::int64_t step) {
  const std::int64_t rows = batch() / config_.shards;
  const std::int64_t first = step % StepsPerEpoch() * batch() + shard * rows;
  const at::Tensor indices = at::from_blob(order_.data() + first, {rows}, at::kLong);
  at::Tensor images = train_.images.index_select(0, indices);
  const double keep = 1.0 - config_.classifier.dropout;
  at::Tensor mask = at::empty({rows, 64}, at::kFloat);
  for (std::int64_t i = 0; i < rows; ++i) {
    RngKey key{config_.seed, kPhase, RngUse::kAugment, static_cast<std::uint64_t>(step),
               static_cast<std::uint64_t>(shard * rows + i)};
    if (UniformInt(key, 2) == 1) images.select(0, i).copy_(images.select(0, i).flip(-1));
    key.use = RngUse::kDropout;
    FillUniform(key, {mask.data_ptr<float>() + i * 64, 64});
  }
  const ParamBuffer& params = params_.shard(shard);
  const at::Tensor h = ConvNormPool(params, "2", ConvNormPool(params, "1", images)).flatten(1);
  const at::Tensor features = at::relu(at::linear(h, params["fc1.weight"], params["fc1.bias"]));
  const at::Tensor dropped = features * ((mask < keep).to(at::kFloat) / keep);
  const at::Tensor logits = at::linear(dropped, params["fc2.weight"], params["fc2.bias"]);
  const at::Tensor loss = at::cross_entropy_loss(logits, train_.labels.index_select(0, indices));
  loss.backward();
  return loss.item<double>();
}

Classifier ClassifierStage::Finish() const {
  const at::NoGradGuard no_grad;
  const ParamBuffer& trained = params_.master();
  const ParamBuffer folded(Classifier::Layout(), /*requires_grad=*/false);
  CopyParams(trained, folded, "fc");
  const std::int64_t count = std::min(kStatisticsImages, train_.count());
  for (const std::string index : {"1", "2"}) {
    ChannelStatistics statistics;
    for (std::int64_t begin = 0; begin + kStatisticsBlock <= count; begin += kStatisticsBlock) {
      at::Tensor x = train_.images.narrow(0, begin, kStatisticsBlock);
      if (index == "2") {
        x = at::conv2d(x, folded["conv1.weight"], folded["conv1.bias"], 1, 1);
        x = at::max_pool2d(at::relu(x), 2);
      }
      statistics.Add(at::conv2d(x, trained["conv" + index + ".weight"], {}, 1, 1));
    }
    DD2_CHECK_MSG(statistics.count > 0, "fewer than 500 training images");
    Fold(trained, folded, index, statistics);
  }
  return Classifier(folded);
}

}  // namespace dd2
