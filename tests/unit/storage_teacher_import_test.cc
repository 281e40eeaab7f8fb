// Small networks of the real structure, which PyTorch wrote (small() in make_torch_files.py).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "storage/teacher_import.h"
#include "tests/support/crashing_file_system.h"
#include "tests/unit/storage_testing.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

const fs::path kFiles = DD2_SOURCE_DIR "/tests/golden/torch_files";

class TeacherImportTest : public testing::Test {
 protected:
  ImportRequest Request(std::initializer_list<const char*> names) {
    ImportRequest request;
    for (const char* name : names) request.files.push_back(kFiles / name);
    request.out = out_;
    request.heads = 2;
    return request;
  }
  Result<TeacherDescription> Import(const ImportRequest& request) {
    return ImportTeacher(RealFileSystem(), request);
  }
  TeacherDescription Imported(const ImportRequest& request) {
    auto teacher = Import(request);
    EXPECT_TRUE(teacher) << teacher.error().message();
    return teacher ? *teacher : TeacherDescription{};
  }
  Error Refused(const ImportRequest& request) {
    const auto teacher = Import(request);
    if (teacher) return Error(Code::kInternal, "imported");
    return teacher.error();
  }
  std::vector<std::string> Names() {
    const auto names = RealFileSystem().List(out_);
    return names ? *names : std::vector<std::string>{};
  }
  // Every tensor of the network in the folder has the values that the dict of the file has.
  void ExpectSame(std::string_view network, const char* file, const std::string& group) {
    const auto written = SafetensorsFile::Open(out_ / network);
    ASSERT_TRUE(written) << written.error().message();
    const auto source = TorchFile::Open(kFiles / file);
    ASSERT_TRUE(source);
    std::size_t compared = 0;
    for (const TorchTensor& tensor : source->tensors()) {
      if (tensor.group != group || IsTeacherBuffer(tensor.name)) continue;
      std::vector<float> expected(tensor.elements);
      ASSERT_TRUE(source->Read(tensor, 0, expected));
      const auto values = written->ReadF32(tensor.name, tensor.shape);
      ASSERT_TRUE(values) << values.error().message();
      EXPECT_EQ(*values, expected) << tensor.name;
      EXPECT_EQ(written->tensors().at(tensor.name).offset % 64, 0U);
      ++compared;
    }
    EXPECT_EQ(compared, written->tensors().size());
  }

  TemporaryFolder folder_;
  fs::path out_ = folder_.path() / "teacher";
};

TEST_F(TeacherImportTest, VarFromTwoFiles) {
  ImportRequest request = Request({"small_var.pt", "small_var_vq.pt"});
  request.heads = 0;
  std::uint64_t last = 0, all = 0;
  request.progress = [&](std::uint64_t done, std::uint64_t work) {
    EXPECT_GE(done, last);
    last = done;
    all = work;
  };
  const TeacherDescription teacher = Imported(request);
  EXPECT_GT(last, all / 2);
  EXPECT_LE(last, all);
  ExpectSame(kTransformerFile, "small_var.pt", "");
  ExpectSame(kTokenizerFile, "small_var_vq.pt", "");
  EXPECT_THAT(Names(), ElementsAre("teacher.json", "transformer.safetensors", "vq.safetensors"));
  ASSERT_TRUE(teacher.transformer && teacher.tokenizer);
  EXPECT_TRUE(teacher.is_var());
  EXPECT_THAT(teacher.transformer->sizes.patch_numbers, ElementsAre(1, 2, 3));
  EXPECT_EQ(teacher.transformer->sizes.heads, 2);
  ASSERT_EQ(teacher.sources.size(), 2U);
  EXPECT_EQ(teacher.sources[0].hash, Hash128(ReadAll(kFiles / "small_var.pt")));
  EXPECT_EQ(teacher.sources[0].bytes, fs::file_size(kFiles / "small_var.pt"));

  // What the folder says is what the import said.
  const auto read = ReadTeacherDescription(RealFileSystem(), out_);
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_EQ(ToJson(*read), ToJson(teacher));
  const boost::json::object json = ToJson(teacher);
  EXPECT_EQ(json.at("kind"), "var");
  EXPECT_EQ(json.at("transformer").at("cfg"), "ramp");
  EXPECT_TRUE(json.at("transformer").at("rope").is_null());
}

