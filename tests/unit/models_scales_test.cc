// A teacher that draws scale by scale, behind the interfaces of the raster one.

#include <gmock/gmock.h>
#include <unistd.h>

#include <filesystem>

#include "tests/support/tiny_teacher.h"
#include "worker/models/teacher.h"
#include "worker/models/vqgan.h"

namespace dd2 {
namespace {

const std::vector<std::int64_t> kSides = {1, 3, 7};
constexpr std::int64_t kTokens = 1 + 9 + 49;

double LargestDifference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

class ScalesTest : public testing::Test {
 protected:
  at::Tensor CodesOf(const at::Tensor& tokens) const {
    return bundle_.tokenizer->codebook()
        .index_select(0, tokens.flatten())
        .view({tokens.size(0), tokens.size(1), -1});
  }
  at::Tensor Noise(std::int64_t rows) const {
    at::manual_seed(7);
    return at::randn({rows, kTokens, 4});
  }

  const TeacherBundle bundle_ = MakeTinyTeacher(4, kSides);
  const at::Tensor labels_ = at::tensor({0, 3, 10, 3}, at::kLong);
};

TEST_F(ScalesTest, GroupsAreTheScales) {
  const auto groups = GroupsOf(bundle_.teacher->backbone().spec());
  ASSERT_EQ(groups.size(), 3u);
  EXPECT_EQ(groups[2].begin, 10);
  EXPECT_EQ(groups[2].size, 49);
}

TEST_F(ScalesTest, SampledHiddenIsTheGuidedTeacherForcedPass) {
  for (const double scale : {0.0, 1.5}) {
    TeacherConfig config;
    config.cfg_scale = scale;
    at::manual_seed(1);
    const SampledBlock block = SampleTeacher(*bundle_.teacher, bundle_.tokenizer->codebook(),
                                             labels_, at::rand({4, kTokens}), config);
    EXPECT_GT(std::get<0>(at::_unique(block.tokens)).numel(), 4) << "it draws one code only";
    const at::Tensor forced = bundle_.teacher->GuidedHidden(CodesOf(block.tokens), labels_, scale);
    EXPECT_LT(LargestDifference(forced, block.hidden), 1e-4) << "scale " << scale;
  }
}

// Passes over whole sequences alone; its steps and output layer stay fp32.
TEST_F(ScalesTest, ATeacherInBf16IsNearThatInFp32) {
  BackboneSpec spec = bundle_.teacher->backbone().spec();
  spec.mode.bf16 = true;
  const Teacher rounded(spec, bundle_.teacher->codes(), bundle_.teacher->params());
  const at::Tensor q = Noise(4);
  const at::Tensor exact = bundle_.teacher->GuidedHidden(q, labels_, 1.5);
  const at::Tensor rough = rounded.GuidedHidden(q, labels_, 1.5);
  EXPECT_EQ(rough.scalar_type(), at::kFloat);
  const double error = ((rough - exact).norm() / exact.norm()).item<double>();
  EXPECT_GT(error, 1e-4) << "as exact as fp32";
  EXPECT_LT(error, 0.03);
  EXPECT_TRUE(at::equal(rounded.Logits(exact), bundle_.teacher->Logits(exact)));
  at::manual_seed(1);
  const at::Tensor uniforms = at::rand({4, kTokens});
  const auto sample = [&](const Teacher& teacher) {
    return SampleTeacher(teacher, bundle_.tokenizer->codebook(), labels_, uniforms, {}).hidden;
  };
  EXPECT_TRUE(at::equal(sample(rounded), sample(*bundle_.teacher)));
}

TEST_F(ScalesTest, GuidanceRisesFromScaleToScale) {
  const at::Tensor q = CodesOf(at::arange(4 * kTokens, at::kLong).remainder(16).view({4, -1}));
  const at::Tensor null = at::full({4}, 10, at::kLong);
  const Teacher& teacher = *bundle_.teacher;
  const at::Tensor conditional = teacher.Logits(teacher.Hidden(q, labels_));
  const at::Tensor unconditional = teacher.Logits(teacher.Hidden(q, null));
  const at::Tensor got = teacher.Logits(teacher.GuidedHidden(q, labels_, 2.0));
  std::int64_t begin = 0;
  for (std::size_t k = 0; k < kSides.size(); ++k) {
    const std::int64_t size = kSides[k] * kSides[k];
    const double w = 1.0 + static_cast<double>(k);  // 1 + 2 k / 2
    const at::Tensor u = unconditional.narrow(1, begin, size);
    const at::Tensor expected = u + w * (conditional.narrow(1, begin, size) - u);
    EXPECT_LT(LargestDifference(got.narrow(1, begin, size), expected), 1e-4) << "scale " << k;
    begin += size;
  }
}

TEST_F(ScalesTest, AFeatureSeesEarlierScalesOnly) {
  const Backbone& backbone = bundle_.teacher->backbone();
  const at::Tensor q = Noise(4);
  const at::Tensor before = backbone.Forward(q, labels_);
  at::Tensor other = q.clone();
  other.select(1, 5).add_(1.0);  // a token of the second scale
  const at::Tensor after = backbone.Forward(other, labels_);
  EXPECT_EQ(LargestDifference(after.narrow(1, 0, 10), before.narrow(1, 0, 10)), 0.0);
  EXPECT_GT(LargestDifference(after.narrow(1, 10, 49), before.narrow(1, 10, 49)), 1e-4);
}

TEST_F(ScalesTest, TheGeneratorsGradientReachesBackboneAndHead) {
  const NetworkSpec spec = TinyNetworkSpec(bundle_);
  ParamBuffer params(Network::Layout(spec), /*requires_grad=*/true);
  {
    const at::NoGradGuard no_grad;
    params.flat().copy_(MakeTinyGenerator(spec, 3).flat());
    CopyParams(bundle_.teacher->params(), params, "backbone.");
  }
  const at::Tensor gradient = at::zeros_like(params.flat());
  params.BindGradient(gradient);
  const Network network(spec, params);
  const at::Tensor q = network.Generate(Noise(4), labels_);
  q.square().mean().backward();
  const auto largest = [&](const std::string& name) {
    return params[name].grad().abs().max().item<double>();
  };
  for (const char* name : {"backbone.word_embed.weight", "backbone.blocks.0.attn.mat_qkv.weight",
                           "backbone.class_emb.weight", "head.input_proj.weight"}) {
    EXPECT_GT(largest(name), 0.0) << name;
  }
  // Once more into the same buffer: twice the gradient, so it is added.
  const at::Tensor once = gradient.clone();
  network.Generate(Noise(4), labels_).square().mean().backward();
  EXPECT_LT(LargestDifference(gradient, once * 2), 1e-6);
}

TEST_F(ScalesTest, EncodingIsDecodedAgain) {
  at::manual_seed(2);
  const at::Tensor images = at::rand({3, 1, 28, 28}) * 2 - 1;
  const at::Tensor ids = bundle_.tokenizer->Encode(images);
  EXPECT_EQ(ids.sizes(), (std::vector<std::int64_t>{3, kTokens}));
  const at::Tensor decoded = bundle_.tokenizer->Decode(CodesOf(ids));
  EXPECT_EQ(decoded.sizes(), images.sizes());
  // What is decoded is the sum over the scales, nearer to the latents than that of other codes.
  const at::Tensor latents =
      RowsToMap(static_cast<const SmallTokenizer&>(*bundle_.tokenizer).EncodeLatents(images),
                SmallTokenizer::kSide, SmallTokenizer::kSide);
  const auto distance = [&](const at::Tensor& tokens) {
    const at::Tensor features = bundle_.tokenizer->path()->Features(CodesOf(tokens));
    return (features - latents).square().mean().item<double>();
  };
  EXPECT_LT(distance(ids), 0.5 * distance((ids + 5).remainder(16)));
}

TEST_F(ScalesTest, ComesBackFromItsFiles) {
  const auto folder =
      std::filesystem::temp_directory_path() / ("dd2-test-scales-" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  ASSERT_TRUE(SaveTokenizer(folder / "tokenizer.safetensors", *bundle_.tokenizer, {}));
  ASSERT_TRUE(SaveTeacher(folder / "teacher.safetensors", *bundle_.teacher, {}));
  const auto tokenizer = LoadTokenizer(folder / "tokenizer.safetensors");
  ASSERT_TRUE(tokenizer) << tokenizer.error().message();
  EXPECT_EQ((*tokenizer)->spec().scales.sides, kSides);
  const auto teacher = LoadTeacher(folder / "teacher.safetensors", (*tokenizer)->path());
  ASSERT_TRUE(teacher) << teacher.error().message();
  const at::Tensor q = Noise(4);
  EXPECT_TRUE(at::equal((*teacher)->Hidden(q, labels_), bundle_.teacher->Hidden(q, labels_)));
  const auto rounded = LoadTeacher(folder / "teacher.safetensors", (*tokenizer)->path(), true);
  ASSERT_TRUE(rounded);
  EXPECT_FALSE(at::equal((*rounded)->Hidden(q, labels_), bundle_.teacher->Hidden(q, labels_)));
  const auto without = LoadTeacher(folder / "teacher.safetensors", nullptr);
  ASSERT_FALSE(without);
  EXPECT_THAT(without.error().message(), testing::HasSubstr("scales (1,3,7)"));
  std::filesystem::remove_all(folder);
}

TEST_F(ScalesTest, SenselessScalesAreRefused) {
  const auto file = std::filesystem::temp_directory_path() /
                    ("dd2-test-senseless-" + std::to_string(::getpid()) + ".safetensors");
  const auto tokenizer = [&](const std::string& sides, const std::string& phis) {
    EXPECT_TRUE(SaveParams(file, bundle_.tokenizer->params(),
                           {{"dd2.kind", "tokenizer"},
                            {"codes", "16"},
                            {"channels", "4"},
                            {"sides", sides},
                            {"phi_of_scale", phis}}));
    return LoadTokenizer(file);
  };
  EXPECT_TRUE(tokenizer("1,3,7", "0,0,1"));
  for (const auto& [sides, phis] : {std::pair<const char*, const char*>{"1,3,7", "0,0,2"},
                                    {"1,3,7", "0,0"},
                                    {"1,7,3", "0,0,1"},
                                    {"1,3,6", "0,0,1"},
                                    {"7", "0"},
                                    {"1,3,7", "1,1,1"},
                                    {"1,,7", "0,0,1"},
                                    {"1,3,seven", "0,0,1"},
                                    {"", "0,0,1"}}) {
    const auto loaded = tokenizer(sides, phis);
    ASSERT_FALSE(loaded) << sides << " " << phis;
    EXPECT_EQ(loaded.error().code(), Code::kInvalidArgument);
  }
  EXPECT_TRUE(SaveParams(file, bundle_.teacher->params(),
                         {{"dd2.kind", "teacher"},
                          {"channels", "4"},
                          {"width", "16"},
                          {"layers", "1"},
                          {"heads", "2"},
                          {"tokens", "60"},
                          {"classes", "10"},
                          {"codes", "16"},
                          {"sides", "1,3,7"}}));
  const auto teacher = LoadTeacher(file, bundle_.tokenizer->path());
  ASSERT_FALSE(teacher);
  EXPECT_THAT(teacher.error().message(), testing::HasSubstr("'tokens' is 60"));
  std::filesystem::remove(file);
}

}  // namespace
}  // namespace dd2
