// Rehearsals: what `dd2 run --shrink` makes of configurations, and the small teachers it writes.

#include "cli/shrink.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "cli/model_sizes.h"
#include "common/config.h"
#include "storage/random_teacher.h"
#include "storage/safetensors.h"
#include "storage/teacher_catalog.h"
#include "tests/unit/storage_testing.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

RunConfig ConfigOf(const std::string& name, const std::vector<std::string>& settings = {}) {
  const auto config =
      LoadRunConfig(fs::path(DD2_SOURCE_DIR) / "configs" / (name + ".yaml"), settings);
  EXPECT_TRUE(config) << config.error().message();
  return config ? *config : RunConfig();
}

ShrunkRun ShrunkOf(const std::string& name, const fs::path& folder = {}) {
  const auto run = Shrink(ConfigOf(name), folder);
  EXPECT_TRUE(run) << run.error().message();
  return run ? *run : ShrunkRun();
}

TEST(ShrinkTest, EveryPhaseStaysAndIsShort) {
  for (const char* name : {"var-d16", "var-d24", "llamagen-l", "fashion-mnist"}) {
    RunConfig whole = ConfigOf(name);
    const RunConfig small = ShrunkOf(name).config;
    if (whole.eval.by_inception()) {  // FID is left out
      EXPECT_FALSE(small.eval.by_inception());
      std::erase_if(whole.phases,
                    [](const PhaseConfig& phase) { return phase.kind == PhaseKind::kEval; });
    }
    ASSERT_EQ(small.phases.size(), whole.phases.size()) << name;
    for (std::size_t i = 0; i < whole.phases.size(); ++i) {
      const PhaseConfig& phase = small.phases[i];
      EXPECT_EQ(phase.kind, whole.phases[i].kind) << name;
      EXPECT_EQ(phase.trains, whole.phases[i].trains) << name;
      EXPECT_LE(phase.steps, 4) << name << " " << PhaseKindName(phase.kind);
    }
    EXPECT_EQ(small.name, std::string(name) + "-shrunk");
    EXPECT_EQ(small.teacher.top_k, whole.teacher.top_k);
    EXPECT_NE(ConfigDigest(small), ConfigDigest(whole));
  }
}

TEST(ShrinkTest, EveryRankOfEveryDomainHasAShard) {
  const auto run = Shrink(ConfigOf("var-d16", {"domains=3"}), {});
  ASSERT_TRUE(run) << run.error().message();
  EXPECT_EQ(run->config.domains, 3);
  EXPECT_EQ(run->config.ranks, 2);
  EXPECT_EQ(run->config.batch.shards, 8);
  EXPECT_EQ(run->config.phases[2].batch, 8);
}

// Twice the same, and no run of its own is made of what is small already.
TEST(ShrinkTest, AShrunkRunStaysAsItIs) {
  const RunConfig once = ShrunkOf("fashion-mnist-quick").config;
  const auto twice = Shrink(once, {});
  ASSERT_TRUE(twice);
  EXPECT_EQ(ConfigDigest(twice->config), ConfigDigest(once));
  EXPECT_FALSE(twice->teacher) << "the committed teacher is used";
  EXPECT_EQ(twice->config.teacher.path, once.teacher.path);
}

TEST(ShrinkTest, TheTeacherIsOfTheSameKind) {
  const ShrunkRun run = ShrunkOf("var-d16", "/somewhere/run");
  EXPECT_EQ(run.config.teacher.path, "/somewhere/run/teacher");
  ASSERT_TRUE(run.teacher);
  EXPECT_EQ(run.teacher->transformer.part, TeacherPart::kVarTransformer);
  EXPECT_EQ(run.teacher->transformer.positions, 680);
  EXPECT_EQ(run.teacher->transformer.vocabulary, 4096);
  const ShrunkRun gpt = ShrunkOf("llamagen-xl", "/somewhere/run");
  ASSERT_TRUE(gpt.teacher);
  EXPECT_EQ(gpt.teacher->transformer.part, TeacherPart::kLlamaGenTransformer);
  EXPECT_EQ(gpt.teacher->transformer.grid, 16);
  EXPECT_EQ(gpt.teacher->tokenizer.code_channels, 8);
  EXPECT_EQ(gpt.teacher->transformer.code_channels, 8) << "adapted, so that it can be distilled";
}

