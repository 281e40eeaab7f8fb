#include <gmock/gmock.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/config_diff.h"
#include "cli/run_folder.h"
#include "common/config.h"
#include "storage/safetensors.h"
#include "storage_testing.h"

namespace dd2 {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
namespace fs = std::filesystem;

constexpr const char* config_yaml = R"(seed: 3
teacher:
  path: bundle
phases:
  - kind: sample
    sequences: 512
    block: 256
  - kind: gts
    steps: 60
  - kind: csd
    cycles: 50
  - kind: export
)";

class RunFolderTest : public ::testing::Test {
 protected:
  RunFolderTest() {
    fs::create_directory(root_ / "bundle");
    const std::vector<float> weights(16, 1.0F);
    const TensorToWrite tensor{.name = "w", .shape = {16}, .data = weights};
    for (const char* name : {"tokenizer", "teacher", "classifier"}) {
      EXPECT_TRUE(WriteSafetensors(RealFileSystem(),
                                   root_ / "bundle" / (std::string(name) + ".safetensors"),
                                   std::vector<TensorToWrite>{tensor}, {}));
    }
    WriteAll(root_ / "small.yaml", config_yaml);
    request_.config = root_ / "small.yaml";
    request_.folder = root_ / "run";
  }

  // As `dd2 run` does it.
  static tl::expected<PreparedRun, StartFailure> Prepare(const RunRequest& request) {
    auto config = CheckRequest(request);
    if (!config) return tl::unexpected(config.error());
    return dd2::PrepareRun(request, std::move(*config));
  }

  // Exit code and message of a request that must fail.
  StartFailure Failure() {
    auto run = Prepare(request_);
    EXPECT_FALSE(run) << "it did not fail";
    return run ? StartFailure{} : run.error();
  }

  TemporaryFolder folder_;
  fs::path root_ = folder_.path();
  RunRequest request_;
};

TEST_F(RunFolderTest, DefaultFolderIsNamedAfterTheConfiguration) {
  const auto config = LoadRunConfig(request_.config);
  ASSERT_TRUE(config) << config.error().message();
  EXPECT_EQ(DefaultRunFolder(*config), fs::path("runs/small"));
}

TEST_F(RunFolderTest, FreshRunHoldsTheEffectiveConfiguration) {
  request_.ranks = 4;
  request_.seed = 11;
  request_.overrides = {"phases.1.steps=70"};
  const auto run = Prepare(request_);
  ASSERT_TRUE(run) << run.error().message;
  EXPECT_TRUE(run->fresh);
  const auto stored = LoadRunConfig(request_.folder / "config.yaml");
  ASSERT_TRUE(stored) << stored.error().message();
  EXPECT_EQ(stored->ranks, 4);
  EXPECT_EQ(stored->seed, 11u);
  EXPECT_EQ(ConfigDigest(*stored), ConfigDigest(run->config));
}

TEST_F(RunFolderTest, SecondRunWhileTheFirstLivesIsToldSo) {
  const auto first = Prepare(request_);
  ASSERT_TRUE(first);
  const StartFailure failure = Failure();
  EXPECT_EQ(failure.exit_code, kExitAlreadyStarted);
  EXPECT_THAT(failure.message, HasSubstr("in use"));
  EXPECT_THAT(failure.message, HasSubstr(std::to_string(::getpid())));
}

TEST_F(RunFolderTest, SecondRunAfterTheFirstNeedsResume) {
  { ASSERT_TRUE(Prepare(request_)); }
  const StartFailure failure = Failure();
  EXPECT_EQ(failure.exit_code, kExitAlreadyStarted);
  EXPECT_THAT(failure.message, HasSubstr("--resume"));
  request_.resume = true;
  const auto resumed = Prepare(request_);
  ASSERT_TRUE(resumed) << resumed.error().message;
  EXPECT_FALSE(resumed->fresh);
}

TEST_F(RunFolderTest, ResumeUnderAnotherConfigurationNamesTheKeys) {
  { ASSERT_TRUE(Prepare(request_)); }
  request_.resume = true;
  request_.overrides = {"phases.1.steps=61", "eval.samples=600"};
  const StartFailure failure = Failure();
  EXPECT_EQ(failure.exit_code, kExitUsage);
  EXPECT_THAT(failure.message, HasSubstr("steps: 60 in the run, 61 now"));
  EXPECT_THAT(failure.message, Not(HasSubstr("eval.samples")));
}

