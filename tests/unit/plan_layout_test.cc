// The plan's sizes against those that a worker has.

#include <gtest/gtest.h>

#include "cli/plan.h"
#include "tests/support/tiny_teacher.h"
#include "worker/engine/training_state.h"
#include "worker/models/networks.h"
#include "worker/models/teacher.h"
#include "worker/parallel/shard_plan.h"

namespace dd2 {
namespace {

static_assert(kFlatChunk == kParamChunk);

ModelSizes SizesOf(const TeacherBundle& teacher) {
  const BackboneSpec& spec = teacher.teacher->backbone().spec();
  ModelSizes model;
  switch (spec.kind) {
    case BackboneKind::kRaster: model.kind = ModelKind::kRaster; break;
    case BackboneKind::kVar: model.kind = ModelKind::kVar; break;
    case BackboneKind::kLlamaGen: model.kind = ModelKind::kLlamaGen; break;
  }
  model.adapted = model.kind == ModelKind::kLlamaGen;
  model.sides = spec.sides;
  model.layers = spec.layers;
  model.width = spec.width;
  model.heads = spec.heads;
  model.tokens = spec.tokens;
  model.channels = spec.channels;
  model.classes = spec.classes;
  model.codes = teacher.teacher->codes();
  model.ffn_hidden = model.adapted ? spec.ffn_hidden : 4 * spec.width;
  return model;
}

std::int64_t ElementsOf(const ParamLayout& layout) {
  std::int64_t elements = 0;
  for (const ParamSpec& spec : layout.specs()) elements += spec.numel;
  return elements;
}

PlanInput InputOf(const TeacherBundle& teacher) {
  PlanInput input;
  input.config.model = {.head_width = 24, .head_depth = 2, .time_features = 10};
  input.config.phases = {DefaultPhase(PhaseKind::kGts)};
  input.model = SizesOf(teacher);
  input.hardware = *FindHardware("cpu");
  return input;
}

void ExpectSameParameters(const TeacherBundle& bundle) {
  const PlanInput input = InputOf(bundle);
  const ParamLayout teacher = bundle.teacher->params().layout();
  EXPECT_EQ(Sum(TeacherTensors(input.model)), ElementsOf(teacher));
  EXPECT_EQ(FlatElements(TeacherTensors(input.model)), teacher.size());
  const ParamLayout network = Network::Layout(SpecFor(input.config.model, *bundle.teacher));
  TensorSizes tensors = NetworkBackboneTensors(input.model);
  const TensorSizes head = HeadTensors(input.model, input.config.model);
  tensors.insert(tensors.end(), head.begin(), head.end());
  EXPECT_EQ(Sum(tensors), ElementsOf(network));
  EXPECT_EQ(FlatElements(tensors), network.size());
  EXPECT_EQ(tensors.size(), network.specs().size());
  EXPECT_GE(CheckpointBytesOf(input), CheckpointBytes(network));
}

TEST(PlanLayoutTest, NetworksHaveTheSameParameters) {
  ExpectSameParameters(MakeTinyTeacher(1));
  ExpectSameParameters(MakeTinyTeacher(1, {1, 3, 7}));
  ExpectSameParameters(MakeTinyLlamaGen(1));
}

TEST(PlanLayoutTest, SlicesAreThoseOfTheRanks) {
  const TeacherBundle teacher = MakeTinyTeacher(1);
  PlanInput input = InputOf(teacher);
  const ParamLayout network = Network::Layout(SpecFor(input.config.model, *teacher.teacher));
  for (const int ranks : {1, 2, 3, 4}) {
    input.ranks = ranks;
    EXPECT_EQ(SliceElements(input), MakeNetworkState(network, 0, ranks, false).slice) << ranks;
  }
}

TEST(PlanLayoutTest, ShardsFallOnRanksAsTheyDoInTraining) {
  for (const int shards : {1, 4, 16, 64}) {
    for (int world = 1; world <= shards; ++world) {
      const ShardPlan truth = MakeShardPlan(shards, world);
      const ShardShare share = ShareOfShards(shards, world);
      std::size_t most = 0, all = 0;
      for (const std::vector<TreeNode>& nodes : truth.nodes) {
        most = std::max(most, nodes.size());
        all += nodes.size();
      }
      EXPECT_EQ(share.shards, truth.first[1]) << shards << " on " << world;
      EXPECT_EQ(share.sums, static_cast<std::int64_t>(most)) << shards << " on " << world;
      EXPECT_EQ(share.all_sums, static_cast<std::int64_t>(all)) << shards << " on " << world;
    }
  }
}

}  // namespace
}  // namespace dd2
