// Networks, losses and teachers on a device whose memory the host cannot touch, against the CPU:
// every case computes the same thing twice in one process, before and after it takes the device.

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <numeric>

#include "storage/npz.h"
#include "tests/support/tiny_teacher.h"
#include "tests/unit/storage_testing.h"
#include "worker/distill/flow.h"
#include "worker/distill/losses.h"
#include "worker/engine/adm_cache.h"
#include "worker/engine/adm_evaluation.h"
#include "worker/engine/evaluator.h"
#include "worker/engine/flat_adam.h"
#include "worker/engine/image_set.h"
#include "worker/engine/random_batch.h"
#include "worker/engine/teacher_data.h"
#include "worker/kernels/torch_device.h"
#include "worker/models/filters.h"
#include "worker/models/inception.h"

namespace dd2 {
namespace {

using Tensors = std::vector<std::pair<std::string, at::Tensor>>;

constexpr ShardRange kShard{.first = 4, .count = 3};

TeacherBundle MakeTeacher(BackboneKind kind) {
  if (kind == BackboneKind::kLlamaGen) return MakeTinyLlamaGen(4);
  return kind == BackboneKind::kVar ? MakeTinyTeacher(4, {1, 3, 7}) : MakeTinyTeacher(4);
}

RngKey KeyOf(RngUse use) { return {.seed = 5, .phase = 1, .use = use, .update = 2, .sample = 0}; }

// Takes the far device once `compute` was done on the CPU, and does it again.
void CompareWithCpu(const std::function<Tensors()>& compute, double tolerance) {
  // LibTorch counts the devices when it runs its first backward pass.
  const Result<Device> device = LoadDevice(DD2_FAR_DEVICE);
  ASSERT_TRUE(device) << device.error().message();
  ASSERT_EQ(ComputeDevice(), at::Device(at::kCPU));
  const Tensors cpu = compute();
  ASSERT_TRUE(UseTorchDevice(*device));
  ASSERT_NE(ComputeDevice(), at::Device(at::kCPU));
  const Tensors far = compute();
  ASSERT_EQ(far.size(), cpu.size());
  for (std::size_t i = 0; i < cpu.size(); ++i) {
    const at::Tensor a = cpu[i].second.to(at::kDouble), b = far[i].second.cpu().to(at::kDouble);
    ASSERT_EQ(a.sizes(), b.sizes()) << cpu[i].first;
    EXPECT_GT(a.abs().max().item<double>(), 0) << cpu[i].first << ": nothing is compared";
    EXPECT_TRUE(at::allclose(a, b, tolerance, tolerance))
        << cpu[i].first << ": differs by " << (a - b).abs().max().item<double>();
  }
}

// A network with a head that does something, and the flat buffer that collects its gradient.
struct Trained {
  explicit Trained(const TeacherBundle& teacher, PassMode mode = {}) {
    spec = TinyNetworkSpec(teacher);
    spec.backbone.mode = mode;
    params = ParamBuffer(Network::Layout(spec), /*requires_grad=*/true);
    {
      const at::NoGradGuard no_grad;
      InitUniformFanIn(params, "", 7, 0);
      CopyParams(teacher.teacher->params(), params, "backbone.");
    }
    gradient = at::zeros_like(params.flat());
    params.BindGradient(gradient);
  }
  Network network() const { return Network(spec, params); }

