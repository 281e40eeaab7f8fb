// The worker's side of the control connection against a coordinator that the test plays.

#include "worker/engine/control_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <utility>

#include "tests/support/control_server.h"

namespace dd2 {
namespace {

using namespace std::chrono_literals;

constexpr const char* kRun = "run-1";

class ControlClientTest : public testing::Test {
 protected:
  ControlClientTest() {
    options_.port = server_.port();
    options_.hello.set_secret("secret");
    options_.hello.set_domain("d");
    options_.away = 5s;
    options_.reconnect = 20ms;
    options_.abort_before = [this](std::uint64_t generation) { aborted_before_ = generation; };
  }

  // A client whose hello has arrived at `connection_`.
  void Join() {
    server_.Listen();
    auto joining = std::async([this] { return ControlClient::Join(options_); });
    connection_ = server_.Accept();
    ASSERT_TRUE(connection_);
    const auto hello = connection_->Receive();
    ASSERT_TRUE(hello && hello->has_worker_hello());
    EXPECT_FALSE(hello->worker_hello().resumes());
    Result<std::unique_ptr<ControlClient>> joined = joining.get();
    ASSERT_TRUE(joined) << joined.error().message();
    client_ = *std::move(joined);
  }

  static proto::Envelope Message(std::uint64_t generation) {
    proto::Envelope envelope;
    envelope.set_run_id(kRun);
    envelope.set_generation(generation);
    return envelope;
  }

  void SendAssignment(std::uint64_t generation, int rank) {
    proto::Envelope envelope = Message(generation);
    envelope.mutable_assignment()->set_rank(rank);
    envelope.mutable_assignment()->set_world_size(2);
    connection_->Send(envelope);
  }
  void SendLease(std::uint64_t generation, std::int64_t first, std::int64_t count) {
    proto::Envelope envelope = Message(generation);
    envelope.mutable_lease()->set_phase(3);
    envelope.mutable_lease()->set_first_step(first);
    envelope.mutable_lease()->set_count(count);
    connection_->Send(envelope);
  }
  void SendRegroup(std::uint64_t generation) {
    proto::Envelope envelope = Message(generation);
    envelope.mutable_regroup()->set_reason("a test");
    connection_->Send(envelope);
  }

  // In a generation, on its rank.
  void JoinGeneration(std::uint64_t generation, int rank) {
    Join();
    SendAssignment(generation, rank);
    const auto assignment = client_->NextAssignment(proto::HeldState());
    ASSERT_TRUE(assignment && *assignment);
    EXPECT_EQ((*assignment)->rank(), rank);
    EXPECT_EQ(client_->generation(), generation);
    EXPECT_EQ(client_->run_id(), kRun);
  }

  static proto::Progress Step(std::int64_t step) {
    proto::Progress progress;
    progress.set_phase(3);
    progress.set_step(step);
    progress.add_metrics()->set_name("loss");
    return progress;
  }

  // The coordinator dies and comes back; the hello with which the client comes back to it.
  proto::Envelope Reconnected() {
    connection_.reset();
    connection_ = server_.Accept();
    EXPECT_TRUE(connection_);
    const auto hello = connection_ ? connection_->Receive() : std::nullopt;
    EXPECT_TRUE(hello && hello->has_worker_hello());
    return hello.value_or(proto::Envelope());
  }

  std::int64_t ReceivedStep() {
    const auto envelope = connection_->Receive();
    return envelope && envelope->has_progress() ? envelope->progress().step() : -1;
  }

