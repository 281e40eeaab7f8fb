// What the step loop computes and keeps, on tiny networks: without coordinator, files of a teacher
// or processes.

#include "worker/engine/trainer.h"

#include <gtest/gtest.h>

#include <numeric>
#include <optional>

#include "common/file.h"
#include "storage/checkpoint_store.h"
#include "tests/support/thread_collectives.h"
#include "tests/support/tiny_teacher.h"
#include "tests/unit/storage_testing.h"
#include "worker/distill/losses.h"
#include "worker/engine/phase_steps.h"
#include "worker/engine/training_state.h"

namespace dd2 {
namespace {

constexpr std::int32_t kGts = 1;
constexpr std::int32_t kRegress = 2;
constexpr std::int32_t kCsd = 3;

RunConfig TinyConfig() {
  RunConfig config;
  config.seed = 3;
  config.batch.shards = 4;
  config.model.head_width = 16;
  config.model.head_depth = 1;
  config.model.time_features = 8;
  config.phases.resize(4);
  config.phases[0].kind = PhaseKind::kSample;
  PhaseConfig& gts = config.phases[kGts];
  gts = DefaultPhase(PhaseKind::kGts);
  gts.steps = 3;
  gts.batch = 8;
  gts.draws = 2;
  gts.validation = 10;  // no multiple of the shards: their parts are 2, 3, 2 and 3
  gts.guidance.peak = 1e-3;
  PhaseConfig& regress = config.phases[kRegress];
  regress = DefaultPhase(PhaseKind::kRegress);
  regress.steps = 40;
  regress.batch = 8;
  regress.guidance.warmup = regress.generator.warmup = 4;
  config.phases[kCsd] = DefaultPhase(PhaseKind::kCsd);
  return config;
}

TeacherDataSpec TinyData(const RunConfig& config) {
  TeacherDataSpec spec;
  spec.sampling = config.teacher;
  spec.seed = config.seed;
  spec.sequences = 24;
  spec.block = 8;
  spec.use_cache = false;
  return spec;
}

struct Outcome {
  std::vector<double> losses;  // after each step
  std::vector<float> params;
  double first = 0;  // of Regress
  bool operator==(const Outcome&) const = default;
};

std::vector<float> Values(const at::Tensor& tensor) {
  const float* data = tensor.const_data_ptr<float>();
  return {data, data + tensor.numel()};
}

// Three gts steps on `ranks` ranks; what rank 0 has at the end.
Outcome Tune(const TeacherBundle& teacher, int ranks, bool validate) {
  const RunConfig config = TinyConfig();
  const ParamLayout layout = Network::Layout(SpecFor(config.model, *teacher.teacher));
  Outcome outcome;
  ThreadWorld(ranks).Run([&](Collectives& collectives) {
    TrainingState state = MakeTrainingState(layout, collectives.rank(), ranks);
    Trainer trainer(config, teacher, collectives, state);
    TeacherData data(TinyData(config), teacher, nullptr);
    ASSERT_TRUE(data.LoadSequences());
    ASSERT_TRUE(trainer.EnterPhase(kGts));
    for (; state.step < config.phases[kGts].steps; AdvanceSteps(state, 1)) {
      ASSERT_TRUE(trainer.GtsStep(data, Wish()));
      if (!validate) continue;
      const Result<double> loss = trainer.ValidationLoss(data);
      ASSERT_TRUE(loss) << loss.error().message();
      if (collectives.rank() == 0) outcome.losses.push_back(*loss);
    }
    // Its padding depends on the number of ranks.
    if (collectives.rank() == 0) {
      outcome.params = Values(state.guidance.params.flat().detach().narrow(0, 0, layout.size()));
    }
  });
  return outcome;
}

class ValidationLossTest : public testing::Test {
 protected:
  ValidationLossTest() { SetComputeThreads(1); }
  const TeacherBundle teacher_ = MakeTinyTeacher(5);
};

TEST_F(ValidationLossTest, SameBitsOnAnyNumberOfRanks) {
  const Outcome alone = Tune(teacher_, 1, true);
  ASSERT_EQ(alone.losses.size(), 3U);
  for (const int ranks : {2, 3, 4}) EXPECT_EQ(Tune(teacher_, ranks, true), alone) << ranks;
}

TEST_F(ValidationLossTest, TrainingDoesNotNoticeIt) {
  EXPECT_EQ(Tune(teacher_, 1, true).params, Tune(teacher_, 1, false).params);
}

TEST_F(ValidationLossTest, IsTheLossOfTheHeldOutSequencesAtFixedTimesAndNoise) {
  const RunConfig config = TinyConfig();
  const PhaseConfig& gts = config.phases[kGts];
  const NetworkSpec spec = SpecFor(config.model, *teacher_.teacher);
  const std::unique_ptr<Collectives> alone = NewLocalCollectives();
  TrainingState state = MakeTrainingState(Network::Layout(spec), 0, 1);
  Trainer trainer(config, teacher_, *alone, state);
  TeacherData data(TinyData(config), teacher_, nullptr);
  ASSERT_TRUE(data.LoadSequences());
  ASSERT_TRUE(trainer.EnterPhase(kGts));
  ASSERT_TRUE(trainer.GtsStep(data, Wish()));
  const Result<double> loss = trainer.ValidationLoss(data);
  ASSERT_TRUE(loss);
  state.step = 2;  // at another step, the same numbers
  EXPECT_EQ(*trainer.ValidationLoss(data), *loss);

  std::vector<std::uint64_t> samples(static_cast<std::size_t>(gts.validation));
  std::iota(samples.begin(), samples.end(), std::uint64_t{0});
  const Result<TeacherData::Batch> batch = data.Load(samples);
  ASSERT_TRUE(batch);
  const ShardRange all{.first = 0, .count = gts.validation};
  RngKey key{.seed = config.seed, .phase = kGts, .use = RngUse::kValidationTime};
  const at::Tensor t = RandomTimes(key, all, gts.draws, spec.backbone.tokens, gts.t_min, gts.t_max);
  key.use = RngUse::kValidationNoise;
  const at::Tensor noise =
      RandomDraws(key, all, gts.draws, spec.backbone.tokens, spec.backbone.channels);
  const at::NoGradGuard no_grad;
  const double expected = GtsLoss(Network(spec, state.guidance.params), batch->codes, batch->labels,
                                  batch->logp, teacher_.tokenizer->codebook(), t, noise)
                              .item<double>();
  EXPECT_NEAR(*loss, expected, 1e-5 * expected);
}

// By hand: the first batch's noise, through the generator, against the codes that it flows to.
double FirstRegressionLoss(const RunConfig& config, const TeacherBundle& teacher, TeacherData& data,
                           const TrainingState& state) {
  const at::NoGradGuard no_grad;
  RngKey key{.seed = config.seed, .phase = kRegress, .use = RngUse::kDataOrder};
  std::vector<std::uint64_t> samples;
  for (std::uint64_t i = 0; i < 8; ++i) {
    key.sample = i;
    samples.push_back(UniformInt(key, 24));
  }
  const auto tokens_labels = data.Tokens(samples);
  EXPECT_TRUE(tokens_labels);
  const auto& [tokens, labels] = *tokens_labels;
  const Network generator(SpecFor(config.model, *teacher.teacher), state.generator.params);
  const at::Tensor made = generator.Generate(data.TrajectoryNoise(samples), labels);
  return at::mse_loss(made, CodesOf(teacher.tokenizer->codebook(), tokens)).item<double>();
}

// Regression of the untuned network on trajectories; what rank 0 has at the end.
Outcome Regress(const TeacherBundle& teacher, int ranks) {
  const RunConfig config = TinyConfig();
  const ParamLayout layout = Network::Layout(SpecFor(config.model, *teacher.teacher));
  Outcome outcome;
  ThreadWorld(ranks).Run([&](Collectives& collectives) {
    SetComputeThreads(1);
    TrainingState state = MakeTrainingState(layout, collectives.rank(), ranks);
    Trainer trainer(config, teacher, collectives, state);
    TeacherDataSpec spec = TinyData(config);
    spec.ode_steps = 4;
    TeacherData data(spec, teacher, nullptr);
    ASSERT_TRUE(data.LoadSequences());
    ASSERT_TRUE(trainer.EnterPhase(kGts));
    ASSERT_TRUE(trainer.EnterPhase(kRegress));
    if (collectives.rank() == 0) outcome.first = FirstRegressionLoss(config, teacher, data, state);
    for (; state.step < config.phases[kRegress].steps; AdvanceSteps(state, 1)) {
      const Result<StepOutcome> step = trainer.RegressStep(data, Wish());
      ASSERT_TRUE(step) << step.error().message();
      if (collectives.rank() == 0) outcome.losses.push_back(step->metrics.front().second);
    }
    EXPECT_EQ(state.counters.generator_updates(), config.phases[kRegress].steps);
    EXPECT_EQ(state.counters.guidance_updates(), 0);
    // csd goes on from the average that regress made of the generator.
    const Result<ParamBuffer> average = trainer.GatherGeneratorEma();
    ASSERT_TRUE(average);
    EXPECT_FALSE(state.generator.params.flat().detach().equal(average->flat()));
    ASSERT_TRUE(trainer.EnterPhase(kCsd));
    EXPECT_TRUE(state.generator.params.flat().detach().equal(average->flat()));
    if (collectives.rank() == 0) {
      outcome.params = Values(state.generator.params.flat().detach().narrow(0, 0, layout.size()));
    }
  });
  return outcome;
}

TEST(SpecForTest, ATrainedNetworkComputesAsTheConfigurationSays) {
  TeacherBundle teacher = MakeTinyTeacher(5, {1, 3, 7});
  RunConfig config = TinyConfig();
  const PassMode plain = SpecFor(config.model, *teacher.teacher).backbone.mode;
  EXPECT_FALSE(plain.bf16);
  EXPECT_EQ(plain.activations, Activations::kKeep);
  config.model.precision = kPrecisionBf16;
  config.model.recompute = true;
  const PassMode small = SpecFor(config.model, *teacher.teacher).backbone.mode;
  EXPECT_TRUE(small.bf16);
  EXPECT_EQ(small.activations, Activations::kRecompute);
  EXPECT_FALSE(teacher.teacher->backbone().spec().mode.bf16) << "the teacher stays as it is";
  BackboneSpec rounded = teacher.teacher->backbone().spec();
  rounded.mode.bf16 = true;
  teacher.teacher =
      std::make_unique<Teacher>(rounded, teacher.teacher->codes(), teacher.teacher->params());
  EXPECT_FALSE(SpecFor(TinyConfig().model, *teacher.teacher).backbone.mode.bf16)
      << "the networks do not take the teacher's precision";
}

TEST(RegressTest, SameBitsOnAnyNumberOfRanksAndTheLossFalls) {
  SetComputeThreads(1);
  const TeacherBundle teacher = MakeTinyTeacher(5);
  const Outcome alone = Regress(teacher, 1);
  ASSERT_EQ(alone.losses.size(), 40U);
  EXPECT_NEAR(alone.losses.front(), alone.first, 1e-5 * alone.first);
  EXPECT_LT(alone.losses.back(), 0.8 * alone.losses.front());
  for (const int ranks : {2, 3, 4}) EXPECT_EQ(Regress(teacher, ranks), alone) << ranks;
}

// The whole of rank 0's guidance network after `steps` steps of a gts phase that trains `trains`.
struct Tuned {
  std::vector<float> params, m, v, ema;
  std::vector<double> norms;
  bool operator==(const Tuned&) const = default;
};

Tuned TunePart(const TeacherBundle& teacher, int ranks, std::string_view trains, double clip_norm,
               int steps) {
  RunConfig config = TinyConfig();
  PhaseConfig& gts = config.phases[kGts];
  gts.trains = trains;
  gts.clip_norm = clip_norm;
  const ParamLayout layout = Network::Layout(SpecFor(config.model, *teacher.teacher));
  Tuned tuned;
  ThreadWorld(ranks).Run([&](Collectives& collectives) {
    SetComputeThreads(1);
    TrainingState state = MakeTrainingState(layout, collectives.rank(), ranks);
    Trainer trainer(config, teacher, collectives, state);
    TeacherData data(TinyData(config), teacher, nullptr);
    ASSERT_TRUE(data.LoadSequences());
    ASSERT_TRUE(trainer.EnterPhase(kGts));
    for (; state.step < steps; AdvanceSteps(state, 1)) {
      const Result<StepOutcome> step = trainer.GtsStep(data, Wish());
      ASSERT_TRUE(step) << step.error().message();
      if (collectives.rank() == 0) tuned.norms.push_back(step->metrics.at(1).second);
    }
    const NetworkState& guidance = state.guidance;
    ExactUpdater gather(collectives, OneDomain(collectives.rank(), ranks), config.batch.shards,
                        guidance.params.flat().numel());
    const auto whole = [&](const at::Tensor& slice) {
      const Result<at::Tensor> full = gather.Gather(slice);
      EXPECT_TRUE(full);
      return Values(full->narrow(0, 0, layout.size()));
    };
    Tuned mine = tuned;
    mine.params = Values(guidance.params.flat().detach().narrow(0, 0, layout.size()));
    mine.m = whole(guidance.adam_m);
    mine.v = whole(guidance.adam_v);
    mine.ema = whole(guidance.ema);
    if (collectives.rank() == 0) tuned = std::move(mine);
  });
  return tuned;
}

class HeadOnlyTest : public testing::Test {
 protected:
  HeadOnlyTest() { SetComputeThreads(1); }
  // Elements of the flat buffer that belong to the backbone: all in front of the head's.
  std::size_t BackboneEnd() const {
    const ParamLayout layout = Network::Layout(SpecFor(TinyConfig().model, *teacher_.teacher));
    return static_cast<std::size_t>(layout.Find("head.time_embed.mlp.0.weight").offset);
  }
  static std::vector<float> Front(const std::vector<float>& all, std::size_t count) {
    return {all.begin(), all.begin() + static_cast<std::ptrdiff_t>(count)};
  }
  static std::vector<float> Back(const std::vector<float>& all, std::size_t begin) {
    return {all.begin() + static_cast<std::ptrdiff_t>(begin), all.end()};
  }
  const TeacherBundle teacher_ = MakeTinyTeacher(5);
};

TEST_F(HeadOnlyTest, TheBackboneStaysAsItIs) {
  const std::size_t end = BackboneEnd();
  const Tuned before = TunePart(teacher_, 1, kTrainsHead, 1.0, 0);
  const Tuned after = TunePart(teacher_, 1, kTrainsHead, 1.0, 3);
  EXPECT_EQ(Front(after.params, end), Front(before.params, end));
  EXPECT_EQ(Front(after.ema, end), Front(before.params, end));
  EXPECT_EQ(Front(after.m, end), std::vector<float>(end, 0.0F));
  EXPECT_EQ(Front(after.v, end), std::vector<float>(end, 0.0F));
  EXPECT_NE(Back(after.params, end), Back(before.params, end));
  EXPECT_NE(Back(after.ema, end), Back(before.ema, end));
}

TEST_F(HeadOnlyTest, TheHeadLearnsAsItDoesBesideTheBackbone) {
  const std::size_t end = BackboneEnd();
  // A fresh head returns 0 whatever the backbone says: at first both modes have one gradient.
  const Tuned first = TunePart(teacher_, 1, kTrainsAll, 1.0, 1);
  EXPECT_EQ(TunePart(teacher_, 1, kTrainsHead, 1.0, 1).params, first.params);
  EXPECT_EQ(TunePart(teacher_, 1, kTrainsHead, 1.0, 1).norms, first.norms);
  const Tuned head = TunePart(teacher_, 1, kTrainsHead, 0, 3);
  const Tuned all = TunePart(teacher_, 1, kTrainsAll, 0, 3);
  EXPECT_NE(Front(head.params, end), Front(all.params, end));
  EXPECT_LT(head.norms.back(), all.norms.back()) << "the norm is the head's";
}

TEST_F(HeadOnlyTest, SameBitsOnAnyNumberOfRanks) {
  const Tuned alone = TunePart(teacher_, 1, kTrainsHead, 1.0, 3);
  for (const int ranks : {2, 3, 4}) {
    EXPECT_EQ(TunePart(teacher_, ranks, kTrainsHead, 1.0, 3), alone) << ranks;
  }
}

TEST_F(HeadOnlyTest, ASecondPhaseGoesOnWithTheAverageOfTheFirst) {
  RunConfig config = TinyConfig();
  config.phases[kRegress] = config.phases[kGts];
  config.phases[kGts].trains = kTrainsHead;
  const std::unique_ptr<Collectives> alone = NewLocalCollectives();
  TrainingState state =
      MakeTrainingState(Network::Layout(SpecFor(config.model, *teacher_.teacher)), 0, 1);
  Trainer trainer(config, teacher_, *alone, state);
  TeacherData data(TinyData(config), teacher_, nullptr);
  ASSERT_TRUE(data.LoadSequences());
  ASSERT_TRUE(trainer.EnterPhase(kGts));
  for (; state.step < 2; AdvanceSteps(state, 1)) ASSERT_TRUE(trainer.GtsStep(data, Wish()));
  const std::vector<float> average = Values(state.guidance.ema);
  ASSERT_NE(average, Values(state.guidance.params.flat().detach()));
  ASSERT_TRUE(trainer.EnterPhase(kRegress));
  EXPECT_EQ(Values(state.guidance.params.flat().detach()), average);
  EXPECT_EQ(state.guidance.adam_steps, 0);
  ASSERT_TRUE(trainer.GtsStep(data, Wish()));
  EXPECT_NE(Front(Values(state.guidance.params.flat().detach()), BackboneEnd()),
            Front(average, BackboneEnd()));
}

TEST(LearningRateTest, RisesFromItsStartToThePeak) {
  const ScheduleConfig schedule{.start = 1e-6, .peak = 2e-4, .warmup = 100, .final_ratio = 1};
  EXPECT_NEAR(LearningRate(schedule, 0, 1000), 1e-6 + 1.99e-6, 1e-12);
  EXPECT_NEAR(LearningRate(schedule, 49, 1000), (1e-6 + 2e-4) / 2, 1e-12);
  EXPECT_EQ(LearningRate(schedule, 99, 1000), 2e-4);
  EXPECT_EQ(LearningRate(schedule, 100, 1000), 2e-4);
}

// Saved and read back: what the manifest says besides tensors.
std::optional<Quality> StartAfterRestore(const std::optional<Quality>& start) {
  const RunConfig config = TinyConfig();
  const TeacherBundle teacher = MakeTinyTeacher(5);
  const ParamLayout layout = Network::Layout(SpecFor(config.model, *teacher.teacher));
  const TemporaryFolder folder;
  FileSystem& files = RealFileSystem();
  EXPECT_TRUE(files.MakeDirectories(folder.path()));
  TrainingState saved = MakeTrainingState(layout, 0, 1);
  saved.start = start;
  const std::string id = CheckpointId(saved.phase, saved.step);
  const auto part =
      WriteCheckpointPart(files, folder.path() / id, 0, 1, PiecesOf(saved, OneDomain(0, 1)));
  EXPECT_TRUE(part) << part.error().message();
  if (!part) return std::nullopt;
  proto::CheckpointManifest manifest;
  manifest.set_format_version(1);
  manifest.set_checkpoint_id(id);
  *manifest.mutable_header() = HeaderOf(saved, CheckpointIdentity(), 1);
  *manifest.add_parts() = *part;
  EXPECT_TRUE(PublishManifest(files, folder.path(), manifest));
  TrainingState restored = MakeTrainingState(layout, 0, 1);
  const Status status = RestoreState(files, folder.path(), id, CheckpointIdentity(), restored);
  EXPECT_TRUE(status) << status.error().message();
  return restored.start;
}

TEST(TrainingStateTest, KeepsTheQualityAtTheStartOfDistillation) {
  EXPECT_FALSE(StartAfterRestore(std::nullopt));
  const Quality measured{.figures = {{"fid", 851.8000000000001}, {"recall", 1.0 / 3}},
                         .samples = 2000};
  const auto start = StartAfterRestore(measured);
  ASSERT_TRUE(start);
  EXPECT_EQ(start->figures, measured.figures);  // and their order
  EXPECT_EQ(start->samples, 2000);
}

TEST(TrainingStateTest, AStartThatIsNoNumberDoesNotSpoilTheCheckpoint) {
  const auto start =
      StartAfterRestore(Quality{.figures = {{"fdr", 7}, {"fd", std::nan("")}}, .samples = 50});
  ASSERT_TRUE(start);
  EXPECT_EQ(start->figures, (Metrics{{"fdr", 7}}));
}

}  // namespace
}  // namespace dd2