TEST(ShrinkTest, ATeacherThatNobodyKnows) {
  const auto run = Shrink(ConfigOf("var-d16", {"teacher.path=teachers/mine"}), {});
  ASSERT_FALSE(run);
  EXPECT_EQ(run.error().code(), Code::kInvalidArgument);
  EXPECT_THAT(run.error().message(), HasSubstr("teachers/mine"));
  EXPECT_THAT(run.error().message(), HasSubstr("var-d16, var-d20"));
}

TEST(ShrinkTest, TheTeacherIsWrittenOnce) {
  const TemporaryFolder folder;
  const ShrunkRun run = ShrunkOf("var-d16", folder.path());
  const Status written = WriteSmallTeacher(run);
  ASSERT_TRUE(written) << written.error().message();
  const auto sizes = ReadModelSizes(run.config.teacher.path);
  ASSERT_TRUE(sizes) << sizes.error().message();
  EXPECT_EQ(sizes->kind, ModelKind::kVar);
  EXPECT_EQ(sizes->tokens, 680);
  const fs::path weights = fs::path(run.config.teacher.path) / kTransformerFile;
  const auto before = fs::last_write_time(weights);
  ASSERT_TRUE(WriteSmallTeacher(run));
  EXPECT_EQ(fs::last_write_time(weights), before);
}

class RandomTeacherTest : public testing::Test {
 protected:
  TeacherDescription Write(const char* name, const char* kind, std::uint64_t seed) {
    const ShrunkRun run = ShrunkOf(kind);
    const auto teacher = WriteRandomTeacher(RealFileSystem(), folder_.path() / name,
                                            run.teacher->transformer, run.teacher->tokenizer, seed);
    EXPECT_TRUE(teacher) << teacher.error().message();
    return teacher ? *teacher : TeacherDescription();
  }
  TemporaryFolder folder_;
};

TEST_F(RandomTeacherTest, IsAFunctionOfTheSeed) {
  const auto first = Write("a", "llamagen-b", 1).digest();
  EXPECT_EQ(Write("b", "llamagen-b", 1).digest(), first);
  EXPECT_NE(Write("c", "llamagen-b", 2).digest(), first);
}

// Every weight that the family has, as an import would find it, and none of an odd magnitude.
TEST_F(RandomTeacherTest, IsRecognisedAsItsFamily) {
  for (const char* kind : {"var-d16", "llamagen-b"}) {
    Write(kind, kind, 1);
    for (const std::string_view name : {kTransformerFile, kTokenizerFile}) {
      const auto file = SafetensorsFile::Open(folder_.path() / kind / name);
      ASSERT_TRUE(file) << file.error().message();
      std::vector<StoredTensor> stored;
      for (const auto& [tensor, info] : file->tensors()) {
        stored.push_back({tensor, info.shape, info.dtype});
        const auto values = file->ReadF32(tensor, info.shape);
        ASSERT_TRUE(values);
        EXPECT_TRUE(std::ranges::all_of(*values, [](float v) { return std::abs(v) < 6; }))
            << tensor;
        const bool flat =
            std::ranges::all_of(*values, [&](float v) { return v == values->front(); });
        const bool constant = info.shape.size() < 2 || tensor.ends_with("scale_mul_1H11");
        EXPECT_EQ(flat, constant) << tensor;
      }
      const auto match = MatchTeacher(stored, {});
      ASSERT_TRUE(match) << name;
      EXPECT_TRUE(match->complete()) << kind << " " << name;
    }
  }
}

}  // namespace
}  // namespace dd2
