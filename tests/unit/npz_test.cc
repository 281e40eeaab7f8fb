#include "storage/npz.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "tests/unit/storage_testing.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;

const fs::path kFixtures = DD2_SOURCE_DIR "/tests/golden/npz";  // of golden/make_npz_case.py

struct Array {
  Dtype dtype = Dtype::kU8;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> bytes;
  bool operator==(const Array&) const = default;
};

// Every array of a file, read in pieces of 7 bytes; the first error of any.
Result<std::map<std::string, Array>> ReadArrays(const fs::path& path) {
  DD2_TRY_ASSIGN(const NpzFile file, NpzFile::Open(path));
  std::map<std::string, Array> arrays;
  for (const std::string& name : file.names()) {
    DD2_TRY_ASSIGN(NpyReader reader, file.Array(name));
    Array array{.dtype = reader.dtype(), .shape = reader.shape(), .bytes = {}};
    array.bytes.resize(reader.bytes());
    std::span<std::byte> rest = array.bytes;
    while (!rest.empty()) {
      const std::size_t part = std::min<std::size_t>(rest.size(), 7);
      DD2_TRY(reader.Read(rest.first(part)));
      rest = rest.subspan(part);
    }
    arrays.emplace(name, std::move(array));
  }
  return arrays;
}

template <class Number>
std::vector<Number> Numbers(const Array& array) {
  std::vector<Number> numbers(array.bytes.size() / sizeof(Number));
  std::memcpy(numbers.data(), array.bytes.data(), array.bytes.size());
  return numbers;
}

void ExpectImages(const Array& array) {
  EXPECT_EQ(array.dtype, Dtype::kU8);
  EXPECT_EQ(array.shape, (std::vector<std::int64_t>{3, 4, 5, 3}));
  const auto pixels = Numbers<std::uint8_t>(array);
  ASSERT_EQ(pixels.size(), 180U);
  for (std::size_t i = 0; i < pixels.size(); ++i) EXPECT_EQ(pixels[i], i * 7 % 256);
}

TEST(Npz, ReadsWhatNumPyWrote) {
  for (const char* name : {"arrays.npz", "deflated.npz"}) {
    const auto arrays = ReadArrays(kFixtures / name);
    ASSERT_TRUE(arrays) << arrays.error().message();
    ASSERT_EQ(arrays->size(), 7U);
    ExpectImages(arrays->at("arr_0"));
    const auto mu = Numbers<double>(arrays->at("mu"));
    ASSERT_EQ(mu.size(), 6U);
    EXPECT_DOUBLE_EQ(mu[1], -0.6);
    EXPECT_EQ(arrays->at("half").dtype, Dtype::kF16);
    EXPECT_EQ(Numbers<std::uint16_t>(arrays->at("half")),
              (std::vector<std::uint16_t>{0x3800, 0xC000}));
    EXPECT_EQ(arrays->at("single").shape, (std::vector<std::int64_t>{2, 1}));
    EXPECT_EQ(Numbers<float>(arrays->at("single")), (std::vector<float>{1.5F, 2.5F}));
    EXPECT_EQ(Numbers<std::int32_t>(arrays->at("i4")),
              (std::vector<std::int32_t>{-2, -1, 0, 1, 2}));
    EXPECT_EQ(Numbers<std::int64_t>(arrays->at("i8")),
              (std::vector<std::int64_t>{std::int64_t{1} << 40}));
    EXPECT_TRUE(arrays->at("i8").shape.empty());
    EXPECT_EQ(arrays->at("none").shape, (std::vector<std::int64_t>{0, 3}));
  }
  const auto plain = ReadArrays(kFixtures / "plain.npy");
  ASSERT_TRUE(plain) << plain.error().message();
  ExpectImages(plain->at("arr_0"));
}

TEST(Npz, SkipsAndEnds) {
  for (const char* name : {"arrays.npz", "deflated.npz", "plain.npy"}) {
    const Result<NpzFile> file = NpzFile::Open(kFixtures / name);
    ASSERT_TRUE(file);
    Result<NpyReader> reader = file->Array("arr_0");
    ASSERT_TRUE(reader);
    ASSERT_TRUE(reader->Skip(100));
    std::vector<std::byte> rest(80);
    ASSERT_TRUE(reader->Read(rest));
    EXPECT_EQ(std::to_integer<int>(rest[0]), 100 * 7 % 256);
    EXPECT_EQ(std::to_integer<int>(rest[79]), 179 * 7 % 256);
    EXPECT_EQ(reader->Read(std::span(rest).first(1)).error().code(), Code::kInvalidArgument);
    EXPECT_EQ(file->Array("nothing").error().code(), Code::kNotFound);
  }
}

