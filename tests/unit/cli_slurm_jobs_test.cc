// What Slurm says, which jobs a run has, and when another one is submitted.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "cli/node_jobs.h"
#include "cli/slurm_jobs.h"

namespace dd2 {
namespace {

using std::chrono::seconds;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

SlurmJob Job(const std::string& id, const std::string& state, const std::string& nodes = "n1") {
  SlurmJob job;
  job.id = id;
  job.state = state;
  job.nodes = state == "PENDING" ? "" : nodes;
  job.reason = state == "PENDING" ? "Resources" : "None";
  job.start = "N/A";
  return job;
}

constexpr std::int64_t kGiB = std::int64_t{1} << 30;

TEST(SlurmNodes, TheirMemoryIsReadForThePartition) {
  const NodeMemory named = ParseNodeMemory("sinfo: warning: x\nmain*|65536\nlarge|131072\n", true);
  EXPECT_EQ(named.least, 64 * kGiB);
  EXPECT_EQ(named.most, 128 * kGiB);
  const NodeMemory of_default = ParseNodeMemory("debug|2048\nmain*|4096\nlarge|999999\n", false);
  EXPECT_EQ(of_default.least, 4 * kGiB);
  EXPECT_EQ(of_default.most, 4 * kGiB);
  EXPECT_EQ(ParseNodeMemory("large|4096\n", false).most, 0) << "there is no default one";
  EXPECT_EQ(ParseNodeMemory("main*|1\n", false).most, 0) << "Slurm was not told";
  EXPECT_EQ(ParseNodeMemory("", true).most, 0);
  EXPECT_THAT(NodeMemoryWords("main"), testing::Contains("--partition=main"));
}

TEST(SlurmNodes, TooLittleMemoryIsRefusedAndALittleTooLittleIsAWarning) {
  const NodeMemory memory{.least = 64 * kGiB, .most = 128 * kGiB};
  EXPECT_EQ(*JudgeNodeMemory(memory, 64 * kGiB), "");
  const auto warning = JudgeNodeMemory(memory, 100 * kGiB);
  ASSERT_TRUE(warning);
  EXPECT_THAT(*warning, HasSubstr("--mem=102401M"));
  const auto tight = JudgeNodeMemory(memory, 160 * kGiB);
  ASSERT_TRUE(tight) << "a plan is an estimate";
  EXPECT_THAT(*tight, HasSubstr("may not fit"));
  const auto refusal = JudgeNodeMemory(memory, 161 * kGiB);
  ASSERT_FALSE(refusal);
  EXPECT_EQ(refusal.error().code(), Code::kResourceExhausted);
  EXPECT_THAT(refusal.error().message(), HasSubstr("dd2 plan"));
  EXPECT_EQ(*JudgeNodeMemory(NodeMemory(), 1000 * kGiB), "") << "nothing is known";
}

TEST(SlurmNodes, ThePartitionOfAJob) {
  EXPECT_EQ(PartitionOf({"--partition=main", "--time=2"}, nullptr), "main");
  EXPECT_EQ(PartitionOf({"--partition=main", "--partition=big"}, ""), "big") << "the last counts";
  EXPECT_EQ(PartitionOf({"--partition=main", "-p", "big"}, nullptr), "big");
  EXPECT_EQ(PartitionOf({"-pbig", "--parsable"}, nullptr), "big");
  EXPECT_EQ(PartitionOf({"--partition", "big"}, "urgent"), "urgent") << "as sbatch does";
  EXPECT_EQ(PartitionOf({"--partition"}, nullptr), "");
  EXPECT_EQ(PartitionOf({}, nullptr), "");
}

TEST(SlurmQueue, ReadsWhatSqueueSays) {
  const auto jobs = ParseQueue(
      "squeue: warning: something of the site's\n"
      "12|RUNNING|None|n[1-2]|2026-11-24T09:30:00|1|\n"
      "13|PENDING|ReqNodeNotAvail, UnavailableNodes:n3||N/A|0|\n");
  ASSERT_TRUE(jobs) << jobs.error().message();
  ASSERT_THAT(*jobs, SizeIs(2));
  EXPECT_EQ(DescribeJob(jobs->at(0)), "runs on n[1-2], started again 1 times so far");
  EXPECT_EQ(jobs->at(1).id, "13");
  EXPECT_THAT(DescribeJob(jobs->at(1)), HasSubstr("nodes that it could use are down"));
  EXPECT_TRUE(ParseQueue("")->empty());
  EXPECT_FALSE(ParseQueue("12|RUNNING|None|\n"));
  EXPECT_FALSE(ParseQueue("12|RUNNING|None|n1|N/A|many|\n"));
}

TEST(SlurmQueue, SaysWhyAJobWaits) {
  SlurmJob job = Job("1", "PENDING");
  job.start = "2026-11-24T09:30:00";
  EXPECT_EQ(DescribeJob(job), "waits for free nodes (Resources), not before 2026-11-24 09:30");
  job.start = "N/A";
  job.reason = "SomethingNew";
  EXPECT_EQ(DescribeJob(job), "waits (SomethingNew)");
  job.reason = "None";
  EXPECT_THAT(DescribeJob(job), HasSubstr("has not looked at it yet"));
  job.reason = "QOSMaxGRESPerUser";
  EXPECT_THAT(DescribeJob(job), HasSubstr("quality of service"));
}

TEST(SlurmQueue, NumbersOfSubmittedJobs) {
  EXPECT_EQ(*ParseSubmitted("12"), "12");
  EXPECT_EQ(*ParseSubmitted("12;cluster"), "12");
  EXPECT_EQ(*ParseSubmitted("sbatch: you have little budget left\n12"), "12");
  for (const char* text : {"", "job 12", "12 is it", "\n"})
    EXPECT_FALSE(ParseSubmitted(text)) << text;
}

TEST(RunJobs, WordsForARunWithoutACoordinator) {
  LiveJobs jobs;
  EXPECT_EQ(StateWithJobs("interrupted", jobs), "interrupted") << "it has no job";
  jobs.main = Job("1", "PENDING");
  EXPECT_EQ(StateWithJobs("interrupted", jobs), "queued");
  EXPECT_EQ(StateWithJobs("finished", jobs), "finished");
  jobs.main->restarts = 1;
  EXPECT_EQ(StateWithJobs("stopped", jobs), "requeued");
  jobs.preempted = true;
  EXPECT_EQ(StateWithJobs("stopped", jobs), "preempted");
  jobs.main = Job("1", "RUNNING");
  EXPECT_EQ(StateWithJobs("stopped", jobs), "starting");
  jobs.main->state = "COMPLETING";
  EXPECT_EQ(StateWithJobs("stopped", jobs), "stopped");
  jobs.nodes = {Job("2", "PENDING"), Job("3", "RUNNING", "n4")};
  EXPECT_EQ(FormatJobs(jobs),
            "  slurm job 1 (coordinator) ends on n1\n"
            "  slurm job 2 (a node) waits for free nodes (Resources)\n"
            "  slurm job 3 (a node) runs on n4\n");
}

TEST(RunJobs, AreKeptInTheRunFolder) {
  const std::filesystem::path run = std::filesystem::path(testing::TempDir()) / "run-jobs";
  std::filesystem::remove_all(run);
  std::filesystem::create_directories(SlurmFolder(run));
  EXPECT_EQ(ReadRunJobs(run).error().code(), Code::kNotFound);
  RunJobs jobs;
  jobs.main = "7";
  jobs.nodes = {"8", "9"};
  ASSERT_TRUE(WriteRunJobs(run, jobs));
  EXPECT_EQ(ReadRunJobs(run)->main, "7");
  const LiveJobs live = PickJobs(*ReadRunJobs(run), {Job("9", "RUNNING"), Job("70", "RUNNING")});
  EXPECT_FALSE(live.main);
  ASSERT_THAT(live.nodes, SizeIs(1));
  std::filesystem::remove_all(run);
}

class NodeJobPlanTest : public testing::Test {
 protected:
  RestartLimits limits_{.first_delay = seconds(1),
                        .longest_delay = seconds(8),
                        .in_a_row = 2,
                        .long_life = seconds(60)};
  TimePoint now_{seconds(1000)};

