#include "worker/kernels/nccl_group.h"

#include <gmock/gmock.h>

#include <map>
#include <numeric>
#include <thread>

#include "tests/support/host_device.h"

// How a group is formed, used, and ended in time: what NCCL answers is played. NCCL itself is
// tried by dd2-gpu-check.
namespace dd2 {
namespace {

using std::chrono::milliseconds;
using ::testing::Contains;
using ::testing::HasSubstr;

class NcclGroupTest : public ::testing::Test {
 protected:
  NcclGroupTest() {
    ResetHostDevice();
    options_.prefix = "generation-3";
    options_.timeout = milliseconds(200);
    options_.store.set = [this](const std::string& key, std::span<const std::uint8_t> value) {
      store_[key].assign(value.begin(), value.end());
      return Status();
    };
    options_.store.get = [this](const std::string& key,
                                milliseconds timeout) -> Result<std::vector<std::uint8_t>> {
      if (store_.contains(key)) return store_[key];
      std::this_thread::sleep_for(timeout);
      return Error(Code::kDeadlineExceeded, "nothing came");
    };
  }
  ~NcclGroupTest() override {
    EXPECT_EQ(TheHostDevice().groups, 0);
    EXPECT_EQ(TheHostDevice().events, 0);
  }
  Result<std::unique_ptr<NcclGroup>> Connect() {
    return NcclGroup::Connect(HostDeviceApi(), options_, over_);
  }
  static Code CodeOf(const Status& status) {
    return status ? Code::kInternal : status.error().code();
  }

