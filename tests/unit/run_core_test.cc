// Whole runs played against the core: no socket, file or clock.

#include "coordinator/run_core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "common/timeouts.h"
#include "coordinator/journal_replay.h"
#include "coordinator/result_json.h"
#include "tests/unit/run_core_testing.h"

namespace dd2 {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr ConnectionId kAgent{1};
constexpr ConnectionId kWorkers[] = {ConnectionId(10), ConnectionId(11)};

class RunCoreTest : public testing::Test {
 protected:
  RunCoreTest() {
    options_.config.ranks = 2;
    options_.config.checkpoint.keep_last = 2;
    options_.config.phases = {Phase(PhaseKind::kTeacherCheck, 1), Phase(PhaseKind::kGts, 10),
                              Phase(PhaseKind::kEval, 1)};
    options_.run_id = "run-1";
    options_.run_folder = "runs/x";
    NewCore(CoreStart());
  }

  void NewCore(CoreStart start) {
    generation_ = start.generation.value();
    core_ = std::make_unique<RunCore>(options_, std::move(start));
  }
  // Keeps what was journalled and sent, in order.
  void Take(Actions actions) {
    log_.clear();
    for (Action& action : actions) log_.push_back(std::move(action));
    for (const Action& action : log_) {
      if (const auto* journal = std::get_if<JournalAction>(&action)) {
        journal_.push_back(journal->record);
        journal_.back().set_unix_ms(at_.unix_ms);
      }
    }
  }
  void Advance(std::chrono::milliseconds time) {
    at_.now += time;
    at_.unix_ms += time.count();
  }
  void Say(ConnectionId from, proto::Envelope envelope, std::uint64_t generation) {
    envelope.set_run_id("run-1");
    envelope.set_generation(generation);
    Take(core_->OnMessage(from, "127.0.0.1", envelope, at_));
  }
  void SayAgentHello() {
    proto::Envelope envelope;
    envelope.mutable_agent_hello()->set_domain("node");
    Say(kAgent, envelope, 0);
  }
  void SayWorkerHello(std::int32_t local_rank, const std::string& mode = "cpu") {
    proto::Envelope envelope;
    proto::WorkerHello& hello = *envelope.mutable_worker_hello();
    hello.set_domain("node");
    hello.set_local_rank(local_rank);
    hello.set_local_size(2);
    hello.set_numeric_mode(mode);
    Say(kWorkers[local_rank], envelope, 0);
  }
  void Form() {
    Take(core_->Start(at_));
    SayAgentHello();
    SayWorkerHello(0);
    SayWorkerHello(1);
  }
  void SayProgress(std::int32_t rank, std::int32_t phase, std::int64_t step, bool finished = false,
                   const std::string& result = "") {
    proto::Envelope envelope;
    proto::Progress& progress = *envelope.mutable_progress();
    progress.set_phase(phase);
    progress.set_step(step);
    progress.set_phase_finished(finished);
    progress.set_result_json(result);
    progress.mutable_counters()->set_cache_hits(5);
    Say(kWorkers[rank], envelope, generation_);
  }
  void SayPart(std::int32_t rank, const std::string& id, std::int32_t phase, std::int64_t step) {
    proto::Envelope envelope;
    proto::PartReport& report = *envelope.mutable_part_report();
    report.set_checkpoint_id(id);
    report.set_rank(rank);
    report.mutable_header()->set_phase(phase);
    report.mutable_header()->set_step(step);
    report.mutable_header()->set_world_size(2);
    report.mutable_part()->set_size_bytes(100 + rank);
    Say(kWorkers[rank], envelope, generation_);
  }
  // Both parts, and rank 0's word on the time it took.
  void SayCheckpoint(const std::string& id, std::int32_t phase, std::int64_t step, double seconds) {
    SayPart(0, id, phase, step);
    SayPart(1, id, phase, step);
    for (const int rank : {0, 1}) {
      proto::Envelope envelope;
      envelope.mutable_checkpoint_held()->set_checkpoint_id(id);
      envelope.mutable_checkpoint_held()->set_seconds(rank == 0 ? seconds : 100);
      Say(kWorkers[rank], envelope, generation_);
    }
  }
  void SayDone(std::int32_t rank) {
    proto::Envelope envelope;
    envelope.mutable_worker_done()->set_rank(rank);
    envelope.mutable_worker_done()->set_stopped(true);
    Say(kWorkers[rank], envelope, generation_);
  }
  void SayDomainExited(std::int32_t status, const std::string& log, std::uint64_t attempt = 1) {
    proto::Envelope envelope;
    envelope.mutable_domain_exited()->set_domain("node");
    envelope.mutable_domain_exited()->set_exit_status(status);
    envelope.mutable_domain_exited()->set_log_tail(log);
    envelope.mutable_domain_exited()->set_attempt(attempt);
    Say(kAgent, envelope, 0);
  }
  void Close(ConnectionId connection) {
    Take(core_->OnClosed(connection, "the peer closed the connection", at_));
  }
  void Tick(std::chrono::milliseconds time) {
    Advance(time);
    Take(core_->OnTick(at_));
  }
  // Messages of the last event to a connection.
  std::vector<proto::Envelope> SentTo(ConnectionId to) const {
    std::vector<proto::Envelope> sent;
    for (const Action& action : log_) {
      const auto* send = std::get_if<SendAction>(&action);
      if (send != nullptr && send->to == to) sent.push_back(send->envelope);
    }
    return sent;
  }
  template <class T>
  std::ptrdiff_t IndexOf() const {
    const auto found = std::find_if(log_.begin(), log_.end(), [](const Action& action) {
      return std::holds_alternative<T>(action);
    });
    return found == log_.end() ? -1 : found - log_.begin();
  }
  std::optional<ExitCode> Ended() const {
    for (const Action& action : log_) {
      if (const auto* end = std::get_if<EndAction>(&action)) return end->exit_code;
    }
    return std::nullopt;
  }
  // Everybody leaves after the run has ended.
  void LetGo() {
    Close(kWorkers[0]);
    Close(kWorkers[1]);
    if (!Ended()) SayDomainExited(0, "");
  }
  const RunState& state() const { return core_->state(); }

