#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "coordinator/run_state.h"

namespace dd2 {

// A run in the middle of its second phase, with a value of every awkward kind in it.
inline RunState ExampleRunState() {
  RunState state;
  state.run_id = "r-1";
  state.name = "example";
  state.code_version = "v\"1\\2\n";
  state.config_digest = "00ff";
  state.seed = std::numeric_limits<std::uint64_t>::max();
  state.ranks = 2;
  state.started_unix_ms = 1'700'000'000'000;
  state.version = 7;
  state.word = RunWord::kRunning;
  state.generation = 1;
  state.phases.resize(3);
  state.phases[0].kind = PhaseKind::kSample;
  state.phases[0].name = "sample";
  state.phases[0].word = PhaseWord::kDone;
  state.phases[0].steps = state.phases[0].done = 20;
  state.phases[0].seconds = 1.5;
  state.phases[0].result_json = R"({"sequences":5000})";
  state.phases[1].kind = PhaseKind::kGts;
  state.phases[1].name = "gts";
  state.phases[1].word = PhaseWord::kRunning;
  state.phases[1].steps = 300;
  state.phases[1].done = 120;
  state.phases[2].kind = PhaseKind::kCsd;
  state.phases[2].name = "csd";
  state.phases[2].steps = 500;
  state.phase = 1;
  state.agents = 1;
  state.workers = 1;
  state.members.resize(3);
  state.members[0].agent = true;
  state.members[1].rank = 0;
  state.members[1].phase = 1;
  state.members[2].rank = 1;
  state.members[2].connected = false;
  state.domains = {DomainState{"local", "working", 2}};
  state.checkpoints.resize(2);
  state.checkpoints[0].id = "p001-s000000100";
  state.checkpoints[0].word = CheckpointWord::kCommitted;
  state.checkpoints[0].bytes = 4096;
  state.checkpoints[0].committed_unix_ms = 1'700'000'001'000;
  state.checkpoints[1].id = "p001-s000000120";
  state.incidents.resize(1);
  state.incidents[0].unix_ms = 1'700'000'002'000;
  state.incidents[0].kind = "lost";
  state.incidents[0].domain = "local-1";
  state.incidents[0].reason = "rank 0 of domain 'local-1' (pid 7) is lost: reset";
  state.incidents[0].evidence = "mpirun of domain 'local-1' was killed by signal 9";
  state.incidents[0].exited_seconds = 0.03;
  state.incidents[0].formed_seconds = 0.1;
  state.incidents[0].resumed_seconds = 0.25;
  state.open_incidents.resize(1);
  state.open_incidents[0].kind = "joined";
  state.checkpoint_interval.setting = "auto";
  state.checkpoint_interval.seconds = 600.5;
  state.checkpoint_interval.stall_seconds = 0.25;
  state.checkpoint_interval.failure_seconds = 28800;
  state.counters.guidance_updates = 120;
  state.metrics = {{"gts/loss", 0.25}, {"gts/norm", std::numeric_limits<double>::quiet_NaN()}};
  state.steps_per_second = 9.5;
  return state;
}

// A run without a coordinator behind it: remembers what was asked and answers what it is told to.
class FakeRun final : public RunControl {
 public:
  Status Pause(const std::string& by) override { return Called("pause", by); }
  Status Resume(const std::string& by) override { return Called("resume", by); }
  Status RequestCheckpoint(const std::string& by) override { return Called("checkpoint", by); }
  Status Cancel(const std::string& by) override { return Called("cancel", by); }
  Status Drain(const std::string& domain, const std::string& by) override {
    return Called("drain " + domain, by);
  }
  const RunState& state() const override { return current; }
  const RunState& ListMembers() override { return current; }

  RunState current = ExampleRunState();
  Status answer;
  std::vector<std::string> calls;

 private:
  Status Called(const std::string& what, const std::string& by) {
    calls.push_back(what + " " + by);
    return answer;
  }
};

}  // namespace dd2