TEST(Npz, ReadsSmallArraysWhole) {
  const Result<NpzFile> file = NpzFile::Open(kFixtures / "arrays.npz");
  ASSERT_TRUE(file);
  const std::int64_t any[] = {-1};
  const std::int64_t five[] = {5};
  EXPECT_EQ(file->ReadAll("mu", any, 48)->size(), 48U);
  EXPECT_EQ(file->ReadAll("mu", any, 47).error().code(), Code::kInvalidArgument);
  const auto other = file->ReadAll("mu", five, 1000);
  ASSERT_FALSE(other);
  EXPECT_NE(other.error().message().find("shape (6), expected (5)"), std::string::npos);
}

TEST(Npz, RefusesWhatItDoesNotRead) {
  const Result<NpzFile> file = NpzFile::Open(kFixtures / "refused.npz");
  ASSERT_TRUE(file) << file.error().message();
  for (const auto& [name, advice] : {std::pair{"fortran", "ascontiguousarray"},
                                     {"big", "'>f4'"},
                                     {"complex", "'<c16'"},
                                     {"structured", "structured"}}) {
    const Result<NpyReader> reader = file->Array(name);
    ASSERT_FALSE(reader) << name;
    EXPECT_EQ(reader.error().code(), Code::kInvalidArgument);
    EXPECT_NE(reader.error().message().find(advice), std::string::npos) << reader.error().message();
  }
  EXPECT_EQ(NpzFile::Open(kFixtures / "nowhere.npz").error().code(), Code::kNotFound);
  EXPECT_EQ(NpzFile::Open(kFixtures).error().code(), Code::kInvalidArgument);
}

TEST(Npz, NoticesEveryCut) {
  const TemporaryFolder folder;
  for (const char* name : {"arrays.npz", "deflated.npz", "plain.npy"}) {
    fs::copy_file(kFixtures / name, folder.path() / name);
    for (std::uintmax_t size = fs::file_size(folder.path() / name); size-- > 0;) {
      fs::resize_file(folder.path() / name, size);
      const auto arrays = ReadArrays(folder.path() / name);
      ASSERT_FALSE(arrays) << name << " cut to " << size;
      EXPECT_EQ(arrays.error().code(), Code::kCorruption) << arrays.error().message();
    }
  }
}

TEST(Npz, NeverGivesOtherNumbersThanWereWritten) {
  const TemporaryFolder folder;
  for (const char* name : {"arrays.npz", "deflated.npz"}) {
    const std::string content = ReadAll(kFixtures / name);
    const auto expected = ReadArrays(kFixtures / name);
    ASSERT_TRUE(expected);
    fs::copy_file(kFixtures / name, folder.path() / name);
    std::fstream file(folder.path() / name, std::ios::binary | std::ios::in | std::ios::out);
    const auto put = [&](std::size_t at, int byte) {
      file.seekp(static_cast<std::streamoff>(at)).put(static_cast<char>(byte)).flush();
    };
    std::size_t noticed = 0;
    for (std::size_t at = 0; at < content.size(); ++at) {
      put(at, content[at] ^ 1 << at % 8);
      const auto arrays = ReadArrays(folder.path() / name);
      put(at, content[at]);
      noticed += arrays ? 0U : 1U;
      if (!arrays) continue;
      // What is read (not of a renamed member) is what was written.
      for (const auto& [array, value] : *arrays) {
        const auto found = expected->find(array);
        EXPECT_TRUE(found == expected->end() || value == found->second) << name << " byte " << at;
      }
    }
    EXPECT_GT(noticed, content.size() / 2);  // the others are dates, attributes, unused sizes
  }
}

