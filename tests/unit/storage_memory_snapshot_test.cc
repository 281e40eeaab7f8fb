#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "storage/memory_snapshot.h"
#include "tests/support/far_values.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::IsEmpty;

constexpr std::size_t kNote = 100;
constexpr auto kPatience = std::chrono::milliseconds(300);
constexpr std::size_t kData = 3 * 5000;  // of three pieces; no multiple of a page

class MemorySnapshotTest : public testing::Test {
 protected:
  MemorySnapshotTest()
      : file_(fs::path(access("/dev/shm", W_OK) == 0 ? "/dev/shm" : testing::TempDir()) /
              ("dd2-test-" + std::to_string(getpid()))) {}
  ~MemorySnapshotTest() override { fs::remove(file_); }

  Result<MemorySnapshots> Open(const std::string& identity = "us") const {
    return MemorySnapshots::Open(file_, identity, kNote, kData, kPatience);
  }
  // Filled with `value`.
  static int Save(MemorySnapshots& snapshots, std::string_view note, std::byte value) {
    const std::vector<std::byte> piece(kData / 3, value);
    const std::vector<std::span<const std::byte>> pieces(3, piece);
    return snapshots.Save(note, pieces).value();
  }
  static std::vector<std::string> Notes(const MemorySnapshots& snapshots) {
    std::vector<std::string> notes;
    for (const MemorySnapshots::Found& one : snapshots.Verify()) notes.push_back(one.note);
    return notes;
  }
  void Flip(std::streamoff offset) const {
    std::fstream file(file_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(offset);
    const int byte = file.get();
    file.seekp(offset);
    file.put(static_cast<char>(byte ^ 0x10));
  }

  const fs::path file_;
};

TEST_F(MemorySnapshotTest, TheTwoNewestOutliveTheProcess) {
  {
    MemorySnapshots snapshots = Open().value();
    EXPECT_THAT(Notes(snapshots), IsEmpty());
    Save(snapshots, "one", std::byte{1});
    Save(snapshots, "two", std::byte{2});
    Save(snapshots, "three", std::byte{3});
  }
  const MemorySnapshots snapshots = Open().value();
  ASSERT_THAT(Notes(snapshots), ElementsAre("three", "two"));
  std::array<std::vector<std::byte>, 3> loaded;
  std::vector<std::span<std::byte>> pieces;
  for (std::vector<std::byte>& piece : loaded) {
    piece.resize(kData / 3);
    pieces.emplace_back(piece);
  }
  ASSERT_TRUE(snapshots.Load(snapshots.Verify().back().place, pieces));
  for (const std::vector<std::byte>& piece : loaded) {
    EXPECT_EQ(piece, std::vector<std::byte>(kData / 3, std::byte{2}));
  }
}

TEST_F(MemorySnapshotTest, EveryFlippedByteOfASnapshotIsFound) {
  {
    MemorySnapshots snapshots = Open().value();
    Save(snapshots, "one", std::byte{1});
  }
  // One snapshot: its head, note and data; the page gaps between them mean nothing.
  constexpr std::streamoff kPlace = 4096;
  std::vector<std::streamoff> offsets;
  for (std::streamoff i = 0; i < 40; ++i) offsets.push_back(kPlace + i);
  for (std::streamoff i = 0; i < 3; ++i) offsets.push_back(kPlace + 4096 + i);
  for (std::streamoff i = 0; i < static_cast<std::streamoff>(kData); i += 499) {
    offsets.push_back(kPlace + 8192 + i);
  }
  for (const std::streamoff offset : offsets) {
    SCOPED_TRACE(offset);
    Flip(offset);
    EXPECT_THAT(Notes(Open().value()), IsEmpty());
    Flip(offset);
    ASSERT_THAT(Notes(Open().value()), ElementsAre("one"));
  }
}

TEST_F(MemorySnapshotTest, WhatIsDamagedAfterItWasVerifiedIsNotLoaded) {
  MemorySnapshots snapshots = Open().value();
  const int place = Save(snapshots, "one", std::byte{1});
  ASSERT_THAT(Notes(snapshots), ElementsAre("one"));
  Flip(4096 + 8192 + 77);
  std::vector<std::byte> loaded(kData);
  const std::vector<std::span<std::byte>> pieces{loaded};
  EXPECT_EQ(snapshots.Load(place, pieces).error().code(), Code::kCorruption);
}

TEST_F(MemorySnapshotTest, AnotherIdentityOrSizeBeginsAnew) {
  {
    MemorySnapshots snapshots = Open().value();
    Save(snapshots, "one", std::byte{1});
  }
  EXPECT_THAT(Notes(Open("others").value()), IsEmpty());
  EXPECT_THAT(Notes(Open().value()), IsEmpty()) << "they have overwritten ours";
  {
    MemorySnapshots snapshots = Open().value();
    Save(snapshots, "one", std::byte{1});
  }
  EXPECT_THAT(Notes(MemorySnapshots::Open(file_, "us", kNote, kData + 4096, kPatience).value()),
              IsEmpty());
}

TEST_F(MemorySnapshotTest, OneProcessAtATime) {
  const MemorySnapshots snapshots = Open().value();
  EXPECT_EQ(Open().error().code(), Code::kUnavailable);
}

TEST_F(MemorySnapshotTest, OtherSizesAreRefused) {
  MemorySnapshots snapshots = Open().value();
  const std::vector<std::byte> piece(kData - 1);
  const std::vector<std::span<const std::byte>> pieces{piece};
  EXPECT_EQ(snapshots.Save("one", pieces).error().code(), Code::kInvalidArgument);
  const std::vector<std::byte> whole(kData);
  const std::vector<std::span<const std::byte>> right{whole};
  EXPECT_EQ(snapshots.Save(std::string(kNote + 1, 'x'), right).error().code(),
            Code::kInvalidArgument);
  EXPECT_TRUE(snapshots.Save(std::string(kNote, 'x'), right));
}

TEST_F(MemorySnapshotTest, TooLittleMemoryIsAnErrorAndNotASignal) {
  const pid_t child = fork();
  if (child == 0) {
    signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{.rlim_cur = kData, .rlim_max = kData};
    setrlimit(RLIMIT_FSIZE, &limit);
    const Result<MemorySnapshots> none = Open();
    _exit(!none && none.error().code() == Code::kResourceExhausted ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(fs::file_size(file_), 0U) << "memory that was reserved in part is given back";
}

// Killed at any moment of a save, the process leaves the save before it whole.
TEST_F(MemorySnapshotTest, AKilledProcessLeavesAWholeSnapshot) {
  constexpr std::size_t kLarge = std::size_t{4} << 20;
  for (int round = 0; round < 40; ++round) {
    std::array<int, 2> begun{};
    ASSERT_EQ(pipe(begun.data()), 0);
    const pid_t child = fork();
    if (child == 0) {
      MemorySnapshots snapshots =
          std::move(MemorySnapshots::Open(file_, "large", kNote, kLarge, kPatience).value());
      for (unsigned i = 0;; ++i) {
        const std::vector<std::byte> piece(kLarge, std::byte(i));
        const std::vector<std::span<const std::byte>> pieces{piece};
        if (!snapshots.Save(std::string(1, static_cast<char>(i)), pieces)) _exit(1);
        if (i == 0 && write(begun[1], "", 1) != 1) _exit(1);
      }
    }
    char ignored = 0;
    ASSERT_EQ(read(begun[0], &ignored, 1), 1);
    close(begun[0]);
    close(begun[1]);
    std::this_thread::sleep_for(std::chrono::microseconds(round * 97));
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status));
    const MemorySnapshots snapshots =
        MemorySnapshots::Open(file_, "large", kNote, kLarge, kPatience).value();
    const std::vector<MemorySnapshots::Found> found = snapshots.Verify();
    ASSERT_FALSE(found.empty());
    for (const MemorySnapshots::Found& one : found) {
      std::vector<std::byte> loaded(kLarge);
      const std::vector<std::span<std::byte>> pieces{loaded};
      ASSERT_TRUE(snapshots.Load(one.place, pieces));
      EXPECT_EQ(loaded, std::vector<std::byte>(kLarge, std::byte(one.note.at(0))));
    }
  }
}

// Values that the host cannot touch.
class FarSnapshotTest : public MemorySnapshotTest {
 protected:
  static constexpr std::size_t kLong = 300'000, kShort = 5;
  MemorySnapshots OpenFar() const {
    return MemorySnapshots::Open(file_, "far", kNote, (kLong + kShort) * sizeof(float), kPatience)
        .value();
  }
  Result<int> Take(MemorySnapshots& snapshots, std::string_view note, float value) {
    const FarValues a(std::vector<float>(kLong, value)),
        b(std::vector<float>(kShort, value + 0.5F));
    const std::vector<std::span<const std::byte>> pieces{std::as_bytes(a.far()),
                                                         std::as_bytes(b.far())};
    return snapshots.Save(note, pieces, std::ref(copies_));
  }
  // Whether it is the one of `value`.
  Result<bool> Recall(const MemorySnapshots& snapshots, int place, float value) {
    const FarValues a(std::vector<float>(kLong, 0)), b(std::vector<float>(kShort, 0));
    const std::vector<std::span<std::byte>> pieces{std::as_writable_bytes(a.far()),
                                                   std::as_writable_bytes(b.far())};
    DD2_TRY(snapshots.Load(place, pieces, std::ref(copies_)));
    return a.Get() == std::vector<float>(kLong, value) &&
           b.Get() == std::vector<float>(kShort, value + 0.5F);
  }

