#include "common/config.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "common/config_site.h"
#include "common/config_teacher.h"
#include "common/rng.h"

namespace dd2 {
namespace {

using ::testing::AllOf;
using ::testing::Eq;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* kGood = R"(seed: 7
teacher:
  path: bundle
phases:
  - kind: sample
    sequences: 500
  - kind: gts
    steps: 60
  - kind: csd
    cycles: 50
  - kind: export
)";

Result<RunConfig> Parse(std::string_view yaml, const std::vector<std::string>& overrides = {}) {
  return ParseRunConfig(yaml, "a/b.yaml", "/base", overrides);
}

// The message of the error that `yaml` must give.
std::string Problems(std::string_view yaml, const std::vector<std::string>& overrides = {}) {
  const Result<RunConfig> config = Parse(yaml, overrides);
  if (config) return "(no error)";
  EXPECT_THAT(config.error().code(), Eq(Code::kInvalidArgument));
  return config.error().message();
}

std::string Replace(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  EXPECT_THAT(at, Not(Eq(std::string::npos))) << from;
  return text.replace(at, from.size(), to);
}

TEST(Config, ReadsValuesDefaultsAndPaths) {
  const Result<RunConfig> config = Parse(kGood);
  ASSERT_TRUE(config) << config.error().message();
  EXPECT_EQ(config->name, "b");
  EXPECT_EQ(config->seed, 7u);
  EXPECT_EQ(config->teacher.path, "/base/bundle");
  EXPECT_EQ(config->dataset.path, "/usr/share/datasets/fashion-mnist");
  EXPECT_EQ(config->batch.shards, 4);
  ASSERT_EQ(config->phases.size(), 5u);
  EXPECT_EQ(config->phases[0].kind, PhaseKind::kTeacherCheck);
  EXPECT_EQ(config->phases[1].steps, 2);  // 500 sequences in blocks of 250
  EXPECT_EQ(config->phases[2].steps, 60);
  EXPECT_EQ(config->phases[2].batch, 64);  // the default of a gts phase
  EXPECT_EQ(config->phases[3].generator.peak, 2e-4);
  EXPECT_EQ(config->phases[3].generator.warmup, config->phases[3].guidance.warmup);
  EXPECT_EQ(config->phases[2].trains, kTrainsAll);
  const auto more =
      Parse(kGood, {"phases.1.trains=head", "phases.2.start_lr=1e-6", "phases.2.warmup=4"});
  ASSERT_TRUE(more) << more.error().message();
  EXPECT_EQ(more->phases[2].trains, kTrainsHead);
  EXPECT_EQ(more->phases[3].guidance.start, 1e-6);
  EXPECT_EQ(more->phases[3].generator.start, 1e-6);
}

TEST(Config, ATeacherCheckThatIsThereIsNotAddedAgain) {
  const auto config = Parse(Replace(kGood, "phases:\n", "phases:\n  - kind: teacher_check\n"));
  ASSERT_TRUE(config) << config.error().message();
  EXPECT_EQ(config->phases.size(), 5u);
}

TEST(Config, UnknownKeysNameLineAndNearestKey) {
  EXPECT_EQ(Problems(Replace(kGood, "seed: 7", "sede: 7")),
            "a/b.yaml:1: sede: unknown setting; did you mean seed?");
  EXPECT_EQ(Problems(Replace(kGood, "  path: bundle", "  path: bundle\n  cfg_scal: 2")),
            "a/b.yaml:4: teacher.cfg_scal: unknown setting; did you mean teacher.cfg_scale?");
  EXPECT_EQ(Problems(Replace(kGood, "seed: 7", "cfg_scale: 2")),
            "a/b.yaml:1: cfg_scale: unknown setting; did you mean teacher.cfg_scale?");
  EXPECT_EQ(Problems(Replace(kGood, "seed: 7", "xylophone: 2")),
            "a/b.yaml:1: xylophone: unknown setting");
}

TEST(Config, KeysOfAnotherKindOfPhaseAreRefused) {
  EXPECT_EQ(Problems(Replace(kGood, "steps: 60", "cycles: 60")),
            "a/b.yaml:8: phases.1.cycles: unknown setting of a phase of kind gts");
  EXPECT_EQ(Problems(Replace(kGood, "cycles: 50", "cycls: 50")),
            "a/b.yaml:10: phases.2.cycls: unknown setting of a phase of kind csd; did you mean "
            "phases.2.cycles?");
  EXPECT_EQ(Problems(Replace(kGood, "kind: csd", "kind: cds")),
            "a/b.yaml:9: phases.2.kind: unknown kind of phase \"cds\"; did you mean csd?");
}

TEST(Config, TypesAndBounds) {
  const auto with = [](const std::string& line) {
    return Problems(Replace(kGood, "seed: 7", line));
  };
  EXPECT_EQ(with("ranks: two"), "a/b.yaml:1: ranks: expected a whole number, got \"two\"");
  EXPECT_EQ(with("ranks: 1.5"), "a/b.yaml:1: ranks: expected a whole number, got \"1.5\"");
  EXPECT_EQ(with("ranks: 0"), "a/b.yaml:1: ranks: 0 is out of bounds; allowed: from 1 to 1024");
  EXPECT_EQ(with("seed: -1"), "a/b.yaml:1: seed: -1 is out of bounds; allowed: at least 0");
  EXPECT_THAT(with("seed: 99999999999999999999999"), HasSubstr("too large"));
  EXPECT_EQ(with("ranks: [1, 2]"), "a/b.yaml:1: ranks: expected a whole number, got a list");
  EXPECT_THAT(with("ranks:"), HasSubstr("ranks: has no value"));
  EXPECT_THAT(with("cache: 3"), HasSubstr("cache: expected a map of settings, got a single value"));
  EXPECT_THAT(with("cache: {enabled: yes}"), HasSubstr("expected true or false, got \"yes\""));
  EXPECT_THAT(with("teacher2: 1"), HasSubstr("did you mean teacher?"));
  EXPECT_THAT(Problems(kGood, {"teacher.top_p=0"}), HasSubstr("allowed: above 0, at most 1"));
  EXPECT_THAT(Problems(kGood, {"teacher.top_p=nan"}), HasSubstr("teacher.top_p: nan is out of"));
  EXPECT_THAT(with("api: {port: 70000}"), HasSubstr("from 0 to 65535"));
}

TEST(Config, RulesBetweenSettings) {
  const auto set = [](const std::string& text) { return Problems(kGood, {text}); };
  EXPECT_EQ(Problems(Replace(kGood, "seed: 7", "batch: {shards: 6}"),
                     {"phases.1.batch=60", "phases.2.batch=30"}),
            "a/b.yaml:1: batch.shards: 6 is not a power of two");
  EXPECT_THAT(set("phases.1.batch=30"), HasSubstr("phases.1.batch: 30 is not a multiple of"));
  EXPECT_EQ(Problems(Replace(kGood, "sequences: 500", "sequences: 501")),
            "a/b.yaml:6: phases.0.sequences: 501 is not a multiple of block (250)");
  EXPECT_THAT(set("ranks=8"), HasSubstr("8 ranks for 4 shards"));
  EXPECT_THAT(set("phases.1.warmup=61"), HasSubstr("61 is longer than the phase (60 steps)"));
  EXPECT_THAT(set("phases.1.t_max=0.01"), HasSubstr("must be smaller than t_max"));
  EXPECT_THAT(set("phases.2.generator_t_max=0.01"), HasSubstr("smaller than generator_t_max"));
  EXPECT_THAT(set("phases.1.validation=490"), HasSubstr("leave fewer than one batch of 64"));
  EXPECT_THAT(set("phases.1.trains=tail"), HasSubstr("\"tail\" is neither all (the default) nor"));
  EXPECT_THAT(set("phases.2.trains=head"), HasSubstr("trains"));  // of gts alone
  EXPECT_THAT(set("model.precision=fp16"), HasSubstr("\"fp16\" is neither fp32 (the default) nor"));
  EXPECT_THAT(Problems(kGood, {"phases.1.warmup=0", "phases.1.start_lr=1e-6"}),
              HasSubstr("without a warmup nothing starts from it"));
  const auto both = [](const std::string& rate) {
    return Problems(kGood, {"phases.2.warmup=5", "phases.2.generator_lr=1e-4",
                            "phases.2.guidance_lr=4e-4", "phases.2.start_lr=" + rate});
  };
  EXPECT_THAT(both("2e-4"), HasSubstr("start_lr: is above the rate that the warm-up ends at"));
  EXPECT_EQ(both("1e-4"), "(no error)");
  EXPECT_THAT(set("name=../x"), HasSubstr("is no folder name"));
  EXPECT_THAT(set("model.time_features=7"), HasSubstr("7 is odd"));
  EXPECT_THAT(set("phases.2.cycles=100000000"), Not(HasSubstr("2^32")));
  EXPECT_THAT(Problems(kGood, {"phases.2.cycles=100000000", "phases.2.guidance_updates=50"}),
              HasSubstr("stay below 2^32"));
}

TEST(Config, TimeoutsAreSecondsAndFitTogether) {
  const Result<RunConfig> config = Parse(kGood, {"timeouts.heartbeat_interval=0.5"});
  ASSERT_TRUE(config) << config.error().message();
  EXPECT_EQ(config->timeouts.heartbeat_interval, std::chrono::milliseconds(500));
  EXPECT_EQ(config->timeouts.stop, Timeouts().stop);
  EXPECT_THAT(DumpRunConfig(*config), HasSubstr("timeouts:\n  heartbeat_interval: 0.5\n"));
  EXPECT_EQ(ConfigDigest(*config), ConfigDigest(*Parse(kGood))) << "they do not change the result";
  EXPECT_THAT(Problems(kGood, {"timeouts.heartbeat_interval=0.1"}),
              HasSubstr("allowed: from 0.2 to 60"));
  EXPECT_THAT(Problems(kGood, {"timeouts.heartbeat_expiry=2s"}),
              HasSubstr("timeouts.heartbeat_expiry: expected a number, got \"2s\""));
  EXPECT_THAT(DescribeSettings(), HasSubstr("| `timeouts.heartbeat_expiry` | 10 | s |"));
  // All violations at once, each with both values.
  const std::string yaml =
      Replace(kGood, "seed: 7", "timeouts: {heartbeat_interval: 4, collective: 40, unwind: 20}");
  EXPECT_EQ(Problems(yaml, {"timeouts.stall=50"}),
            "a/b.yaml:1: timeouts.heartbeat_interval: 5 times timeouts.heartbeat_interval (4 s) "
            "must be at most timeouts.heartbeat_expiry (10 s): a few late beats are not a lost "
            "peer\n"
            "--set: timeouts.stall: timeouts.stall (50 s) must be less than timeouts.collective "
            "(40 s): the coordinator removes a hanging rank before the others give up\n"
            "a/b.yaml:1: timeouts.collective: the longest wait of a rank for its disk (240 s) must "
            "be less than timeouts.collective (40 s): a rank may wait for its disk while the "
            "others wait for it\n"
            "a/b.yaml:1: timeouts.unwind: the longest wait of a rank for its disk (240 s) must be "
            "less than timeouts.unwind (20 s): a rank that waits for its disk must end that "
            "first\n"
            "a/b.yaml:1: timeouts.unwind: the time in which ranks meet (20 s) must be less than "
            "timeouts.unwind (20 s): a rank that waits for another one to meet it must end that "
            "first");
}

TEST(Config, TheDefaultTimeoutsFitTogether) { EXPECT_TRUE(CheckTimeouts(Timeouts()).empty()); }

TEST(Config, OrderOfPhases) {
  const auto phases = [](const std::string& list) {
    return Problems("teacher: {path: x}\nphases:\n" + list);
  };
  EXPECT_THAT(phases("  - kind: gts\n"), HasSubstr("gts needs a sample phase before it"));
  EXPECT_THAT(phases("  - kind: sample\n  - kind: csd\n"),
              HasSubstr("a/b.yaml:4: phases.1.kind: csd needs a gts phase before it"));
  EXPECT_THAT(phases("  - kind: sample\n  - kind: eval\n"),
              HasSubstr("eval needs a csd or regress phase"));
  EXPECT_THAT(phases("  - {kind: sample, ode_steps: 4}\n  - kind: regress\n"),
              HasSubstr("regress needs a gts phase before it"));
  EXPECT_THAT(phases("  - kind: sample\n  - kind: gts\n  - kind: regress\n"),
              HasSubstr("set ode_steps (14, say) in the sample phase"));
  EXPECT_THAT(phases("  - {kind: sample, ode_steps: 4}\n  - kind: gts\n  - kind: csd\n"
                     "  - kind: regress\n"),
              HasSubstr("regress after csd would train over the distilled generator"));
  EXPECT_EQ(phases("  - {kind: sample, ode_steps: 4}\n  - kind: gts\n  - kind: regress\n"
                   "  - kind: export\n"),
            "(no error)");
  EXPECT_THAT(phases("  - kind: sample\n  - kind: teacher_check\n"),
              HasSubstr("only be the first"));
  EXPECT_THAT(phases("  - kind: sample\n  - kind: sample\n"), HasSubstr("a second sample phase"));
  EXPECT_THAT(phases("  - kind: sample\n  - kind: gts\n  - kind: export\n  - kind: eval\n"),
              HasSubstr("export can only be the last phase"));
  EXPECT_THAT(phases("  []\n"), HasSubstr("phases: the list is empty"));
  EXPECT_THAT(phases("  - gts\n"), HasSubstr("phases.0: expected a map"));
  EXPECT_THAT(phases("  - {steps: 3}\n"), HasSubstr("phases.0.kind: is missing"));
  EXPECT_THAT(phases("  sample: {}\n"), HasSubstr("phases: expected a list"));
}

TEST(Config, AllProblemsAtOnce) {
  const std::string problems = Problems(R"(sed: 1
ranks: none
batch:
  shards: 3
phases:
  - kind: sample
    sequences: 10
    block: 4
  - kind: gst
  - kind: csd
    batch: 31
    lr: 1
)",
                                        {"api.port=x", "nonsense"});
  EXPECT_EQ(problems, R"(--set: "nonsense" is not of the form key.path=value
a/b.yaml:1: sed: unknown setting; did you mean seed?
a/b.yaml:2: ranks: expected a whole number, got "none"
--set: api.port: expected a whole number, got "x"
a/b.yaml:1: teacher.path: is missing. Folder with the tokenizer, teacher, classifier and their card.
a/b.yaml:9: phases.1.kind: unknown kind of phase "gst"; did you mean gts?
a/b.yaml:12: phases.2.lr: unknown setting of a phase of kind csd
a/b.yaml:4: batch.shards: 3 is not a power of two
a/b.yaml:7: phases.0.sequences: 10 is not a multiple of block (4)
a/b.yaml:11: phases.2.batch: 31 is not a multiple of batch.shards (3))");
}

