// Exact updates on a device whose memory the host cannot touch: the bits are those of the CPU,
// which each case computes before it takes the device. Exchanges go through host memory, or between
// threads as they go between GPUs.

#include <gmock/gmock.h>

#include <thread>

#include "tests/support/thread_groups.h"
#include "tests/support/update_scenario.h"
#include "worker/kernels/torch_device.h"
#include "worker/parallel/joined_collectives.h"

namespace dd2 {
namespace {

using std::chrono::milliseconds;

void TakeDevice() {
  const Result<Device> device = LoadDevice(DD2_FAR_DEVICE);
  ASSERT_TRUE(device) << device.error().message();
  ASSERT_TRUE(UseTorchDevice(*device));
}

const Dd2DeviceApi& GroupApi() {
  static const Dd2DeviceApi api = WithThreadGroups(DeviceKernels());
  return api;
}

// Passes on what goes through host memory, and counts it.
class HostExchange final : public Collectives {
 public:
  explicit HostExchange(Collectives& inner) : inner_(inner) {}
  int floats() const { return floats_; }
  bool aborted() const { return aborted_; }
  int rank() const override { return inner_.rank(); }
  int world_size() const override { return inner_.world_size(); }
  Status AllToAll(std::span<const float> send, std::span<const std::int64_t> send_counts,
                  std::span<float> receive, std::span<const std::int64_t> receive_counts) override {
    floats_ += static_cast<int>(send.size());
    return inner_.AllToAll(send, send_counts, receive, receive_counts);
  }
  Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    return inner_.AllGather(mine, all);
  }
  void Abort() override { aborted_ = true; }

