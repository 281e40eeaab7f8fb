#include <gmock/gmock.h>

#include "tests/support/tiny_teacher.h"
#include "worker/models/filters.h"
#include "worker/models/teacher.h"

namespace dd2 {
namespace {

TeacherConfig TopK(int top_k) {
  TeacherConfig config;
  config.cfg_scale = 1.0;
  config.top_k = top_k;
  return config;
}

class SampleTeacherTest : public ::testing::Test {
 protected:
  SampledBlock Sample(const at::Tensor& labels, const at::Tensor& uniforms,
                      const TeacherConfig& config) const {
    return SampleTeacher(*bundle_.teacher, bundle_.tokenizer->codebook(), labels, uniforms, config);
  }
  at::Tensor CodesOf(const at::Tensor& tokens) const {
    return bundle_.tokenizer->codebook()
        .index_select(0, tokens.flatten())
        .view({tokens.size(0), tokens.size(1), -1});
  }

  const TeacherBundle bundle_ = MakeTinyTeacher(4);
  const at::Tensor labels_ = at::tensor({0, 3, 9, 3}, at::kLong);
};

TEST_F(SampleTeacherTest, HiddenIsTheGuidedTeacherForcedPass) {
  TeacherConfig config = TopK(0);
  for (const double scale : {1.0, 1.5}) {
    config.cfg_scale = scale;
    at::manual_seed(1);
    const SampledBlock block = Sample(labels_, at::rand({4, 49}), config);
    const at::Tensor forced = bundle_.teacher->GuidedHidden(CodesOf(block.tokens), labels_, scale);
    EXPECT_LT((forced - block.hidden).abs().max().item<double>(), 1e-5) << "scale " << scale;
  }
}

TEST_F(SampleTeacherTest, GuidedLogitsAreTheLogitsOfGuidedHidden) {
  const at::Tensor q = CodesOf(at::arange(4 * 49, at::kLong).remainder(16).view({4, 49}));
  const at::Tensor null = at::full({4}, 10, at::kLong);
  const at::Tensor conditional = bundle_.teacher->Logits(bundle_.teacher->Hidden(q, labels_));
  const at::Tensor unconditional = bundle_.teacher->Logits(bundle_.teacher->Hidden(q, null));
  const at::Tensor expected = unconditional + 2.5 * (conditional - unconditional);
  const at::Tensor got = bundle_.teacher->Logits(bundle_.teacher->GuidedHidden(q, labels_, 2.5));
  EXPECT_LT((got - expected).abs().max().item<double>(), 1e-4);
}

TEST_F(SampleTeacherTest, TokenIsTheInverseCdf) {
  // Uniform 0 takes the first possible code, the largest uniform the last one.
  const TeacherConfig config = TopK(3);
  for (const float uniform : {0.0F, 0.5F, 1.0F - 0x1p-24F}) {
    const SampledBlock block = Sample(labels_, at::full({4, 49}, uniform), config);
    const at::Tensor logits = FilterLogits(bundle_.teacher->Logits(block.hidden), config);
    const at::Tensor cdf = at::softmax(logits.to(at::kDouble), -1).cumsum(-1);
    const at::Tensor chosen = cdf.gather(-1, block.tokens.unsqueeze(-1)).squeeze(-1);
    const at::Tensor probability =
        at::softmax(logits, -1).gather(-1, block.tokens.unsqueeze(-1)).squeeze(-1);
    EXPECT_TRUE((chosen >= uniform - 1e-6).all().item<bool>());
    EXPECT_TRUE((chosen - probability <= uniform + 1e-6).all().item<bool>());
    EXPECT_GT(probability.min().item<double>(), 0);
  }
}

TEST_F(SampleTeacherTest, FrequenciesFollowTheDistribution) {
  constexpr std::int64_t kRows = 4000;
  const at::Tensor labels = at::full({kRows}, 3, at::kLong);
  at::manual_seed(5);
  const SampledBlock block = Sample(labels, at::rand({kRows, 49}), TopK(0));
  // All first tokens have one distribution.
  const at::Tensor p = at::softmax(bundle_.teacher->Logits(block.hidden[0][0]), -1);
  const at::Tensor counts = at::bincount(block.tokens.select(1, 0).contiguous(), {}, 16);
  const at::Tensor deviation = (counts - p * kRows) / (p * (1 - p) * kRows).sqrt();
  EXPECT_LT(deviation.abs().max().item<double>(),
            4.5);  // of 16: chance 1e-4, and the seed is fixed
}

TEST(Tokenizer, CodesSurviveStandardisation) {
  ParamBuffer params(SmallTokenizer::Layout({.codes = 8, .channels = 4, .scales = {}}), false);
  InitUniformFanIn(params, "", 1, 0);
  at::manual_seed(1);
  params["codebook"].copy_(at::randn({8, 4}));
  params["mean"].copy_(at::tensor({0.5F, -1.0F, 0.0F, 2.0F}));
  params["std"].copy_(at::tensor({2.0F, 0.5F, 1.0F, 3.0F}));
  const SmallTokenizer tokenizer({.codes = 8, .channels = 4, .scales = {}}, params);
  const at::Tensor ids = at::arange(49, at::kLong).remainder(8).view({1, 49});
  const at::Tensor standardised = tokenizer.codebook().index_select(0, ids[0]).view({1, 49, 4});
  const at::Tensor raw = params["codebook"].index_select(0, ids[0]).view({1, 49, 4});
  const at::Tensor expected = tokenizer.DecodeLatents(raw).clamp(-1, 1);
  EXPECT_LT((tokenizer.Decode(standardised) - expected).abs().max().item<double>(), 1e-5);
}

TEST(Tokenizer, EncodeTakesTheNearestRawCode) {
  const TeacherBundle bundle = MakeTinyTeacher(2);
  at::manual_seed(1);
  const at::Tensor images = at::rand({2, 1, 28, 28}) * 2 - 1;
  const at::Tensor latents =
      static_cast<const SmallTokenizer&>(*bundle.tokenizer).EncodeLatents(images);
  const at::Tensor distance =
      at::cdist(latents.view({98, 4}), bundle.tokenizer->params()["codebook"]);
  EXPECT_TRUE(at::equal(bundle.tokenizer->Encode(images).view({98}), distance.argmin(1)));
}

TEST(Tokenizer, HasTheRecipesParameterCount) {
  std::int64_t count = 0;
  const ParamLayout layout = SmallTokenizer::Layout({.codes = 128, .channels = 4, .scales = {}});
  for (const ParamSpec& spec : layout.specs()) {
    if (spec.name.find("coder.") != std::string::npos) count += spec.numel;
  }
  EXPECT_EQ(count, 233669);
}

TEST(Teacher, HasTheRecipesParameterCount) {
  std::int64_t count = 0;
  const ParamLayout layout = Teacher::Layout({}, 128);
  for (const ParamSpec& spec : layout.specs()) count += spec.numel;
  EXPECT_EQ(count, 834816);
}

}  // namespace
}  // namespace dd2
