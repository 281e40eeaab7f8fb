#include "worker/engine/teacher_training.h"

#include <gmock/gmock.h>
#include <unistd.h>
#include <zlib.h>

#include <filesystem>
#include <numeric>
#include <stdexcept>
#include <string>

#include "common/file.h"
#include "common/json.h"
#include "worker/engine/teacher_stage.h"
#include "worker/models/teacher.h"

namespace dd2 {
namespace {

using ::testing::HasSubstr;
using Path = std::filesystem::path;

std::string Word(std::uint32_t value) {
  std::string bytes;
  for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(value >> shift & 0xFFU);
  return bytes;
}

void WriteGzip(const Path& path, const std::string& content) {
  gzFile file = gzopen(path.c_str(), "wb1");
  ASSERT_NE(file, nullptr);
  gzwrite(file, content.data(), static_cast<unsigned>(content.size()));
  gzclose(file);
}

// Images of ten kinds: a bar at a row that depends on the class, of a brightness that varies.
void WriteBars(const Path& folder, const std::string& stem, std::uint32_t count) {
  std::string images = Word(0x803) + Word(count) + Word(28) + Word(28);
  std::string labels = Word(0x801) + Word(count);
  for (std::uint32_t i = 0; i < count; ++i) {
    const std::uint32_t label = i * 7 % 10;
    labels += static_cast<char>(label);
    for (std::uint32_t pixel = 0; pixel < 784; ++pixel) {
      const bool bar = pixel / 28 / 2 == label + 1;
      images += static_cast<char>(bar ? 120 + i * 37 % 130 : i * 11 % 30);
    }
  }
  WriteGzip(folder / (stem + "-images-idx3-ubyte.gz"), images);
  WriteGzip(folder / (stem + "-labels-idx1-ubyte.gz"), labels);
}

class TeacherTrainingTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = std::filesystem::temp_directory_path() /
            ("dd2-teacher-" + std::to_string(::getpid()) + "-" +
             ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(root_);
    std::filesystem::create_directories(root_ / "data");
    WriteBars(root_ / "data", "train", 512);
    WriteBars(root_ / "data", "t10k", 64);
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  TeacherTrainConfig Config(const std::string& output) const {
    TeacherTrainConfig config;
    config.name = "bars";
    config.seed = 3;
    config.output = root_ / output;
    config.dataset = root_ / "data";
    config.shards = 2;
    config.threads = 1;
    config.save_every = 3;
    config.report_every = 1;
    config.classifier = {.epochs = 1, .batch = 64, .learning_rate = 2e-3, .dropout = 0.3};
    config.tokenizer.codes = 16;
    config.tokenizer.steps = 8;
    config.tokenizer.batch = 16;
    config.teacher.width = 16;
    config.teacher.layers = 1;
    config.teacher.heads = 2;
    config.teacher.steps = 8;
    config.teacher.batch = 16;
    config.teacher.warmup = 2;
    return config;
  }

  static Status Train(const TeacherTrainConfig& config) {
    TeacherTrainOptions options;
    options.report = [](std::string_view) {};
    return TrainTeacher(config, options);
  }

  struct Learned {
    TeacherBundle bundle;
    boost::json::value card;
    double Measured(const char* key) const {
      return card.at("measured").at(key).to_number<double>();
    }
  };
  // With as many steps as the bars take.
  static Result<Learned> Learn(TeacherTrainConfig config) {
    config.threads = 2;
    config.tokenizer.steps = 250;
    config.tokenizer.learning_rate = 3e-3;
    config.teacher.steps = 60;
    config.teacher.learning_rate = 3e-3;
    DD2_TRY(Train(config));
    DD2_TRY_ASSIGN(TeacherBundle bundle, LoadTeacherBundle(config.output));
    boost::json::value card = boost::json::parse(bundle.card_json);
    return Learned{std::move(bundle), std::move(card)};
  }

  std::string Bytes(const std::string& output, const char* file) const {
    const auto content = RealFileSystem().Read(root_ / output / file);
    EXPECT_TRUE(content) << content.error().message();
    return content.value_or("");
  }
  void ExpectSameWeights(const std::string& a, const std::string& b) const {
    for (const char* file :
         {"classifier.safetensors", "tokenizer.safetensors", "teacher.safetensors"}) {
      EXPECT_TRUE(Bytes(a, file) == Bytes(b, file)) << file;
    }
  }

  Path root_;
};

TEST_F(TeacherTrainingTest, InterruptedAndResumedEqualsUninterrupted) {
  ASSERT_TRUE(Train(Config("whole")));
  // Stops inside each stage, past a saved state but not on it, and once right before saving.
  for (const std::string stop : {"classifier  step 5/", "tokenizer  step 6/", "tokenizer  step 8/",
                                 "teacher  step 5/", "teacher  step 8/"}) {
    TeacherTrainOptions options;
    options.report = [&](std::string_view line) {
      if (line.starts_with(stop)) throw std::runtime_error("power cut");
    };
    const Status status = TrainTeacher(Config("parts"), options);
    ASSERT_FALSE(status) << stop;
    EXPECT_THAT(status.error().message(), HasSubstr("power cut"));
  }
  int resumed = 0;
  TeacherTrainOptions options;
  options.report = [&](std::string_view line) {
    resumed += line.find("resumed") != std::string_view::npos ? 1 : 0;
  };
  const Status status = TrainTeacher(Config("parts"), options);
  ASSERT_TRUE(status) << status.error().message();
  EXPECT_EQ(resumed, 3);
  ExpectSameWeights("whole", "parts");
  EXPECT_FALSE(std::filesystem::exists(root_ / "parts" / ".training"));
}

TEST_F(TeacherTrainingTest, BitsDoNotDependOnThreads) {
  ASSERT_TRUE(Train(Config("one")));
  TeacherTrainConfig two = Config("two");
  two.threads = 2;
  ASSERT_TRUE(Train(two));
  ExpectSameWeights("one", "two");
  TeacherTrainConfig other = Config("other");
  other.seed = 4;
  ASSERT_TRUE(Train(other));
  EXPECT_FALSE(Bytes("one", "teacher.safetensors") == Bytes("other", "teacher.safetensors"));
}

TEST_F(TeacherTrainingTest, ScalesResumeOnOtherThreadsInTheSameBits) {
  TeacherTrainConfig config = Config("whole");
  config.tokenizer.scales = "1,3,7";
  config.tokenizer.phis = 2;
  config.tokenizer.steps = 52;  // past the first restarts of codes
  ASSERT_TRUE(Train(config));
  config.output = root_ / "parts";
  config.threads = 2;
  for (const std::string stop : {"tokenizer  step 51/", "teacher  step 5/"}) {
    TeacherTrainOptions options;
    options.report = [&](std::string_view line) {
      if (line.starts_with(stop)) throw std::runtime_error("power cut");
    };
    ASSERT_FALSE(TrainTeacher(config, options)) << stop;
  }
  const Status status = Train(config);
  ASSERT_TRUE(status) << status.error().message();
  ExpectSameWeights("whole", "parts");
}

TEST_F(TeacherTrainingTest, MoreSmoothersThanScalesAreRefusedBeforeTraining) {
  TeacherTrainConfig config = Config("refused");
  config.tokenizer.scales = "1,7";
  const Status status = Train(config);
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message(), HasSubstr("tokenizer.phis is 3"));
}

TEST_F(TeacherTrainingTest, LearnsBarsByScales) {
  TeacherTrainConfig config = Config("learned");
  config.tokenizer.scales = "1,3,7";
  config.tokenizer.phis = 2;
  const auto learned = Learn(config);
  ASSERT_TRUE(learned) << learned.error().message();
  EXPECT_EQ(learned->bundle.teacher->backbone().spec().tokens, 1 + 9 + 49);
  EXPECT_LT(learned->Measured("tokenizer_test_mse"), 0.05);
  EXPECT_LT(learned->Measured("teacher_test_nats_per_token"), 2.0);  // a uniform guess: 2.77
}

TEST_F(TeacherTrainingTest, LearnsBars) {
  TeacherTrainConfig config = Config("learned");
  config.classifier.epochs = 4;
  const auto learned = Learn(config);
  ASSERT_TRUE(learned) << learned.error().message();
  // Chance is 0.1; the variance of the pixels 0.14; a uniform guess ln 16 = 2.77 nats.
  EXPECT_GT(learned->Measured("classifier_test_accuracy"), 0.9);
  EXPECT_LT(learned->Measured("tokenizer_test_mse"), 0.05);
  EXPECT_LT(learned->Measured("teacher_test_nats_per_token"), 1.5);
  EXPECT_GE(learned->Measured("codes_used"), 4);
  EXPECT_EQ(learned->card.at("settings").at("seed").as_int64(), 3);
  EXPECT_THAT(std::string(learned->card.at("command").as_string()), HasSubstr("dd2 teacher train"));
  EXPECT_EQ(learned->bundle.tokenizer->codebook().sizes(), (std::vector<std::int64_t>{16, 4}));
}

TEST_F(TeacherTrainingTest, StateOfOtherSettingsIsRefused) {
  TeacherTrainOptions options;
  options.report = [](std::string_view line) {
    if (line.starts_with("tokenizer  step 5/")) throw std::runtime_error("power cut");
  };
  ASSERT_FALSE(TrainTeacher(Config("mixed"), options));
  TeacherTrainConfig changed = Config("mixed");
  changed.tokenizer.learning_rate = 5e-4;
  const Status status = Train(changed);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code(), Code::kFailedPrecondition);
  EXPECT_THAT(status.error().message(), HasSubstr("made with other settings"));
}

TEST_F(TeacherTrainingTest, ImpossibleSettingsAreNamed) {
  TeacherTrainConfig config = Config("bad");
  config.tokenizer.batch = 15;
  Status status = Train(config);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code(), Code::kInvalidArgument);
  EXPECT_THAT(status.error().message(), HasSubstr("tokenizer.batch is 15"));
  config = Config("bad");
  config.dataset = root_ / "nowhere";
  status = Train(config);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code(), Code::kNotFound);
}

TEST(ShardPool, RunsEveryShardOnceAndRethrows) {
  ShardPool pool(3);
  std::vector<int> runs(7);
  for (int round = 0; round < 50; ++round) {
    pool.Run(7, [&](int shard) { ++runs[static_cast<std::size_t>(shard)]; });
  }
  EXPECT_THAT(runs, ::testing::Each(50));
  EXPECT_THROW(pool.Run(7,
                        [](int shard) {
                          if (shard == 5) throw std::runtime_error("shard");
                        }),
               std::runtime_error);
  pool.Run(7, [&](int shard) { ++runs[static_cast<std::size_t>(shard)]; });
  EXPECT_THAT(runs, ::testing::Each(51));
}

}  // namespace
}  // namespace dd2