  std::map<std::string, std::vector<std::uint8_t>> store_;
  std::atomic<bool> over_{false};
  NcclOptions options_;
  std::vector<float> send_{1, 2, 3}, receive_ = std::vector<float>(3);
};

TEST_F(NcclGroupTest, RankZeroPutsTheIdOthersTakeIt) {
  ASSERT_TRUE(Connect());
  EXPECT_EQ(store_["generation-3/nccl-id"].size(), std::size_t{DD2_DEVICE_GROUP_ID_BYTES});
  TheHostDevice().calls.clear();
  options_.rank = 1;
  options_.world_size = 2;
  ASSERT_TRUE(Connect());
  EXPECT_THAT(TheHostDevice().calls, ::testing::ElementsAre("begin_group", "abort_group"));
}

TEST_F(NcclGroupTest, RankZeroThatDoesNotCome) {
  options_.rank = 1;
  options_.world_size = 2;
  const auto group = Connect();
  ASSERT_FALSE(group);
  EXPECT_EQ(group.error().code(), Code::kDeadlineExceeded);
  EXPECT_THAT(group.error().message(), HasSubstr("generation-3/nccl-id"));
}

TEST_F(NcclGroupTest, FormingWaitsUntilAllAreThere) {
  TheHostDevice().failures["begin_group"] = DD2_DEVICE_BUSY;
  TheHostDevice().busy_polls = 5;
  ASSERT_TRUE(Connect());
  EXPECT_EQ(TheHostDevice().busy_polls, 0);
}

TEST_F(NcclGroupTest, FormingEndsInTimeWhenARankIsSilent) {
  TheHostDevice().failures["begin_group"] = DD2_DEVICE_BUSY;
  TheHostDevice().busy_polls = 1 << 30;
  const auto group = Connect();
  ASSERT_FALSE(group);
  EXPECT_EQ(group.error().code(), Code::kDeadlineExceeded);
  EXPECT_THAT(TheHostDevice().calls, Contains("abort_group"));
}

TEST_F(NcclGroupTest, FormingEndsWithTheGeneration) {
  options_.timeout = std::chrono::minutes(10);
  TheHostDevice().failures["begin_group"] = DD2_DEVICE_BUSY;
  TheHostDevice().busy_polls = 1 << 30;
  std::thread other([this] {
    std::this_thread::sleep_for(milliseconds(20));
    over_ = true;
  });
  const auto group = Connect();
  other.join();
  ASSERT_FALSE(group);
  EXPECT_EQ(group.error().code(), Code::kAborted);
}

TEST_F(NcclGroupTest, WaitingForTheIdEndsWithTheGeneration) {
  options_.timeout = std::chrono::minutes(10);
  options_.rank = 1;
  options_.world_size = 2;
  std::thread other([this] {
    std::this_thread::sleep_for(milliseconds(20));
    over_ = true;
  });
  const auto group = Connect();
  other.join();
  ASSERT_FALSE(group);
  EXPECT_EQ(group.error().code(), Code::kAborted);
}

// What no peer can cause ends the run with advice; it would come again in every generation.
TEST_F(NcclGroupTest, WhatNcclRefusesByItselfIsFinal) {
  const auto refused = [this] {
    const auto group = Connect();
    ASSERT_FALSE(group);
    EXPECT_EQ(group.error().code(), Code::kFailedPrecondition);
    EXPECT_THAT(group.error().message(), HasSubstr("NCCL_SOCKET_IFNAME"));
  };
  TheHostDevice().failures["group_id"] = DD2_DEVICE_GROUP_FAILED;
  refused();
  TheHostDevice().failures["begin_group"] = DD2_DEVICE_GROUP_FAILED;
  refused();
  TheHostDevice().failures["begin_group"] = DD2_DEVICE_BUSY;
  TheHostDevice().group_state = DD2_DEVICE_BAD_ARGUMENT;  // two ranks on one GPU
  refused();
  over_ = true;
  TheHostDevice().failures["group_id"] = DD2_DEVICE_GROUP_FAILED;
  EXPECT_EQ(Connect().error().code(), Code::kAborted);
}

TEST_F(NcclGroupTest, FailureWhileRanksMeetMayBeAPeersEnd) {
  TheHostDevice().failures["begin_group"] = DD2_DEVICE_BUSY;
  TheHostDevice().group_state = DD2_DEVICE_GROUP_FAILED;
  EXPECT_EQ(Connect().error().code(), Code::kAborted);
}

TEST(FormingTries, ThreeInARowAreFinalAndAGroupMakesUpForThem) {
  const Status lost = Error(Code::kAborted, "system error"),
               silent = Error(Code::kDeadlineExceeded, "silent");
  FormingTries tries;
  EXPECT_EQ(tries.After(lost, 4).error().code(), Code::kAborted);
  EXPECT_EQ(tries.After(silent, 4).error().code(), Code::kDeadlineExceeded);
  EXPECT_TRUE(tries.After({}, 4));
  EXPECT_EQ(tries.After(lost, 4).error().code(), Code::kAborted);
  EXPECT_EQ(tries.After(silent, 4).error().code(), Code::kDeadlineExceeded);
  const Status final = tries.After(lost, 4);
  EXPECT_EQ(final.error().code(), Code::kFailedPrecondition);
  EXPECT_THAT(final.error().message(),
              ::testing::AllOf(HasSubstr("system error"), HasSubstr("NCCL_DEBUG=INFO")));
  // Others may form one, or one rank goes on alone: nothing is wrong with this machine.
  FormingTries flapping;
  for (int i = 0; i < 2 * FormingTries::kMax; ++i) {
    EXPECT_EQ(flapping.After(lost, 4).error().code(), Code::kAborted);
    EXPECT_TRUE(flapping.After({}, 1));
    EXPECT_EQ(flapping.After(lost, 4).error().code(), Code::kAborted);
    EXPECT_EQ(flapping.After(lost, 3).error().code(), Code::kAborted);
  }
}

TEST_F(NcclGroupTest, ExchangesGoOntoTheStream) {
  const auto group = *Connect();
  const std::vector<std::int64_t> counts{3};
  ASSERT_TRUE(group->AllToAll(send_.data(), counts, receive_.data(), counts, nullptr));
  ASSERT_TRUE(group->Wait(nullptr));
  EXPECT_EQ(receive_, send_);
}

TEST_F(NcclGroupTest, PeerThatFailsEndsTheGroupAndEverythingAfterIt) {
  const auto group = *Connect();
  TheHostDevice().held = true;  // the exchange never comes through
  ASSERT_TRUE(group->AllGather(send_.data(), receive_.data(), 3, nullptr));
  TheHostDevice().group_state = DD2_DEVICE_GROUP_FAILED;
  const Status status = group->Wait(nullptr);
  EXPECT_EQ(CodeOf(status), Code::kAborted);
  EXPECT_THAT(status.error().message(), HasSubstr("the group has failed"));
  EXPECT_THAT(TheHostDevice().calls, Contains("abort_group"));
  EXPECT_EQ(CodeOf(group->AllGather(send_.data(), receive_.data(), 3, nullptr)), Code::kAborted);
  EXPECT_EQ(CodeOf(group->Wait(nullptr)), Code::kAborted);
  EXPECT_THAT(TheHostDevice().calls, Contains("all_gather").Times(1));
}

TEST_F(NcclGroupTest, SilentPeerEndsTheGroupInTime) {
  const auto group = *Connect();
  TheHostDevice().held = true;
  ASSERT_TRUE(group->AllGather(send_.data(), receive_.data(), 3, nullptr));
  EXPECT_EQ(CodeOf(group->Wait(nullptr)), Code::kDeadlineExceeded);
  EXPECT_EQ(TheHostDevice().groups, 0);
}

TEST_F(NcclGroupTest, NewGenerationEndsAnExchangeUnderWayThenAnotherGroupWorks) {
  options_.timeout = std::chrono::minutes(10);
  const auto group = *Connect();
  TheHostDevice().held = true;
  ASSERT_TRUE(group->AllGather(send_.data(), receive_.data(), 3, nullptr));
  std::thread other([this] {
    std::this_thread::sleep_for(milliseconds(20));
    over_ = true;
  });
  EXPECT_EQ(CodeOf(group->Wait(nullptr)), Code::kAborted);
  other.join();
  EXPECT_EQ(TheHostDevice().groups, 0);

  over_ = false;
  TheHostDevice().held = false;
  options_.prefix = "generation-4";
  const auto next = Connect();
  ASSERT_TRUE(next);
  ASSERT_TRUE((*next)->AllGather(send_.data(), receive_.data(), 3, nullptr));
  ASSERT_TRUE((*next)->Wait(nullptr));
  EXPECT_EQ(receive_, send_);
}

TEST_F(NcclGroupTest, CallThatFailsAtOnceNamesItself) {
  const auto group = *Connect();
  TheHostDevice().failures["all_gather"] = DD2_DEVICE_BAD_ARGUMENT;
  const Status status = group->AllGather(send_.data(), receive_.data(), 3, nullptr);
  EXPECT_EQ(CodeOf(status), Code::kInvalidArgument);
  EXPECT_THAT(status.error().message(), HasSubstr("all-gather"));
  EXPECT_EQ(TheHostDevice().groups, 0);
}

}  // namespace
}  // namespace dd2
