// The training state on a device whose memory the host cannot touch: whoever reads or writes it by
// other means than the device's copies ends the test.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <thread>

#include "tests/support/thread_collectives.h"
#include "tests/support/tiny_teacher.h"
#include "tests/unit/storage_testing.h"
#include "worker/engine/checkpoint_saver.h"
#include "worker/engine/phase_steps.h"
#include "worker/engine/state_snapshots.h"
#include "worker/engine/state_sync.h"
#include "worker/engine/trainer.h"
#include "worker/kernels/torch_device.h"
#include "worker/parallel/generation_collectives.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;
using Values = std::vector<std::vector<float>>;  // of the tensors of a state, in one order
using Until = CheckpointSaver::Until;

std::vector<float> HostValues(const at::Tensor& tensor) {
  const at::Tensor host = tensor.detach().cpu().contiguous();
  const float* data = host.const_data_ptr<float>();
  return {data, data + host.numel()};
}

std::vector<at::Tensor> TensorsOf(const TrainingState& state) {
  std::vector<at::Tensor> tensors;
  for (const NetworkState* network : {&state.generator, &state.guidance}) {
    const at::Tensor params = network->params.flat().detach();
    for (const at::Tensor& one : {params, network->adam_m, network->adam_v, network->ema}) {
      tensors.push_back(one);
    }
  }
  return tensors;
}

Values ValuesOf(const TrainingState& state) {
  Values values;
  for (const at::Tensor& tensor : TensorsOf(state)) values.push_back(HostValues(tensor));
  return values;
}

// Other values in every parameter, and in what belongs to it; zero between parameters.
void Fill(const TrainingState& state, float first) {
  for (const at::Tensor& tensor : TensorsOf(state)) {
    const ParamLayout& layout = state.guidance.params.layout();
    const at::Tensor whole = at::zeros({state.guidance.params.flat().numel()});
    for (const ParamSpec& spec : layout.specs()) {
      first += 0.25F;
      whole.narrow(0, spec.offset, spec.numel)
          .copy_(at::arange(spec.numel, at::kFloat).remainder(8191).add(first));
    }
    const bool slice = tensor.numel() != whole.numel();
    tensor.copy_(slice ? whole.narrow(0, state.guidance.begin, tensor.numel()) : whole);
  }
}

TrainingState FarState(const ParamLayout& layout, int local_rank, int local_size) {
  TrainingState state = MakeTrainingState(layout, local_rank, local_size);
  for (NetworkState* network : {&state.generator, &state.guidance}) {
    for (at::Tensor* own : {&network->adam_m, &network->adam_v, &network->ema}) {
      *own = ToDevice(*own);
    }
  }
  for (const at::Tensor& tensor : TensorsOf(state)) {
    EXPECT_EQ(tensor.device(), ComputeDevice());
  }
  return state;
}

// No copy succeeds while it is there.
class FailingCopies {
 public:
  FailingCopies() { setenv("DD2_FAR_DEVICE_FAILS", "1", 1); }
  ~FailingCopies() { unsetenv("DD2_FAR_DEVICE_FAILS"); }
  FailingCopies(const FailingCopies&) = delete;
  FailingCopies& operator=(const FailingCopies&) = delete;
};

class Listener final : public CommitChannel {
 public:
  void SendPart(std::uint64_t, proto::Envelope envelope) override {
    said.set_value(std::move(envelope));
  }
  void Send(proto::CheckpointHeld) override {}
  void SetWaitsForDisk(bool) override {}
  Result<bool> WaitForCheckpoint(const std::string&, std::int32_t,
                                 std::chrono::milliseconds) override {
    return true;
  }
  std::promise<proto::Envelope> said;
};

class FarStateTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    const Result<Device> device = LoadDevice(DD2_FAR_DEVICE);
    ASSERT_TRUE(device) << device.error().message();
    ASSERT_TRUE(UseTorchDevice(*device));
  }
  FarStateTest() {
    layout_.Add("head.weight", {10, 7});
    layout_.Add("body.weight", {1100, 4096});  // more than goes through the host's memory at a time
    layout_.Add("body.bias", {33});
    fs::create_directories(checkpoints_);
  }

  // A checkpoint of `state`, as the only rank of a run makes it beside its training.
  std::string Save(TrainingState& state, bool ahead) {
    Listener listener;
    Result<StagingMemory> memory = CheckpointSaver::Allocate(state);
    EXPECT_TRUE(memory) << memory.error().message();
    CheckpointSaver saver(RealFileSystem(), checkpoints_, *std::move(memory), state,
                          CheckpointIdentity(), listener, std::chrono::seconds(60));
    saver.StartGeneration(1, OneDomain(0, 1), "");
    if (ahead) {
      saver.StageAhead(NetworkRole::kGuidance, state.step + 1);
      saver.Wait();
      state.generator.ema.mul_(2);
    }
    AdvanceSteps(state, 1);
    const Status saved = saver.Save(Until::kBegun);
    EXPECT_TRUE(saved) << saved.error().message();
    saver.BeforeChange();
    EXPECT_EQ(saver.stall().ahead_bytes, ahead ? saver.stall().copied_bytes : 0);
    const proto::Envelope said = listener.said.get_future().get();
    EXPECT_TRUE(said.has_part_report()) << said.part_failed().message();
    proto::CheckpointManifest manifest;
    manifest.set_format_version(1);
    manifest.set_checkpoint_id(said.part_report().checkpoint_id());
    *manifest.mutable_header() = said.part_report().header();
    *manifest.add_parts() = said.part_report().part();
    EXPECT_TRUE(PublishManifest(RealFileSystem(), checkpoints_, manifest));
    return manifest.checkpoint_id();
  }

  ParamLayout layout_;
  TemporaryFolder folder_;
  const fs::path checkpoints_ = folder_.path() / "checkpoints";
};

TEST_F(FarStateTest, IsRestoredAsItWasSaved) {
  for (const bool ahead : {false, true}) {
    SCOPED_TRACE(ahead);
    TrainingState state = FarState(layout_, 0, 1);
    Fill(state, ahead ? 2 : 1);
    state.phase = ahead ? 1 : 0;
    const std::string id = Save(state, ahead);
    const Values saved = ValuesOf(state);
    TrainingState restored = FarState(layout_, 0, 1);
    const Status status =
        RestoreState(RealFileSystem(), checkpoints_, id, CheckpointIdentity(), restored);
    ASSERT_TRUE(status) << status.error().message();
    EXPECT_EQ(ValuesOf(restored), saved);
    EXPECT_EQ(restored.step, 1);
  }
}

TEST_F(FarStateTest, AFailedCopyIsAFailedSave) {
  const TrainingState state = FarState(layout_, 0, 1);
  Listener listener;
  CheckpointSaver saver(RealFileSystem(), checkpoints_, *CheckpointSaver::Allocate(state), state,
                        CheckpointIdentity(), listener, std::chrono::seconds(60));
  saver.StartGeneration(1, OneDomain(0, 1), "");
  {
    const FailingCopies failing;
    ASSERT_TRUE(saver.Save(Until::kBegun)) << "the rank goes on";
    saver.BeforeChange();
    saver.Wait();
  }
  const proto::Envelope said = listener.said.get_future().get();
  ASSERT_TRUE(said.has_part_failed());
  EXPECT_EQ(said.part_failed().code(), CodeName(Code::kInternal));
  EXPECT_THAT(said.part_failed().message(), testing::HasSubstr("the far device has failed"));
}

TEST_F(FarStateTest, AFailedRestoreIsNoState) {
  TrainingState state = FarState(layout_, 0, 1);
  const std::string id = Save(state, false);
  TrainingState restored = FarState(layout_, 0, 1);
  restored.whole = true;
  const FailingCopies failing;
  const Status status =
      RestoreState(RealFileSystem(), checkpoints_, id, CheckpointIdentity(), restored);
  EXPECT_EQ(status.error().code(), Code::kInternal);
  EXPECT_FALSE(restored.whole);
}

// All parameters, and its own slice of the rest.
TEST_F(FarStateTest, IsRestoredOnTheSecondOfTwoRanks) {
  TrainingState state = FarState(layout_, 0, 1);
  Fill(state, 1);
  const std::string id = Save(state, false);
  TrainingState restored = FarState(layout_, 1, 2);
  Fill(restored, 7);
  const Status status =
      RestoreState(RealFileSystem(), checkpoints_, id, CheckpointIdentity(), restored);
  ASSERT_TRUE(status) << status.error().message();
  TrainingState expected = FarState(layout_, 1, 2);
  Fill(expected, 1);
  EXPECT_EQ(ValuesOf(restored), ValuesOf(expected));
}

proto::RankState SmallAt(std::int64_t step) {
  proto::RankState small;
  small.mutable_position()->set_step(step);
  return small;
}

TEST_F(FarStateTest, IsRecalledFromASnapshot) {
  Values first;
  {
    TrainingState state = FarState(layout_, 0, 1);
    StateSnapshots snapshots(folder_.path(), "run", 0, 1, CheckpointIdentity(), state);
    Fill(state, 1);
    first = ValuesOf(state);
    snapshots.Take(1, SmallAt(1));
    snapshots.BeforeChange();
    Fill(state, 2);
    snapshots.Take(1, SmallAt(2));
  }
  TrainingState next = FarState(layout_, 0, 1);  // of the process that comes after it
  StateSnapshots snapshots(folder_.path(), "run", 0, 1, CheckpointIdentity(), next);
  ASSERT_EQ(snapshots.held().size(), 2U);
  const Result<proto::RankState> small = snapshots.Recall(SmallAt(1).position());
  ASSERT_TRUE(small) << small.error().message();
  EXPECT_EQ(small->position().step(), 1);
  EXPECT_EQ(ValuesOf(next), first);
}