  FarCopies copies_;
};

TEST_F(FarSnapshotTest, NothingIsReadOnceItIsCopied) {
  MemorySnapshots snapshots = OpenFar();
  FarValues a(std::vector<float>(kLong, 1)), b(std::vector<float>(kShort, 1.5F));
  const std::vector<std::span<const std::byte>> pieces{std::as_bytes(a.far()),
                                                       std::as_bytes(b.far())};
  const int next = snapshots.next_place();
  const Result<int> place = snapshots.Save("one", pieces, std::ref(copies_), [&] {
    EXPECT_THAT(Notes(snapshots), IsEmpty()) << "it is not there before it is hashed";
    a.Set(std::vector<float>(kLong, 9));
  });
  ASSERT_TRUE(place);
  EXPECT_EQ(*place, next);
  EXPECT_NE(snapshots.next_place(), next);
  EXPECT_TRUE(Recall(snapshots, *place, 1).value());
}

TEST_F(FarSnapshotTest, AreSavedAndLoadedByTheCopyFunctionAlone) {
  MemorySnapshots snapshots = OpenFar();
  const int one = Take(snapshots, "one", 1).value();
  const int two = Take(snapshots, "two", 2).value();
  EXPECT_TRUE(Recall(snapshots, one, 1).value());
  EXPECT_TRUE(Recall(snapshots, two, 2).value());
  EXPECT_THAT(Notes(snapshots), ElementsAre("two", "one"));
}

TEST_F(FarSnapshotTest, AFailedCopyLeavesTheNewerOne) {
  MemorySnapshots snapshots = OpenFar();
  const int one = Take(snapshots, "one", 1).value();
  const int two = Take(snapshots, "two", 2).value();
  for (const int fails_at : {1, 2}) {
    copies_ = {.count = 0, .fails_at = fails_at};
    EXPECT_EQ(Take(snapshots, "three", 3).error().code(), Code::kInternal);
    EXPECT_THAT(Notes(snapshots), ElementsAre("two"));
  }
  copies_ = {.count = 0, .fails_at = 2};
  EXPECT_EQ(Recall(snapshots, two, 2).error().code(), Code::kInternal);
  EXPECT_TRUE(Recall(snapshots, two, 2).value());
  EXPECT_EQ(Take(snapshots, "four", 4).value(), one);
  EXPECT_THAT(Notes(snapshots), ElementsAre("four", "two"));
}

}  // namespace
}  // namespace dd2