TEST_F(RunFolderTest, ResumeTakesNewRanksAndKeepsTheRest) {
  { ASSERT_TRUE(Prepare(request_)); }
  request_.resume = true;
  request_.domains = 2;
  request_.ranks = 1;
  request_.overrides = {"eval.samples=600"};
  const auto run = Prepare(request_);
  ASSERT_TRUE(run) << run.error().message;
  EXPECT_EQ(run->config.domains, 2);
  EXPECT_EQ(run->config.ranks, 1);
  EXPECT_EQ(LoadRunConfig(request_.folder / "config.yaml")->domains, 2);
  EXPECT_EQ(LoadRunConfig(request_.folder / "config.yaml")->ranks, 1);
  EXPECT_NE(run->config.eval.samples, 600);
  ASSERT_EQ(run->notes.size(), 1u);
  EXPECT_THAT(run->notes[0], HasSubstr("eval.samples stays"));
}

TEST_F(RunFolderTest, ResumeWithoutARunIsNotFound) {
  request_.resume = true;
  EXPECT_EQ(Failure().exit_code, kExitNotFound);
  EXPECT_FALSE(fs::exists(request_.folder));
}

TEST_F(RunFolderTest, ForeignFolderIsLeftAlone) {
  fs::create_directory(request_.folder);
  WriteAll(request_.folder / "thesis.tex", "x");
  EXPECT_EQ(Failure().exit_code, kExitCannotStart);
  EXPECT_EQ(std::distance(fs::directory_iterator(request_.folder), fs::directory_iterator()), 1);
}

TEST_F(RunFolderTest, BadConfigurationMakesNothing) {
  WriteAll(root_ / "small.yaml", std::string(config_yaml) + "sed: 4\n");
  const StartFailure failure = Failure();
  EXPECT_EQ(failure.exit_code, kExitUsage);
  EXPECT_THAT(failure.message, HasSubstr("small.yaml:13"));
  EXPECT_THAT(failure.message, HasSubstr("seed"));
  EXPECT_FALSE(fs::exists(request_.folder));
}

TEST_F(RunFolderTest, MissingConfigurationIsNotFound) {
  request_.config = root_ / "none.yaml";
  EXPECT_EQ(Failure().exit_code, kExitNotFound);
}

TEST_F(RunFolderTest, TruncatedTeacherIsBadDataAndNamed) {
  const fs::path weights = root_ / "bundle" / "teacher.safetensors";
  fs::resize_file(weights, fs::file_size(weights) - 4);
  const StartFailure failure = Failure();
  EXPECT_EQ(failure.exit_code, kExitBadData);
  EXPECT_THAT(failure.message, HasSubstr("teacher.safetensors"));
  EXPECT_FALSE(fs::exists(request_.folder));
}

TEST_F(RunFolderTest, MissingTeacherIsNotFound) {
  fs::remove_all(root_ / "bundle");
  EXPECT_EQ(Failure().exit_code, kExitNotFound);
  fs::create_directory(root_ / "bundle");
  EXPECT_EQ(Failure().exit_code, kExitNotFound);
}

TEST_F(RunFolderTest, FolderThatCannotBeMade) {
  WriteAll(root_ / "file", "x");
  request_.folder = root_ / "file" / "run";
  const StartFailure failure = Failure();
  EXPECT_EQ(failure.exit_code, kExitCannotStart);
  EXPECT_THAT(failure.message, HasSubstr("file/run"));
}

TEST_F(RunFolderTest, AbandonLeavesNothingOfOurs) {
  {
    const auto run = Prepare(request_);
    ASSERT_TRUE(run);
    AbandonRun(*run);
  }
  EXPECT_FALSE(fs::exists(request_.folder));
  fs::create_directory(request_.folder);  // the user's own empty folder stays
  const auto run = Prepare(request_);
  ASSERT_TRUE(run) << run.error().message;
  AbandonRun(*run);
  EXPECT_TRUE(fs::is_empty(request_.folder));
}

TEST(ConfigDiffTest, NamesLeavesByPath) {
  const auto differences =
      DiffConfigs("a: 1\nb:\n  c: [1, 2]\nd: x\n", "a: 1\nb:\n  c: [1, 3]\ne: y\n");
  ASSERT_TRUE(differences) << differences.error().message();
  EXPECT_EQ(DescribeDifferences(*differences, "- "),
            "- b.c.1: 2 in the run, 3 now\n- d: x in the run, (absent) now\n"
            "- e: (absent) in the run, y now");
}

}  // namespace
}  // namespace dd2