TEST(Config, Overrides) {
  const auto config = Parse(kGood, {"phases.1.steps=10", "phases.1.warmup=0", "cache.enabled=false",
                                    "seed=3", "teacher.path=t", "api={port: 81}", "cache.path="});
  ASSERT_TRUE(config) << config.error().message();
  EXPECT_EQ(config->phases[2].steps, 10);
  EXPECT_FALSE(config->cache.enabled);
  EXPECT_EQ(config->seed, 3u);
  EXPECT_EQ(config->api.port, 81);
  EXPECT_EQ(config->cache.path, "");
  EXPECT_EQ(config->teacher.path, std::filesystem::current_path() / "t");

  EXPECT_EQ(Problems(kGood, {"phases.9.steps=1"}),
            "--set: phases.9.steps: \"9\" is no index of the list at a/b.yaml:4, which has 4 items "
            "(counted from 0)");
  EXPECT_THAT(Problems(kGood, {"phases.x.steps=1"}), HasSubstr("\"x\" is no index"));
  EXPECT_THAT(Problems(kGood, {"seed.deep=1"}), HasSubstr("nothing below a single value"));
  EXPECT_THAT(Problems(kGood, {"sed=1"}), HasSubstr("--set: sed: unknown setting; did you mean"));
  EXPECT_THAT(Problems(kGood, {"=1"}), HasSubstr("not of the form"));
  EXPECT_THAT(Problems(kGood, {"seed=\"1"}), HasSubstr("--set: seed: in its value: not YAML"));
  EXPECT_THAT(Problems(kGood, {"a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q=1"}), HasSubstr("too deep"));
}