TEST_F(TeacherImportTest, ATrainersFileHoldsBothAndGivesTheSameDigest) {
  const TeacherDescription two = Imported(Request({"small_var.pt", "small_var_vq.pt"}));
  ImportRequest request = Request({"small_var_trainer.pt"});
  request.overwrite = true;
  const TeacherDescription one = Imported(request);
  EXPECT_EQ(one.digest(), two.digest());
  EXPECT_EQ(one.sources[0].group, "trainer/var_wo_ddp");
  EXPECT_EQ(one.sources[1].group, "trainer/vae_local");
}

TEST_F(TeacherImportTest, LlamaGenWithGridAndHeads) {
  ImportRequest request = Request({"small_gpt_384.pt", "small_vq.pt"});
  const TeacherDescription teacher = Imported(request);
  ExpectSame(kTransformerFile, "small_gpt_384.pt", "model");
  ExpectSame(kTokenizerFile, "small_vq.pt", "model");
  EXPECT_EQ(teacher.transformer->sizes.grid, 24);
  EXPECT_THAT(teacher.transformer->name, HasSubstr("(384 px)"));
  const boost::json::object json = ToJson(teacher);
  EXPECT_EQ(json.at("kind"), "llamagen");
  EXPECT_EQ(json.at("transformer").at("cfg"), "constant");
  EXPECT_EQ(json.at("transformer").at("rope").at("base"), 10000);

  request.overwrite = true;
  request.image_size = 256;
  EXPECT_EQ(Imported(request).transformer->sizes.grid, 16);
  request.heads = 0;
  EXPECT_THAT(Refused(request).message(), HasSubstr("give --heads"));
  request.heads = 3;
  EXPECT_EQ(Refused(request).code(), Code::kInvalidArgument);
}

TEST_F(TeacherImportTest, MovingAverageUnlessTheModelIsAskedFor) {
  ImportRequest request = Request({"small_gpt_both.pt"});
  const TeacherDescription ema = Imported(request);
  ExpectSame(kTransformerFile, "small_gpt_both.pt", "ema");
  EXPECT_FALSE(ema.tokenizer);
  EXPECT_THAT(Names(), ElementsAre("teacher.json", "transformer.safetensors"));
  request.overwrite = true;
  request.weights = "model";
  const TeacherDescription model = Imported(request);
  ExpectSame(kTransformerFile, "small_gpt_both.pt", "model");
  EXPECT_NE(model.digest(), ema.digest());
  request = Request({"small_gpt_384.pt"});
  request.overwrite = true;
  request.weights = "ema";
  EXPECT_THAT(Refused(request).message(), HasSubstr("no ema weights"));
}

TEST_F(TeacherImportTest, HalfPrecisionBecomesFp32) {
  Imported(Request({"small_gpt_half.pt"}));
  ExpectSame(kTransformerFile, "small_gpt_half.pt", "");
  ExpectSame(kTransformerFile, "small_gpt_384.pt", "model");  // the values are exact in fp16
}

TEST_F(TeacherImportTest, WhatIsThereIsKeptUnlessForced) {
  const ImportRequest first = Request({"small_var.pt", "small_var_vq.pt"});
  const TeacherDescription teacher = Imported(first);
  ImportRequest second = Request({"small_gpt_384.pt"});
  const Error refused = Refused(second);
  EXPECT_EQ(refused.code(), Code::kFailedPrecondition);
  EXPECT_THAT(refused.message(), HasSubstr("--force"));
  EXPECT_EQ(ReadTeacherDescription(RealFileSystem(), out_)->digest(), teacher.digest());
  second.overwrite = true;
  Imported(second);
  // The old tokenizer is gone with its transformer.
  EXPECT_THAT(Names(), ElementsAre("teacher.json", "transformer.safetensors"));
}

TEST_F(TeacherImportTest, FilesThatDoNotFit) {
  const auto why = [this](std::initializer_list<const char*> names) {
    const Error error = Refused(Request(names));
    EXPECT_THAT(Names(), testing::IsEmpty());
    return error.message();
  };
  EXPECT_THAT(why({"small_var.pt", "small_vq.pt"}), HasSubstr("one family"));
  EXPECT_THAT(why({"small_var.pt", "small_var_trainer.pt"}), HasSubstr("which transformer?"));
  EXPECT_THAT(why({"plain_dict.pt"}), HasSubstr("no VAR or LlamaGen network"));
  EXPECT_THAT(why({"small_var.pt", "bad_system.pt"}), HasSubstr("posix.system"));
  const std::string nearly = why({"bad_nearly.pt"});
  EXPECT_THAT(nearly, HasSubstr("1 missing: layers.1.attention.wo.weight"));
  EXPECT_THAT(nearly, HasSubstr("1 unknown: layers.1.attention.new"));
  EXPECT_THAT(nearly, HasSubstr("norm.weight: 9, expected 8"));
  EXPECT_EQ(Refused(Request({"none.pt"})).code(), Code::kNotFound);
}