TEST(Npz, ReadsWhatItWrote) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "own.npz";
  const std::vector<double> mu = {0.5, -3, 1e300};
  const std::vector<std::uint8_t> pixels = {1, 2, 3, 4, 5, 6};
  const ArrayToWrite arrays[] = {
      {.name = "mu", .dtype = Dtype::kF64, .shape = {3}, .bytes = std::as_bytes(std::span(mu))},
      {.name = "arr_0",
       .dtype = Dtype::kU8,
       .shape = {2, 3},
       .bytes = std::as_bytes(std::span(pixels))},
      {.name = "empty", .dtype = Dtype::kI64, .shape = {0}, .bytes = {}}};
  ASSERT_TRUE(WriteNpz(RealFileSystem(), path, arrays));
  const auto read = ReadArrays(path);
  ASSERT_TRUE(read) << read.error().message();
  ASSERT_EQ(read->size(), 3U);
  EXPECT_EQ(Numbers<double>(read->at("mu")), mu);
  EXPECT_EQ(Numbers<std::uint8_t>(read->at("arr_0")), pixels);
  EXPECT_EQ(read->at("arr_0").shape, (std::vector<std::int64_t>{2, 3}));
  const ArrayToWrite wrong[] = {
      {.name = "mu", .dtype = Dtype::kF64, .shape = {4}, .bytes = std::as_bytes(std::span(mu))}};
  EXPECT_EQ(WriteNpz(RealFileSystem(), path, wrong).error().code(), Code::kInvalidArgument);
  EXPECT_TRUE(ReadArrays(path));  // what was there before still is
}

TEST(Npz, WritesInPieces) {
  const TemporaryFolder folder;
  const std::vector<double> values = {0.5, -3, 1e300, 7};
  const auto bytes = std::as_bytes(std::span(values));
  const ArrayToWrite arrays[] = {
      {.name = "x", .dtype = Dtype::kF64, .shape = {2, 2}, .bytes = bytes},
      {.name = "y", .dtype = Dtype::kF64, .shape = {4}, .bytes = bytes}};
  ASSERT_TRUE(WriteNpz(RealFileSystem(), folder.path() / "whole.npz", arrays));
  auto writer = NpzWriter::Create(RealFileSystem(), folder.path() / "pieces.npz");
  ASSERT_TRUE(writer);
  for (const ArrayToWrite& array : arrays) {
    ASSERT_TRUE((*writer)->Begin(array.name, array.dtype, array.shape));
    ASSERT_TRUE((*writer)->Append(bytes.first(5)));
    ASSERT_TRUE((*writer)->Append(bytes.subspan(5)));
    EXPECT_EQ((*writer)->Append(bytes.first(1)).error().code(), Code::kInvalidArgument);
  }
  EXPECT_FALSE(fs::exists(folder.path() / "pieces.npz"));
  ASSERT_TRUE((*writer)->Finish());
  EXPECT_EQ(ReadAll(folder.path() / "pieces.npz"), ReadAll(folder.path() / "whole.npz"));
}

TEST(Npz, AnUnfinishedFileLeavesNothing) {
  const TemporaryFolder folder;
  {
    auto writer = NpzWriter::Create(RealFileSystem(), folder.path() / "half.npz");
    ASSERT_TRUE(writer);
    const std::int64_t shape[] = {3};
    ASSERT_TRUE((*writer)->Begin("x", Dtype::kU8, shape));
    EXPECT_EQ((*writer)->Begin("y", Dtype::kU8, shape).error().code(), Code::kInvalidArgument);
    EXPECT_EQ((*writer)->Finish().error().code(), Code::kInvalidArgument);
    EXPECT_FALSE(fs::is_empty(folder.path()));
  }
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST(Npz, WhatAKilledWriterLeftIsRemovedByTheNext) {
  const TemporaryFolder folder;
  const auto begin = [&](const char* name) {
    return NpzWriter::Create(RealFileSystem(), folder.path() / name);
  };
  const auto in_folder = [&] {
    return std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator());
  };
  // A process that begins these files and ends without the writers' destructors.
  const auto killed = [&](const std::vector<const char*>& names) {
    const pid_t pid = fork();
    if (pid == 0) {
      std::vector<Result<std::unique_ptr<NpzWriter>>> writers;
      for (const char* name : names) writers.push_back(begin(name));
      _exit(std::ranges::all_of(writers, [](const auto& one) { return one.has_value(); }) ? 0 : 1);
    }
    int status = 1;
    EXPECT_EQ(waitpid(pid, &status, 0), pid);
    EXPECT_EQ(status, 0);
  };
  killed({"x.npz", "y.npz"});
  WriteAll(folder.path() / "x.npz.tmp.elsewhere.1", "");  // of a machine that shares the folder
  EXPECT_EQ(in_folder(), 3);
  const auto writer = begin("x.npz");
  ASSERT_TRUE(writer);
  EXPECT_EQ(in_folder(), 3);  // this one, that of y and that of elsewhere
  EXPECT_TRUE(fs::exists(folder.path() / "x.npz.tmp.elsewhere.1"));
  killed({"x.npz"});
  EXPECT_TRUE((*writer)->Finish());  // nobody took it from the living
}

}  // namespace
}  // namespace dd2