TEST(Config, DumpLoadsBackToTheSame) {
  auto config = Parse(kGood, {"teacher.top_p=0.1", "phases.2.generator_lr=1.23456789012345e-5",
                              "cache.path=\"/odd \\\"name\\\"\\\\x/# é: [\"", "phases.2.warmup=3"});
  ASSERT_TRUE(config) << config.error().message();
  const std::string dump = DumpRunConfig(*config);
  const auto again = ParseRunConfig(dump, "run/config.yaml", "/elsewhere");
  ASSERT_TRUE(again) << again.error().message() << "\n" << dump;
  EXPECT_EQ(DumpRunConfig(*again), dump);
  EXPECT_EQ(again->cache.path, config->cache.path);
  EXPECT_EQ(again->phases[3].generator.peak, 1.23456789012345e-5);
  EXPECT_EQ(again->phases[3].generator.warmup, 3);
  EXPECT_EQ(again->teacher.path, config->teacher.path);
  EXPECT_EQ(again->name, "b");
  EXPECT_EQ(ConfigDigest(*again), ConfigDigest(*config));
}

TEST(Config, DigestCoversWhatChangesTheBitsAndNothingElse) {
  const Digest128 base = ConfigDigest(*Parse(kGood));
  for (const char* same :
       {"ranks=1", "name=other", "teacher.path=/x", "cache.path=/y", "checkpoint.keep_last=9",
        "checkpoint.keep_best=2", "checkpoint.interval=60", "api.port=80", "eval.samples=100",
        "phases.1.checkpoint_every=5", "phases.2.eval_every=5", "model.recompute=true",
        "model.precision=fp32", "teacher.precision=fp32", "phases.1.trains=all"}) {
    EXPECT_EQ(ConfigDigest(*Parse(kGood, {same})), base) << same;
  }
  for (const char* other :
       {"seed=8", "cache.enabled=false", "threads_per_rank=2", "teacher.cfg_scale=2",
        "teacher.top_k=5", "batch.shards=8", "model.head_depth=2", "phases.0.sequences=750",
        "phases.1.steps=61", "phases.1.trains=head", "model.precision=bf16",
        "teacher.precision=bf16", "phases.2.sid_alpha=.5", "phases.2.warmup=4",
        "phases.3.kind=eval"}) {
    const auto config = Parse(kGood, {other});
    ASSERT_TRUE(config) << config.error().message();
    EXPECT_NE(ConfigDigest(*config), base) << other;
  }
}

