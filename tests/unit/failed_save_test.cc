// A rank cannot write its part of a checkpoint: what the coordinator's core does about it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/run_core.h"

namespace dd2 {
namespace {

using testing::HasSubstr;
using testing::SizeIs;

const ConnectionId kAgent(1);
const ConnectionId kWorkers[] = {ConnectionId(2), ConnectionId(3)};
constexpr const char* kId = "p001-s000000002";

class FailedSaveTest : public testing::Test {
 protected:
  FailedSaveTest() {
    CoreOptions options;
    options.config.ranks = 2;
    options.config.phases.resize(2);
    options.config.phases[0].kind = PhaseKind::kTeacherCheck;
    options.config.phases[0].steps = 1;
    options.config.phases[1].kind = PhaseKind::kGts;
    options.config.phases[1].steps = 10;
    options.run_id = "run-1";
    core_.emplace(std::move(options), CoreStart());
    core_->Start(at_);
    proto::Envelope envelope;
    envelope.mutable_agent_hello()->set_domain("node");
    Say(kAgent, envelope, 0);
    for (const std::int32_t rank : {0, 1}) {
      envelope.Clear();
      envelope.mutable_worker_hello()->set_domain("node");
      envelope.mutable_worker_hello()->set_local_rank(rank);
      envelope.mutable_worker_hello()->set_local_size(2);
      Say(kWorkers[rank], envelope, 0);
    }
    SayProgress(0, 1, true);
    SayProgress(1, 1);
  }
  void Say(ConnectionId from, const proto::Envelope& envelope, std::uint64_t generation = 1) {
    proto::Envelope said = envelope;
    said.set_run_id("run-1");
    said.set_generation(generation);
    actions_ = core_->OnMessage(from, "127.0.0.1", said, at_);
  }
  void SayProgress(std::int32_t phase, std::int64_t step, bool finished = false) {
    proto::Envelope envelope;
    envelope.mutable_progress()->set_phase(phase);
    envelope.mutable_progress()->set_step(step);
    envelope.mutable_progress()->set_phase_finished(finished);
    Say(kWorkers[0], envelope);
  }
  void SayPart(std::int32_t rank, std::int32_t attempt) {
    proto::Envelope envelope;
    proto::PartReport& report = *envelope.mutable_part_report();
    report.set_checkpoint_id(kId);
    report.set_rank(rank);
    report.set_attempt(attempt);
    report.set_seconds(1.5);
    report.mutable_header()->set_phase(1);
    report.mutable_header()->set_step(2);
    report.mutable_header()->set_world_size(2);
    report.mutable_part()->set_size_bytes(100);
    Say(kWorkers[rank], envelope);
  }
  void SayFailed(std::int32_t rank, std::int32_t attempt) {
    proto::Envelope envelope;
    proto::PartFailed& failed = *envelope.mutable_part_failed();
    failed.set_checkpoint_id(kId);
    failed.set_rank(rank);
    failed.set_attempt(attempt);
    failed.set_code("resource_exhausted");
    failed.set_message("no space left on device. Free space");
    Say(kWorkers[rank], envelope);
  }
  void SayHeld(double seconds) {
    proto::Envelope envelope;
    envelope.mutable_checkpoint_held()->set_checkpoint_id(kId);
    envelope.mutable_checkpoint_held()->set_seconds(seconds);
    envelope.mutable_checkpoint_held()->set_phase(1);
    envelope.mutable_checkpoint_held()->set_step(2);
    Say(kWorkers[0], envelope);
  }
  // Ranks that the last event told of the failure.
  std::size_t Told() const {
    std::size_t told = 0;
    for (const Action& action : actions_) {
      const auto* send = std::get_if<SendAction>(&action);
      told += send != nullptr && send->envelope.has_checkpoint_failed() ? 1U : 0U;
    }
    return told;
  }
  bool Deleted() const {
    return !actions_.empty() && std::holds_alternative<DeleteAction>(actions_.front());
  }
  const CheckpointState& view() const { return core_->state().checkpoints.back(); }

  Moment at_;
  std::optional<RunCore> core_;
  Actions actions_;
};

TEST_F(FailedSaveTest, TheRunGoesOnAndTheNextTryIsCommitted) {
  SayHeld(0.25);
  EXPECT_EQ(view().step, 2) << "told before any part";
  SayFailed(1, 1);
  EXPECT_EQ(Told(), 0U) << "rank 0 may still be writing there";
  EXPECT_FALSE(Deleted());
  EXPECT_THAT(core_->state().events.After(0).back().message, HasSubstr("Free space"));
  SayPart(0, 1);
  EXPECT_EQ(Told(), 2U);
  EXPECT_TRUE(Deleted()) << "before anybody tries again";
  EXPECT_EQ(view().word, CheckpointWord::kFailed);
  EXPECT_THAT(view().reason, HasSubstr("rank 1: no space"));
  EXPECT_EQ(view().hold_seconds, 0.25);
  EXPECT_EQ(core_->state().word, RunWord::kRunning);

  SayFailed(1, 1);  // again after a reconnection
  EXPECT_EQ(Told(), 1U);
  EXPECT_FALSE(Deleted()) << "the next try may be under way";

  SayProgress(1, 2);
  ASSERT_THAT(core_->state().incidents, SizeIs(1));
  EXPECT_EQ(core_->state().incidents[0].kind, "checkpoint");
  EXPECT_EQ(core_->state().incidents[0].steps_lost, 0);

  SayHeld(0.5);
  SayPart(1, 2);
  SayPart(0, 2);
  EXPECT_EQ(view().word, CheckpointWord::kCommitted);
  EXPECT_EQ(view().parts, 2);
  EXPECT_EQ(view().hold_seconds, 0.5);
  EXPECT_EQ(view().write_seconds, 1.5);
  EXPECT_THAT(core_->state().checkpoints, SizeIs(1));
}

TEST_F(FailedSaveTest, OneThatIsCommittedIsToldAgain) {
  SayPart(0, 1);
  SayPart(1, 1);
  ASSERT_EQ(view().word, CheckpointWord::kCommitted);
  SayFailed(1, 1);
  EXPECT_EQ(Told(), 0U);
  ASSERT_THAT(actions_, SizeIs(1));
  const auto& send = std::get<SendAction>(actions_[0]);
  EXPECT_EQ(send.envelope.checkpoint_committed().checkpoint_id(), kId);
  EXPECT_EQ(view().word, CheckpointWord::kCommitted);
  EXPECT_TRUE(core_->state().incidents.empty());
}

}  // namespace
}  // namespace dd2
