// Sizes and costs of models against published numbers, and what plans say.

#include "cli/plan.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "common/config.h"
#include "storage/safetensors.h"
#include "storage/teacher_folder.h"
#include "tests/unit/storage_testing.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

ModelSizes BuiltIn(const std::string& name) {
  const auto model = BuiltInModel(name);
  EXPECT_TRUE(model) << name;
  return model.value_or(ModelSizes());
}

// The head that brings the paper's parameter counts out.
ModelConfig PaperHead() { return {.head_width = 1024, .head_depth = 4, .time_features = 256}; }

TEST(ModelSizesTest, ParametersAreThoseOfTheReleasedFiles) {
  const std::vector<std::pair<std::string, std::int64_t>> published = {
      {"var-d16", 310'283'520},      {"var-d20", 600'917'136},
      {"var-d24", 1'033'399'360},    {"var-d30", 2'010'020'356},
      {"llamagen-b", 110'888'448},   {"llamagen-l", 342'910'976},
      {"llamagen-xl", 774'699'520},  {"llamagen-xxl", 1'410'972'672},
      {"llamagen-3b", 3'096'659'200}};
  EXPECT_EQ(BuiltInModels().size(), published.size());
  for (const auto& [name, parameters] : published) {
    // VAR's keys have no bias; the file's zeros in its place are no parameters.
    EXPECT_EQ(Sum(TeacherTensors(BuiltIn(name))), parameters) << name;
  }
}

TEST(ModelSizesTest, NetworksAreAsLargeAsThePaperSays) {
  const auto millions = [](const std::string& name) {
    const ModelSizes model = BuiltIn(name);
    return static_cast<double>(Sum(NetworkBackboneTensors(model)) +
                               Sum(HeadTensors(model, PaperHead()))) /
           1e6;
  };
  EXPECT_NEAR(millions("var-d16"), 329.5, 0.1);
  EXPECT_NEAR(millions("var-d20"), 618.2, 0.2);
  EXPECT_NEAR(millions("var-d24"), 1048.4, 0.5);
  EXPECT_NEAR(millions("llamagen-l"), 334.8 + 1.1, 0.1) << "with an MLP on codes";
}

TEST(ModelSizesTest, PassesCostWhatWasCounted) {
  const std::vector<std::pair<std::string, double>> gflop = {
      {"var-d16", 299},     {"var-d20", 572},      {"var-d24", 976},
      {"var-d30", 1883},    {"llamagen-b", 51},    {"llamagen-l", 170},
      {"llamagen-xl", 391}, {"llamagen-xxl", 718}, {"llamagen-3b", 1567}};
  for (const auto& [name, expected] : gflop) {
    const ModelCost cost = CostOf(BuiltIn(name), PaperHead());
    EXPECT_NEAR((cost.backbone + cost.vocabulary) / 1e9, expected, 0.015 * expected) << name;
  }
  // 25.5 M parameters, each used once by each of the 680 tokens.
  const ModelCost d16 = CostOf(BuiltIn("var-d16"), PaperHead());
  EXPECT_NEAR((d16.head_draw + d16.head_token) / 1e9, 35, 0.5);
}

TEST(ModelSizesTest, OfTheFoldersOfTeachers) {
  const fs::path folder = fs::path(DD2_SOURCE_DIR) / "configs/teachers/fashion-mnist";
  const auto trained = ReadModelSizes(folder);
  ASSERT_TRUE(trained) << trained.error().message();
  EXPECT_EQ(trained->name, "fashion-mnist");
  EXPECT_EQ(trained->kind, ModelKind::kRaster);
  EXPECT_EQ(trained->tokens, 49);
  EXPECT_EQ(trained->codes, 128);
  const auto file = SafetensorsFile::Open(folder / "teacher.safetensors");
  ASSERT_TRUE(file);
  std::uint64_t bytes = 0;
  for (const auto& [name, info] : file->tensors()) bytes += info.bytes;
  EXPECT_EQ(static_cast<std::uint64_t>(Sum(TeacherTensors(*trained))) * 4, bytes);
  EXPECT_THAT(ReadModelSizes(folder / "nowhere").error().message(), HasSubstr("train or import"));
  EXPECT_THAT(FindModel("var-d17").error().message(), HasSubstr("var-d16, var-d20"));
}

// What an import of a transformer of `sizes` leaves, as far as a plan reads it.
Result<ModelSizes> Imported(const TeacherSizes& sizes) {
  const TemporaryFolder folder;
  TeacherDescription teacher;
  teacher.transformer = TeacherNetwork{.sizes = sizes, .name = "x", .parameters = 1, .digest = {}};
  const std::string text = boost::json::serialize(ToJson(teacher));
  DD2_TRY(RealFileSystem().MakeDirectories(folder.path()));
  DD2_TRY(WriteFileAtomically(RealFileSystem(), folder.path() / kTeacherFile, text));
  return FindModel(folder.path().string());
}

TEST(ModelSizesTest, OfImports) {
  TeacherSizes sizes;
  sizes.vocabulary = 4096;
  sizes.code_channels = 32;
  sizes.depth = sizes.heads = 16;
  sizes.width = 1024;
  sizes.ffn_hidden = 4096;
  sizes.classes = 1000;
  sizes.scaled_attention = true;
  sizes.patch_numbers = {1, 2, 3, 4, 5, 6, 8, 10, 13, 16};
  const auto var = Imported(sizes);
  ASSERT_TRUE(var) << var.error().message();
  EXPECT_EQ(var->kind, ModelKind::kVar);
  EXPECT_EQ(TeacherTensors(*var), TeacherTensors(BuiltIn("var-d16")));
  TeacherSizes gpt;
  gpt.part = TeacherPart::kLlamaGenTransformer;
  gpt.vocabulary = 16384;
  gpt.depth = gpt.heads = 12;
  gpt.width = 768;
  gpt.ffn_hidden = 2048;
  gpt.classes = 1000;
  gpt.grid = 16;
  const auto llamagen = Imported(gpt);
  ASSERT_TRUE(llamagen) << llamagen.error().message();
  EXPECT_EQ(llamagen->kind, ModelKind::kLlamaGen);
  EXPECT_EQ(TeacherTensors(*llamagen), TeacherTensors(BuiltIn("llamagen-b")));
  EXPECT_EQ(llamagen->channels, 8);
  gpt.code_channels = 8;
  const auto adapted = Imported(gpt);
  ASSERT_TRUE(adapted) << adapted.error().message();
  // An MLP of 8 x 768 + 768 x 768 and two biases for a table of 16384 x 768.
  EXPECT_EQ(Sum(TeacherTensors(*adapted)), 110'888'448 - 16384 * 768 + 776 * 768 + 2 * 768);
}

PlanInput Input(const std::string& teacher, const std::string& hardware, int domains) {
  PlanInput input;
  const auto config = LoadRunConfig(fs::path(DD2_SOURCE_DIR) / "configs" / (teacher + ".yaml"));
  EXPECT_TRUE(config) << config.error().message();
  if (config) input.config = *config;
  input.model = BuiltIn(teacher);
  input.hardware = *FindHardware(hardware);
  input.domains = domains;
  input.ranks = kDevicesOfNode;
  return input;
}

RunPlan PlanOf(const PlanInput& input) {
  const auto plan = MakePlan(input);
  EXPECT_TRUE(plan) << plan.error().message();
  return plan.value_or(RunPlan());
}

std::int64_t PartOf(const MemoryPlan& memory, const std::string& what) {
  for (const MemoryPart& part : memory.parts) {
    if (part.what.starts_with(what)) return part.bytes;
  }
  return 0;
}

TEST(PlanTest, PartsAreTheWholeAndFollowTheRanks) {
  const PlanInput one = Input("var-d16", "h200", 1);
  const RunPlan plan = PlanOf(one);
  std::int64_t device = 0, rank = 0;
  for (const MemoryPart& part : plan.memory.parts) {
    (part.place == Place::kDevice ? device : rank) += part.bytes;
  }
  EXPECT_EQ(plan.memory.device_bytes, device);
  EXPECT_EQ(plan.memory.rank_bytes, rank);
  EXPECT_EQ(plan.memory.node_bytes, 8 * rank);
  const auto network = static_cast<double>(plan.network_parameters);
  EXPECT_NEAR(static_cast<double>(PartOf(plan.memory, "gradients")), 8 * 4 * network,
              1e-3 * 32 * network);
  EXPECT_NEAR(static_cast<double>(PartOf(plan.memory, "moments")), 6 * 4 * network / 8,
              1e-3 * 3 * network);
  EXPECT_NEAR(static_cast<double>(plan.memory.shared_bytes), 2 * 32 * network, 1e-3 * 64 * network);
  EXPECT_NEAR(static_cast<double>(plan.checkpoint_bytes), 32 * network, 1e-3 * 32 * network);
  // Eight times the ranks have an eighth of the gradients; the state is cut over a node.
  PlanInput input = Input("var-d16", "h200", 8);
  for (PhaseConfig& phase : input.config.phases) phase.block = std::min(phase.block, 16);
  const RunPlan eight = PlanOf(input);
  EXPECT_NEAR(static_cast<double>(PartOf(eight.memory, "gradients")), 4 * network,
              1e-2 * 4 * network);
  EXPECT_EQ(PartOf(eight.memory, "moments"), PartOf(plan.memory, "moments"));
  EXPECT_LT(eight.seconds, plan.seconds);
  EXPECT_GT(eight.seconds, plan.seconds / 8);
}

TEST(PlanTest, DomainsOnOneMachineAddUp) {
  PlanInput input = Input("llamagen-b", "cpu", 3);
  input.ranks = 2;
  const MemoryPlan apart = PlanOf(input).memory;
  input.domains_per_node = 3;
  EXPECT_EQ(input.nodes(), 1);
  const MemoryPlan beside = PlanOf(input).memory;
  EXPECT_EQ(beside.shared_bytes, 3 * apart.shared_bytes);
  EXPECT_EQ(beside.rank_bytes, apart.rank_bytes);
  // The pages that ranks share are counted once on each machine.
  EXPECT_GT(beside.node_bytes, 5 * apart.rank_bytes);
  EXPECT_LT(beside.node_bytes, 3 * apart.node_bytes);
  // What does not lie evenly: the machine that has more of them.
  input.domains_per_node = 2;
  EXPECT_EQ(input.nodes(), 2);
  EXPECT_EQ(PlanOf(input).memory.shared_bytes, 2 * apart.shared_bytes);
}

TEST(PlanTest, HeadAloneCostsLessThanAllParameters) {
  const RunPlan plan = PlanOf(Input("var-d20", "h100", 1));
  ASSERT_EQ(plan.phases.size(), 6U);
  EXPECT_EQ(plan.phases[1].name, "gts");
  EXPECT_EQ(plan.phases[2].name, "gts-2");
  EXPECT_LT(plan.phases[1].compute_seconds, 0.6 * plan.phases[2].compute_seconds);
  // Nor are the gradients of the rest summed and sent.
  const PlanInput input = Input("var-d16", "h200", 8);
  const RunPlan nodes = PlanOf(input);
  const double head = static_cast<double>(Sum(HeadTensors(input.model, input.config.model))) /
                      static_cast<double>(nodes.network_parameters);
  const PhaseTime &part = nodes.phases[1], &whole = nodes.phases[2];
  EXPECT_LT(head, 0.3);
  // The head lies on one rank of a domain, which updates it and gives it to all others alone.
  EXPECT_GT(part.update_seconds, head * whole.update_seconds);
  EXPECT_LT(part.update_seconds, 2 * head * whole.update_seconds);
  EXPECT_GT(part.exchange_seconds, head * whole.exchange_seconds);
  EXPECT_LT(part.exchange_seconds, 2 * head * whole.exchange_seconds);
}

TEST(PlanTest, WhatDoesNotFitIsSaidWithWhatHelps) {
  const PlanInput input = Input("var-d24", "a100-40g", 1);
  const RunPlan plan = PlanOf(input);
  EXPECT_FALSE(plan.fits);
  EXPECT_THAT(plan.verdict, HasSubstr("does not fit: a device needs"));
  const std::vector<Alternative> alternatives = AlternativesTo(input, plan);
  ASSERT_FALSE(alternatives.empty());
  EXPECT_TRUE(alternatives.front().plan.fits);
  EXPECT_THAT(alternatives.front().change, HasSubstr("H200"));
  bool more_nodes = false;
  for (const Alternative& one : alternatives) {
    if (one.change != "2 nodes") continue;
    more_nodes = true;
    EXPECT_LT(one.plan.memory.device_bytes, plan.memory.device_bytes);
  }
  EXPECT_TRUE(more_nodes);
  const std::string text = FormatPlan(input, plan, alternatives);
  for (const char* word :
       {"does not fit", "gradients of shards", "score cache", "assumed", "csd"}) {
    EXPECT_THAT(text, HasSubstr(word));
  }
  const auto document = PlanDocument(input, plan, alternatives);
  EXPECT_FALSE(document.at("fits").as_bool());
  EXPECT_EQ(document.at("alternatives").as_array().size(), alternatives.size());
}

std::int64_t WorkingBytesOf(const PlanInput& input) {
  return PartOf(PlanOf(input).memory, "activations");
}

TEST(PlanTest, SamplingScaleByScaleHoldsTheLargestScale) {
  PlanInput input = Input("var-d16", "cpu", 1);
  std::erase_if(input.config.phases,
                [](const PhaseConfig& phase) { return phase.kind != PhaseKind::kSample; });
  ASSERT_EQ(input.config.phases.size(), 1U);
  const auto block = static_cast<double>(input.config.phases[0].block);
  // Two passes (guidance) over 16 x 16 tokens, each with at least query, key, value and MLP.
  const double rows = 2 * block * 256, width = 1024;
  const double keys = 2 * block * 680 * 2 * 16 * width * 4;
  EXPECT_GT(static_cast<double>(WorkingBytesOf(input)), keys + rows * 8 * width * 4);
  // In raster order a pass has a token of each; what is read again in the end decides here.
  const std::int64_t of_scales = WorkingBytesOf(input);
  input.model.sides.clear();
  EXPECT_LT(static_cast<double>(WorkingBytesOf(input)),
            static_cast<double>(of_scales) - rows * 7 * width * 4);
}

TEST(PlanTest, GtsWithoutCacheHoldsAPassOfTheTeacher) {
  PlanInput input = Input("var-d16", "h200", 1);
  std::erase_if(input.config.phases, [](const PhaseConfig& phase) {
    return phase.kind != PhaseKind::kGts || phase.trains != kTrainsHead;
  });
  input.config.phases.at(0).batch = 64 * 32;
  input.config.phases.at(0).draws = 1;
  input.config.model = {.head_width = 64, .head_depth = 1, .time_features = 64};
  input.config.teacher.precision = kPrecisionFp32;
  const std::int64_t cached = WorkingBytesOf(input);
  input.config.cache.enabled = false;
  const auto logits = static_cast<std::int64_t>(32) * 680 * 4096 * 4;
  EXPECT_GE(WorkingBytesOf(input), 7 * logits);  // the filters' sort
  EXPECT_GT(WorkingBytesOf(input), cached);
}

// Inputs of all blocks and one block, instead of all blocks.
TEST(PlanTest, BlocksThatRunAgainHoldLess) {
  PlanInput input = Input("var-d16", "cpu", 1);
  std::erase_if(input.config.phases, [](const PhaseConfig& phase) {
    return phase.kind != PhaseKind::kGts || phase.trains == kTrainsHead;
  });
  input.config.model.recompute = false;
  const std::int64_t kept = WorkingBytesOf(input);
  input.config.model.recompute = true;
  EXPECT_LT(3 * WorkingBytesOf(input), 2 * kept);
  input.model.kind = ModelKind::kRaster;
  const std::int64_t ours = WorkingBytesOf(input);
  input.config.model.recompute = false;
  EXPECT_EQ(WorkingBytesOf(input), ours) << "it runs none again";
}

TEST(PlanTest, PrecisionAndJudgeAreThoseOfTheConfiguration) {
  PlanInput input = Input("var-d16", "h200", 1);
  const RunPlan plan = PlanOf(input);
  EXPECT_GT(PartOf(plan.memory, "weights of blocks in bf16"), 0);
  EXPECT_GT(PartOf(plan.memory, "features of Inception"), std::int64_t{50'000} * 2048 * 4);
  input.config.eval.inception.clear();
  input.config.model.precision = kPrecisionFp32;
  const RunPlan single = PlanOf(input);
  EXPECT_EQ(PartOf(single.memory, "weights of blocks in bf16"), 0);
  EXPECT_EQ(PartOf(single.memory, "features of Inception"), 0);
  EXPECT_EQ(PartOf(single.memory, "covariances of Inception"), 0);
  EXPECT_GT(
      PartOf(PlanOf(Input("var-d16", "h200", 8)).memory, "covariances of Inception"),
      PartOf(plan.memory, "covariances of Inception") + 56 * std::int64_t{2048} * 2048 * 8 - 1);
  // Without its matrix units a GPU needs far longer for the blocks; what the teacher draws is fp32.
  EXPECT_GT(single.phases[2].compute_seconds, 2 * plan.phases[2].compute_seconds);
  EXPECT_EQ(single.phases[0].compute_seconds, plan.phases[0].compute_seconds);
  EXPECT_EQ(PartOf(single.memory, "teacher"), PartOf(plan.memory, "teacher"));
  // Its judgement of what the generator makes follows teacher.precision.
  input.config.model.precision = kPrecisionBf16;
  input.config.teacher.precision = kPrecisionFp32;
  const RunPlan exact = PlanOf(input);
  EXPECT_EQ(exact.phases[0].compute_seconds, plan.phases[0].compute_seconds);
  EXPECT_EQ(exact.phases[2].compute_seconds, plan.phases[2].compute_seconds);
  EXPECT_GT(exact.phases[3].compute_seconds, 1.2 * plan.phases[3].compute_seconds);
}

const Alternative* Find(const std::vector<Alternative>& alternatives, const std::string& change) {
  const auto found = std::ranges::find(alternatives, change, &Alternative::change);
  return found == alternatives.end() ? nullptr : &*found;
}

// Has so many shards that a node is too small for it, and three or four are, as their ranks send
// two sums each.
PlanInput LargeInput(int domains) {
  PlanInput input = Input("var-d30", "h200", domains);
  input.config.batch.shards = 128;
  return input;
}

TEST(PlanTest, TheLeastThatFitsIsAdvised) {
  const auto advice = [](const PlanInput& input) {
    const RunPlan plan = PlanOf(input);
    return AdviceOn(input, plan, AlternativesTo(input, plan));
  };
  EXPECT_EQ(advice(LargeInput(1)),
            "take 2 nodes (5 to go on after the loss of one), or batch.shards: 64 (another "
            "result): the least that fits");
  EXPECT_EQ(advice(LargeInput(2)), "take 5 nodes to go on after the loss of one");
  EXPECT_EQ(advice(LargeInput(5)), "");
  // Of settings those that keep the result come first.
  PlanInput input = Input("llamagen-b", "cpu", 1);
  const MemoryPlan memory = PlanOf(input).memory;
  input.node_memory =
      static_cast<std::int64_t>(static_cast<double>(memory.node_bytes - 1) / kUsable);
  EXPECT_THAT(advice(input), HasSubstr("or 4 ranks a node: the least that fits"));
  input.node_memory = 1;
  EXPECT_THAT(advice(input), HasSubstr("neither more nodes nor"));
}

TEST(PlanTest, AlternativesSayWhatChangesTheResult) {
  PlanInput input = Input("var-d16", "a100-40g", 1);
  RunPlan plan = PlanOf(input);
  std::vector<Alternative> alternatives = AlternativesTo(input, plan);
  ASSERT_NE(Find(alternatives, "batch.shards: 128"), nullptr);
  EXPECT_EQ(Find(alternatives, "batch.shards: 128")->lever, Lever::kResult);
  ASSERT_NE(Find(alternatives, "checkpoint.memory_every: 0"), nullptr);
  EXPECT_EQ(Find(alternatives, "checkpoint.memory_every: 0")->lever, Lever::kSetting);
  EXPECT_THAT(FormatPlan(input, plan, alternatives), HasSubstr("batch.shards: 128 *  "));
  // Where drawing sequences needs most, its block helps; a batch of one shard has no half.
  input.config.batch.shards = 1;
  input.ranks = 1;
  for (PhaseConfig& phase : input.config.phases) {
    phase.batch = 1;
    if (phase.kind == PhaseKind::kSample) phase.block = 1024;
  }
  plan = PlanOf(input);
  EXPECT_EQ(plan.memory.phase, "sample");
  alternatives = AlternativesTo(input, plan);
  EXPECT_EQ(Find(alternatives, "batch.shards: 0"), nullptr);
  const Alternative* half = Find(alternatives, "block: 512 in sample");
  ASSERT_NE(half, nullptr);
  EXPECT_LT(half->plan.memory.device_bytes, plan.memory.device_bytes);
}

TEST(PlanTest, ImpossibleCountsAreRefused) {
  PlanInput input = Input("var-d16", "h200", 16);
  auto plan = MakePlan(input);
  ASSERT_FALSE(plan);
  EXPECT_THAT(plan.error().message(), HasSubstr("128 ranks for 64 shards"));
  input.domains = 1;
  input.config.batch.shards = 1024;
  plan = MakePlan(input);
  ASSERT_FALSE(plan);
  EXPECT_THAT(plan.error().message(), HasSubstr("512 is not a multiple of 1024 shards"));
}

TEST(PlanTest, NodesOfCpusAreJudgedByTheirMemory) {
  PlanInput input = Input("llamagen-b", "cpu", 1);
  input.ranks = 4;
  EXPECT_THAT(PlanOf(input).verdict, HasSubstr("a node needs"));
  input.node_memory = std::int64_t{4} << 30;
  const RunPlan plan = PlanOf(input);
  EXPECT_FALSE(plan.fits);
  bool without_snapshots = false;
  for (const Alternative& one : AlternativesTo(input, plan)) {
    if (!one.change.starts_with("checkpoint.memory_every")) continue;
    without_snapshots = true;
    EXPECT_EQ(plan.memory.node_bytes - one.plan.memory.node_bytes, plan.memory.shared_bytes);
  }
  EXPECT_TRUE(without_snapshots);
}

TEST(PlanTest, TheVerdictSaysWhoseMemoryItIs) {
  PlanInput input = Input("llamagen-b", "cpu", 1);
  input.node_memory = std::int64_t{64'000'000'000};
  EXPECT_THAT(PlanOf(input).verdict,
              HasSubstr("of a node's memory can be used (64.0 GB less 8 %)"));
  input.this_machine = true;
  EXPECT_THAT(PlanOf(input).verdict, HasSubstr("of this machine's memory"));
  // Devices that have enough do not help a node that has not.
  input = Input("var-d16", "h200", 1);
  EXPECT_TRUE(PlanOf(input).fits);
  input.node_memory = PlanOf(input).memory.node_bytes;
  const RunPlan plan = PlanOf(input);
  EXPECT_FALSE(plan.fits);
  EXPECT_THAT(plan.verdict, HasSubstr("does not fit: a node needs"));
  input.node_memory = 2 * plan.memory.shared_bytes - 1;
  EXPECT_THAT(PlanOf(input).verdict, HasSubstr("too little for the snapshots"));
}

TEST(PlanTest, WhatIsLeftOfANodeTooFewIsPlanned) {
  EXPECT_FALSE(PlanOf(LargeInput(1)).after_loss);
  const PlanInput input = LargeInput(2);
  const RunPlan plan = PlanOf(input);
  EXPECT_TRUE(plan.fits);
  ASSERT_TRUE(plan.after_loss);
  EXPECT_FALSE(plan.after_loss->fits);
  EXPECT_EQ(plan.after_loss->device_bytes, PlanOf(LargeInput(1)).memory.device_bytes);
  EXPECT_THAT(FormatPlan(input, plan, {}),
              HasSubstr("after the loss of a node: 193.9 GB a device"));
  EXPECT_TRUE(PlanOf(LargeInput(5)).after_loss->fits);
}

TEST(PlanTest, TheIntervalIsThatOfTheCoordinator) {
  PlanInput input = Input("var-d30", "h200", 1);
  const auto text = [&] { return FormatPlan(input, PlanOf(input), {}); };
  EXPECT_EQ(PlanOf(input).checkpoint_interval, 300);  // the least: such saves cost little
  EXPECT_THAT(text(), HasSubstr("one every 5.0 min, the least that auto takes"));
  input.hardware.host_rate = 1e7;
  const RunPlan slow = PlanOf(input);
  ASSERT_TRUE(slow.checkpoint_interval);
  EXPECT_EQ(*slow.checkpoint_interval, 3600) << slow.checkpoint_stall_seconds;
  EXPECT_THAT(text(), HasSubstr("one every 60.0 min, the most that auto takes"));
  input.hardware.host_rate = 3e8;
  EXPECT_THAT(text(), HasSubstr("at a failure in 8 hours"));
  input.config.checkpoint.interval = "300";
  EXPECT_THAT(text(), HasSubstr("one every 5.0 min (checkpoint.interval)"));
  input.config.checkpoint.interval = "off";
  EXPECT_FALSE(PlanOf(input).checkpoint_interval);
  EXPECT_THAT(text(), HasSubstr("none besides those that phases set"));
}

TEST(PlanTest, ACopyStopsTrainingWhereTheNextGradientsAreShorter) {
  PlanInput input = Input("var-d30", "h200", 1);
  const RunPlan fast = PlanOf(input);
  EXPECT_GT(fast.checkpoint_copy_seconds, 0);
  EXPECT_EQ(fast.checkpoint_stall_seconds, 0);
  EXPECT_THAT(FormatPlan(input, fast, {}), HasSubstr("training does not stand for it"));
  // csd's state changes after the gradients of the first of its guidance updates.
  const PhaseTime& csd = fast.phases.back();
  ASSERT_EQ(csd.name, "csd");
  EXPECT_LT(csd.gradient_seconds, 0.5 * csd.compute_seconds);
  input.hardware.host_rate /= 100;
  const RunPlan slow = PlanOf(input);
  EXPECT_NEAR(slow.checkpoint_copy_seconds, 100 * fast.checkpoint_copy_seconds, 1e-6);
  EXPECT_NEAR(slow.checkpoint_stall_seconds,
              slow.checkpoint_copy_seconds - slow.phases[1].gradient_seconds, 1e-6);
  EXPECT_EQ(slow.phases[1].name, "gts");
}

TEST(PlanTest, EveryPhaseHasItsMemory) {
  const PlanInput input = Input("var-d16", "h200", 1);
  const MemoryPlan memory = PlanOf(input).memory;
  ASSERT_EQ(memory.phases.size(), input.config.phases.size());
  std::int64_t most = 0;
  for (const PhaseMemory& phase : memory.phases) {
    EXPECT_GT(phase.bytes, 0) << phase.name;
    most = std::max(most, phase.bytes);
    if (phase.name == memory.phase) {
      EXPECT_EQ(phase.bytes, memory.device_bytes);
    }
  }
  EXPECT_EQ(most, memory.device_bytes);
  // Gradients are there from the first update on.
  EXPECT_LT(memory.phases[0].bytes, memory.device_bytes - PartOf(memory, "gradients"));
}

TEST(PlanTest, TimeIsCalledALowerBound) {
  const PlanInput input = Input("var-d16", "a100-80g", 1);
  const std::string text = FormatPlan(input, PlanOf(input), {});
  EXPECT_THAT(text, HasSubstr("a lower bound"));
  EXPECT_THAT(text, HasSubstr("115.5 hours on 8 A800"));
  EXPECT_THAT(text, HasSubstr("training on GPUs has not been run on one yet"));
  const PlanInput cpu = Input("var-d16", "cpu", 1);
  const std::string here = FormatPlan(cpu, PlanOf(cpu), {});
  EXPECT_THAT(here, Not(HasSubstr("A800")));
  EXPECT_THAT(here, Not(HasSubstr("training on GPUs")));
}

TEST(PlanTest, ShardsFallOnRanks) {
  const ShardShare three = ShareOfShards(8, 3);  // 3, 3 and 2 shards
  EXPECT_EQ(three.shards, 3);
  EXPECT_EQ(three.sums, 2);
  EXPECT_EQ(three.all_sums, 5);
  const ShardShare equal = ShareOfShards(64, 8);
  EXPECT_EQ(equal.shards, 8);
  EXPECT_EQ(equal.sums, 1);
  EXPECT_EQ(equal.all_sums, 8);
}

}  // namespace
}  // namespace dd2
