#include "worker/engine/evaluator.h"

#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <mutex>

#include "common/json.h"
#include "tests/support/thread_collectives.h"
#include "tests/support/tiny_teacher.h"
#include "worker/engine/evaluation.h"
#include "worker/engine/latency.h"
#include "worker/engine/png.h"

namespace dd2 {
namespace {

using ::testing::HasSubstr;

class EvaluatorTest : public ::testing::Test {
 protected:
  static constexpr std::int64_t kImages = 420;  // one whole chunk and a part
  static constexpr std::int64_t kSamples = 610;

  void SetUp() override {
    at::set_num_threads(1);
    bundle_ = MakeTinyTeacher(5);
    spec_ = TinyNetworkSpec(bundle_);
    network_.emplace(spec_, MakeTinyGenerator(spec_, 9));
    images_ = at::linspace(-40, 40, kImages * 28 * 28).sin().reshape({kImages, 1, 28, 28});
    labels_ = StratifiedLabels(kImages, 10);
  }

  EvalContext Context(Collectives& collectives) {
    Result<EvalContext> context = EvalContext::FromImages(bundle_, images_, labels_, collectives);
    EXPECT_TRUE(context);
    return std::move(*context);
  }

  TeacherBundle bundle_;
  NetworkSpec spec_;
  std::optional<Network> network_;
  at::Tensor images_, labels_;
};

TEST_F(EvaluatorTest, BitsDoNotDependOnTheWorldSize) {
  struct Outcome {
    EvalPoint generator, teacher;
    double fd = 0;
    std::vector<std::int64_t> tokens;
  };
  std::vector<Outcome> outcomes;
  for (const int world : {1, 2, 3}) {
    std::mutex mutex;
    ThreadWorld(world).Run([&](Collectives& collectives) {
      // A thread whose first call is into MKL would use all cores, and so round differently.
      at::set_num_threads(1);
      const EvalContext context = Context(collectives);
      const auto tokens = SampleTeacherTokens(bundle_, {}, kSamples, 3, collectives);
      const auto teacher =
          EvaluateSequences(*tokens, StratifiedLabels(kSamples, 10), context, collectives);
      const auto generator = EvaluateGenerator(*network_, context, kSamples, 3, collectives);
      const std::lock_guard lock(mutex);
      const std::int64_t* values = tokens->const_data_ptr<std::int64_t>();
      outcomes.push_back({.generator = *generator,
                          .teacher = *teacher,
                          .fd = context.reconstruction_point().fd,
                          .tokens = {values, values + tokens->numel()}});
    });
  }
  ASSERT_EQ(outcomes.size(), 6U);  // 1 + 2 + 3 ranks
  EXPECT_GT(outcomes[0].generator.fd, 0);
  EXPECT_EQ(outcomes[0].generator.samples, kSamples);
  for (const Outcome& outcome : outcomes) {
    EXPECT_EQ(outcome.generator.fd, outcomes[0].generator.fd);
    EXPECT_EQ(outcome.generator.fdr, outcomes[0].generator.fdr);
    EXPECT_EQ(outcome.generator.accuracy, outcomes[0].generator.accuracy);
    EXPECT_EQ(outcome.teacher.fdr, outcomes[0].teacher.fdr);
    EXPECT_EQ(outcome.fd, outcomes[0].fd);
    EXPECT_EQ(outcome.tokens, outcomes[0].tokens);
  }
}

TEST_F(EvaluatorTest, ReconstructionsHaveNoDistanceToThemselves) {
  const auto alone = NewLocalCollectives();
  const EvalContext context = Context(*alone);
  EXPECT_EQ(context.reconstruction_point().samples, kImages);
  EXPECT_GT(context.reconstruction_point().fd, 0);
  const auto same = EvaluateSequences(context.ids(), labels_, context, *alone);
  ASSERT_TRUE(same);
  EXPECT_NEAR(same->fdr, 0, 1e-9);
  EXPECT_NEAR(same->fd, context.reconstruction_point().fd, 1e-9);
  EXPECT_EQ(same->accuracy, context.reconstruction_point().accuracy);
  // Other sequences are somewhere else.
  const auto other = EvaluateSequences(at::zeros_like(context.ids()), labels_, context, *alone);
  ASSERT_TRUE(other);
  EXPECT_GT(other->fdr, 1e-6);
}

TEST_F(EvaluatorTest, AccuracyCountsTheRequestedClass) {
  const auto alone = NewLocalCollectives();
  const EvalContext context = Context(*alone);
  const auto scored = ScoreImages(
      *bundle_.classifier, kImages,
      [&](std::int64_t begin, std::int64_t end) { return images_.narrow(0, begin, end - begin); },
      *alone);
  ASSERT_TRUE(scored);
  EXPECT_EQ(context.Measure(*scored, scored->predictions).accuracy, 1);
  at::Tensor wrong = scored->predictions.clone();
  wrong.narrow(0, 0, 42).add_(1);
  EXPECT_NEAR(context.Measure(*scored, wrong).accuracy, 0.9, 1e-12);
  EXPECT_NEAR(context.Measure(*scored, scored->predictions).fd, 0, 1e-9);
}

TEST_F(EvaluatorTest, AClassThatLostItsVarietyStandsOut) {
  const auto alone = NewLocalCollectives();
  const EvalContext context = Context(*alone);
  at::Tensor ids = context.ids().clone();
  const at::Tensor threes = labels_.eq(3).nonzero().flatten();
  ids.index_copy_(0, threes, ids[3].unsqueeze(0).repeat({threes.size(0), 1}));
  const auto point = EvaluateSequences(ids, labels_, context, *alone);
  ASSERT_TRUE(point);
  ASSERT_EQ(point->fdr_by_class.size(), 10U);
  for (std::size_t c = 0; c < 10; ++c) {
    if (c == 3) {
      EXPECT_GT(point->fdr_by_class[c], 1e-5);
    } else {
      EXPECT_NEAR(point->fdr_by_class[c], 0, 1e-9) << c;
    }
  }
  // Nothing is said about classes when one of them has a single sample.
  const auto few =
      EvaluateSequences(ids.narrow(0, 0, 11), labels_.narrow(0, 0, 11), context, *alone);
  ASSERT_TRUE(few);
  EXPECT_TRUE(few->fdr_by_class.empty());
}

TEST_F(EvaluatorTest, DistancesOfADivergedGeneratorAreLeftOut) {
  const auto alone = NewLocalCollectives();
  const EvalContext context = Context(*alone);
  const ParamBuffer weights = MakeTinyGenerator(spec_, 9);
  weights.flat().fill_(std::nan(""));
  const Network diverged(spec_, weights);
  EvalInputs inputs;
  inputs.generator = &diverged;
  inputs.samples = 40;
  inputs.latency_repeats_batch1 = 0;
  inputs.latency_repeats_batch64 = 0;
  const auto text = RunEvaluation(inputs, context, *alone);
  ASSERT_TRUE(text) << text.error().message();
  const boost::json::object out = boost::json::parse(*text).as_object();
  EXPECT_FALSE(out.contains("fdr_end"));
  EXPECT_FALSE(out.contains("fd_end"));
  EXPECT_FALSE(out.contains("fdr_by_class_end"));
  EXPECT_TRUE(out.contains("fdr_teacher"));
  EXPECT_TRUE(out.contains("accuracy"));
}

TEST_F(EvaluatorTest, NoiseAndLabelsGoByPosition) {
  const at::Tensor all = EvalNoise(4, 0, 20, spec_.backbone);
  EXPECT_TRUE(EvalNoise(4, 7, 20, spec_.backbone).equal(all.narrow(0, 7, 13)));
  EXPECT_FALSE(EvalNoise(5, 0, 20, spec_.backbone).equal(all));
  EXPECT_TRUE(StratifiedLabels(13, 10).equal(
      at::tensor({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2}, at::kLong)));
}

TEST_F(EvaluatorTest, TooFewSamplesAreRefused) {
  const auto alone = NewLocalCollectives();
  const EvalContext context = Context(*alone);
  const auto point = EvaluateGenerator(*network_, context, 1, 1, *alone);
  ASSERT_FALSE(point);
  EXPECT_EQ(point.error().code(), Code::kInvalidArgument);
}

TEST_F(EvaluatorTest, AMissingDataSetIsAnError) {
  const auto context = EvalContext::Create(bundle_, "/nonexistent/fashion");
  ASSERT_FALSE(context);
  EXPECT_EQ(context.error().code(), Code::kNotFound);
}

TEST_F(EvaluatorTest, RunEvaluationReportsAndDraws) {
  const std::filesystem::path folder =
      std::filesystem::path(::testing::TempDir()) / "evaluation-samples";
  std::filesystem::remove_all(folder);
  std::vector<std::string> texts;
  std::mutex mutex;
  ThreadWorld(2).Run([&](Collectives& collectives) {
    const EvalContext context = Context(collectives);
    EvalInputs inputs;
    inputs.generator = &*network_;
    inputs.samples = 300;
    inputs.samples_folder = folder;
    inputs.latency_repeats_batch1 = 2;
    inputs.latency_repeats_batch64 = 1;
    const auto text = RunEvaluation(inputs, context, collectives);
    const std::lock_guard lock(mutex);
    texts.push_back(text ? *text : "error: " + text.error().message());
  });
  ASSERT_EQ(texts.size(), 2U);
  EXPECT_EQ(texts[0], texts[1]);
  const boost::json::object out = boost::json::parse(texts[0]).as_object();
  for (const char* field :
       {"fdr_end", "fd_end", "accuracy", "samples", "fdr_teacher", "fd_teacher", "accuracy_teacher",
        "teacher_samples", "fdr_reconstruction", "fd_reconstruction", "accuracy_real",
        "speedup_batch1", "speedup_batch64", "latency", "classes", "fdr_by_class_end",
        "fdr_by_class_teacher"}) {
    EXPECT_TRUE(out.contains(field)) << field;
  }
  const boost::json::object& single = out.at("latency").at("batch1").as_object();
  EXPECT_NEAR(out.at("speedup_batch1").as_double(),
              single.at("teacher_ms").as_double() / single.at("one_step_ms").as_double(), 1e-9);
  EXPECT_EQ(out.at("samples").as_int64(), 300);
  for (const char* name : {"teacher", "generator", "real", "reconstruction"}) {
    const auto image = ReadGreyPng(folder / (std::string(name) + ".png"));
    ASSERT_TRUE(image) << name;
    EXPECT_EQ(image->width, 300);
    EXPECT_EQ(image->height, 300);
  }
  // Row 1, column 0 of the real images is the first of class 1.
  const auto real = ReadGreyPng(folder / "real.png");
  const float pixel = images_[1].flatten()[5 * 28 + 6].item<float>();
  EXPECT_NEAR(real->pixels[(30 + 1 + 5) * 300 + 1 + 6], (pixel + 1) * 127.5, 1);
  std::filesystem::remove_all(folder);
}

TEST_F(EvaluatorTest, AnErrorOfRankZeroReachesEveryRank) {
  const std::filesystem::path blocked =
      std::filesystem::path(::testing::TempDir()) / "blocked-samples";
  std::ofstream(blocked) << "a file, where a folder should be";
  std::vector<std::string> messages;
  std::mutex mutex;
  ThreadWorld(2).Run([&](Collectives& collectives) {
    const EvalContext context = Context(collectives);
    EvalInputs inputs;
    inputs.generator = &*network_;
    inputs.samples = 20;
    inputs.samples_folder = blocked;
    inputs.latency_repeats_batch1 = 0;
    inputs.latency_repeats_batch64 = 0;
    const auto text = RunEvaluation(inputs, context, collectives);
    const std::lock_guard lock(mutex);
    messages.push_back(text ? "no error" : text.error().message());
  });
  ASSERT_EQ(messages.size(), 2U);
  for (const std::string& message : messages) EXPECT_THAT(message, HasSubstr("blocked-samples"));
  std::filesystem::remove(blocked);
}

TEST_F(EvaluatorTest, LatencyRestoresTheThreads) {
  at::set_num_threads(2);
  const LatencyPoint point = MeasureLatency(bundle_, *network_, {}, 3, 2);
  EXPECT_EQ(at::get_num_threads(), 2);
  EXPECT_EQ(point.batch, 3);
  EXPECT_GT(point.teacher_ms, 0);
  EXPECT_GT(point.one_step_ms, 0);
  EXPECT_DOUBLE_EQ(point.speedup(), point.teacher_ms / point.one_step_ms);
}

}  // namespace
}  // namespace dd2