  NodeJobPlan Plan(int wanted, const std::vector<std::string>& known = {}) const {
    return NodeJobPlan(wanted, limits_, known, now_);
  }
};

TEST_F(NodeJobPlanTest, SubmitsAsManyAsAreWanted) {
  NodeJobPlan plan = Plan(2);
  ASSERT_TRUE(plan.WantsSubmit(now_));
  plan.OnSubmitted("1", now_);
  ASSERT_TRUE(plan.WantsSubmit(now_));
  plan.OnSubmitted("2", now_);
  EXPECT_FALSE(plan.WantsSubmit(now_));
  EXPECT_THAT(plan.ids(), ElementsAre("1", "2"));
  EXPECT_THAT(plan.OnQueue({Job("1", "PENDING"), Job("2", "RUNNING")}, now_),
              ElementsAre("slurm job 2 runs on n1"));
}

TEST_F(NodeJobPlanTest, ReplacesOneThatEnded) {
  NodeJobPlan plan = Plan(2, {"1", "2"});
  EXPECT_FALSE(plan.WantsSubmit(now_)) << "those of an earlier life may still be there";
  EXPECT_THAT(plan.OnQueue({Job("2", "PENDING")}, now_), SizeIs(1));
  EXPECT_FALSE(plan.WantsSubmit(now_)) << "not at once";
  EXPECT_TRUE(plan.WantsSubmit(now_ + seconds(1)));
  plan.OnSubmitted("3", now_ + seconds(1));
  EXPECT_THAT(plan.ids(), ElementsAre("3", "2"));
  EXPECT_THAT(plan.OnQueue({Job("2", "PENDING"), Job("3", "PENDING")}, now_ + seconds(9)),
              IsEmpty());
}

TEST_F(NodeJobPlanTest, GivesUpOneThatEndsAtOnceAgainAndAgain) {
  NodeJobPlan plan = Plan(1);
  for (const char* id : {"1", "2", "3"}) {
    now_ += seconds(8);
    ASSERT_TRUE(plan.WantsSubmit(now_)) << id;
    plan.OnSubmitted(id, now_);
    EXPECT_FALSE(plan.Hopeless());
    EXPECT_THAT(plan.OnQueue({}, now_), SizeIs(1));
  }
  EXPECT_TRUE(plan.Hopeless());
  EXPECT_FALSE(plan.WantsSubmit(now_ + seconds(1000)));
}

TEST_F(NodeJobPlanTest, ALongLifeForgivesAndWaitingIsNoLife) {
  NodeJobPlan plan = Plan(1);
  for (int i = 0; i < 5; ++i) {
    now_ += seconds(8);
    ASSERT_TRUE(plan.WantsSubmit(now_)) << i;
    plan.OnSubmitted("1", now_);
    plan.OnQueue({Job("1", "RUNNING")}, now_);
    now_ += seconds(60);
    plan.OnQueue({}, now_);
  }
  for (int i = 0; i < 2; ++i) {
    now_ += seconds(8);
    ASSERT_TRUE(plan.WantsSubmit(now_)) << i;
    plan.OnSubmitted("2", now_);
    now_ += seconds(3600);  // in the queue
    plan.OnQueue({Job("2", "RUNNING")}, now_);
    plan.OnQueue({}, now_);
  }
  EXPECT_TRUE(plan.Hopeless());
}

TEST_F(NodeJobPlanTest, AFailedSubmissionIsTriedAgain) {
  NodeJobPlan plan = Plan(1);
  EXPECT_THAT(plan.OnSubmitFailed("no", now_), HasSubstr("no; another one is submitted in 1 s"));
  EXPECT_FALSE(plan.WantsSubmit(now_));
  EXPECT_TRUE(plan.WantsSubmit(now_ + seconds(1)));
  for (int i = 0; i < 2; ++i) {
    now_ += seconds(100);
    plan.OnSubmitFailed("no", now_);
  }
  EXPECT_TRUE(plan.Hopeless()) << "not for ever";
}

}  // namespace
}  // namespace dd2
