#include "worker/engine/export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "common/config.h"
#include "common/exit_codes.h"
#include "common/file.h"
#include "proto/control.pb.h"
#include "storage/checkpoint_store.h"
#include "storage/npz.h"
#include "storage/safetensors.h"
#include "tests/support/tiny_teacher.h"
#include "worker/engine/commands.h"
#include "worker/engine/evaluator.h"
#include "worker/engine/image_set.h"
#include "worker/engine/png.h"

namespace dd2 {
namespace {

using ::testing::HasSubstr;

class ExportTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        std::filesystem::path(::testing::TempDir()) /
        (std::string("export-") + ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_ / "teacher");
    const TeacherBundle made = MakeTinyTeacher(5);
    ASSERT_TRUE(SaveTokenizer(folder_ / "teacher" / "tokenizer.safetensors", *made.tokenizer, {}));
    ASSERT_TRUE(SaveTeacher(folder_ / "teacher" / "teacher.safetensors", *made.teacher, {}));
    ASSERT_TRUE(
        SaveClassifier(folder_ / "teacher" / "classifier.safetensors", *made.classifier, {}));
    std::ofstream(folder_ / "teacher" / "card.json") << "{}";
    Result<TeacherBundle> bundle = LoadTeacherBundle(folder_ / "teacher");
    ASSERT_TRUE(bundle) << bundle.error().message();
    bundle_ = std::move(*bundle);
    spec_ = TinyNetworkSpec(bundle_);
    params_ = MakeTinyGenerator(spec_, 9);
    config_.name = "tiny";
    config_.seed = 11;
    config_.teacher.path = (folder_ / "teacher").string();
    config_.model = {.head_width = 16, .head_depth = 1, .time_features = 8};
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path Export() {
    const Status status = WriteExport(folder_ / "model", spec_, params_, config_, bundle_);
    EXPECT_TRUE(status) << status.error().message();
    return folder_ / "model";
  }
  Error LoadError(const std::filesystem::path& path) {
    const Result<ExportedModel> model = LoadExport(path);
    EXPECT_FALSE(model);
    return model ? Error(Code::kInternal, "loaded") : model.error();
  }