  const ControlServer server_;
  ControlOptions options_;
  std::atomic<std::uint64_t> aborted_before_{0};
  std::unique_ptr<ControlConnection> connection_;
  std::unique_ptr<ControlClient> client_;
};

TEST_F(ControlClientTest, WaitsForACoordinatorThatIsNotThereYet) {
  auto joining = std::async([this] { return ControlClient::Join(options_); });
  EXPECT_EQ(joining.wait_for(200ms), std::future_status::timeout);
  server_.Listen();
  connection_ = server_.Accept();
  ASSERT_TRUE(connection_);
  EXPECT_TRUE(joining.get());
}

TEST_F(ControlClientTest, GivesUpOnACoordinatorThatNeverComes) {
  options_.away = 100ms;
  const auto joined = ControlClient::Join(options_);
  ASSERT_FALSE(joined);
  EXPECT_EQ(joined.error().code(), Code::kUnavailable);
}

TEST_F(ControlClientTest, BeatsWhileItWaitsForItsFirstAssignment) {
  Join();
  const auto beat = connection_->ReceiveAny(4000);
  ASSERT_TRUE(beat && beat->has_heartbeat());
  EXPECT_EQ(beat->heartbeat().phase(), -1);
}

TEST_F(ControlClientTest, ALeaseThatIsSaidAgainIsDoneOnce) {
  JoinGeneration(4, 1);
  SendLease(4, 0, 10);
  SendLease(4, 4, 6);   // all of it is known
  SendLease(4, 8, 12);  // two steps are
  const auto first = client_->NextLease();
  ASSERT_TRUE(first && *first);
  EXPECT_EQ((*first)->count(), 10);
  const auto second = client_->NextLease();
  ASSERT_TRUE(second && *second);
  EXPECT_EQ((*second)->first_step(), 10);
  EXPECT_EQ((*second)->count(), 10);
}

TEST_F(ControlClientTest, ARegroupEndsEveryWaitAndVoidsWhatWasBefore) {
  JoinGeneration(4, 1);
  auto lease = std::async([this] { return client_->NextLease(); });
  SendRegroup(5);
  const auto ended = lease.get();
  ASSERT_FALSE(ended);
  EXPECT_EQ(ended.error().code(), Code::kAborted);
  EXPECT_TRUE(client_->regrouping());
  EXPECT_EQ(client_->WaitForCheckpoint("p003-s000000001", 1, 5s).error().code(), Code::kAborted);
  EXPECT_EQ(client_->WaitForDesiredAfter(7).error().code(), Code::kAborted);
  EXPECT_TRUE(client_->WaitForRegroup(5s));
  EXPECT_EQ(aborted_before_, 5U);
  SendLease(4, 0, 10);  // of the generation that is over

  proto::HeldState held;
  held.set_has_state(true);
  held.mutable_position()->set_step(7);
  auto next = std::async([&] { return client_->NextAssignment(held); });
  const auto answer = connection_->Receive();
  ASSERT_TRUE(answer && answer->has_regrouped());
  EXPECT_EQ(answer->generation(), 5U);
  EXPECT_EQ(answer->regrouped().held().position().step(), 7);
  SendRegroup(6);  // the next fault comes before the generation was formed
  const auto again = connection_->Receive();
  ASSERT_TRUE(again && again->has_regrouped());
  EXPECT_EQ(again->generation(), 6U);
  SendAssignment(6, 0);
  SendLease(6, 7, 3);
  ASSERT_TRUE(next.get());
  EXPECT_EQ(client_->generation(), 6U);
  const auto fresh = client_->NextLease();
  ASSERT_TRUE(fresh && *fresh);
  EXPECT_EQ((*fresh)->first_step(), 7);
}

TEST_F(ControlClientTest, ComesBackToARestartedCoordinatorAndSaysWhatIsNotRecorded) {
  JoinGeneration(4, 0);
  for (const std::int64_t step : {1, 2}) {
    client_->Send(Step(step));
    EXPECT_EQ(ReceivedStep(), step);
  }
  proto::HeldState held;
  held.mutable_position()->set_phase(3);
  client_->SetHeld(held);
  connection_.reset();
  client_->Send(Step(3));  // nobody hears it, and it is no error
  connection_ = server_.Accept();
  ASSERT_TRUE(connection_);
  const auto hello = connection_->Receive();
  ASSERT_TRUE(hello && hello->has_worker_hello());
  EXPECT_EQ(hello->run_id(), kRun);
  EXPECT_EQ(hello->generation(), 4U);
  EXPECT_TRUE(hello->worker_hello().resumes());
  EXPECT_EQ(hello->worker_hello().rank(), 0);
  EXPECT_EQ(hello->worker_hello().held().position().phase(), 3);
  proto::Envelope resumed = Message(4);
  resumed.mutable_resumed()->mutable_recorded()->set_phase(3);
  resumed.mutable_resumed()->mutable_recorded()->set_step(1);
  connection_->Send(resumed);
  const auto second = connection_->Receive();
  ASSERT_TRUE(second && second->has_progress());
  EXPECT_EQ(second->progress().step(), 2);
  EXPECT_EQ(second->progress().metrics_size(), 1);
  EXPECT_EQ(ReceivedStep(), 3);
  client_->Send(Step(4));
  EXPECT_EQ(ReceivedStep(), 4);
}

TEST_F(ControlClientTest, SaysAPartAgainThatIsNotCommittedYet) {
  JoinGeneration(4, 1);
  for (const char* id : {"p003-s000000002", "p003-s000000004"}) {
    proto::Envelope envelope;
    envelope.mutable_part_report()->set_checkpoint_id(id);
    client_->SendPart(4, std::move(envelope));
    ASSERT_TRUE(connection_->Receive());
  }
  EXPECT_TRUE(Reconnected().worker_hello().resumes());
  proto::Envelope resumed = Message(4);
  resumed.mutable_resumed()->set_committed_checkpoint("p003-s000000002");
  connection_->Send(resumed);
  const auto part = connection_->Receive();
  ASSERT_TRUE(part && part->has_part_report());
  EXPECT_EQ(part->part_report().checkpoint_id(), "p003-s000000004");
  const auto committed = client_->WaitForCheckpoint("p003-s000000002", 1, 5s);
  ASSERT_TRUE(committed);
  EXPECT_TRUE(*committed);
}

TEST_F(ControlClientTest, AnswersARegroupAgainThatTheCoordinatorDiedOf) {
  JoinGeneration(4, 1);
  SendRegroup(5);
  ASSERT_TRUE(client_->WaitForRegroup(5s));
  auto next = std::async([this] { return client_->NextAssignment(proto::HeldState()); });
  ASSERT_TRUE(connection_->Receive());  // Regrouped, to a coordinator that dies now
  EXPECT_EQ(Reconnected().generation(), 5U);
  SendRegroup(6);
  const auto answer = connection_->Receive();
  ASSERT_TRUE(answer && answer->has_regrouped());
  SendAssignment(6, 1);
  EXPECT_TRUE(next.get());
}

TEST_F(ControlClientTest, ARefusalEndsEverythingWithItsReason) {
  JoinGeneration(4, 1);
  Reconnected();
  proto::Envelope refused = Message(9);
  refused.mutable_refused()->set_message("this worker was given up as lost");
  connection_->Send(refused);
  const auto lease = client_->NextLease();
  ASSERT_FALSE(lease);
  EXPECT_EQ(lease.error().code(), Code::kFailedPrecondition);
  EXPECT_THAT(lease.error().message(), testing::HasSubstr("given up as lost"));
}

}  // namespace
}  // namespace dd2
