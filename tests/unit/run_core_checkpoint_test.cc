// What the core decides about checkpoints: which to keep, when to ask for one, whether there is
// room for them, and when a snapshot in memory is better.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "coordinator/core_start.h"
#include "coordinator/journal_replay.h"
#include "coordinator/run_core.h"
#include "tests/unit/run_core_testing.h"

namespace dd2 {
namespace {

using std::chrono::seconds;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;
using testing::StartsWith;

constexpr ConnectionId kAgent{1};
constexpr ConnectionId kWorker{10};
constexpr std::int64_t kCheckpointBytes = 1'000'000'000;

// A run of one rank.
class RunCoreCheckpointTest : public testing::Test {
 protected:
  RunCoreCheckpointTest() {
    options_.config.ranks = 1;
    options_.config.phases = {Phase(PhaseKind::kTeacherCheck, 1), Phase(PhaseKind::kCsd, 1000),
                              Phase(PhaseKind::kEval, 1)};
    options_.run_id = "run-1";
    options_.run_folder = "runs/x";
  }

  void Take(const Actions& actions) {
    for (const Action& action : actions) {
      if (const auto* journal = std::get_if<JournalAction>(&action)) {
        journal_.push_back(journal->record);
        journal_.back().set_unix_ms(at_.unix_ms);
      } else if (const auto* removal = std::get_if<DeleteAction>(&action)) {
        deleted_.push_back(removal->checkpoint_id);
      } else if (const auto* send = std::get_if<SendAction>(&action)) {
        if (send->envelope.has_desired()) wish_ = send->envelope.desired();
        if (send->envelope.has_assignment()) assignment_ = send->envelope.assignment();
      } else if (const auto* end = std::get_if<EndAction>(&action)) {
        ended_ = end->exit_code;
      }
    }
  }
  void Say(ConnectionId from, proto::Envelope envelope, std::uint64_t generation) {
    envelope.set_run_id("run-1");
    envelope.set_generation(generation);
    Take(core_->OnMessage(from, "127.0.0.1", envelope, at_));
  }
  void SayHellos() {
    proto::Envelope agent;
    agent.mutable_agent_hello()->set_domain("node");
    Say(kAgent, agent, 0);
    proto::Envelope worker;
    worker.mutable_worker_hello()->set_domain("node");
    worker.mutable_worker_hello()->set_local_size(1);
    worker.mutable_worker_hello()->set_checkpoint_bytes(kCheckpointBytes);
    Say(kWorker, worker, 0);
  }
  void Begin(CoreStart start) {
    core_ = std::make_unique<RunCore>(options_, std::move(start));
    Take(core_->Start(at_));
    SayHellos();
  }
  // At the first step of csd.
  void BeginCsd(CoreStart start = CoreStart()) {
    Begin(std::move(start));
    SayStep(0, 1, true);
  }
  // A new life from the newest checkpoint.
  CoreStart Resumed() const {
    CoreStart start;
    StartFromCheckpoint(ReplayJournal(journal_), start);
    return start;
  }
  void SayStep(std::int32_t phase, std::int64_t step, bool finished = false,
               std::optional<double> fdr = std::nullopt) {
    proto::Envelope envelope;
    proto::Progress& progress = *envelope.mutable_progress();
    progress.set_phase(phase);
    progress.set_step(step);
    progress.set_phase_finished(finished);
    if (fdr) {
      proto::Metric& metric = *progress.add_metrics();
      metric.set_name("eval/fdr");
      metric.set_value(*fdr);
    }
    Say(kWorker, envelope, core_->state().generation);
  }
  void SayCheckpoint(std::int64_t step, double stall = 1) {
    proto::Envelope envelope;
    proto::PartReport& report = *envelope.mutable_part_report();
    report.set_checkpoint_id("p1-s" + std::to_string(step));
    report.mutable_header()->set_phase(1);
    report.mutable_header()->set_step(step);
    report.mutable_header()->set_world_size(1);
    Say(kWorker, envelope, core_->state().generation);
    proto::Envelope held;
    held.mutable_checkpoint_held()->set_checkpoint_id(report.checkpoint_id());
    held.mutable_checkpoint_held()->set_seconds(stall);
    Say(kWorker, held, core_->state().generation);
  }
  // Heart-beats once a second, so that nobody is lost.
  void Pass(std::int64_t time) {
    for (std::int64_t i = 0; i < time; ++i) {
      at_.now += seconds(1);
      at_.unix_ms += 1000;
      proto::Envelope beat;
      beat.mutable_heartbeat()->set_phase(core_->state().phase);
      Say(kAgent, beat, core_->state().generation);
      Say(kWorker, beat, core_->state().generation);
      Take(core_->OnTick(at_));
    }
  }
  static proto::MemorySnapshot Snapshot(std::int64_t step, std::int64_t recorded,
                                        std::uint64_t generation = 1) {
    proto::MemorySnapshot snapshot;
    snapshot.mutable_position()->set_phase(1);
    snapshot.mutable_position()->set_step(step);
    snapshot.mutable_recorded()->set_phase(1);
    snapshot.mutable_recorded()->set_step(recorded);
    snapshot.set_generation(generation);
    return snapshot;
  }
  // The worker is killed, and started again; this is what it finds in memory.
  void ComesAgain(const std::vector<proto::MemorySnapshot>& found) {
    Take(core_->OnClosed(kWorker, "gone", at_));
    proto::Envelope exited;
    exited.mutable_domain_exited()->set_domain("node");
    exited.mutable_domain_exited()->set_exit_status(137);
    exited.mutable_domain_exited()->set_attempt(1);
    Say(kAgent, exited, 0);
    at_.now += options_.config.timeouts.restart_first;
    Take(core_->OnTick(at_));
    proto::Envelope worker;
    worker.mutable_worker_hello()->set_domain("node");
    worker.mutable_worker_hello()->set_local_size(1);
    for (const proto::MemorySnapshot& one : found) {
      *worker.mutable_worker_hello()->mutable_held()->add_snapshots() = one;
    }
    Say(kWorker, worker, 0);
  }
  void SayDone() {
    proto::Envelope envelope;
    envelope.mutable_worker_done()->set_stopped(true);
    Say(kWorker, envelope, core_->state().generation);
  }
  std::uint64_t requests() const { return core_->state().checkpoint_requests; }