 private:
  Collectives& inner_;
  std::atomic<int> floats_{0};
  std::atomic<bool> aborted_{false};
};

Result<std::unique_ptr<Collectives>> Join(Collectives& inner, milliseconds timeout,
                                          HostExchange** host = nullptr) {
  auto passed_on = std::make_unique<HostExchange>(inner);
  if (host != nullptr) *host = passed_on.get();
  ConnectAbort never;
  return JoinDevices(std::move(passed_on), GroupApi(), timeout, never);
}

// RunRank with exchanges between devices; nothing but records goes through host memory.
Outcome RunJoined(Collectives& collectives, const Scenario& scenario) {
  HostExchange* host = nullptr;
  const auto joined = Join(collectives, std::chrono::seconds(60), &host);
  EXPECT_TRUE(joined) << joined.error().message();
  const Outcome outcome = RunRank(**joined, scenario);
  EXPECT_EQ(host->floats(), 0);
  return outcome;
}

Scenario PartOf(Scenario scenario) {
  scenario.step.first = scenario.untrained = 9001;
  return scenario;
}

// Whole networks and their ends, with a gradient that is not finite, without average and clipping.
std::vector<Scenario> Scenarios(int shards) {
  std::vector<Scenario> scenarios{Usual(shards), PartOf(Usual(shards)), Usual(shards),
                                  Usual(shards)};
  scenarios[2].poisoned_update = 2;
  scenarios[3].step.ema_decay = -1;
  scenarios[3].step.clip_norm = 0;
  return scenarios;
}

class DeviceUpdateTest : public ::testing::TestWithParam<int> {};

TEST_P(DeviceUpdateTest, BitsAreThoseOfTheCpu) {
  std::vector<Scenario> scenarios = Scenarios(GetParam());
  const auto local = NewLocalCollectives();
  std::vector<Outcome> wanted;
  for (const Scenario& scenario : scenarios) wanted.push_back(RunRank(*local, scenario));
  EXPECT_THAT(wanted[2].applied, ::testing::ElementsAre(true, true, false, true, true));
  TakeDevice();
  for (std::size_t i = 0; i < scenarios.size(); ++i) {
    EXPECT_TRUE(RunRank(*local, scenarios[i]) == wanted[i]) << "scenario " << i;
    for (const auto& [world_size, local_size] :
         std::vector<std::pair<int, int>>{{2, 0}, {3, 0}, {5, 0}, {2, 1}, {4, 2}}) {
      scenarios[i].local_size = local_size;
      EXPECT_TRUE(RunWorld(world_size, scenarios[i]) == wanted[i])
          << "scenario " << i << ", " << world_size << " ranks through host memory";
      EXPECT_TRUE(RunWorld(world_size, scenarios[i], RunJoined) == wanted[i])
          << "scenario " << i << ", " << world_size << " ranks";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shards, DeviceUpdateTest, ::testing::Values(1, 4, 8));

TEST(DeviceUpdate, RollForwardOfAPartInAnotherWorld) {
  const auto alone = NewLocalCollectives();
  const std::vector<float> calm = RunPartThenWhole(*alone, false);
  TakeDevice();
  for (const int world_size : {2, 3}) {
    ThreadWorld(world_size).Run([&](Collectives& collectives) {
      EXPECT_TRUE(RunPartThenWhole(collectives, true) == calm) << world_size << " ranks";
    });
  }
}

TEST(DeviceUpdate, LargeSlicesInPieces) {
  TakeDevice();
  const std::int64_t slice = (std::int64_t{1} << 24) + 3 * kParamChunk;
  ThreadWorld(2).Run([&](Collectives& collectives) {
    const int rank = collectives.rank();
    const auto joined = Join(collectives, std::chrono::seconds(60));
    ASSERT_TRUE(joined);
    ExactUpdater updater(**joined, OneDomain(rank, 2), 2, 2 * slice);
    const auto values = [&](int of) { return at::arange(slice, at::kFloat) + (of * 4096); };
    const Result<at::Tensor> full = updater.Gather(ToDevice(values(rank)));
    ASSERT_TRUE(full);
    EXPECT_EQ(full->device(), ComputeDevice());
    for (const int of : {0, 1}) {
      EXPECT_TRUE(at::equal(full->narrow(0, of * slice, slice).cpu(), values(of))) << of;
    }
  });
}

// One rank of two gives `count` floats to both.
Status Gather(Collectives& collectives, int count = 8) {
  const at::Tensor mine = at::ones({count}, OnDevice());
  const at::Tensor all = at::empty({2 * count}, OnDevice());
  return collectives.devices()->AllGather(mine.const_data_ptr<float>(), all.data_ptr<float>(),
                                          count);
}

// Another thread says that the generation is over, as the control connection's does.
void AbortSoon(GenerationCollectives& generation, std::uint64_t next, std::jthread& thread) {
  thread = std::jthread([&generation, next] {
    std::this_thread::sleep_for(milliseconds(50));
    generation.AbortBefore(next);
  });
}

TEST(DeviceGroupTest, GenerationsEndInTheMiddleOfAnExchangeAndTheNextWorks) {
  TakeDevice();
  ThreadWorld world(2);
  world.Run([&](Collectives& collectives) {
    GenerationCollectives generation;
    const auto enter = [&](std::uint64_t number) {
      return generation.Enter(number, [&](ConnectAbort& abort) {
        return JoinDevices(std::make_unique<HostExchange>(collectives), GroupApi(),
                           std::chrono::minutes(10), abort);
      });
    };
    EXPECT_EQ(generation.devices(), nullptr);
    ASSERT_TRUE(enter(1));
    ASSERT_TRUE(Gather(generation));
    std::jthread other;
    AbortSoon(generation, 2, other);
    // The second rank never comes to this one.
    const Status status = collectives.rank() == 0 ? Gather(generation) : Status();
    other.join();
    if (collectives.rank() == 0) {
      ASSERT_FALSE(status);
      EXPECT_EQ(status.error().code(), Code::kAborted);
      EXPECT_TRUE(generation.failed());
    }
    EXPECT_FALSE(Gather(generation)) << "nothing of it goes on";
    generation.Leave();
    EXPECT_EQ(generation.devices(), nullptr);
    ASSERT_TRUE(enter(2));
    EXPECT_TRUE(Gather(generation));
  });
}

TEST(DeviceGroupTest, ASilentPeerEndsBothSides) {
  TakeDevice();
  ThreadWorld(2).Run([&](Collectives& collectives) {
    HostExchange* host = nullptr;
    const auto joined = Join(collectives, milliseconds(200), &host);
    ASSERT_TRUE(joined);
    if (collectives.rank() != 0) return;
    const Status status = Gather(**joined);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code(), Code::kDeadlineExceeded);
    EXPECT_TRUE(host->aborted()) << "peers that wait in host memory would wait for ever";
    EXPECT_EQ(Gather(**joined).error().code(), Code::kAborted);
  });
}

TEST(DeviceGroupTest, WhatFailsInHostMemoryEndsTheDevices) {
  TakeDevice();
  ThreadWorld world(2);
  world.BreakAt(1, {0, 1});  // the first is the group's id
  world.Run([&](Collectives& collectives) {
    const auto joined = Join(collectives, std::chrono::minutes(10));
    ASSERT_TRUE(joined);
    std::vector<std::byte> mine(4), all(8);
    EXPECT_FALSE((*joined)->AllGather(mine, all));
    const Status status = Gather(**joined);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code(), Code::kAborted);
  });
}

// Rank 1 is gone once the id is known.
TEST(DeviceGroupTest, FormingEndsInTimeOrWithTheGeneration) {
  TakeDevice();
  for (const bool over : {false, true}) {
    ThreadWorld(2).Run([&](Collectives& collectives) {
      if (collectives.rank() == 1) {
        std::vector<std::byte> mine(DD2_DEVICE_GROUP_ID_BYTES), all(2 * mine.size());
        ASSERT_TRUE(collectives.AllGather(mine, all));
        return;
      }
      GenerationCollectives generation;
      std::jthread other;
      if (over) AbortSoon(generation, 8, other);
      const Status status = generation.Enter(7, [&](ConnectAbort& abort) {
        return JoinDevices(std::make_unique<HostExchange>(collectives), GroupApi(),
                           over ? milliseconds(600000) : milliseconds(200), abort);
      });
      ASSERT_FALSE(status);
      EXPECT_EQ(status.error().code(), over ? Code::kAborted : Code::kDeadlineExceeded);
      EXPECT_TRUE(generation.failed());
    });
  }
}

}  // namespace
}  // namespace dd2
