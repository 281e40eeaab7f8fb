#include "worker/engine/teacher_adapt.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>

#include "common/file.h"
#include "common/json.h"
#include "storage/random_teacher.h"
#include "tests/unit/storage_testing.h"
#include "worker/models/llamagen_backbone.h"
#include "worker/models/released_teacher.h"

namespace dd2 {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

constexpr std::int64_t kCodes = 48, kGrid = 4, kTokens = kGrid * kGrid, kClasses = 3;

TeacherSizes TransformerSizes() {
  TeacherSizes sizes;
  sizes.part = TeacherPart::kLlamaGenTransformer;
  sizes.vocabulary = kCodes;
  sizes.depth = 2;
  sizes.width = 32;
  sizes.heads = 2;
  sizes.ffn_hidden = 48;
  sizes.classes = kClasses;
  sizes.grid = kGrid;
  return sizes;
}

TeacherSizes TokenizerSizes() {
  TeacherSizes sizes;
  sizes.part = TeacherPart::kLlamaGenTokenizer;
  sizes.vocabulary = kCodes;
  sizes.code_channels = 8;
  sizes.channels = 32;
  sizes.multipliers = {1, 1};
  sizes.latent_channels = 32;
  return sizes;
}

class TeacherAdaptTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(WriteRandomTeacher(RealFileSystem(), teacher(), TransformerSizes(),
                                   TokenizerSizes(), /*seed=*/1));
    // Counting upwards from a start that the class gives, with steps that it gives.
    const at::Tensor first = at::arange(60, at::kLong).unsqueeze(1);
    labels_ = first.squeeze(1).remainder(kClasses);
    tokens_ = (first + at::arange(kTokens, at::kLong) * (labels_.unsqueeze(1) + 1))
                  .remainder(kCodes)
                  .contiguous();
  }

  fs::path teacher() const { return folder_.path() / "teacher"; }
  AdaptRequest Request(const std::string& out) const {
    AdaptRequest request;
    request.teacher = teacher();
    request.out = folder_.path() / out;
    request.tokens = tokens_;
    request.labels = labels_;
    request.settings.steps = 60;
    request.settings.batch = 8;
    request.settings.learning_rate = 3e-3;
    request.settings.shards = 2;
    request.settings.threads = 1;
    request.settings.save_every = 4;
    request.settings.report_every = 1;
    request.report = [](std::string_view) {};
    return request;
  }
  double Measured(const std::string& out, const std::string& name) const {
    const std::string card = ReadAll(folder_.path() / out / "card.json");
    return boost::json::parse(card).at("measured").at(name).to_number<double>();
  }
  void ExpectRefused(const AdaptRequest& request, Code code, const std::string& reason) const {
    const Status status = AdaptTeacher(request);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code(), code);
    EXPECT_THAT(status.error().message(), HasSubstr(reason));
  }

  const TemporaryFolder folder_;
  at::Tensor tokens_, labels_;
};

double NatsOf(const ReleasedTransformer& network, const at::Tensor& tokens,
              const at::Tensor& labels) {
  const at::Tensor logits = network.Score(tokens, labels, 1.0).cond;
  return at::cross_entropy_loss(logits.flatten(0, 1), tokens.flatten()).item<double>();
}

TEST_F(TeacherAdaptTest, TrainingLowersNats) {
  const Status status = AdaptTeacher(Request("adapted"));
  ASSERT_TRUE(status) << status.error().message();
  const double trained = Measured("adapted", "nats_per_token_adapted");
  EXPECT_LT(trained, 0.8 * Measured("adapted", "nats_per_token_fitted"));
  EXPECT_LT(trained, 0.8 * Measured("adapted", "nats_per_token_table"));
  EXPECT_FALSE(fs::exists(folder_.path() / "adapted" / ".adapting"));
}

TEST_F(TeacherAdaptTest, WithoutTokensTheMlpIsFittedAlone) {
  AdaptRequest request = Request("fitted");
  request.tokens = request.labels = at::Tensor();
  ASSERT_TRUE(AdaptTeacher(request));
  const auto before = LoadLlamaGen(teacher()), after = LoadLlamaGen(folder_.path() / "fitted");
  ASSERT_TRUE(before && after);
  const at::NoGradGuard no_grad;
  for (const ParamSpec& spec : after->params.layout().specs()) {
    if (spec.name.starts_with("input.")) continue;
    EXPECT_TRUE(at::equal(after->params[spec.name], before->params[spec.name])) << spec.name;
  }
  // 48 rows by 33 numbers a channel: not exact, but no other second layer is nearer.
  const auto tokenizer = LoadReleasedTokenizer(teacher());
  ASSERT_TRUE(tokenizer);
  const CodeMlp mlp(after->params, "input.");
  const auto error = [&] {
    const at::Tensor rows = mlp.Forward((*tokenizer)->codebook());
    return ((rows - before->table).square().mean() / before->table.square().mean()).item<double>();
  };
  const double least = error();
  EXPECT_NEAR(Measured("fitted", "input_fit_error"), least, 1e-6);
  EXPECT_LT(least, 0.5);
  EXPECT_GT(least, 0.1);
  at::manual_seed(2);
  for (const std::string name : {"input.2.weight", "input.2.bias"}) {
    const at::Tensor param = after->params[name], kept = param.clone();
    for (int i = 0; i < 8; ++i) {
      at::Tensor(param).copy_(kept + at::randn_like(kept) * 0.01);
      EXPECT_GT(error(), least) << name;
    }
    at::Tensor(param).copy_(kept);
  }
}

