#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <vector>

#include "common/file.h"
#include "tests/unit/storage_testing.h"

namespace dd2 {
namespace {

using testing::ElementsAre;

std::span<const std::byte> BytesOf(std::string_view text) { return std::as_bytes(std::span(text)); }

TEST(FileSystemTest, CreatesAppendsReadsListsAndRemoves) {
  const TemporaryFolder folder;
  FileSystem& files = RealFileSystem();
  const auto deep = folder.path() / "a" / "b";
  ASSERT_TRUE(files.MakeDirectories(deep));
  ASSERT_TRUE(files.MakeDirectories(deep));
  {
    auto file = files.Create(deep / "x");
    ASSERT_TRUE(file) << file.error().message();
    ASSERT_TRUE((*file)->Append(BytesOf("one ")));
    ASSERT_TRUE((*file)->Append(BytesOf("two")));
    ASSERT_TRUE((*file)->Sync());
    ASSERT_TRUE((*file)->Close());
  }
  EXPECT_EQ(*files.Read(deep / "x"), "one two");
  ASSERT_TRUE(files.Create(deep / "x"));
  EXPECT_EQ(*files.Read(deep / "x"), "");
  ASSERT_TRUE(files.Rename(deep / "x", deep / "y"));
  ASSERT_TRUE(files.SyncDirectory(deep));
  WriteAll(deep / "c", "");
  EXPECT_THAT(*files.List(deep), ElementsAre("c", "y"));
  ASSERT_TRUE(files.Remove(deep / "y"));
  ASSERT_TRUE(files.Remove(deep / "y"));
  ASSERT_TRUE(files.RemoveTree(folder.path() / "a"));
  ASSERT_TRUE(files.RemoveTree(folder.path() / "a"));
  EXPECT_EQ(files.List(deep).error().code(), Code::kNotFound);
  EXPECT_EQ(files.Read(deep / "x").error().code(), Code::kNotFound);
  EXPECT_EQ(files.Create(deep / "x").error().code(), Code::kNotFound);
}

// Aligned pieces of a megabyte and more take another way to the disk than the others.
TEST(FileSystemTest, PiecesOfAnySizeAndAlignmentFollowEachOther) {
  constexpr std::size_t kSize = std::size_t{5} << 20;
  std::vector<char> memory(kSize + 4096);
  char* const aligned =
      memory.data() + 4096 - reinterpret_cast<std::uintptr_t>(memory.data()) % 4096;
  for (std::size_t i = 0; i < kSize; ++i) aligned[i] = static_cast<char>(i * 31 + i / 4096);
  const std::string_view bytes(aligned, kSize);
  const std::size_t large = std::size_t{2} << 20;
  // All aligned; a tail; an unaligned position, then one that is aligned again; unaligned memory.
  const std::vector<std::vector<std::string_view>> files = {
      {bytes},
      {bytes.substr(0, large + 777), bytes.substr(0, large)},
      {bytes.substr(0, 100), bytes.substr(4096, large), bytes.substr(0, 3996),
       bytes.substr(0, large)},
      {bytes.substr(1, large), bytes.substr(0, large)},
      {bytes.substr(0, large), bytes.substr(4096, large), bytes.substr(3)}};
  // On a disk and in memory, where there are no direct writes.
  for (const std::filesystem::path& root :
       {std::filesystem::current_path(), std::filesystem::path("/dev/shm")}) {
    for (std::size_t i = 0; i < files.size(); ++i) {
      SCOPED_TRACE(root.string() + " " + std::to_string(i));
      const auto path = root / ("dd2-file-test-" + std::to_string(::getpid()));
      auto file = RealFileSystem().Create(path);
      ASSERT_TRUE(file) << file.error().message();
      std::string expected;
      for (const std::string_view piece : files[i]) {
        ASSERT_TRUE((*file)->Append(BytesOf(piece)));
        expected += piece;
      }
      ASSERT_TRUE((*file)->Sync());
      ASSERT_TRUE((*file)->Close());
      EXPECT_TRUE(ReadAll(path) == expected);
      ASSERT_TRUE(RealFileSystem().Remove(path));
    }
  }
}

TEST(FileSystemTest, AFullDiskSaysSo) {
  auto full = RealFileSystem().Create("/dev/full");
  ASSERT_TRUE(full) << full.error().message();
  const Status appended = (*full)->Append(BytesOf("x"));
  ASSERT_FALSE(appended);
  EXPECT_EQ(appended.error().code(), Code::kResourceExhausted);
}

TEST(FileSystemTest, AnAtomicWriteReplacesAndLeavesNothingElse) {
  const TemporaryFolder folder;
  ASSERT_TRUE(WriteFileAtomically(RealFileSystem(), folder.path() / "x", "old"));
  ASSERT_TRUE(WriteFileAtomically(RealFileSystem(), folder.path() / "x", "new"));
  EXPECT_EQ(ReadAll(folder.path() / "x"), "new");
  EXPECT_THAT(*RealFileSystem().List(folder.path()), ElementsAre("x"));
  // A folder is in the way: the old state stays, without litter.
  ASSERT_TRUE(RealFileSystem().MakeDirectories(folder.path() / "d" / "e"));
  EXPECT_FALSE(WriteFileAtomically(RealFileSystem(), folder.path() / "d", "new"));
  EXPECT_THAT(*RealFileSystem().List(folder.path()), ElementsAre("d", "x"));
}

TEST(FileSystemTest, APrivateFileIsForTheOwnerOnly) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "token";
  WriteAll(path, "old, readable by all");
  ASSERT_TRUE(WritePrivateFile(path, "secret"));
  struct stat status = {};
  ASSERT_EQ(::stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600U);
  EXPECT_EQ(ReadAll(path), "secret");
  EXPECT_THAT(*RealFileSystem().List(folder.path()), ElementsAre("token"));
}

}  // namespace
}  // namespace dd2