  NetworkSpec spec;
  ParamBuffer params;
  at::Tensor gradient;
};

class OfEveryKind : public testing::TestWithParam<BackboneKind> {};
INSTANTIATE_TEST_SUITE_P(FarDevice, OfEveryKind,
                         testing::Values(BackboneKind::kRaster, BackboneKind::kVar,
                                         BackboneKind::kLlamaGen),
                         [](const auto& kind) { return BackboneKindName(kind.param); });

struct Batch {
  explicit Batch(const TeacherBundle& teacher) {
    const BackboneSpec& spec = teacher.teacher->backbone().spec();
    labels = RandomLabels(KeyOf(RngUse::kLabel), kShard, spec.classes);
    q = RandomNoise(KeyOf(RngUse::kGeneratorNoise), kShard, spec.tokens, spec.channels);
    noise = RandomDraws(KeyOf(RngUse::kForwardNoise), kShard, 2, spec.tokens, spec.channels);
    t = RandomTimes(KeyOf(RngUse::kTime), kShard, 2, spec.tokens, 0.1, 0.9);
    const at::NoGradGuard no_grad;
    TeacherConfig config;
    config.top_p = 0.9;
    logp = FilterLogits(teacher.teacher->Logits(teacher.teacher->GuidedHidden(q, labels, 2.0)),
                        config);
  }
  at::Tensor labels, q, noise, t, logp;
};

TEST_P(OfEveryKind, LossesAndGradients) {
  const auto compute = [] {
    const TeacherBundle teacher = MakeTeacher(GetParam());
    const at::Tensor& codebook = teacher.tokenizer->codebook();
    const Batch batch(teacher);
    Tensors results;
    Trained trained(teacher);
    const at::Tensor gts = GtsLoss(trained.network(), batch.q, batch.labels, batch.logp, codebook,
                                   batch.t, batch.noise);
    gts.backward();
    results.emplace_back("gts", gts.detach());
    results.emplace_back("gradient of gts", trained.gradient.clone());
    trained.gradient.zero_();
    const at::Tensor fcs = FcsLoss(trained.network(), batch.q, batch.labels, batch.t, batch.noise);
    fcs.backward();
    results.emplace_back("fcs", fcs.detach());
    results.emplace_back("gradient of fcs", trained.gradient.clone());
    trained.params.SetRequiresGrad(false);
    const Network guidance = trained.network();
    Trained generator(teacher, {.activations = Activations::kRecompute});
    const at::Tensor q = generator.network().Generate(batch.q, batch.labels);
    const CsdLossResult csd = CsdLoss(guidance, q, guidance.Features(q.detach(), batch.labels),
                                      batch.logp, codebook, batch.t, batch.noise, 1.2);
    q.backward(csd.gradient);
    results.emplace_back("generator's codes", q.detach());
    results.emplace_back("gradient of csd", generator.gradient);
    results.emplace_back("mean difference", at::scalar_tensor(csd.mean_difference));
    return results;
  };
  CompareWithCpu(compute, 2e-4);
}

TEST_P(OfEveryKind, SequencesAndScoresOfTheTeacher) {
  const auto compute = [] {
    const TeacherBundle teacher = MakeTeacher(GetParam());
    Tensors results;
    for (const int ode_steps : {0, 3}) {
      TeacherDataSpec spec;
      spec.sampling.cfg_scale = 1.5;
      spec.sampling.top_k = 12;
      spec.sampling.top_p = 0.95;
      spec.seed = 3;
      spec.sequences = 8;
      spec.block = 4;
      spec.ode_steps = ode_steps;
      spec.use_cache = false;
      TeacherData data(spec, teacher, nullptr);
      EXPECT_TRUE(data.LoadSequences());
      std::vector<std::uint64_t> samples(8);
      std::iota(samples.begin(), samples.end(), std::uint64_t{0});
      const Result<TeacherData::Batch> batch = data.Load(samples);
      EXPECT_TRUE(batch);
      results.emplace_back("codes", batch->codes);
      results.emplace_back("labels", batch->labels + 1);
      results.emplace_back("probabilities", batch->logp.exp());
      results.emplace_back("noise", data.TrajectoryNoise(samples));
    }
    return results;
  };
  CompareWithCpu(compute, 1e-4);
}

TEST_P(OfEveryKind, ImagesAndTheirFeatures) {
  const auto compute = [] {
    const TeacherBundle teacher = MakeTeacher(GetParam());
    const NetworkSpec spec = TinyNetworkSpec(teacher);
    const Network network(spec, MakeTinyGenerator(spec, 9));
    const at::Tensor labels = StratifiedLabels(6, spec.backbone.classes);
    const at::Tensor images =
        GeneratorImages(network, *teacher.tokenizer, EvalNoise(1, 0, 6, spec.backbone), labels);
    const std::unique_ptr<Collectives> alone = NewLocalCollectives();
    const Result<ScoredImages> scored = ScoreImages(
        *teacher.classifier, 6,
        [&](std::int64_t begin, std::int64_t end) { return images.narrow(0, begin, end - begin); },
        *alone);
    return Tensors{{"images", images},
                   {"ids", teacher.tokenizer->Encode(images) + 1},
                   {"features", scored->features}};
  };
  CompareWithCpu(compute, 2e-4);
}

// Also at the ends of the interval, where the first and the last possible code are drawn.
TEST_P(OfEveryKind, DrawnTokens) {
  const auto compute = [] {
    const TeacherBundle teacher = MakeTeacher(GetParam());
    const BackboneSpec& spec = teacher.teacher->backbone().spec();
    at::manual_seed(3);
    const at::Tensor uniforms = at::rand({6, spec.tokens});
    uniforms.select(0, 0).zero_();
    uniforms.select(0, 1).fill_(1 - 0x1p-24);
    TeacherConfig config;
    config.cfg_scale = 2;
    config.top_p = 0.9;
    const at::Tensor labels = ToDevice(at::arange(6, at::kLong).remainder(spec.classes));
    const SampledBlock block =
        SampleTeacher(*teacher.teacher, teacher.tokenizer->codebook(), labels, uniforms, config);
    EXPECT_EQ(block.tokens.device(), ComputeDevice());
    return Tensors{{"tokens", block.tokens + 1}};
  };
  CompareWithCpu(compute, 0);
}

// Random numbers by position: the kernel's are the CPU's (kernel_checks.cc says how near on a GPU).
TEST(FarDevice, NoiseAndTimes) {
  const auto compute = [] {
    return Tensors{
        {"noise", RandomDraws(KeyOf(RngUse::kForwardNoise), {.first = 5, .count = 3}, 2, 7, 3)},
        {"times", RandomTimes(KeyOf(RngUse::kTime), {.first = 5, .count = 3}, 2, 7, 0.1, 0.9)}};
  };
  CompareWithCpu(compute, 0);
}

// The codes that a filter keeps must not depend on who adds the probabilities up.
TEST(FarDevice, FiltersOfManyCodes) {
  const auto compute = [] {
    at::manual_seed(3);
    const at::Tensor logits = ToDevice(at::randn({5, 1000}) * 3);
    Tensors results;
    for (const TopP convention : {TopP::kVar, TopP::kLlamaGen}) {
      TeacherConfig config;
      config.top_k = 600;
      config.top_p = 0.92;
      results.emplace_back("threshold", FilterThreshold(logits, config, convention));
    }
    return results;
  };
  CompareWithCpu(compute, 0);
}

// AdamW of a stage of training: the mean of the shards' gradients, cut, with decay on matrices.
TEST(FarDevice, StepsOfAStage) {
  const auto compute = [] {
    ParamLayout layout;
    layout.AddLinear("linear", 40, 70);
    ShardedParams params(layout, 3);
    at::manual_seed(3);
    params.master()["linear.weight"].copy_(at::randn({70, 40}));
    params.master()["linear.bias"].copy_(at::randn({70}));
    FlatAdam adam(params, {.beta1 = 0.9, .beta2 = 0.95, .weight_decay = 0.5, .clip_norm = 1});
    for (int step = 0; step < 5; ++step) {
      for (int i = 0; i < params.shards(); ++i) {
        for (const ParamSpec& spec : layout.specs()) {
          params.gradient(i).narrow(0, spec.offset, spec.numel).copy_(at::randn({spec.numel}));
        }
      }
      adam.Step(step, 0.05);
    }
    return Tensors{{"parameters", params.master().flat()}, {"m", adam.m()}, {"v", adam.v()}};
  };
  CompareWithCpu(compute, 1e-5);
}

// Small weights without a pattern, and a normalisation that does something.
ParamBuffer InceptionParams() {
  ParamBuffer params(Inception::Layout(), /*requires_grad=*/false);
  for (const ParamSpec& spec : params.layout().specs()) {
    const std::int64_t inputs = spec.numel / spec.shape.front();
    at::Tensor values = at::randn(spec.shape);
    if (spec.shape.size() > 1) {
      values = values * std::sqrt(2.0 / static_cast<double>(inputs));
    } else {
      values = values * 0.1 + (spec.name.ends_with("weight") || spec.name.ends_with("var") ? 1 : 0);
    }
    params[spec.name].copy_(values);
  }
  return params;
}

// On the CPU and on the device: each keeps its own features.
TEST(FarDevice, FeaturesOfImages) {
  const TemporaryFolder folder;
  const std::filesystem::path weights = folder.path() / "inception.safetensors";
  at::manual_seed(3);
  ASSERT_TRUE(SaveParams(weights, InceptionParams(), {}));
  const at::Tensor images = at::randint(256, {4, 40, 50, 3}, at::kByte);
  const ArrayToWrite array{
      .name = "arr_0",
      .dtype = Dtype::kU8,
      .shape = images.sizes().vec(),
      .bytes = {static_cast<const std::byte*>(images.const_data_ptr()), images.nbytes()}};
  ASSERT_TRUE(WriteNpz(RealFileSystem(), folder.path() / "images.npz", std::span(&array, 1)));
  setenv("XDG_CACHE_HOME", folder.path().c_str(), 1);
  const auto alone = NewLocalCollectives();
  const auto features = [&]() -> Result<AdmSet> {
    DD2_TRY_ASSIGN(const auto set, ImageSet::Open(folder.path() / "images.npz"));
    DD2_TRY_ASSIGN(const Inception inception, Inception::Load(weights));
    return AdmSetOf(*set, inception, {}, *alone);
  };
  const Result<AdmSet> here = features();
  ASSERT_TRUE(here) << here.error().message();
  const Result<Device> device = LoadDevice(DD2_FAR_DEVICE);
  ASSERT_TRUE(device);
  ASSERT_TRUE(UseTorchDevice(*device));
  const Result<AdmSet> there = features();
  ASSERT_TRUE(there) << there.error().message();
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(AdmCacheFolder()), {}), 2);
  EXPECT_GT(here->pool.std().item<double>(), 0.01);
  EXPECT_TRUE(at::allclose(here->pool, there->pool, 1e-3, 1e-4));
  EXPECT_TRUE(at::allclose(here->spatial_stats.mean, there->spatial_stats.mean, 1e-3, 1e-4));
  // Images that a network made there.
  const at::Tensor made = images.permute({0, 3, 1, 2}).to(at::kFloat) / 127.5 - 1;
  const ImageSource source = [&](std::int64_t begin, std::int64_t end) {
    return ToDevice(made.narrow(0, begin, end - begin));
  };
  const Result<Inception> inception = Inception::Load(weights);
  ASSERT_TRUE(inception);
  const Result<AdmSet> judged = AdmSetOfMade(4, source, *inception, *alone);
  ASSERT_TRUE(judged) << judged.error().message();
  EXPECT_TRUE(judged->pool.equal(there->pool));
}

