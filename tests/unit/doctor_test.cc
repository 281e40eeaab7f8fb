// What dd2 doctor says of facts.

#include "cli/doctor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/timeouts.h"

namespace dd2 {
namespace {

using testing::HasSubstr;
using testing::SizeIs;

MachineFacts Healthy() {
  MachineFacts facts;
  facts.programs = {"dd2-coordinator", "dd2-agent", "dd2-worker"};
  facts.version = "1";
  facts.mpirun = std::string("mpirun (Open MPI) 4.1.4");
  facts.address = std::string("10.0.0.1");
  facts.interfaces = {"lo", "ib0"};
  facts.port_range = 28000;
  facts.files_limit = 20000;
  facts.processes_limit = -1;
  facts.shared_memory_bytes = std::int64_t{8} << 30;
  facts.free_bytes = std::int64_t{100} << 30;
  facts.write_rate = 1e9;
  facts.clock_synchronised = true;
  return facts;
}

// The one finding that is not ok; "fail open files".
std::string Trouble(const Findings& findings) {
  std::string trouble;
  for (const Finding& one : findings) {
    if (one.grade == Grade::kOk) continue;
    EXPECT_FALSE(one.advice.empty()) << one.what;
    trouble += (trouble.empty() ? "" : ", ") +
               std::string(one.grade == Grade::kFail ? "fail " : "warn ") + one.what;
  }
  return trouble;
}

TEST(Doctor, AHealthyMachine) {
  EXPECT_EQ(Trouble(JudgeMachine(Healthy(), Needs())), "");
  EXPECT_EQ(Trouble(JudgeTimeouts(Timeouts())), "");
}

TEST(Doctor, EachThingThatCanBeWrong) {
  const auto judge = [](const auto& spoil, const Needs& needs = Needs()) {
    MachineFacts facts = Healthy();
    spoil(facts);
    return Trouble(JudgeMachine(facts, needs));
  };
  const Error error(Code::kUnavailable, "no");
  EXPECT_EQ(judge([](MachineFacts& f) { f.programs.erase("dd2-agent"); }), "fail dd2-agent");
  EXPECT_EQ(judge([&](MachineFacts& f) { f.mpirun = error; }), "fail mpirun");
  EXPECT_EQ(judge([&](MachineFacts& f) { f.mpirun_start = error; }), "fail mpirun");
  EXPECT_EQ(judge([](MachineFacts& f) { f.mpirun_start = 20.0; }), "warn mpirun");
  EXPECT_EQ(judge([&](MachineFacts& f) { f.address = error; }), "fail address");
  EXPECT_EQ(judge([](MachineFacts& f) { f.interface_variables["NCCL_SOCKET_IFNAME"] = "ib1"; }),
            "fail NCCL_SOCKET_IFNAME");
  EXPECT_EQ(judge([](MachineFacts& f) { f.interface_variables["NCCL_SOCKET_IFNAME"] = "ib"; }), "")
      << "NCCL takes the beginning of a name";
  EXPECT_EQ(judge([](MachineFacts& f) { f.port_range = 100; }), "warn ports");
  EXPECT_EQ(judge([](MachineFacts& f) { f.files_limit = 1024; }, Needs{1000, 0, 0}),
            "fail open files");
  EXPECT_EQ(judge([](MachineFacts& f) { f.processes_limit = 100; }), "warn processes");
  EXPECT_EQ(judge([](MachineFacts& f) { f.shared_memory_bytes = -1; }), "warn /dev/shm");
  EXPECT_EQ(judge([](MachineFacts& f) { f.shared_memory_bytes = 10; }, Needs{0, 11, 0}),
            "warn /dev/shm");
  EXPECT_EQ(judge([](MachineFacts& f) { f.clock_synchronised = false; }), "warn clock");
  EXPECT_EQ(judge([&](MachineFacts& f) { f.write_rate = error; }), "fail run folder");
  EXPECT_EQ(judge([](MachineFacts& f) { f.write_rate = 1e6; }), "warn disk");
  EXPECT_EQ(judge([](MachineFacts& f) { f.free_bytes = 10; }, Needs{0, 0, 11}), "fail space");
  EXPECT_EQ(judge([&](MachineFacts& f) { f.lock = error; }), "fail locks");
  Timeouts timeouts;
  timeouts.heartbeat_interval = timeouts.heartbeat_expiry;
  EXPECT_THAT(Trouble(JudgeTimeouts(timeouts)), HasSubstr("fail timeouts.heartbeat"));
}

SlurmFacts Cluster() {
  SlurmFacts facts;
  facts.config = ParseScontrol(
      "Configuration data as of 2026-11-24T09:30:00\nClusterName             = big\n"
      "JobRequeue              = 1\nKillWait                = 30 sec\n"
      "PreemptMode             = REQUEUE\nPreemptType             = preempt/partition_prio\n"
      "SLURM_VERSION           = 22.05.8\nSlurmdTimeout           = 300 sec\n");
  facts.partition = ParseScontrol(
      "PartitionName=gpu\n   AllowGroups=ALL Default=YES QoS=N/A\n"
      "   MaxTime=1-00:00:00 GraceTime=60 PreemptMode=REQUEUE State=UP TotalNodes=4\n");
  facts.nodes_up = 4;
  return facts;
}

TEST(Doctor, ASlurm) {
  EXPECT_EQ(Trouble(JudgeSlurm(Cluster(), 4, Timeouts())), "");
  const auto judge = [](const auto& spoil) {
    SlurmFacts facts = Cluster();
    spoil(facts);
    return Trouble(JudgeSlurm(facts, 4, Timeouts()));
  };
  EXPECT_EQ(judge([](SlurmFacts& f) { f.partition["State"] = "DOWN"; }), "fail partition");
  EXPECT_EQ(judge([](SlurmFacts& f) { f.nodes_up = 3; }), "fail nodes");
  EXPECT_EQ(judge([](SlurmFacts& f) { f.config["JobRequeue"] = "0"; }), "warn requeue");
  EXPECT_EQ(judge([](SlurmFacts& f) { f.partition["GraceTime"] = "0"; }), "warn preemption");
  EXPECT_EQ(judge([](SlurmFacts& f) { f.partition["PreemptMode"] = "SUSPEND"; }),
            "warn preemption");
  EXPECT_EQ(judge([](SlurmFacts& f) { f.config["PreemptType"] = "preempt/none"; }), "");
  EXPECT_EQ(judge([](SlurmFacts& f) { f.config["KillWait"] = "2 sec"; }), "warn KillWait");
  EXPECT_EQ(judge([](SlurmFacts& f) { f.config["SlurmdTimeout"] = "3600 sec"; }), "warn lost node");
}

NodeFacts Node(const std::string& name) {
  NodeFacts facts;
  facts.node = name;
  facts.version = "1";
  facts.saw_folder = true;
  facts.findings = JudgeMachine(Healthy(), Needs());
  return facts;
}

TEST(Doctor, NodesComeBackFromTheirStep) {
  NodeFacts sent = Node("n1");
  sent.clock_ahead = Error(Code::kUnavailable, "refused");
  const auto received = NodeFactsFrom(boost::json::serialize(ToJson(sent)));
  ASSERT_TRUE(received) << received.error().message();
  EXPECT_EQ(received->node, "n1");
  EXPECT_TRUE(received->saw_folder);
  EXPECT_EQ(received->clock_ahead.error().message(), "refused");
  EXPECT_THAT(received->findings, SizeIs(sent.findings.size()));
  EXPECT_FALSE(NodeFactsFrom("{}"));
  EXPECT_FALSE(NodeFactsFrom("[1"));
}

TEST(Doctor, NodesThatDiffer) {
  const auto judge = [](const auto& spoil, int wanted = 2) {
    std::vector<NodeFacts> nodes = {Node("n1"), Node("n2")};
    spoil(nodes[1]);
    return Trouble(JudgeNodes(nodes, wanted, "1"));
  };
  EXPECT_EQ(judge([](NodeFacts&) {}), "");
  EXPECT_EQ(judge([](NodeFacts&) {}, 3), "fail shared folder");
  EXPECT_EQ(judge([](NodeFacts& f) { f.saw_folder = false; }), "fail shared folder");
  EXPECT_EQ(judge([](NodeFacts& f) { f.version = "2"; }), "fail version");
  EXPECT_EQ(judge([](NodeFacts& f) { f.clock_ahead = 2.0; }), "warn network");
  EXPECT_EQ(judge([](NodeFacts& f) { f.clock_ahead = -9.0; }), "fail network");
  EXPECT_EQ(judge([](NodeFacts& f) { f.clock_ahead = Error(Code::kUnavailable, "no"); }),
            "fail network");
}

TEST(Doctor, SameFindingsOfNodesAreOneLine) {
  std::vector<NodeFacts> nodes = {Node("n1"), Node("n2")};
  nodes[0].findings[0].grade = Grade::kFail;
  const std::string text = FormatFindings(Merge(JudgeNodes(nodes, 2, "1")));
  EXPECT_THAT(text, HasSubstr("[n1,n2]\n"));
  EXPECT_LT(text.rfind("ok "), text.find("fail "));
}

}  // namespace
}  // namespace dd2
