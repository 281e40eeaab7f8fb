// Against the tensor lists of tests/golden/tensors, which the reference classes gave when they were
// instantiated.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "storage/teacher_catalog.h"
#include "tests/support/tensor_list.h"

namespace dd2 {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

struct Listed {
  std::vector<StoredTensor> all;
  std::vector<TensorShape> parameters;  // without the buffers, in the list's order
};

Listed ReadList(const std::string& name) {
  Listed listed;
  for (const auto& [tensor, is_parameter] : ReadTensorList(name)) {
    listed.all.push_back(tensor);
    if (is_parameter) listed.parameters.push_back({tensor.name, tensor.shape});
  }
  return listed;
}

// Values of lvl_1L.
std::vector<float> LevelsOf(const std::vector<std::int64_t>& sides) {
  std::vector<float> levels;
  for (std::size_t i = 0; i < sides.size(); ++i) {
    levels.insert(levels.end(), static_cast<std::size_t>(sides[i] * sides[i]),
                  static_cast<float>(i));
  }
  return levels;
}

TEST(TeacherCatalogTest, ReleasedNetworksHaveExactlyTheListedTensors) {
  struct Case {
    const char* list;
    TeacherPart part;
    const char* name;
    std::int64_t parameters;  // as the reference counts them (models.md 1.5, 1.6, 2.1, 2.2)
    std::size_t ignored;
  };
  for (const Case& c : std::initializer_list<Case>{
           {"var_d16", TeacherPart::kVarTransformer, "VAR-d16 (256 px)", 310'283'520, 2 + 16},
           {"vae_ch160v4096z32", TeacherPart::kVarTokenizer, "VAR tokenizer ch160 v4096 z32",
            108'948'355, 1},
           {"llamagen_GPT-B", TeacherPart::kLlamaGenTransformer, "LlamaGen GPT-B", 110'888'448, 0},
           {"llamagen_vq_ds16", TeacherPart::kLlamaGenTokenizer, "LlamaGen VQ-16", 71'883'403, 1},
           {"llamagen_vq_ds8", TeacherPart::kLlamaGenTokenizer, "LlamaGen VQ-8", 0, 1}}) {
    SCOPED_TRACE(c.list);
    const Listed listed = ReadList(c.list);
    const auto match = MatchTeacher(listed.all, {});
    ASSERT_TRUE(match);
    EXPECT_TRUE(match->complete()) << match->missing.size() << " " << match->wrong.size();
    EXPECT_EQ(match->sizes.part, c.part);
    EXPECT_EQ(match->name, c.name);
    if (c.parameters > 0) {
      EXPECT_EQ(match->parameters, c.parameters);
    }
    EXPECT_EQ(match->ignored.size(), c.ignored);
    EXPECT_EQ(match->layout, listed.parameters);  // order too
  }
}

TEST(TeacherCatalogTest, SizesAreReadOffTheShapes) {
  const auto var = MatchTeacher(ReadList("var_d16").all, {});
  ASSERT_TRUE(var);
  EXPECT_EQ(var->sizes.depth, 16);
  EXPECT_EQ(var->sizes.width, 1024);
  EXPECT_EQ(var->sizes.heads, 16);
  EXPECT_EQ(var->sizes.ffn_hidden, 4096);
  EXPECT_EQ(var->sizes.classes, 1000);
  EXPECT_EQ(var->sizes.vocabulary, 4096);
  EXPECT_EQ(var->sizes.code_channels, 32);
  EXPECT_TRUE(var->sizes.scaled_attention);
  EXPECT_THAT(var->sizes.patch_numbers, ElementsAre(1, 2, 3, 4, 5, 6, 8, 10, 13, 16));
  const auto vae = MatchTeacher(ReadList("vae_ch160v4096z32").all, {});
  ASSERT_TRUE(vae);
  EXPECT_EQ(vae->sizes.channels, 160);
  EXPECT_THAT(vae->sizes.multipliers, ElementsAre(1, 1, 2, 2, 4));
  EXPECT_EQ(vae->sizes.latent_channels, 32);
  EXPECT_EQ(vae->sizes.residual_convs, 4);
  const auto gpt = MatchTeacher(ReadList("llamagen_GPT-B").all, {});
  ASSERT_TRUE(gpt);
  EXPECT_EQ(gpt->sizes.depth, 12);
  EXPECT_EQ(gpt->sizes.heads, 12);
  EXPECT_EQ(gpt->sizes.ffn_hidden, 2048);
  EXPECT_EQ(gpt->sizes.vocabulary, 16384);
  const auto vq = MatchTeacher(ReadList("llamagen_vq_ds16").all, {});
  ASSERT_TRUE(vq);
  EXPECT_EQ(vq->sizes.code_channels, 8);
  EXPECT_EQ(vq->sizes.latent_channels, 256);
}

// Any network of a family, from its sizes to its layout and back.
std::vector<StoredTensor> Stored(const TeacherSizes& sizes) {
  std::vector<StoredTensor> tensors;
  for (const TensorShape& tensor : LayoutOf(sizes)) {
    tensors.push_back({tensor.name, tensor.shape, Dtype::kF32});
  }
  return tensors;
}

TeacherSizes SmallVar() {
  TeacherSizes sizes;
  sizes.depth = 3;
  sizes.width = 128;
  sizes.heads = 4;
  sizes.ffn_hidden = 512;
  sizes.classes = 10;
  sizes.vocabulary = 64;
  sizes.code_channels = 32;
  sizes.scaled_attention = true;
  sizes.scales = 4;
  sizes.positions = 1 + 4 + 9 + 16;
  return sizes;
}

TEST(TeacherCatalogTest, AnySizeIsRecognised) {
  const auto match = MatchTeacher(Stored(SmallVar()), LevelsOf({1, 2, 3, 4}));
  ASSERT_TRUE(match);
  EXPECT_TRUE(match->complete());
  EXPECT_EQ(match->name, "VAR-d3 of width 128");
  EXPECT_EQ(match->sizes.heads, 4);
  EXPECT_THAT(match->sizes.patch_numbers, ElementsAre(1, 2, 3, 4));

  TeacherSizes tokenizer;
  tokenizer.part = TeacherPart::kLlamaGenTokenizer;
  tokenizer.channels = 32;
  tokenizer.multipliers = {1, 2, 4};
  tokenizer.latent_channels = 64;
  tokenizer.code_channels = 8;
  tokenizer.vocabulary = 64;
  const auto vq = MatchTeacher(Stored(tokenizer), {});
  ASSERT_TRUE(vq);
  EXPECT_TRUE(vq->complete());
  EXPECT_EQ(vq->name, "LlamaGen VQ-4 ch32");
  EXPECT_THAT(vq->sizes.multipliers, ElementsAre(1, 2, 4));

  TeacherSizes gpt;
  gpt.part = TeacherPart::kLlamaGenTransformer;
  gpt.depth = 3;
  gpt.width = 128;
  gpt.ffn_hidden = 512;
  gpt.classes = 10;
  gpt.vocabulary = 64;
  std::vector<StoredTensor> tensors = Stored(gpt);
  EXPECT_EQ(MatchTeacher(tensors, {})->sizes.heads, 0);
  tensors.push_back({"freqs_cis", {17, 16, 2}, Dtype::kF32});  // 4x4 tokens, heads of 32 channels
  const auto rotated = MatchTeacher(tensors, {});
  EXPECT_TRUE(rotated->complete());
  EXPECT_EQ(rotated->sizes.heads, 4);
  EXPECT_EQ(rotated->sizes.grid, 4);

  gpt.code_channels = 8;  // adapted: an MLP for the table
  const auto adapted = MatchTeacher(Stored(gpt), {});
  ASSERT_TRUE(adapted);
  EXPECT_TRUE(adapted->complete());
  EXPECT_EQ(adapted->name, "adapted LlamaGen GPT of 3 layers, width 128");
  EXPECT_EQ(adapted->sizes.code_channels, 8);
}

TEST(TeacherCatalogTest, ScalesThatTheLevelsDoNotTell) {
  const std::vector<StoredTensor> tensors = Stored(SmallVar());
  for (const std::vector<float>& levels :
       {std::vector<float>{}, LevelsOf({1, 2, 3}), LevelsOf({4, 3, 2, 2}),
        std::vector<float>(30, 0.0F), std::vector<float>{0, 2}}) {
    const auto match = MatchTeacher(tensors, levels);
    ASSERT_TRUE(match);
    EXPECT_THAT(match->sizes.patch_numbers, IsEmpty());
  }
  // Their order is the levels' own.
  EXPECT_THAT(MatchTeacher(tensors, LevelsOf({4, 3, 2, 1}))->sizes.patch_numbers,
              ElementsAre(4, 3, 2, 1));
}

TEST(TeacherCatalogTest, SaysWhatDoesNotFitTheNearest) {
  std::vector<StoredTensor> tensors = ReadList("var_d16").all;
  std::erase_if(tensors, [](const StoredTensor& t) { return t.name == "blocks.3.ffn.fc1.bias"; });
  for (StoredTensor& tensor : tensors) {
    if (tensor.name == "head.bias") tensor.shape = {4097};
    if (tensor.name == "blocks.0.attn.q_bias") tensor.dtype = Dtype::kI64;
  }
  tensors.push_back({"blocks.16.attn.q_bias", {1024}, Dtype::kF32});
  tensors.push_back({"other", {1}, Dtype::kF32});
  const auto match = MatchTeacher(tensors, {});
  ASSERT_TRUE(match);
  EXPECT_FALSE(match->complete());
  // A 17th block is begun: what else it needs is missing.
  EXPECT_EQ(match->missing.size(), 1U + 11U);
  EXPECT_THAT(match->missing, testing::Contains("blocks.3.ffn.fc1.bias"));
  EXPECT_THAT(match->missing, testing::Contains("blocks.16.ffn.fc2.weight"));
  EXPECT_THAT(match->extra, ElementsAre("other"));
  EXPECT_THAT(match->wrong,
              ElementsAre("blocks.0.attn.q_bias: of type I64", "head.bias: 4097, expected 4096"));
}

TEST(TeacherCatalogTest, WhatMayBeMissingDoesNotHideTheRest) {
  for (const char* name : {"pos_start", "pos_1LC", "head.weight", "word_embed.bias",
                           "blocks.0.ffn.fc1.weight", "blocks.0.attn.scale_mul_1H11"}) {
    std::vector<StoredTensor> tensors = ReadList("var_d16").all;
    std::erase_if(tensors, [name](const StoredTensor& t) { return t.name == name; });
    const auto match = MatchTeacher(tensors, {});
    ASSERT_TRUE(match);
    EXPECT_THAT(match->missing, ElementsAre(name));
    EXPECT_THAT(match->wrong, IsEmpty());
  }
}

TEST(TeacherCatalogTest, ForeignAndAbsurdLists) {
  EXPECT_FALSE(MatchTeacher({}, {}));
  EXPECT_FALSE(MatchTeacher(std::vector<StoredTensor>{{"norm.weight", {4}, Dtype::kF32}}, {}));
  // Sizes that would overflow, blocks without end, tensors without elements.
  std::vector<StoredTensor> tensors = ReadList("llamagen_GPT-B").all;
  for (StoredTensor& tensor : tensors) tensor.shape.assign(tensor.shape.size(), INT64_MAX);
  tensors.push_back({"layers.99999999999999999999.ffn_norm.weight", {1}, Dtype::kF32});
  tensors.push_back({"layers.2000000000.ffn_norm.weight", {1}, Dtype::kF32});
  auto match = MatchTeacher(tensors, {});
  ASSERT_TRUE(match);
  EXPECT_EQ(match->sizes.depth, 12);
  EXPECT_EQ(match->parameters, 0);
  EXPECT_FALSE(match->complete());
  for (StoredTensor& tensor : tensors) tensor.shape.assign(tensor.shape.size(), 0);
  match = MatchTeacher(tensors, {});
  ASSERT_TRUE(match);
  EXPECT_FALSE(match->complete());
}

}  // namespace
}  // namespace dd2