TEST(FarDevice, TheHostCannotTouchItsMemory) {
  const Result<Device> device = LoadDevice(DD2_FAR_DEVICE);
  ASSERT_TRUE(device);
  ASSERT_TRUE(UseTorchDevice(*device));
  const at::Tensor tensor = at::ones({4}, OnDevice());
  EXPECT_DEATH(std::printf("%f", static_cast<double>(*tensor.const_data_ptr<float>())), "");
  EXPECT_THROW(tensor + at::ones({4}), c10::Error);
  EXPECT_EQ(tensor.sum().item<float>(), 4);
}

// What has no deterministic form on a GPU is refused here too, so that no network comes to need it.
TEST(FarDevice, RefusesWhatCudaRefuses) {
  const Result<Device> device = LoadDevice(DD2_FAR_DEVICE);
  ASSERT_TRUE(device);
  ASSERT_TRUE(UseTorchDevice(*device));
  EXPECT_THROW(at::cumsum(at::ones({4}, OnDevice()), 0), c10::Error);
  const at::Tensor map = at::ones({1, 1, 2, 2}, OnDevice()).requires_grad_(true);
  const at::Tensor larger = at::upsample_bicubic2d(map, {4, 4}, /*align_corners=*/false);
  EXPECT_EQ(larger.sum().item<float>(), 16) << "forwards it has one";
  EXPECT_THROW(larger.sum().backward(), c10::Error);
}

}  // namespace
}  // namespace dd2