// The training may change its state when that was copied, not earlier.
TEST_F(FarStateTest, AChangeWaitsForTheCopyOfASnapshot) {
  TrainingState state = FarState(layout_, 0, 1);
  Fill(state, 1);
  const Values first = ValuesOf(state);
  StateSnapshots snapshots(folder_.path(), "run", 0, 1, CheckpointIdentity(), state);
  const std::filesystem::path gate = folder_.path() / "held";
  std::ofstream(gate) << "copies wait";
  setenv("DD2_FAR_DEVICE_HELD", gate.c_str(), 1);
  snapshots.Take(1, SmallAt(1));
  EXPECT_TRUE(snapshots.held().empty()) << "nobody waits for it yet";
  std::atomic<bool> open = false;
  std::thread opener([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    open = true;
    std::filesystem::remove(gate);
  });
  snapshots.BeforeChange();
  EXPECT_TRUE(open);
  opener.join();
  unsetenv("DD2_FAR_DEVICE_HELD");
  Fill(state, 2);
  ASSERT_TRUE(snapshots.Recall(SmallAt(1).position()));
  EXPECT_EQ(ValuesOf(state), first);
}

// The one that was being replaced is gone, and nobody is told to go on from it.
TEST_F(FarStateTest, AFailedSnapshotIsNotHeld) {
  TrainingState state = FarState(layout_, 0, 1);
  StateSnapshots snapshots(folder_.path(), "run", 0, 1, CheckpointIdentity(), state);
  snapshots.Take(1, SmallAt(1));
  snapshots.Take(1, SmallAt(2));
  snapshots.Finish();
  {
    const FailingCopies failing;
    snapshots.Take(1, SmallAt(3));
    ASSERT_EQ(snapshots.held().size(), 1U) << "from its beginning the one that it replaces is gone";
    EXPECT_FALSE(snapshots.Recall(SmallAt(2).position()));
  }
  ASSERT_EQ(snapshots.held().size(), 1U);
  EXPECT_EQ(snapshots.held()[0].position().step(), 2);
  EXPECT_TRUE(snapshots.Recall(SmallAt(2).position()));
  snapshots.Take(1, SmallAt(4));
  snapshots.Finish();
  EXPECT_EQ(snapshots.held().size(), 2U);
}

// Two domains of one rank each: the first keeps its state, the second receives it.
TEST_F(FarStateTest, IsSentToAnotherRank) {
  RunConfig config;
  config.batch.shards = 2;
  config.model.head_width = 16;
  config.model.head_depth = 1;
  config.model.time_features = 8;
  config.phases = {DefaultPhase(PhaseKind::kGts)};
  const TeacherBundle teacher = MakeTinyTeacher(5);
  const ParamLayout layout = Network::Layout(SpecFor(config.model, *teacher.teacher));
  std::array<TrainingState, 2> states{FarState(layout, 0, 1), FarState(layout, 0, 1)};
  Fill(states[0], 1);
  Fill(states[1], 2);
  states[0].step = 3;
  states[0].generator.adam_steps = 17;
  states[0].whole = true;
  ThreadWorld world(2);
  world.Run([&](Collectives& collectives) {
    const int rank = collectives.rank();
    TrainingState& state = states.at(static_cast<std::size_t>(rank));
    Trainer trainer(config, teacher, collectives, state);
    proto::Assignment assignment;
    assignment.set_rank(rank);
    assignment.set_world_size(2);
    assignment.mutable_start()->set_step(3);
    assignment.set_first_receiver(1);
    assignment.mutable_member()->set_local_size(1);
    assignment.mutable_member()->set_means(rank == 0 ? proto::GenerationMember::KEEP
                                                     : proto::GenerationMember::RECEIVE);
    trainer.Regroup(LayoutOf(assignment));
    const Status status = SyncState(assignment, SmallStateOf(state), trainer, state, collectives,
                                    [](const proto::RankState&) {});
    EXPECT_TRUE(status) << status.error().message();
  });
  TrainingState expected = FarState(layout, 0, 1);
  Fill(expected, 1);
  for (const TrainingState& state : states) {
    EXPECT_EQ(ValuesOf(state), ValuesOf(expected));
    EXPECT_EQ(state.step, 3);
    EXPECT_EQ(state.generator.adam_steps, 17);
    EXPECT_TRUE(state.whole);
  }
}

}  // namespace
}  // namespace dd2