  std::filesystem::path folder_;
  TeacherBundle bundle_;
  NetworkSpec spec_;
  ParamBuffer params_;
  RunConfig config_;
};

TEST_F(ExportTest, LoadsBackWhatItWrote) {
  const auto path = Export();
  for (const auto& name : {path, path / "generator.json", path / "generator.safetensors"}) {
    const Result<ExportedModel> model = LoadExport(name);
    ASSERT_TRUE(model) << model.error().message();
    EXPECT_EQ(model->name, "tiny");
    EXPECT_EQ(model->seed, 11U);
    EXPECT_EQ(model->teacher_digest, bundle_.teacher_digest.Hex());
    EXPECT_TRUE(model->network->params().flat().equal(params_.flat()));
    // Images need nothing but the export.
    const at::Tensor noise = EvalNoise(1, 0, 5, spec_.backbone);
    const at::Tensor labels = StratifiedLabels(5, 10);
    EXPECT_TRUE(
        GeneratorImages(*model->network, *model->tokenizer, noise, labels)
            .equal(GeneratorImages(Network(spec_, params_), *bundle_.tokenizer, noise, labels)));
  }
  EXPECT_FALSE(std::filesystem::exists(path / "generator.safetensors.tmp"));
}

TEST_F(ExportTest, LoadsBackALlamaGen) {
  const TeacherBundle bundle = MakeTinyLlamaGen(5);
  const NetworkSpec spec = TinyNetworkSpec(bundle);
  const ParamBuffer params = MakeTinyGenerator(spec, 9);
  ASSERT_TRUE(WriteExport(folder_ / "model", spec, params, config_, bundle));
  const Result<ExportedModel> model = LoadExport(folder_ / "model");
  ASSERT_TRUE(model) << model.error().message();
  const at::Tensor noise = EvalNoise(1, 0, 5, spec.backbone);
  const at::Tensor labels = StratifiedLabels(5, 10);
  EXPECT_TRUE(GeneratorImages(*model->network, *model->tokenizer, noise, labels)
                  .equal(GeneratorImages(Network(spec, params), *bundle.tokenizer, noise, labels)));
}

TEST_F(ExportTest, SaysWhatIsWrongWithAFile) {
  EXPECT_EQ(LoadError(folder_ / "nowhere").code(), Code::kNotFound);
  EXPECT_EQ(LoadError(folder_ / "teacher").code(), Code::kNotFound);
  const auto path = Export();
  // A flipped bit in the weights.
  {
    std::fstream file(path / "generator.safetensors",
                      std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(-20, std::ios::end);
    file.put('\x55');
  }
  Error error = LoadError(path);
  EXPECT_EQ(error.code(), Code::kCorruption);
  EXPECT_THAT(error.message(), HasSubstr("generator.safetensors"));
  // Half of the weights.
  Export();
  std::filesystem::resize_file(path / "generator.safetensors",
                               std::filesystem::file_size(path / "generator.safetensors") / 2);
  EXPECT_EQ(LoadError(path).code(), Code::kCorruption);
  // Half of the description, and another kind of description.
  Export();
  std::filesystem::resize_file(path / "generator.json", 40);
  EXPECT_EQ(LoadError(path).code(), Code::kCorruption);
  std::ofstream(path / "generator.json") << R"({"format": "other", "version": 1})";
  EXPECT_EQ(LoadError(path).code(), Code::kInvalidArgument);
}

TEST_F(ExportTest, ShapesThatDoNotFitAreRefused) {
  const auto path = Export();
  std::stringstream text;
  text << std::ifstream(path / "generator.json").rdbuf();
  for (const auto& [from, to] :
       {std::pair<std::string, std::string>{"\"layers\":1", "\"layers\":2"},
        {"\"layers\":1", "\"layers\":-3"},
        {"\"heads\":2", "\"heads\":5"},
        {"\"codes\":16", "\"codes\":32"},
        {"\"layers\":1", "\"layers\":\"one\""}}) {
    std::string changed = text.str();
    ASSERT_NE(changed.find(from), std::string::npos) << from;
    changed.replace(changed.find(from), from.size(), to);
    std::ofstream(path / "generator.json") << changed;
    const Code code = LoadError(path).code();
    EXPECT_TRUE(code == Code::kInvalidArgument || code == Code::kNotFound) << to << CodeName(code);
  }
}

TEST_F(ExportTest, TheKindOfBackboneIsChecked) {
  const auto path = Export();
  std::stringstream text;
  text << std::ifstream(path / "generator.json").rdbuf();
  const std::string kind = "\"kind\":\"raster\",";
  const auto put = [&](const std::string& other) {
    std::string changed = text.str();
    ASSERT_NE(changed.find(kind), std::string::npos);
    changed.replace(changed.find(kind), kind.size(), other);
    std::ofstream(path / "generator.json") << changed;
  };
  for (const char* other : {"\"kind\":\"var\",", "\"kind\":\"mamba\","}) {
    put(other);
    const Error error = LoadError(path);
    EXPECT_EQ(error.code(), Code::kInvalidArgument);
    EXPECT_THAT(error.message(), HasSubstr("/network/backbone/kind"));
  }
  put("");  // as the first exports were
  EXPECT_TRUE(LoadExport(path));
}

TEST_F(ExportTest, SampleCommandDraws) {
  const std::string model = Export().string();
  const auto grid = (folder_ / "grid.png").string();
  ASSERT_EQ(SampleCommand({"--model", model, "--classes", "0,3", "--count", "4", "--out", grid}),
            kExitOk);
  const auto image = ReadGreyPng(grid);
  ASSERT_TRUE(image);
  EXPECT_EQ(image->width, 4 * 30);
  EXPECT_EQ(image->height, 2 * 30);
  const auto tensors = (folder_ / "x.safetensors").string();
  ASSERT_EQ(SampleCommand({"--model", model, "--count", "2", "--seed", "3", "--out", tensors}),
            kExitOk);
  const auto file = SafetensorsFile::Open(tensors);
  ASSERT_TRUE(file);
  const std::int64_t labels_shape[] = {20};
  const auto labels = file->ReadF32("labels", labels_shape);
  ASSERT_TRUE(labels);
  EXPECT_EQ((*labels)[0], 0);
  EXPECT_EQ((*labels)[19], 9);
  EXPECT_EQ(file->tensors().at("codes").shape, (std::vector<std::int64_t>{20, 49, 4}));
  EXPECT_EQ(file->tensors().at("images").shape, (std::vector<std::int64_t>{20, 1, 28, 28}));
  // The same seed gives the same file, another seed another one.
  const Digest128 first = *file->FileHash();
  ASSERT_EQ(SampleCommand({"--model", model, "--count", "2", "--seed", "3", "--out", tensors}),
            kExitOk);
  EXPECT_EQ(SafetensorsFile::Open(tensors)->FileHash(), first);
  ASSERT_EQ(SampleCommand({"--model", model, "--count", "2", "--seed", "4", "--out", tensors}),
            kExitOk);
  EXPECT_NE(SafetensorsFile::Open(tensors)->FileHash(), first);
}

TEST_F(ExportTest, SampleArchiveHasTheImagesAsBytes) {
  const std::string model = Export().string();
  const std::string count = std::to_string(kEvalChunk + 1);  // more than are drawn at once
  const auto archive = (folder_ / "x.npz").string();
  const auto tensors = (folder_ / "x.safetensors").string();
  for (const auto& out : {archive, tensors}) {
    ASSERT_EQ(SampleCommand({"--model", model, "--classes", "3,5", "--count", count, "--out", out}),
              kExitOk);
  }
  const auto images = ImageSet::Open(archive);
  ASSERT_TRUE(images) << images.error().message();
  const std::int64_t all = 2 * (kEvalChunk + 1);
  ASSERT_EQ((*images)->count(), all);
  const auto pixels = (*images)->Read(0, all);
  ASSERT_TRUE(pixels);
  const std::int64_t shape[] = {all, 1, 28, 28};
  const auto values = SafetensorsFile::Open(tensors)->ReadF32("images", shape);
  ASSERT_TRUE(values);
  const at::Tensor grey = ((at::tensor(*values).view({all, 28, 28, 1}) + 1) * 127.5).round();
  EXPECT_TRUE(pixels->to(at::kFloat).equal(grey.expand({all, 28, 28, 3})));
  const std::int64_t labels_shape[] = {all};
  const auto labels = NpzFile::Open(archive)->ReadAll("arr_1", labels_shape, 1 << 20);
  ASSERT_TRUE(labels);
  std::vector<std::int64_t> classes(static_cast<std::size_t>(all));
  std::memcpy(classes.data(), labels->data(), labels->size());
  EXPECT_EQ(std::ranges::count(classes, 3), kEvalChunk + 1);
  EXPECT_EQ(classes.back(), 5);
}

TEST_F(ExportTest, CommandsRefuseBadInput) {
  const std::string model = Export().string();
  const std::string out = (folder_ / "x.png").string();
  EXPECT_EQ(SampleCommand({"--help"}), kExitOk);
  EXPECT_EQ(SampleCommand({"--out", out}), kExitUsage);
  EXPECT_EQ(SampleCommand({"--model", model}), kExitUsage);
  EXPECT_EQ(SampleCommand({"--model", model, "--out", "x.jpg"}), kExitUsage);
  EXPECT_EQ(SampleCommand({"--model", model, "--out", out, "--classes", "0,10"}), kExitUsage);
  EXPECT_EQ(SampleCommand({"--model", model, "--out", out, "--classes", "1,"}), kExitUsage);
  EXPECT_EQ(SampleCommand({"--model", model, "--out", out, "--count", "0"}), kExitUsage);
  EXPECT_EQ(SampleCommand({"--model", model, "--out", out, "--counts", "2"}), kExitUsage);
  EXPECT_EQ(SampleCommand({"--model", (folder_ / "no").string(), "--out", out}), kExitNotFound);
  EXPECT_EQ(SampleCommand({"--model", model, "--out", out, "--count", "2000"}), kExitUsage);
  EXPECT_FALSE(std::filesystem::exists(out));
  EXPECT_EQ(EvalCommand({}), kExitUsage);
  EXPECT_EQ(EvalCommand({"--model", model, "--samples", "many"}), kExitUsage);
  EXPECT_EQ(EvalCommand({"--model", model, "--teacher", (folder_ / "no").string()}), kExitNotFound);
  EXPECT_EQ(EvalCommand({"--model", model, "--dataset", (folder_ / "no").string()}), kExitNotFound);
  EXPECT_EQ(ExportCommand({}), kExitUsage);
  EXPECT_EQ(ExportCommand({(folder_ / "no").string()}), kExitNotFound);
}

// Commits a checkpoint of two parts that holds `params` as the generator's EMA.
void Publish(const std::filesystem::path& checkpoints, std::int64_t generator_updates,
             const std::string& teacher_digest, const ParamBuffer& params) {
  FileSystem& files = RealFileSystem();
  const std::string id = CheckpointId(3, generator_updates);
  ASSERT_TRUE(files.MakeDirectories(checkpoints / id));
  proto::CheckpointManifest manifest;
  manifest.set_format_version(1);
  manifest.set_checkpoint_id(id);
  manifest.mutable_header()->set_phase(3);
  manifest.mutable_header()->set_step(generator_updates);
  manifest.mutable_header()->mutable_counters()->set_generator_updates(generator_updates);
  manifest.mutable_header()->set_world_size(2);
  manifest.mutable_header()->set_teacher_digest(teacher_digest);
  for (int rank = 0; rank < 2; ++rank) {
    std::vector<PieceToWrite> pieces;
    for (const ParamSpec& spec : params.layout().specs()) {
      const std::int64_t half = spec.numel / 2;  // cut in the middle of every tensor
      const std::int64_t begin = rank == 0 ? 0 : half;
      const std::int64_t end = rank == 0 ? half : spec.numel;
      if (rank == 0) {
        proto::LogicalTensor* tensor = manifest.mutable_header()->add_tensors();
        tensor->set_name("generator.ema/" + spec.name);
        for (const std::int64_t extent : spec.shape) tensor->add_shape(extent);
      }
      if (begin == end) continue;
      pieces.push_back({.tensor = "generator.ema/" + spec.name,
                        .shape = spec.shape,
                        .begin = begin,
                        .end = end,
                        .data = {params.flat().const_data_ptr<float>() + spec.offset + begin,
                                 static_cast<std::size_t>(end - begin)}});
    }
    const auto part = WriteCheckpointPart(files, checkpoints / id, rank, 2, pieces);
    ASSERT_TRUE(part) << part.error().message();
    *manifest.add_parts() = *part;
  }
  const Status published = PublishManifest(files, checkpoints, manifest);
  ASSERT_TRUE(published) << published.error().message();
}

TEST_F(ExportTest, ExportsTheEmaOfACheckpoint) {
  const auto run = folder_ / "run";
  const auto checkpoints = run / "checkpoints";
  config_.phases = {DefaultPhase(PhaseKind::kTeacherCheck), DefaultPhase(PhaseKind::kSample),
                    DefaultPhase(PhaseKind::kGts), DefaultPhase(PhaseKind::kCsd),
                    DefaultPhase(PhaseKind::kExport)};
  config_.phases[1].sequences = 500;
  std::filesystem::create_directories(run);
  std::ofstream(run / "config.yaml") << DumpRunConfig(config_);
  Publish(checkpoints, 0, bundle_.teacher_digest.Hex(), params_);
  Publish(checkpoints, 7, bundle_.teacher_digest.Hex(), params_);
  const std::string out = (folder_ / "exported").string();
  ASSERT_EQ(ExportCommand({run.string(), "--out", out}), kExitOk);
  const auto model = LoadExport(out);
  ASSERT_TRUE(model) << model.error().message();
  EXPECT_TRUE(model->network->params().flat().equal(params_.flat()));
  EXPECT_EQ(ExportCommand({run.string(), "--checkpoint", "p009-s000000009", "--out", out}),
            kExitNotFound);
  // No generator update yet: those weights mean nothing.
  EXPECT_EQ(ExportCommand({run.string(), "--checkpoint", CheckpointId(3, 0), "--out", out}),
            kExitCannotStart);

  // With another teacher in the folder, codes would mean something else.
  const TeacherBundle other = MakeTinyTeacher(6);
  ASSERT_TRUE(SaveTokenizer(folder_ / "teacher" / "tokenizer.safetensors", *other.tokenizer, {}));
  EXPECT_EQ(ExportCommand({run.string(), "--out", out}), kExitCannotStart);
  EXPECT_EQ(EvalCommand({"--model", out}), kExitCannotStart);
}

}  // namespace
}  // namespace dd2