TEST_F(TeacherImportTest, NanIsRefusedWithItsTensor) {
  const Error error = Refused(Request({"bad_nan.pt"}));
  EXPECT_EQ(error.code(), Code::kCorruption);
  EXPECT_THAT(error.message(), HasSubstr("element 26 of layers.1.attention.wo.weight"));
  EXPECT_THAT(Names(), testing::IsEmpty());
}

TEST_F(TeacherImportTest, AFlippedBitOfAWeightIsRefused) {
  const auto source = TorchFile::Open(kFiles / "small_gpt_384.pt");
  ASSERT_TRUE(source);
  std::string content = ReadAll(kFiles / "small_gpt_384.pt");
  content[source->tensors().at(3).begin] ^= 1;
  WriteAll(folder_.path() / "flipped.pt", content);
  ImportRequest request = Request({});
  request.files = {folder_.path() / "flipped.pt"};
  const Error error = Refused(request);
  EXPECT_EQ(error.code(), Code::kCorruption);
  EXPECT_THAT(error.message(), HasSubstr("download the file again"));
}

TEST_F(TeacherImportTest, AfterAnyFailureTheFolderHoldsAWholeTeacherOrNone) {
  int operations = 0;
  {
    CrashingFileSystem files(folder_.path());
    ASSERT_TRUE(ImportTeacher(files, Request({"small_gpt_both.pt"})));
    operations = files.operations();
  }
  const auto old = ReadTeacherDescription(RealFileSystem(), out_);
  ASSERT_TRUE(old);
  const fs::path kept = folder_.path() / "kept";
  fs::copy(out_, kept);
  ImportRequest replacing = Request({"small_gpt_384.pt"});
  replacing.overwrite = true;
  int whole = 0, none = 0;
  for (const FileFault fault : {FileFault::kCrash, FileFault::kCrashAfter, FileFault::kShortWrite,
                                FileFault::kNoSpace, FileFault::kIoError}) {
    for (int i = 0; i <= operations; ++i) {
      fs::remove_all(out_);
      fs::copy(kept, out_);
      CrashingFileSystem files(folder_.path());
      files.FailAt(i, fault);
      const bool done = ImportTeacher(files, replacing).has_value();
      if (files.crashed()) files.Restart(CrashLoss::kUnsynced);
      const auto now = ReadTeacherDescription(RealFileSystem(), out_);
      if (!now) {
        EXPECT_EQ(now.error().code(), Code::kNotFound) << now.error().message();
        EXPECT_FALSE(done);
        ++none;
        continue;
      }
      ++whole;
      const bool is_new = now->digest() != old->digest();
      EXPECT_TRUE(is_new || !done);
      ExpectSame(kTransformerFile, is_new ? "small_gpt_384.pt" : "small_gpt_both.pt",
                 is_new ? "model" : "ema");
    }
  }
  EXPECT_GT(whole, 0);
  EXPECT_GT(none, 0);
}

TEST_F(TeacherImportTest, DamagedDescriptionsAreRefused) {
  Imported(Request({"small_var.pt", "small_var_vq.pt"}));
  const std::string whole = ReadAll(out_ / "teacher.json");
  for (std::size_t size = 0; size + 2 < whole.size(); size += 5) {
    WriteAll(out_ / "teacher.json", whole.substr(0, size));
    const auto read = ReadTeacherDescription(RealFileSystem(), out_);
    ASSERT_FALSE(read) << size;
    ASSERT_EQ(read.error().code(), Code::kCorruption);
  }
  for (const auto& [from, to] :
       {std::pair("dd2-teacher 1", "dd2-teacher 2"), std::pair("var", "vax"),
        std::pair("\"depth\"", "\"death\""), std::pair("[1,2,3]", "[1,-2,3]")}) {
    std::string changed = whole;
    changed.replace(changed.find(from), std::string_view(from).size(), to);
    WriteAll(out_ / "teacher.json", changed);
    EXPECT_FALSE(ReadTeacherDescription(RealFileSystem(), out_)) << from;
  }
}

}  // namespace
}  // namespace dd2
