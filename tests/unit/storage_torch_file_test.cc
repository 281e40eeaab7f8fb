// Files of tests/golden/torch_files, which PyTorch wrote (make_torch_files.py): values follow a
// formula, so that none of them is repeated here.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>

#include "storage/torch_file.h"
#include "tests/fuzz/torch_file_target.h"
#include "tests/unit/storage_testing.h"

namespace dd2 {
namespace {

using testing::HasSubstr;

const std::filesystem::path kFolder = DD2_SOURCE_DIR "/tests/golden/torch_files";
const std::filesystem::path kCorpus = DD2_SOURCE_DIR "/tests/fuzz/corpus/torch_file";

// Element k of tensor number j.
float Value(std::int64_t j, std::int64_t k) {
  return static_cast<float>((k * 7 + j * 3) % 32 - 8) + 0.25F * static_cast<float>(k % 4);
}

std::vector<float> ValuesOf(std::int64_t j, std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t k = 0; k < count; ++k) values[k] = Value(j, static_cast<std::int64_t>(k));
  return values;
}

TorchFile Opened(const std::string& name) {
  auto file = TorchFile::Open(kFolder / name);
  EXPECT_TRUE(file) << file.error().message();
  if (!file) std::abort();
  return *std::move(file);
}

const TorchTensor& Find(const TorchFile& file, const std::string& group, const std::string& name) {
  for (const TorchTensor& tensor : file.tensors()) {
    if (tensor.group == group && tensor.name == name) return tensor;
  }
  ADD_FAILURE() << "no tensor " << group << "/" << name;
  return file.tensors().at(0);
}

std::vector<float> Read(const TorchFile& file, const TorchTensor& tensor) {
  std::vector<float> values(tensor.elements);
  const Status read = file.Read(tensor, 0, values);
  EXPECT_TRUE(read) << read.error().message();
  return values;
}

std::vector<float> Read(const TorchFile& file, const std::string& group, const std::string& name) {
  return Read(file, Find(file, group, name));
}

// Bytes of their own, exactly as many: a sanitizer sees whoever reads behind them.
std::vector<std::byte> BytesOf(const std::filesystem::path& path) {
  const std::string content = ReadAll(path);
  std::vector<std::byte> bytes(content.size());
  std::memcpy(bytes.data(), content.data(), content.size());
  return bytes;
}

std::vector<std::filesystem::path> FilesIn(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

// Net's state_dict() in make_torch_files.py: tensor j has the values of j.
void ExpectNet(const TorchFile& file, const std::string& group) {
  const std::vector<std::pair<std::string, std::vector<std::int64_t>>> tensors = {
      {"first.weight", {4, 3}},
      {"first.bias", {4}},
      {"norm.weight", {4}},
      {"norm.bias", {4}},
      {"norm.running_mean", {4}},
      {"norm.running_var", {4}},
      {"norm.num_batches_tracked", {}}};
  for (std::size_t j = 0; j < tensors.size(); ++j) {
    const TorchTensor& tensor = Find(file, group, tensors[j].first);
    EXPECT_EQ(tensor.shape, tensors[j].second);
    const bool counter = j + 1 == tensors.size();
    EXPECT_EQ(tensor.dtype, counter ? Dtype::kI64 : Dtype::kF32);
    EXPECT_EQ(Read(file, tensor), ValuesOf(static_cast<std::int64_t>(j), tensor.elements));
  }
}

// Two tensors "a.weight" [2, 3] and "a.bias" [3, 3].
void ExpectPlain(const TorchFile& file, const std::string& group) {
  EXPECT_EQ(Find(file, group, "a.weight").shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(Read(file, group, "a.weight"), ValuesOf(0, 6));
  EXPECT_EQ(Read(file, group, "a.bias"), ValuesOf(1, 9));
}

TEST(TorchFileTest, StateDictsOfAModule) {
  for (const char* name : {"state_dict.pt", "legacy.pt"}) {
    SCOPED_TRACE(name);
    const TorchFile file = Opened(name);
    EXPECT_EQ(file.tensors().size(), 7U);
    EXPECT_EQ(file.tensors().front().name, "first.weight");
    EXPECT_EQ(file.is_zip(), name == std::string("state_dict.pt"));
    ExpectNet(file, "");
  }
  ExpectNet(Opened("model.pt"), "model");
}

TEST(TorchFileTest, DictsOfEveryKind) {
  for (const char* name :
       {"ordered_dict.pt", "plain_dict.pt", "parameters.pt", "no_sums.pt", "zip64.pt"}) {
    SCOPED_TRACE(name);
    const TorchFile file = Opened(name);
    EXPECT_EQ(file.tensors().size(), 2U);
    ExpectPlain(file, "");
    const Status sums = file.CheckSums([](std::uint64_t) {});
    EXPECT_TRUE(sums) << sums.error().message();
  }
  ExpectPlain(Opened("model_plain.pt"), "model");
  EXPECT_EQ(Read(Opened("one_entry.pt"), "", "only"), ValuesOf(0, 6));
}

TEST(TorchFileTest, WhatATrainerKeepsBesideTheWeights) {
  const TorchFile file = Opened("namespace.pt");
  ExpectNet(file, "model");
  ExpectNet(file, "ema");
  EXPECT_EQ(Read(file, "optimizer/state/0", "exp_avg"), std::vector<float>(12, 0.0F));
  EXPECT_EQ(Read(file, "optimizer/state/3", "step"), std::vector<float>{1.0F});
  EXPECT_EQ(Read(Opened("optimizer.pt"), "state/1", "exp_avg_sq"), std::vector<float>(4, 0.0F));

  const TorchFile trainer = Opened("trainer.pt");
  EXPECT_EQ(Read(trainer, "trainer/var_wo_ddp", "v"), ValuesOf(0, 6));
  EXPECT_EQ(Read(trainer, "trainer/vae_local", "w"), ValuesOf(0, 6));
}

TEST(TorchFileTest, ListsAndSingleTensors) {
  const TorchFile list = Opened("list.pt");
  EXPECT_EQ(Read(list, "", "0"), ValuesOf(0, 2));
  EXPECT_EQ(Read(list, "", "1"), ValuesOf(1, 3));
  EXPECT_EQ(Read(list, "2", "0"), ValuesOf(2, 4));
  EXPECT_EQ(Read(Opened("single.pt"), "", ""), ValuesOf(0, 6));
  EXPECT_EQ(Read(Opened("from_type.pt"), "", "t"), ValuesOf(0, 6));
  EXPECT_EQ(Read(Opened("untyped.pt"), "", "t"), ValuesOf(0, 6));
}

TEST(TorchFileTest, EveryTypeBecomesFp32) {
  for (const char* name : {"types.pt", "legacy_types.pt"}) {
    SCOPED_TRACE(name);
    const TorchFile file = Opened(name);
    std::int64_t j = 0;
    for (const auto& [type, dtype] :
         {std::pair("float32", Dtype::kF32), std::pair("float16", Dtype::kF16),
          std::pair("bfloat16", Dtype::kBf16), std::pair("float64", Dtype::kF64)}) {
      EXPECT_EQ(Find(file, "", type).dtype, dtype);
      EXPECT_EQ(Read(file, "", type), ValuesOf(j++, 15)) << type;
    }
    const std::vector<float> counted = {-2, -1, 0, 1, 2, 3};
    EXPECT_EQ(Read(file, "", "int64"), counted);
    EXPECT_EQ(Read(file, "", "int32"), counted);
    EXPECT_EQ(Read(file, "", "uint8"), (std::vector<float>{0, 1, 2, 3, 4, 5}));
    EXPECT_EQ(Read(file, "", "bool"), (std::vector<float>{1, 0, 1}));
  }
}

TEST(TorchFileTest, CornersOfShortFloats) {
  const TorchFile file = Opened("special.pt");
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(Read(file, "", "half"), (std::vector<float>{0x1p-24F, 0x1.ff8p-15F, 0x1p-14F, 1, 65504,
                                                        inf, -0.0F, -0x1p-24F, -inf}));
  EXPECT_TRUE(std::signbit(Read(file, "", "half")[6]));
  EXPECT_EQ(Read(file, "", "brain"),
            (std::vector<float>{0x1p-133F, 0x1.fep-120F, 0x1p-119F, 0x1p-7F, 0x1.fep120F, 0x1p121F,
                                -0.0F, -0x1p-133F, -0x1p121F}));
}

TEST(TorchFileTest, StridesAndOffsets) {
  const TorchFile file = Opened("strided.pt");
  const auto expect = [&file](const std::string& name, std::vector<float> values) {
    EXPECT_EQ(Read(file, "", name), values) << name;
    // From any element on, any number of them.
    const TorchTensor& tensor = Find(file, "", name);
    for (std::size_t begin = 0; begin <= values.size(); ++begin) {
      std::vector<float> some((values.size() - begin + 1) / 2);
      ASSERT_TRUE(file.Read(tensor, static_cast<std::int64_t>(begin), some));
      ASSERT_TRUE(std::equal(some.begin(), some.end(),
                             values.begin() + static_cast<std::ptrdiff_t>(begin)));
    }
  };
  std::vector<float> transposed, columns, rows, row, permuted;
  for (int i = 0; i < 6; ++i) {
    for (int j = 0; j < 4; ++j) transposed.push_back(Value(0, j * 6 + i));
  }
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 2; ++j) columns.push_back(Value(0, i * 6 + 1 + 2 * j));
  }
  for (int k = 6; k < 18; ++k) rows.push_back(Value(0, k));
  for (int k = 12; k < 18; ++k) row.push_back(Value(0, k));
  for (int i = 0; i < 4; ++i) {
    for (int k = 0; k < 6; ++k) permuted.push_back(Value(1, k * 4 + i));
  }
  expect("transposed", transposed);
  expect("columns", columns);
  expect("rows", rows);
  expect("row", row);
  expect("permuted", permuted);
  expect("scalar", {Value(0, 20)});
  expect("empty", {});
  EXPECT_EQ(Find(file, "", "empty").shape, (std::vector<std::int64_t>{0, 4}));
  EXPECT_FALSE(Find(file, "", "columns").contiguous);
  EXPECT_TRUE(Find(file, "", "rows").contiguous);

  std::vector<float> too_many(25);
  EXPECT_EQ(file.Read(Find(file, "", "transposed"), 0, too_many).error().code(),
            Code::kInvalidArgument);
  EXPECT_EQ(file.Read(Find(file, "", "row"), 7, {}).error().code(), Code::kInvalidArgument);
  EXPECT_EQ(file.Read(Find(file, "", "row"), -1, {}).error().code(), Code::kInvalidArgument);
}

TEST(TorchFileTest, SharedStorages) {
  const TorchFile file = Opened("shared.pt");
  EXPECT_EQ(Find(file, "", "tied").begin, Find(file, "", "again").begin);
  EXPECT_EQ(Read(file, "", "again"), ValuesOf(0, 12));
  const std::vector<float> all = ValuesOf(0, 12);
  EXPECT_EQ(Read(file, "", "half"), std::vector<float>(all.begin() + 6, all.end()));
  const TorchFile legacy = Opened("legacy_shared.pt");
  EXPECT_EQ(Read(legacy, "", "tied"), all);
  EXPECT_EQ(Read(legacy, "", "again")[1], all[3]);
}

TEST(TorchFileTest, WhatIsNoWeightsIsRefusedByName) {
  const std::map<std::string, std::string> why = {
      {"bad_system.pt", "Python's posix.system"},
      {"bad_eval_legacy.pt", "Python's __builtin__.eval"},
      {"bad_module.pt", "Python's __main__.Net"},
      {"bad_sparse.pt", "torch._utils._rebuild_sparse_tensor"},
      {"bad_int16.pt", "torch.ShortStorage"},
      {"bad_expanded.pt", "'e': it is expanded"},
      {"bad_protocol4.pt", "pickle protocol 4"},
      {"bad_compressed.pt", "is compressed or encrypted"},
      {"bad_big_endian.pt", "big-endian"},
      {"bad_script.pt", "TorchScript"},
      {"bad_two_roots.pt", "more than one data.pkl"},
      {"bad_offset.pt", "beyond its storage of 6"},
      {"bad_negative_offset.pt", "it has no offset"},
      {"bad_stride.pt", "beyond its storage of 6"},
      {"bad_negative_stride.pt", "no count"},
      {"bad_overflow.pt", "impossible"},
      {"bad_elements.pt", "impossible size"},
      {"bad_more_elements.pt", "missing or of another size"},
      {"bad_dimensions.pt", "no sizes"},
      {"bad_called_dict.pt", "calls what has no name"},
      {"bad_text_length.pt", "too long a text"},
      {"bad_deep_lists.pt", "too deep"},
      {"bad_cycle.pt", "too deep"},
      {"bad_unfolds.pt", "too many values"},
      {"bad_two_names.pt", "two tensors /t"}};
  for (const auto& [name, reason] : why) {
    const auto file = TorchFile::Open(kFolder / name);
    ASSERT_FALSE(file) << name;
    EXPECT_EQ(file.error().code(), Code::kCorruption) << name;
    EXPECT_THAT(file.error().message(), HasSubstr(reason));
    EXPECT_THAT(file.error().message(), HasSubstr(name));
  }
  EXPECT_FALSE(std::filesystem::exists("/tmp/dd2-was-run"));
  EXPECT_EQ(TorchFile::Open(kFolder / "none.pt").error().code(), Code::kNotFound);
}

TEST(TorchFileTest, NoFileOfTorchSave) {
  for (const std::string text : {"", "P", "not a checkpoint", "\x80\x02}q"}) {
    const auto bytes = std::as_bytes(std::span(text));
    EXPECT_FALSE(TorchFile::Recognises(bytes));
    EXPECT_EQ(TorchFile::Parse(bytes).error().code(), Code::kCorruption);
  }
}

TEST(TorchFileTest, EveryTruncationIsRefused) {
  for (const char* name : {"namespace.pt", "strided.pt", "zip64.pt", "legacy_types.pt"}) {
    const std::vector<std::byte> whole = BytesOf(kFolder / name);
    ASSERT_TRUE(ReadEverything(whole));
    for (std::size_t size = 0; size < whole.size(); ++size) {
      const std::vector<std::byte> cut(whole.begin(),
                                       whole.begin() + static_cast<std::ptrdiff_t>(size));
      ASSERT_FALSE(ReadEverything(cut)) << name << " cut to " << size;
    }
  }
}

TEST(TorchFileTest, ChangedBytesNeverDoHarm) {
  constexpr int kTries = 400;
  std::mt19937 random(20);
  int readable = 0;
  for (const auto& path : FilesIn(kFolder)) {
    const std::vector<std::byte> whole = BytesOf(path);
    // Large ones have nothing new, and unfolding as far as the limit takes its time.
    if (whole.size() > 16'384 || path.filename() == "bad_unfolds.pt") continue;
    for (int i = 0; i < kTries; ++i) {
      std::vector<std::byte> changed = whole;
      for (int flips = 0; flips <= i % 4; ++flips) {
        changed[random() % changed.size()] = static_cast<std::byte>(random());
      }
      readable += ReadEverything(changed) ? 1 : 0;
    }
  }
  EXPECT_GT(readable, 0);  // else the test reached the directories only
}

TEST(TorchFileTest, AChangedWeightIsFoundByItsChecksum) {
  const std::vector<std::byte> whole = BytesOf(kFolder / "types.pt");
  const auto good = TorchFile::Parse(whole);
  ASSERT_TRUE(good);
  std::uint64_t read = 0;
  ASSERT_TRUE(good->CheckSums([&read](std::uint64_t bytes) { read += bytes; }));
  EXPECT_GT(read, 4 * 15 + 8 * 15U);
  for (const TorchTensor& tensor : good->tensors()) {
    std::vector<std::byte> changed = whole;
    changed[tensor.begin] ^= std::byte{1};
    const auto file = TorchFile::Parse(changed);
    ASSERT_TRUE(file);
    const Status sums = file->CheckSums([](std::uint64_t) {});
    ASSERT_FALSE(sums) << tensor.name;
    EXPECT_THAT(sums.error().message(), HasSubstr("types/data/"));
  }
}

TEST(TorchFileTest, WhatTheFuzzerFoundStaysMended) {
  for (const auto& path : FilesIn(kCorpus)) {
    SCOPED_TRACE(path);
    static_cast<void>(ReadEverything(BytesOf(path)));
  }
}

}  // namespace
}  // namespace dd2
