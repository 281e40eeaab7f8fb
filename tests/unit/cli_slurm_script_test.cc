#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cli/slurm_script.h"

namespace dd2 {
namespace {

using testing::HasSubstr;
using testing::Not;

SlurmScript Values() {
  SlurmScript values;
  values.name = "quick";
  values.run = "/shared/runs/quick";
  values.script = "/shared/runs/quick/slurm/job.sh";
  values.dd2 = "/opt/dd 2/bin/dd2";
  values.nodes = "2-4";
  values.run_options = {"--set", "api.host=10.0.0.1", "--srun=--container-image=/images/a b.sqsh"};
  values.launch = {"--container-name=dd2", "apptainer", "exec"};
  values.sbatch = {"--partition=gpu", "--mem=0"};
  values.prolog = {"module load openmpi"};
  return values;
}

TEST(SlurmScript, SaysWhatWasAskedFor) {
  const auto script = RenderSlurmScript(Values());
  ASSERT_TRUE(script) << script.error().message();
  EXPECT_TRUE(script->starts_with("#!/bin/bash\n"));
  for (const char* line :
       {"#SBATCH --nodes=2-4\n", "#SBATCH --partition=gpu\n#SBATCH --mem=0\n",
        "#SBATCH --signal=B:USR2@180\n", "#SBATCH --job-name=dd2-quick\n",
        "\nmodule load openmpi\n", "\ndd2='/opt/dd 2/bin/dd2'\n",
        "--nodes \"$nodes\" --set api.host=10.0.0.1 '--srun=--container-image=/images/a b.sqsh' "
        "&\n",
        "# Written by `dd2 submit`. To go on with the run after the job has ended: sbatch "
        "/shared/runs/quick/slurm/job.sh\n"}) {
    EXPECT_THAT(*script, HasSubstr(line));
  }
  EXPECT_THAT(*script, Not(testing::ContainsRegex("@[A-Z_2]+@")));
  // Slurm reads options up to the first command only.
  EXPECT_LT(script->rfind("\n#SBATCH"), script->find("module load"));
}

TEST(SlurmScript, AGpuForEachRankUnlessSomebodySaysWhich) {
  std::vector<std::string> options = {"--partition=gpu"};
  AddGpus(8, options);
  EXPECT_THAT(options, testing::ElementsAre("--partition=gpu", "--gpus-per-node=8"));
  for (const char* said : {"--gres=gpu:a100:4", "--gpus-per-task=1", "-G4"}) {
    std::vector<std::string> typed = {said};
    AddGpus(8, typed);
    EXPECT_THAT(typed, testing::ElementsAre(said));
  }
}

TEST(SlurmScript, ACoordinatorAndItsNodes) {
  SlurmScript values = Values();
  values.kind = SlurmScriptKind::kCoordinator;
  values.run_options = {"--elastic", "--domains", "2", "--node-jobs", "4"};
  const auto coordinator = RenderSlurmScript(values);
  ASSERT_TRUE(coordinator) << coordinator.error().message();
  EXPECT_THAT(*coordinator, HasSubstr("--resume --elastic --domains 2 --node-jobs 4 &\n"));
  EXPECT_THAT(*coordinator, HasSubstr("#SBATCH --nodes=1\n"));
  EXPECT_THAT(*coordinator, Not(HasSubstr("--exclusive"))) << "it needs no node for itself";
  values.kind = SlurmScriptKind::kNode;
  values.wait_seconds = 77;
  const auto node = RenderSlurmScript(values);
  ASSERT_TRUE(node) << node.error().message();
  EXPECT_THAT(*node, HasSubstr("--quiet --container-name=dd2 apptainer exec \"$dd2\" agent join"));
  EXPECT_THAT(*node, HasSubstr("--wait 77 &\n"));
  EXPECT_THAT(*node, HasSubstr("#SBATCH --job-name=dd2-quick-node\n"));
  for (const std::string& text : {*coordinator, *node}) {
    EXPECT_THAT(text, Not(testing::ContainsRegex("@[A-Z_2]+@")));
    EXPECT_LT(text.rfind("\n#SBATCH"), text.find("module load"));
  }
}

TEST(SlurmScript, RefusesWhatWouldBreakALine) {
  for (const char* run : {"/a b", "/a%j", "/a\\b", "/a\nb", "/a\"b", "/a;b", "/$a", "/a*"}) {
    SlurmScript values = Values();
    values.run = run;
    EXPECT_EQ(RenderSlurmScript(values).error().code(), Code::kInvalidArgument) << run;
  }
  SlurmScript values = Values();
  for (const char* option : {"--comment=a\nrm -rf /", "--comment=two words", "--comment=#1"}) {
    values.sbatch = {option};
    EXPECT_EQ(RenderSlurmScript(values).error().code(), Code::kInvalidArgument) << option;
  }
}

TEST(SlurmScript, NumbersOfNodes) {
  EXPECT_EQ(ParseNodes("3")->min, 3);
  EXPECT_EQ(ParseNodes("3")->max, 3);
  EXPECT_EQ(ParseNodes("2-4")->max, 4);
  for (const char* text : {"", "0", "-1", "4-2", "2-", "two", "2-4-6", "2 "}) {
    EXPECT_FALSE(ParseNodes(text)) << text;
  }
}

TEST(SlurmScript, APlaceholderWithoutValueIsAnError) {
  EXPECT_EQ(*FillIn("a@B@c@@B@ d@e", {{"B", "1"}}), "a1c@1 d@e");
  EXPECT_FALSE(FillIn("@MISSING@", {}));
}

}  // namespace
}  // namespace dd2