// Runs that began with an earlier build go on: its digest, written down before start_lr, trains and
// model.precision came. A change of defaults or keys breaks them.
TEST(Config, DigestIsThatOfEarlierBuilds) {
  EXPECT_EQ(ConfigDigest(*Parse(kGood)).Hex(), "a8e948f5563264a1da101e9f6f45abbc");
}

TEST(Config, HostileYamlIsAnErrorAndNeverACrash) {
  EXPECT_THAT(Problems(""), HasSubstr("phases: is missing"));
  EXPECT_THAT(Problems("just text"), HasSubstr("expected a map of settings"));
  EXPECT_THAT(Problems("a: [1, 2"), HasSubstr("not YAML"));
  EXPECT_THAT(Problems("seed: 1\nseed: 2\n"), HasSubstr("a/b.yaml:2: seed: given twice"));
  EXPECT_THAT(Problems("[a]: 1\n"), HasSubstr("a key must be a single word"));
  EXPECT_THAT(Problems("a: 1\n---\nb: 2\n"), HasSubstr("second YAML document"));
  EXPECT_THAT(Problems(std::string(100'000, '[')), HasSubstr("a/b.yaml"));
  EXPECT_THAT(Problems(std::string(200, '[') + std::string(200, ']')), HasSubstr("nested more"));
  EXPECT_THAT(Problems(std::string(std::size_t{2} << 20, 'x')), HasSubstr("the limit is 1048576"));
  EXPECT_THAT(Problems("a: &a [*a]\n"), HasSubstr("an alias inside of what it stands for"));
  std::string bomb = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n";
  for (int i = 1; i < 10; ++i) {
    const std::string last = "*a" + std::to_string(i - 1);
    bomb += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [" + last;
    for (int j = 0; j < 9; ++j) bomb += "," + last;
    bomb += "]\n";
  }
  EXPECT_THAT(Problems(bomb), HasSubstr("more than 20000 values"));
  std::string many = "phases:\n";
  for (int i = 0; i < 1000; ++i) many += "  - kind: eval\n";
  EXPECT_THAT(Problems(many), HasSubstr("1000 phases, the limit is 64"));
}

TEST(Config, DamagedFilesGiveAnErrorOrAConfig) {
  const std::string good = DumpRunConfig(*Parse(kGood));
  constexpr std::string_view kAlphabet = ":-[]{}&*!|>'\"%@`#,? \n\t\x01\xff";
  int errors = 0;
  for (std::uint64_t round = 0; round < 1500; ++round) {
    std::string text = good;
    RngKey key{.seed = 5, .update = round};
    for (std::uint64_t i = 0; i < 1 + round % 8; ++i) {
      key.sample = 2 * i;
      const std::size_t at = UniformInt(key, text.size());
      key.sample = 2 * i + 1;
      text[at] = kAlphabet[UniformInt(key, kAlphabet.size())];
    }
    const auto config = Parse(text);
    if (config) continue;
    ++errors;
    EXPECT_FALSE(config.error().message().empty());
  }
  EXPECT_GT(errors, 500);
}

TEST(Config, FilesOfTheProjectLoad) {
  for (const char* name : {"configs/fashion-mnist-quick.yaml", "configs/fashion-mnist.yaml",
                           "tests/configs/tiny.yaml"}) {
    const auto config = LoadRunConfig(std::filesystem::path(DD2_SOURCE_DIR) / name);
    ASSERT_TRUE(config) << config.error().message();
    EXPECT_EQ(config->teacher.path,
              std::filesystem::path(DD2_SOURCE_DIR) / "configs/teachers/fashion-mnist");
    EXPECT_EQ(config->batch.shards, 4);
  }
}

TEST(Config, AllRunsOfTheProjectLoad) {
  int runs = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::filesystem::path(DD2_SOURCE_DIR) / "configs")) {
    if (entry.path().extension() != ".yaml") continue;
    const auto config = LoadRunConfig(entry.path());
    EXPECT_TRUE(config) << config.error().message();
    ++runs;
  }
  EXPECT_GE(runs, 9);
}

TEST(Config, TeacherTraining) {
  const auto parse = [](std::string_view yaml, const std::vector<std::string>& overrides = {}) {
    return ParseTeacherTrainConfig(yaml, "t.yaml", "/base", overrides);
  };
  const auto config = parse("seed: 2\noutput: out\nteacher: {heads: 8}\n", {"tokenizer.codes=64"});
  ASSERT_TRUE(config) << config.error().message();
  EXPECT_EQ(config->name, "t");
  EXPECT_EQ(config->seed, 2u);
  EXPECT_EQ(config->output, "/base/out");
  EXPECT_EQ(config->teacher.heads, 8);
  EXPECT_EQ(config->tokenizer.codes, 64);
  const std::string dump = DumpTeacherTrainConfig(*config);
  const auto again = parse(dump);
  ASSERT_TRUE(again) << again.error().message();
  EXPECT_EQ(DumpTeacherTrainConfig(*again), dump);

  const auto bad =
      parse("ouput: x\nshards: 3\nteacher: {width: 100, heads: 3, steps: 1500, warmup: 9999}\n");
  ASSERT_FALSE(bad);
  EXPECT_EQ(bad.error().message(), R"(t.yaml:1: ouput: unknown setting; did you mean output?
t.yaml:1: output: is missing. Folder that tokenizer, teacher, classifier and card are written to.
t.yaml:2: shards: 3 is not a power of two
t.yaml:1: classifier.batch: 128 is not a multiple of shards (3)
t.yaml:1: tokenizer.batch: 128 is not a multiple of shards (3)
t.yaml:3: teacher.batch: 128 is not a multiple of shards (3)
t.yaml:3: teacher.width: 100 is not a multiple of heads (3)
t.yaml:3: teacher.warmup: 9999 is longer than the training (1500 steps))");
  EXPECT_THAT(DescribeTeacherSettings(), HasSubstr("`teacher.label_drop` | 0.1"));
}

TEST(Config, ASite) {
  const auto parse = [](const std::string& yaml) {
    return ParseSiteConfig(yaml, "s.yaml", "/base");
  };
  const auto site = parse(
      "shape: job-per-node\npartition: gpu\nscratch: runs\nmodules: [openmpi/4.1]\n"
      "coordinator:\n  partition: cpu\n  sbatch: [--mem=8G]\nsrun: [--container-image=/a "
      "b.sqsh]\n");
  ASSERT_TRUE(site) << site.error().message();
  EXPECT_EQ(site->shape, kJobPerNode);
  EXPECT_EQ(site->scratch, "/base/runs");
  EXPECT_EQ(site->coordinator_partition, "cpu");
  EXPECT_THAT(site->coordinator_sbatch, testing::ElementsAre("--mem=8G"));
  EXPECT_THAT(site->srun, testing::ElementsAre("--container-image=/a b.sqsh"));
  EXPECT_THAT(site->modules, testing::ElementsAre("openmpi/4.1"));

  EXPECT_EQ(parse("# nothing yet\n")->shape, kOneAllocation);
  const auto bad = parse(
      "shpae: x\nshape: two\nprolog: echo\nsbatch: [[a]]\ngrace: 1\ncoordinator: {sbtch: []}\n");
  ASSERT_FALSE(bad);
  EXPECT_EQ(bad.error().message(), R"(s.yaml:4: sbatch: each item must be one line of text
s.yaml:3: prolog: expected a list, an item for each: [A, B]
s.yaml:1: shpae: unknown setting; did you mean shape?
s.yaml:5: grace: 1 is out of bounds; allowed: from 10 to 86400
s.yaml:6: coordinator.sbtch: unknown setting; did you mean coordinator.sbatch?
s.yaml:2: shape: 'two' is neither one-allocation nor job-per-node)");
  EXPECT_THAT(DescribeSiteSettings(), HasSubstr("`coordinator.partition` | \"\""));
}

TEST(Config, TheSitesOfTheProjectLoad) {
  const std::filesystem::path sites = std::filesystem::path(DD2_SOURCE_DIR) / "slurm" / "sites";
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(sites)) {
    const auto site = LoadSiteConfig(entry.path());
    EXPECT_TRUE(site) << site.error().message();
    ++count;
  }
  EXPECT_EQ(count, 3);
}

TEST(Config, TheTeacherOfTheProjectLoads) {
  const std::filesystem::path teachers =
      std::filesystem::path(DD2_SOURCE_DIR) / "configs" / "teachers";
  const auto config = LoadTeacherTrainConfig(teachers / "fashion-mnist.yaml");
  ASSERT_TRUE(config) << config.error().message();
  EXPECT_EQ(config->output, teachers / "fashion-mnist");
}

TEST(Config, MissingFileAndFolder) {
  const auto missing = LoadRunConfig("/no/such/file.yaml");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code(), Code::kNotFound);
  EXPECT_THAT(missing.error().message(), HasSubstr("/no/such/file.yaml"));
  const auto folder = LoadRunConfig("/tmp");
  ASSERT_FALSE(folder);
  EXPECT_THAT(folder.error().message(), HasSubstr("not a file"));
}

TEST(Config, DescriptionNamesEverySetting) {
  const std::string text = DescribeSettings();
  EXPECT_THAT(text, AllOf(HasSubstr("`teacher.cfg_scale` | 1.5"), HasSubstr("### csd"),
                          HasSubstr("`guidance_updates` | 4 | updates | from 1 to 1000"),
                          HasSubstr("`teacher.path` | (required)")));
}

}  // namespace
}  // namespace dd2