TEST_F(TeacherAdaptTest, TheCardSaysWhatTheNetworksGive) {
  ASSERT_TRUE(AdaptTeacher(Request("adapted")));
  const at::NoGradGuard no_grad;
  const at::Tensor tokens = tokens_.narrow(0, 54, 6), labels = labels_.narrow(0, 54, 6);
  const auto before = LoadReleasedTransformer(teacher());
  const auto after = LoadReleasedTransformer(folder_.path() / "adapted");
  ASSERT_TRUE(before) << before.error().message();
  ASSERT_TRUE(after) << after.error().message();
  EXPECT_NEAR(NatsOf(**before, tokens, labels), Measured("adapted", "nats_per_token_table"), 1e-5);
  EXPECT_NEAR(NatsOf(**after, tokens, labels), Measured("adapted", "nats_per_token_adapted"), 1e-5);
}

TEST_F(TeacherAdaptTest, IsATeacherOfContinuousCodes) {
  const auto unadapted = LoadTeacherBundle(teacher());
  ASSERT_FALSE(unadapted);
  EXPECT_EQ(unadapted.error().code(), Code::kInvalidArgument);
  EXPECT_THAT(unadapted.error().message(), HasSubstr("dd2 teacher adapt"));
  ASSERT_TRUE(AdaptTeacher(Request("adapted")));
  const auto bundle = LoadTeacherBundle(folder_.path() / "adapted");
  ASSERT_TRUE(bundle) << bundle.error().message();
  EXPECT_EQ(bundle->teacher->backbone().spec().kind, BackboneKind::kLlamaGen);
  const auto scores = LoadReleasedTransformer(folder_.path() / "adapted");
  ASSERT_TRUE(scores) << scores.error().message();
  const at::NoGradGuard no_grad;
  const at::Tensor tokens = tokens_.narrow(0, 0, 3), labels = labels_.narrow(0, 0, 3);
  const at::Tensor codes = CodesOf(bundle->tokenizer->codebook(), tokens);
  const at::Tensor got = bundle->teacher->Logits(bundle->teacher->GuidedHidden(codes, labels, 2));
  const at::Tensor expected = (*scores)->Score(tokens, labels, 2).guided;
  EXPECT_LT((got - expected).abs().max().item<double>(), 1e-4);
}

TEST_F(TeacherAdaptTest, InterruptedAndResumedEqualsUninterrupted) {
  ASSERT_TRUE(AdaptTeacher(Request("whole")));
  for (const std::string stop : {"adapt  step 6/", "adapt  step 33/", "adapt  step 60/"}) {
    AdaptRequest request = Request("parts");
    request.report = [&](std::string_view line) {
      if (line.starts_with(stop)) throw std::runtime_error("power cut");
    };
    const Status status = AdaptTeacher(request);
    ASSERT_FALSE(status) << stop;
    EXPECT_THAT(status.error().message(), HasSubstr("power cut"));
  }
  AdaptRequest other = Request("parts");
  other.settings.learning_rate = 1e-3;
  ExpectRefused(other, Code::kFailedPrecondition, "other settings");
  other = Request("parts");
  other.tokens = other.labels = at::Tensor();  // the fit alone would end in a teacher, too
  ExpectRefused(other, Code::kFailedPrecondition, "give them again");
  AdaptRequest last = Request("parts");
  last.settings.threads = 2;
  ASSERT_TRUE(AdaptTeacher(last));
  for (const std::string_view file : {kTransformerFile, kTeacherFile, kTokenizerFile}) {
    EXPECT_TRUE(ReadAll(folder_.path() / "whole" / file) ==
                ReadAll(folder_.path() / "parts" / file))
        << file;
  }
}

TEST_F(TeacherAdaptTest, OneThatDivergedIsNoTeacher) {
  AdaptRequest request = Request("diverged");
  request.settings.learning_rate = 1e30;
  request.settings.steps = 1;
  ExpectRefused(request, Code::kInternal, "lower --lr");
  EXPECT_FALSE(fs::exists(request.out / kTeacherFile));
}

TEST_F(TeacherAdaptTest, RefusesWhatMakesNoSense) {
  AdaptRequest request = Request("adapted");
  request.tokens = tokens_.narrow(1, 0, 9).contiguous();
  ExpectRefused(request, Code::kInvalidArgument, "[N, 16]");
  request = Request("adapted");
  request.settings.held_out = 60;
  ExpectRefused(request, Code::kInvalidArgument, "none is left");
  request = Request("adapted");
  request.settings.batch = 9;
  ExpectRefused(request, Code::kInvalidArgument, "multiple of shards");
  request.settings.batch = 8;
  request.settings.steps = 1;
  ASSERT_TRUE(AdaptTeacher(request));
  ExpectRefused(request, Code::kFailedPrecondition, "holds a teacher already");
  fs::create_directories(folder_.path() / "trained");
  WriteAll(folder_.path() / "trained" / "teacher.safetensors", "");
  ExpectRefused(Request("trained"), Code::kFailedPrecondition, "holds a teacher already");
  request.teacher = request.out;
  request.out = folder_.path() / "again";
  ExpectRefused(request, Code::kInvalidArgument, "adapted already");
  request.teacher = folder_.path() / "nowhere";
  ExpectRefused(request, Code::kNotFound, "nowhere");
  EXPECT_FALSE(fs::exists(request.out));
}

TEST_F(TeacherAdaptTest, ReadsNothingWhileAnotherOneWorksThere) {
  AdaptRequest request = Request("adapted");
  request.teacher = folder_.path() / "nowhere";
  fs::create_directories(request.out / ".adapting");
  const auto other = FileLock::Acquire(request.out / ".adapting" / "lock", "another one");
  ASSERT_TRUE(other);
  ExpectRefused(request, Code::kUnavailable, "another one");
}

}  // namespace
}  // namespace dd2