  CoreOptions options_;
  std::unique_ptr<RunCore> core_;
  std::uint64_t generation_ = 1;
  Moment at_;
  std::vector<Action> log_;                    // of the last event
  std::vector<proto::JournalRecord> journal_;  // of all events
};

TEST_F(RunCoreTest, AGenerationIsFormedAndJournalledBeforeAnybodyHears) {
  Take(core_->Start(at_));
  EXPECT_EQ(state().word, RunWord::kWaiting);
  SayAgentHello();
  ASSERT_THAT(SentTo(kAgent), SizeIs(1));
  EXPECT_EQ(SentTo(kAgent)[0].start_domain().local_size(), 2);
  EXPECT_EQ(SentTo(kAgent)[0].start_domain().attempt(), 1u);
  SayWorkerHello(1);
  EXPECT_THAT(SentTo(kWorkers[1]), IsEmpty());
  SayWorkerHello(0);
  const std::vector<proto::Envelope> sent = SentTo(kWorkers[1]);
  ASSERT_THAT(sent, SizeIs(3));
  EXPECT_EQ(sent[0].assignment().rank(), 1);
  EXPECT_EQ(sent[0].assignment().world_size(), 2);
  EXPECT_EQ(sent[0].assignment().store_prefix(), "g1/");
  EXPECT_EQ(sent[0].assignment().host(), "127.0.0.1");
  EXPECT_TRUE(sent[1].has_desired());
  EXPECT_EQ(sent[2].lease().count(), 1);
  EXPECT_LT(IndexOf<JournalAction>(), IndexOf<GenerationAction>());
  EXPECT_LT(IndexOf<GenerationAction>(), IndexOf<SendAction>());
  EXPECT_EQ(state().word, RunWord::kRunning);
}

TEST_F(RunCoreTest, ALeaseIsJournalledBeforeItIsSent) {
  Form();
  SayProgress(0, 0, 1, true, "{\"a\":1}");
  bool finished = false;
  bool granted = false;
  for (const Action& action : log_) {
    if (const auto* journal = std::get_if<JournalAction>(&action)) {
      finished |= journal->record.has_phase_finished();
      granted |= journal->record.has_lease_granted();
    }
    const auto* send = std::get_if<SendAction>(&action);
    if (send != nullptr && send->envelope.has_lease()) {
      EXPECT_TRUE(finished && granted);
    }
  }
  EXPECT_THAT(SentTo(kWorkers[0]), SizeIs(1));
  EXPECT_THAT(SentTo(kWorkers[1]), SizeIs(1));
}

TEST_F(RunCoreTest, ACheckpointIsJournalledPublishedAndOnlyThenAnnounced) {
  Form();
  SayProgress(0, 0, 1, true);
  SayPart(0, "p000", 0, 1);
  EXPECT_EQ(IndexOf<PublishAction>(), -1);
  EXPECT_EQ(state().checkpoints.at(0).word, CheckpointWord::kWriting);
  SayPart(1, "p000", 0, 1);
  EXPECT_EQ(IndexOf<JournalAction>(), 0);
  EXPECT_EQ(IndexOf<PublishAction>(), 1);
  EXPECT_EQ(IndexOf<SendAction>(), 2);
  ASSERT_THAT(SentTo(kWorkers[1]), SizeIs(1));
  EXPECT_EQ(SentTo(kWorkers[1])[0].checkpoint_committed().checkpoint_id(), "p000");
  EXPECT_EQ(state().checkpoints.at(0).word, CheckpointWord::kCommitted);
}

TEST_F(RunCoreTest, RetentionJournalsBeforeItDeletes) {
  Form();
  SayProgress(0, 0, 1, true);
  for (const std::int64_t step : {1, 2, 3}) {
    const std::string id = "p001-s" + std::to_string(step);
    SayPart(0, id, 1, step);
    SayPart(1, id, 1, step);
  }
  const auto removal = IndexOf<DeleteAction>();
  ASSERT_GT(removal, IndexOf<PublishAction>());
  const auto& before = log_.at(static_cast<std::size_t>(removal - 1));
  EXPECT_EQ(std::get<JournalAction>(before).record.checkpoint_dropped().checkpoint_id(), "p001-s1");
  const JournalView view = ReplayJournal(journal_);
  ASSERT_THAT(view.checkpoints, SizeIs(2));
  EXPECT_EQ(view.checkpoints[0].checkpoint_id(), "p001-s2");
  EXPECT_TRUE(view.dropped.contains("p001-s1"));
}

TEST_F(RunCoreTest, RunsToItsEnd) {
  Form();
  SayProgress(0, 0, 1, true);
  SayProgress(1, 1, 3);
  for (std::int64_t step = 1; step <= 10; ++step) {
    Advance(std::chrono::seconds(1));
    SayProgress(0, 1, step, step == 10);
  }
  EXPECT_DOUBLE_EQ(state().phases.at(1).seconds, 10);
  SayProgress(0, 2, 1, true, R"({"fdr_end":12.5,"accuracy":0.9})");
  ASSERT_THAT(SentTo(kWorkers[1]), SizeIs(1));
  EXPECT_EQ(SentTo(kWorkers[1])[0].run_finished().outcome(), "finished");
  EXPECT_EQ(IndexOf<ResultAction>(), -1) << "the workers may still have something to say";
  // What was on its way is still taken.
  SayPart(0, "last", 2, 1);
  SayPart(1, "last", 2, 1);
  EXPECT_NE(IndexOf<PublishAction>(), -1);
  Close(kWorkers[0]);
  Close(kWorkers[1]);
  EXPECT_GE(IndexOf<ResultAction>(), 0);
  EXPECT_EQ(journal_.back().run_ended().outcome(), "finished");
  EXPECT_FALSE(Ended()) << "the agent is still there";
  SayDomainExited(0, "");
  EXPECT_TRUE(SentTo(kAgent).at(0).has_stop_domain());
  EXPECT_EQ(Ended(), kExitOk);
  const std::string result = BuildResultJson(state());
  EXPECT_THAT(result, HasSubstr(R"("fdr_end":1.25E1)"));
  EXPECT_THAT(result, HasSubstr(R"("cache":{"hits":10,)"));
  EXPECT_THAT(result, HasSubstr(R"("gts":1E1)"));
}

TEST_F(RunCoreTest, StopsAfterACheckpointAndCanBeResumed) {
  Form();
  SayProgress(0, 0, 1, true);
  SayProgress(0, 1, 3);
  const Result<Actions> stop = core_->Stop("a test", at_);
  ASSERT_TRUE(stop);
  Take(*stop);
  EXPECT_TRUE(SentTo(kWorkers[0]).at(0).desired().stop());
  EXPECT_EQ(state().word, RunWord::kStopping);
  EXPECT_FALSE(core_->Pause("a test", at_));
  SayProgress(0, 1, 4);
  SayPart(0, "p001-s4", 1, 4);
  SayPart(1, "p001-s4", 1, 4);
  SayDone(0);
  EXPECT_EQ(state().word, RunWord::kStopping);
  SayDone(1);
  EXPECT_EQ(state().word, RunWord::kStopped);
  EXPECT_THAT(state().message, HasSubstr("--resume"));
  LetGo();
  EXPECT_EQ(Ended(), kExitStopped);

  const JournalView view = ReplayJournal(journal_);
  EXPECT_EQ(view.outcome, "stopped");
  CoreStart start;
  start.resumed = true;
  start.generation = Generation(view.last_generation.value() + 1);
  start.restore_checkpoint = view.checkpoints.at(0).checkpoint_id();
  start.position = RunPosition{1, 4};
  start.finished = view.finished;
  start.checkpoints = view.checkpoints;
  start.desired_version = view.desired.version();
  NewCore(std::move(start));
  Form();
  const std::vector<proto::Envelope> sent = SentTo(kWorkers[0]);
  EXPECT_EQ(sent[0].assignment().restore_checkpoint(), "p001-s4");
  EXPECT_EQ(sent[0].assignment().store_prefix(), "g2/");
  EXPECT_FALSE(sent[1].desired().stop()) << "the wish of the last life does not bind this one";
  EXPECT_GT(sent[1].desired().version(), 1u);
  EXPECT_EQ(sent[2].lease().phase(), 1);
  EXPECT_EQ(sent[2].lease().first_step(), 4);
}

TEST_F(RunCoreTest, CheckpointFiguresAreOfTheWholeRun) {
  options_.command = "dd2 run x.yaml";
  NewCore(CoreStart());
  Form();
  SayProgress(0, 0, 1, true);
  for (const std::int64_t step : {1, 2, 3}) {
    SayCheckpoint("p001-s" + std::to_string(step), 1, step, 0.25);
  }
  EXPECT_EQ(state().checkpoints.at(1).hold_seconds, 0.25);
  EXPECT_EQ(state().checkpoints.at(0).word, CheckpointWord::kDeleted) << "deleted ones count too";

  // Killed, and resumed with another command line.
  const JournalView view = ReplayJournal(journal_);
  CoreStart start;
  start.resumed = true;
  start.generation = Generation(2);
  start.restore_checkpoint = "p001-s3";
  start.position = RunPosition{1, 3};
  start.checkpoints = view.checkpoints;
  start.checkpoint_totals = view.checkpoint_totals;
  start.command = view.command;
  options_.command = "dd2 run x.yaml --resume";
  NewCore(std::move(start));
  Form();
  SayCheckpoint("p001-s4", 1, 4, 0.5);
  const std::string result = BuildResultJson(state());
  EXPECT_THAT(result, HasSubstr(R"("checkpoints":{"count":4,"bytes":804,"stall_seconds":1.25E0})"));
  EXPECT_THAT(result, HasSubstr(R"("command":"dd2 run x.yaml")"));
  EXPECT_EQ(ReplayJournal(journal_).checkpoint_totals.count, 4);
  EXPECT_EQ(ReplayJournal(journal_).command, "dd2 run x.yaml");
}

TEST_F(RunCoreTest, MessagesOfAnUnknownGenerationAreRefusedThoseOfAnOlderOneIgnored) {
  Form();
  generation_ = 7;
  SayProgress(0, 0, 1, true);
  EXPECT_EQ(SentTo(kWorkers[0]).at(0).refused().code(), "aborted");
  EXPECT_GE(IndexOf<CloseAction>(), 0);
  generation_ = 0;
  SayPart(1, "p000", 0, 1);
  EXPECT_THAT(SentTo(kWorkers[1]), IsEmpty());
  EXPECT_EQ(state().phases.at(0).done, 0);
  EXPECT_THAT(state().checkpoints, IsEmpty());
}

TEST_F(RunCoreTest, ALateWorkerIsRefusedAndTheRunGoesOn) {
  Form();
  proto::Envelope envelope;
  envelope.mutable_worker_hello()->set_domain("other");
  envelope.mutable_worker_hello()->set_local_size(1);
  Say(ConnectionId(20), envelope, 0);
  EXPECT_TRUE(SentTo(ConnectionId(20)).at(0).has_refused());
  EXPECT_EQ(state().word, RunWord::kRunning);
}

TEST_F(RunCoreTest, AnotherNumericModeEndsTheRunBeforeItBegins) {
  Take(core_->Start(at_));
  SayAgentHello();
  SayWorkerHello(0);
  SayWorkerHello(1, "cpu threads=2");
  EXPECT_EQ(state().word, RunWord::kFailed);
  EXPECT_THAT(state().message, HasSubstr("threads=2"));
  LetGo();
  EXPECT_EQ(Ended(), kExitCannotStart);
}

TEST_F(RunCoreTest, ALostDomainIsStartedAgainFromTheNewestCheckpoint) {
  Form();
  SayProgress(0, 0, 1, true);
  SayProgress(0, 1, 3);
  SayCheckpoint("p001-s000000003", 1, 3, 0.5);
  SayProgress(0, 1, 5);
  Close(kWorkers[1]);
  EXPECT_EQ(state().word, RunWord::kRecovering);
  EXPECT_TRUE(SentTo(kAgent).at(0).has_kill_domain());
  EXPECT_EQ(journal_.back().generation_broken().generation(), 2u);
  SayDomainExited(137, "out of memory");
  EXPECT_THAT(SentTo(kAgent), IsEmpty()) << "not in the same moment";
  Tick(Timeouts().restart_first);
  ASSERT_THAT(SentTo(kAgent), SizeIs(1));
  EXPECT_EQ(SentTo(kAgent)[0].start_domain().attempt(), 2u);
  generation_ = 2;
  SayWorkerHello(0);
  SayWorkerHello(1);
  EXPECT_EQ(state().word, RunWord::kRunning);
  const std::vector<proto::Envelope> sent = SentTo(kWorkers[0]);
  EXPECT_EQ(sent.at(0).assignment().restore_checkpoint(), "p001-s000000003");
  EXPECT_FALSE(sent.at(0).assignment().has_start());
  EXPECT_EQ(sent.at(2).lease().first_step(), 3);
  EXPECT_GE(IndexOf<PositionAction>(), 0) << "the record goes back";
  SayProgress(0, 1, 4);
  ASSERT_THAT(state().incidents, SizeIs(1));
  EXPECT_EQ(state().incidents[0].steps_lost, 2);
  EXPECT_EQ(state().incidents[0].generation, 2u);
  EXPECT_THAT(state().incidents[0].evidence,
              HasSubstr("was killed by signal 9. The end of its log:\nout of memory"));
  EXPECT_GE(IndexOf<IncidentAction>(), 0);
}

TEST_F(RunCoreTest, ADomainThatCannotEvenStartEndsTheRun) {
  Take(core_->Start(at_));
  SayAgentHello();
  SayDomainExited(1, "teacher.safetensors is truncated");
  EXPECT_EQ(state().word, RunWord::kFailed);
  EXPECT_THAT(state().message, HasSubstr("teacher.safetensors is truncated"));
  EXPECT_THAT(state().message, HasSubstr("dd2 run runs/x/config.yaml --run runs/x --resume"));
  EXPECT_TRUE(SentTo(kAgent).at(0).has_stop_domain());
  EXPECT_EQ(Ended(), kExitCannotStart);
}

TEST_F(RunCoreTest, AnErrorThatARestartWouldMeetAgainEndsTheRunAtOnce) {
  Form();
  proto::Envelope envelope;
  envelope.mutable_worker_failed()->set_code("failed precondition");
  envelope.mutable_worker_failed()->set_message("the card does not belong to the weights");
  Say(kWorkers[1], envelope, generation_);
  EXPECT_EQ(state().word, RunWord::kFailed);
  EXPECT_THAT(state().message, HasSubstr("the card does not belong to the weights"));
  EXPECT_EQ(journal_.back().run_ended().outcome(), "failed");
  LetGo();
  EXPECT_EQ(Ended(), kExitRunFailed);
}

TEST_F(RunCoreTest, TheSameFailureAtTheSameStepThreeTimesEndsTheRun) {
  Form();
  SayProgress(0, 0, 1, true);
  for (std::uint64_t attempt = 1; attempt <= 3; ++attempt) {
    ASSERT_NE(state().word, RunWord::kFailed) << attempt;
    proto::Envelope envelope;
    envelope.mutable_worker_failed()->set_code("internal");
    envelope.mutable_worker_failed()->set_message("tensor shapes differ");
    Say(kWorkers[1], envelope, generation_);
    if (attempt == 3) break;
    SayDomainExited(1, "", attempt);
    Tick(Timeouts().restart_last);
    ++generation_;
    SayWorkerHello(0);
    SayWorkerHello(1);
    ASSERT_EQ(state().word, RunWord::kRunning);
  }
  EXPECT_EQ(state().word, RunWord::kFailed);
  EXPECT_THAT(state().message, HasSubstr("the same failure 3 times"));
  EXPECT_THAT(state().message, HasSubstr("tensor shapes differ"));
  ASSERT_THAT(state().incidents, SizeIs(3)) << "those that are not over are told at the end";
  for (const IncidentState& incident : state().incidents) {
    EXPECT_EQ(incident.kind, "failed");
    EXPECT_THAT(incident.reason, HasSubstr("tensor shapes differ"));
  }
  LetGo();
  for (int i = 0; i < 100 && !Ended(); ++i) Tick(timeouts::kTick);
  EXPECT_EQ(Ended(), kExitDoNotRestart);
}

TEST_F(RunCoreTest, ASilentWorkerIsLost) {
  Form();
  for (int i = 0; i < 200 && state().word == RunWord::kRunning; ++i) {
    Tick(timeouts::kTick);
    proto::Envelope beat;
    beat.mutable_heartbeat()->set_phase(0);
    if (i % 5 == 0) Say(kWorkers[0], beat, generation_);
    if (i % 5 == 0) Say(kAgent, beat, generation_);
  }
  EXPECT_EQ(state().word, RunWord::kRecovering);
  EXPECT_THAT(journal_.back().generation_broken().reason(),
              HasSubstr("rank 1 of domain 'node' (pid 0) is lost: no sign of life"));
}

TEST_F(RunCoreTest, NobodyIsBlamedForOurOwnSleep) {
  Form();
  Tick(timeouts::kTick);
  Tick(Timeouts().heartbeat_expiry * 3);
  EXPECT_EQ(state().word, RunWord::kRunning);
}

TEST_F(RunCoreTest, WorkersThatDoNotComeEndTheRun) {
  Take(core_->Start(at_));
  SayAgentHello();
  SayWorkerHello(0);
  proto::Envelope beat;
  beat.mutable_heartbeat()->set_phase(-1);
  for (std::chrono::milliseconds time{0}; time <= Timeouts().workers_join;
       time += std::chrono::seconds(1)) {
    Say(kAgent, beat, 0);
    Say(kWorkers[0], beat, 0);
    Tick(std::chrono::seconds(1));
    if (state().word == RunWord::kFailed) break;
  }
  EXPECT_EQ(state().word, RunWord::kFailed);
  EXPECT_THAT(state().message, HasSubstr("only 1 of 2 workers joined"));
}

TEST_F(RunCoreTest, PauseResumeAndCheckpointReachEveryRankOnce) {
  Take(core_->Start(at_));
  EXPECT_FALSE(core_->RequestCheckpoint("a test", at_)) << "there are no workers yet";
  SayAgentHello();
  SayWorkerHello(0);
  SayWorkerHello(1);
  Take(*core_->Pause("a test", at_));
  EXPECT_EQ(IndexOf<JournalAction>(), 0);
  EXPECT_TRUE(SentTo(kWorkers[1]).at(0).desired().paused());
  EXPECT_EQ(state().word, RunWord::kPaused);
  EXPECT_THAT(*core_->Pause("a test", at_), IsEmpty());
  Take(*core_->RequestCheckpoint("a test", at_));
  EXPECT_EQ(SentTo(kWorkers[0]).at(0).desired().checkpoint_requests(), 1u);
  EXPECT_TRUE(SentTo(kWorkers[0]).at(0).desired().paused());
  Take(*core_->Resume("a test", at_));
  EXPECT_FALSE(SentTo(kWorkers[0]).at(0).desired().paused());
  EXPECT_EQ(SentTo(kWorkers[0]).at(0).desired().version(), 3u);
  EXPECT_EQ(state().word, RunWord::kRunning);
}

TEST_F(RunCoreTest, ABrokenJournalEndsTheRunWithoutAnotherRecord) {
  Form();
  Take(core_->OnEffectFailed(Error(Code::kUnavailable, "I/O error"), false, at_));
  EXPECT_EQ(state().word, RunWord::kFailed);
  EXPECT_THAT(state().message, HasSubstr("I/O error"));
  EXPECT_EQ(IndexOf<JournalAction>(), -1);
  EXPECT_TRUE(SentTo(kAgent).at(0).has_stop_domain());
  LetGo();
  EXPECT_EQ(Ended(), kExitRunFailed);
}

TEST_F(RunCoreTest, AResultThatCannotBeWrittenMakesTheRunFail) {
  options_.config.phases = {Phase(PhaseKind::kEval, 1)};
  NewCore(CoreStart());
  Form();
  SayProgress(0, 0, 1, true);
  LetGo();
  // The driver stopped at the result; what stood behind it is asked for again.
  Take(core_->OnEffectFailed(Error(Code::kResourceExhausted, "disk full"), true, at_));
  EXPECT_TRUE(SentTo(kAgent).empty() || SentTo(kAgent).at(0).has_stop_domain());
  if (!Ended()) Close(kAgent);
  EXPECT_EQ(Ended(), kExitRunFailed);
  EXPECT_EQ(state().word, RunWord::kFailed);
}

TEST_F(RunCoreTest, AStopNobodyAnswersEndsAtItsDeadline) {
  Form();
  Take(*core_->Stop("a test", at_));
  proto::Envelope beat;
  beat.mutable_heartbeat()->set_phase(0);
  for (std::chrono::milliseconds time{0}; time <= Timeouts().stop;
       time += std::chrono::seconds(1)) {
    for (const ConnectionId from : {kAgent, kWorkers[0], kWorkers[1]}) {
      Say(from, beat, generation_);
    }
    Tick(std::chrono::seconds(1));
    if (state().word == RunWord::kStopped) break;
  }
  EXPECT_EQ(state().word, RunWord::kStopped);
  for (int i = 0; i < 100 && !Ended(); ++i) Tick(timeouts::kTick);
  EXPECT_EQ(Ended(), kExitStopped);
}

TEST_F(RunCoreTest, ASecondStopEndsAtOnce) {
  Form();
  Take(*core_->Stop("SIGINT", at_));
  Take(core_->StopNow("SIGINT", at_));
  EXPECT_EQ(state().word, RunWord::kStopped);
  EXPECT_EQ(journal_.back().run_ended().outcome(), "stopped");
}

}  // namespace
}  // namespace dd2