  CoreOptions options_;
  std::unique_ptr<RunCore> core_;
  Moment at_;
  proto::Assignment assignment_;  // the newest
  std::vector<proto::JournalRecord> journal_;
  std::vector<std::string> deleted_;
  proto::Desired wish_;  // the last one that was sent
  std::optional<ExitCode> ended_;
};

TEST_F(RunCoreCheckpointTest, ACheckpointIsAskedForWhenTheLastIsTooOld) {
  options_.config.checkpoint.interval = "100";
  BeginCsd();
  SayStep(1, 1);
  Pass(99);
  EXPECT_EQ(requests(), 0u);
  Pass(1);
  EXPECT_EQ(requests(), 1u);
  EXPECT_EQ(wish_.checkpoint_requests(), 1u);
  EXPECT_EQ(journal_.back().desired_changed().by(), "checkpoint.interval");
  // The answer may take long: a step can.
  Pass(50);
  EXPECT_EQ(requests(), 1u);
  SayStep(1, 2);
  SayCheckpoint(2);
  SayStep(1, 3);
  Pass(99);
  EXPECT_EQ(requests(), 1u);
  Pass(1);
  EXPECT_EQ(requests(), 2u);
  // One that was not answered at all is asked for again.
  Pass(100);
  EXPECT_EQ(requests(), 3u);
  EXPECT_EQ(core_->state().checkpoint_interval.seconds, 100);
}

TEST_F(RunCoreCheckpointTest, NothingIsAskedForWhereNothingWouldBeGained) {
  options_.config.checkpoint.interval = "100";
  Begin(CoreStart());
  Pass(300);
  EXPECT_EQ(requests(), 0u) << "the teacher check changes nothing";
  SayStep(0, 1, true);
  SayStep(1, 1);
  SayCheckpoint(1);
  Pass(300);
  EXPECT_EQ(requests(), 0u) << "no step since the checkpoint";
  SayStep(1, 2);
  Take(*core_->Pause("a test", at_));
  Pass(300);
  EXPECT_EQ(requests(), 0u) << "paused";
  Take(*core_->Resume("a test", at_));
  Pass(1);
  EXPECT_EQ(requests(), 1u);

  options_.config.checkpoint.interval = "off";
  BeginCsd();
  SayStep(1, 1);
  Pass(10'000);
  EXPECT_EQ(requests(), 0u);
  EXPECT_EQ(core_->state().checkpoint_interval.seconds, -1);
}

TEST_F(RunCoreCheckpointTest, TheIntervalFollowsWhatTheRunHasShown) {
  BeginCsd();
  SayStep(1, 1);
  Pass(2);
  EXPECT_EQ(core_->state().checkpoint_interval.setting, "auto");
  EXPECT_EQ(core_->state().checkpoint_interval.seconds, 300);
  SayCheckpoint(1, 8);
  Pass(1);
  const CheckpointIntervalState& view = core_->state().checkpoint_interval;
  EXPECT_EQ(view.stall_seconds, 8);
  EXPECT_EQ(view.failure_seconds, 28'803);  // 8 hours and what was trained
  EXPECT_NEAR(view.seconds, 678.86, 0.01);  // sqrt(2 * 8 * 28,803)
  // The worker is lost: twice as many failures as before, in the next life as well.
  Take(core_->OnClosed(kWorker, "the peer closed the connection", at_));
  Pass(1);
  EXPECT_NEAR(core_->state().checkpoint_interval.failure_seconds, 14'401.5, 1);
  CoreStart next = Resumed();
  EXPECT_EQ(next.failures, 2) << "the loss, and a life that did not say how it ended";
  EXPECT_EQ(next.checkpoint_totals.stall_seconds, 8);
}

TEST_F(RunCoreCheckpointTest, TheBestByFdrStaysAlsoWithANewCoordinator) {
  options_.config.checkpoint.keep_last = 1;
  options_.config.checkpoint.keep_best = 1;
  BeginCsd();
  SayStep(1, 2, false, 30.0);
  SayCheckpoint(2);
  SayStep(1, 4, false, 20.0);
  SayStep(1, 5);
  SayCheckpoint(5);  // of the evaluation at 4
  EXPECT_THAT(deleted_, ElementsAre("p1-s2"));
  SayStep(1, 6, false, 25.0);
  // The coordinator dies between the evaluation and the checkpoint behind it.
  CoreStart start;
  StartTakingOver(ReplayJournal(journal_), options_.config.phases, RunPosition{1, 6}, at_.unix_ms,
                  start);
  ASSERT_THAT(start.evaluations, SizeIs(3));
  core_ = std::make_unique<RunCore>(options_, std::move(start));
  Take(core_->Start(at_));
  proto::Envelope back;
  back.mutable_worker_hello()->set_domain("node");
  back.mutable_worker_hello()->set_local_size(1);
  back.mutable_worker_hello()->set_resumes(true);
  Say(kWorker, back, core_->state().generation);
  SayStep(1, 7);
  SayCheckpoint(7);
  SayStep(1, 8);
  SayCheckpoint(8);
  EXPECT_THAT(deleted_, ElementsAre("p1-s2", "p1-s7"));
  const JournalView view = ReplayJournal(journal_);
  ASSERT_THAT(view.checkpoints, SizeIs(2));
  EXPECT_EQ(view.checkpoints[0].evaluation().fdr(), 20);
  EXPECT_EQ(view.checkpoints[1].evaluation().fdr(), 25);
  EXPECT_EQ(view.checkpoints[1].ordinal(), 4);
  EXPECT_THAT(view.dropped.at("p1-s7"), HasSubstr("keep_best = 1"));
}

TEST_F(RunCoreCheckpointTest, EvaluationsBehindARollbackAreForgotten) {
  BeginCsd();
  SayStep(1, 2, false, 30.0);
  SayCheckpoint(2);
  SayStep(1, 3, false, 10.0);
  EXPECT_THAT(ReplayJournal(journal_).evaluations, SizeIs(2));
  Begin(Resumed());
  ASSERT_THAT(ReplayJournal(journal_).evaluations, SizeIs(1));
  SayStep(1, 3);
  SayCheckpoint(3);
  EXPECT_EQ(ReplayJournal(journal_).checkpoints.back().evaluation().fdr(), 30);
  // The final evaluation has other samples: it is not compared with those of the curve.
  SayStep(1, 1000, true);
  SayStep(2, 1, true, 1.0);
  EXPECT_THAT(ReplayJournal(journal_).evaluations, SizeIs(1));
}

TEST_F(RunCoreCheckpointTest, ARunThatTheDiskCannotHoldDoesNotStart) {
  options_.config.checkpoint.keep_last = 3;
  CoreStart start;
  start.free_bytes = 3'999'999'999;
  Begin(std::move(start));
  EXPECT_EQ(core_->state().word, RunWord::kFailed);
  EXPECT_THAT(core_->state().message, HasSubstr("4.0 GB are needed in runs/x (4 of 1.0 GB each; "
                                                "keep_last = 3, and the one being written)"));
  EXPECT_THAT(core_->state().message, HasSubstr("4.0 GB are free"));
  EXPECT_THAT(core_->state().message, HasSubstr("lower checkpoint.keep_last"));
  EXPECT_EQ(core_->state().generation, 0u);
  Take(core_->OnClosed(kWorker, "it left", at_));
  Take(core_->OnClosed(kAgent, "it left", at_));
  Pass(60);
  EXPECT_EQ(ended_, kExitCannotStart);

  CoreStart enough;
  enough.free_bytes = 4'000'000'000;
  Begin(std::move(enough));
  EXPECT_EQ(core_->state().word, RunWord::kRunning);
  Begin(CoreStart());
  EXPECT_EQ(core_->state().word, RunWord::kRunning) << "what is not known is no reason";
}

TEST_F(RunCoreCheckpointTest, CheckpointsThatAreThereNeedNoMoreSpace) {
  options_.config.checkpoint.keep_last = 3;
  options_.config.checkpoint.keep_best = 1;
  BeginCsd();
  for (const std::int64_t step : {1, 2}) {
    SayStep(1, step);
    SayCheckpoint(step);
  }
  CoreStart start = Resumed();
  start.free_bytes = 2'900'000'000;
  Begin(std::move(start));
  EXPECT_THAT(core_->state().message, HasSubstr("3.0 GB are needed"));
  start = Resumed();
  start.free_bytes = 3'000'000'000;
  Begin(std::move(start));
  EXPECT_EQ(core_->state().word, RunWord::kRunning);
  // The disk fills up while the run works; a loss then does not end it.
  Take(core_->OnClosed(kWorker, "the peer closed the connection", at_));
  EXPECT_NE(core_->state().word, RunWord::kFailed);
}

TEST_F(RunCoreCheckpointTest, ARegroupThatKeepsTheStateDoesNotPutTheNextCheckpointOff) {
  options_.config.checkpoint.interval = "100";
  BeginCsd();
  SayStep(1, 1);
  Pass(60);
  // A second domain joins; the first goes on with what it holds.
  proto::Envelope agent;
  agent.mutable_agent_hello()->set_domain("other");
  Say(ConnectionId(2), agent, 0);
  proto::Envelope worker;
  worker.mutable_worker_hello()->set_domain("other");
  worker.mutable_worker_hello()->set_local_size(1);
  Say(ConnectionId(11), worker, 0);
  proto::Envelope regrouped;
  proto::HeldState& held = *regrouped.mutable_regrouped()->mutable_held();
  held.set_has_state(true);
  held.mutable_position()->set_phase(1);
  held.mutable_position()->set_step(1);
  Say(kWorker, regrouped, core_->state().generation + 1);
  ASSERT_EQ(core_->state().generation, 2U);
  for (int i = 0; i < 41 && requests() == 0; ++i) {
    Pass(1);
    proto::Envelope beat;
    beat.mutable_heartbeat()->set_phase(1);
    for (const ConnectionId one : {ConnectionId(2), ConnectionId(11)}) Say(one, beat, 2);
  }
  EXPECT_EQ(requests(), 1U);
}

TEST_F(RunCoreCheckpointTest, AStopSaysWhichCheckpointItEndsWith) {
  options_.config.phases[1].steps = 20;
  for (const std::int64_t step : {7, 20}) {  // inside the phase, and at its end
    core_.reset();
    journal_.clear();
    BeginCsd();
    SayStep(1, step, step == 20);
    Take(*core_->Stop("a test", at_));
    SayCheckpoint(step);
    SayDone();
    EXPECT_THAT(core_->state().message, StartsWith("stopped on request after checkpoint p1-s" +
                                                   std::to_string(step) + "."));
  }
}

TEST_F(RunCoreCheckpointTest, AStopWhoseCheckpointFailedSaysSo) {
  BeginCsd();
  SayStep(1, 5);
  SayCheckpoint(5);
  SayStep(1, 7);
  Take(*core_->Stop("a test", at_));
  proto::Envelope envelope;
  proto::PartFailed& failed = *envelope.mutable_part_failed();
  failed.set_checkpoint_id("p1-s7");
  failed.set_message("no space left on device");
  Say(kWorker, envelope, core_->state().generation);
  SayDone();
  EXPECT_THAT(core_->state().message, HasSubstr("no space left on device"));
  EXPECT_THAT(core_->state().message, HasSubstr("the newest is p1-s5"));
  EXPECT_EQ(core_->state().word, RunWord::kStopped);
}

TEST_F(RunCoreCheckpointTest, ALostWorkerGoesOnFromItsNewestSnapshot) {
  BeginCsd();
  SayStep(1, 30);
  SayCheckpoint(30);
  SayStep(1, 45);
  ComesAgain({Snapshot(40, 38), Snapshot(35, 33)});
  ASSERT_TRUE(assignment_.has_start());
  EXPECT_EQ(assignment_.start().step(), 40);
  EXPECT_EQ(assignment_.member().means(), proto::GenerationMember::RECALL);
  EXPECT_EQ(assignment_.recorded().step(), 40) << "the record goes back with the state";
  ASSERT_THAT(core_->state().open_incidents, SizeIs(1));
  EXPECT_EQ(core_->state().open_incidents[0].steps_lost, 5);
  const auto back = std::ranges::find_if(
      journal_, [](const proto::JournalRecord& record) { return record.has_rolled_back(); });
  ASSERT_NE(back, journal_.end());
  EXPECT_EQ(back->rolled_back().step(), 40);
}

TEST_F(RunCoreCheckpointTest, ASnapshotMayBeAheadOfTheRecord) {
  BeginCsd();
  SayStep(1, 38);
  ComesAgain({Snapshot(40, 38)});
  EXPECT_EQ(assignment_.start().step(), 40);
  EXPECT_EQ(assignment_.recorded().step(), 38) << "it holds the progress in between";
  EXPECT_EQ(core_->state().open_incidents.at(0).steps_lost, 0);
}

TEST_F(RunCoreCheckpointTest, ASnapshotThatIsOlderThanTheCheckpointIsLeft) {
  BeginCsd();
  SayStep(1, 30);
  SayCheckpoint(30);
  ComesAgain({Snapshot(29, 29)});
  EXPECT_FALSE(assignment_.has_start());
  EXPECT_EQ(assignment_.restore_checkpoint(), "p1-s30");
}

TEST_F(RunCoreCheckpointTest, ASnapshotThatLeavesAHoleInTheRecordIsLeft) {
  BeginCsd();
  SayStep(1, 30);
  SayCheckpoint(30);
  SayStep(1, 45);
  ComesAgain({});  // back to 30
  EXPECT_EQ(assignment_.restore_checkpoint(), "p1-s30");
  ComesAgain({Snapshot(40, 38)});
  EXPECT_FALSE(assignment_.has_start()) << "nobody knows the metrics of steps 31 to 38 any more";
  EXPECT_EQ(assignment_.restore_checkpoint(), "p1-s30");
}

TEST_F(RunCoreCheckpointTest, ASnapshotOfAnEarlierLifeIsLeft) {
  BeginCsd();
  SayStep(1, 30);
  SayCheckpoint(30);
  const CoreStart resumed = Resumed();
  ASSERT_EQ(resumed.generation, Generation(2));
  Begin(resumed);
  SayStep(1, 31);
  ComesAgain({Snapshot(31, 31, 1)});
  EXPECT_FALSE(assignment_.has_start());
  ComesAgain({Snapshot(31, 30, 2)});
  EXPECT_TRUE(assignment_.has_start()) << "of this life";
}

TEST_F(RunCoreCheckpointTest, ARestartedCoordinatorTakesTheSnapshotsOfItsLife) {
  BeginCsd();
  SayStep(1, 45);
  CoreStart start;
  StartTakingOver(ReplayJournal(journal_), options_.config.phases, RunPosition{1, 45}, at_.unix_ms,
                  start);
  core_ = std::make_unique<RunCore>(options_, std::move(start));
  Take(core_->Start(at_));
  // Its workers do not come back.
  at_.now += options_.config.timeouts.reattach + seconds(1);
  Take(core_->OnTick(at_));
  proto::Envelope agent;
  agent.mutable_agent_hello()->set_domain("node");
  Say(kAgent, agent, 0);
  ComesAgain({Snapshot(40, 38)});
  ASSERT_TRUE(assignment_.has_start());
  EXPECT_EQ(assignment_.start().step(), 40);
}

}  // namespace
}  // namespace dd2
