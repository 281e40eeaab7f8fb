// Two processes at one cache. The parent opens no RocksDB itself: its background threads would not
// survive the fork.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

#include "common/file.h"
#include "storage/score_cache.h"
#include "tests/unit/storage_testing.h"

namespace dd2 {
namespace {

const Digest128 kSettings{7, 8};

// Runs `body` in a child; it tells the parent and hears from it one byte at a time.
class Child {
 public:
  explicit Child(const std::function<int(Child&)>& body) {
    if (::pipe(up_) != 0 || ::pipe(down_) != 0) std::abort();
    pid_ = ::fork();
    if (pid_ == 0) {
      ::alarm(60);
      ::close(down_[1]);  // so that a parent that is gone is seen
      ::_exit(body(*this));
    }
  }
  void Tell() const { ASSERT_EQ(::write(pid_ == 0 ? up_[1] : down_[1], "x", 1), 1); }
  bool Hear() const {
    char byte = 0;
    return ::read(pid_ == 0 ? down_[0] : up_[0], &byte, 1) == 1;
  }
  int Wait() const {
    int status = 0;
    EXPECT_EQ(::waitpid(pid_, &status, 0), pid_);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  int up_[2] = {};
  int down_[2] = {};
  pid_t pid_ = 0;
};

TeacherSequence SequenceOf(int sample) { return {sample, {static_cast<std::uint16_t>(sample)}}; }

// Stores its own sample, waits until both have, then reads the other's.
int StoreAndReadOther(Child& self, const std::filesystem::path& root, int own, int other) {
  auto cache = ScoreCache::Open(root, 0);
  if (!cache) return 2;
  const TeacherScore score{1, 2, {11, 12}, {0.5F}};
  if (!(*cache)->StoreBlock(kSettings, static_cast<std::uint64_t>(own), {SequenceOf(own)},
                            {score})) {
    return 3;
  }
  self.Tell();
  if (!self.Hear()) return 4;
  if (!(*cache)->Refresh()) return 5;
  const auto sequence = (*cache)->FindSequence(kSettings, static_cast<std::uint64_t>(other));
  if (!sequence || sequence->label != other) return 6;
  const auto found = (*cache)->FindScore(ScoreKey(kSettings, SequenceOf(other)));
  if (!found || found->hidden != score.hidden) return 7;
  // Nobody goes before both have read.
  self.Tell();
  return self.Hear() ? 0 : 8;
}

TEST(StorageProcessesTest, TwoProcessesTakeDifferentSlotsAndReadEachOther) {
  const TemporaryFolder folder;
  const auto root = folder.path() / "scores";
  const Child first([&](Child& self) { return StoreAndReadOther(self, root, 1, 2); });
  const Child second([&](Child& self) { return StoreAndReadOther(self, root, 2, 1); });
  for (int round = 0; round < 2; ++round) {
    const bool heard = first.Hear() && second.Hear();
    EXPECT_TRUE(heard);
    if (!heard) break;
    EXPECT_TRUE(std::filesystem::exists(root / "slot-00" / "CURRENT"));
    EXPECT_TRUE(std::filesystem::exists(root / "slot-01" / "CURRENT"));
    EXPECT_FALSE(std::filesystem::exists(root / "slot-02"));
    first.Tell();
    second.Tell();
  }
  EXPECT_EQ(first.Wait(), 0);
  EXPECT_EQ(second.Wait(), 0);
}

TEST(StorageProcessesTest, ALockEndsWithItsProcess) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "run.lock";
  const Child child([&](Child& self) {
    auto lock = FileLock::Acquire(path, "process of the test");
    if (!lock) return 2;
    self.Tell();
    static_cast<void>(self.Hear());
    ::kill(::getpid(), SIGKILL);
    return 3;
  });
  ASSERT_TRUE(child.Hear());
  const auto refused = FileLock::Acquire(path, "parent");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Code::kUnavailable);
  EXPECT_NE(refused.error().message().find("process of the test"), std::string::npos);
  child.Tell();
  EXPECT_EQ(child.Wait(), -1);
  auto lock = FileLock::Acquire(path, "parent");
  ASSERT_TRUE(lock) << lock.error().message();
  FileLock moved = std::move(*lock);
  EXPECT_FALSE(FileLock::Acquire(path, "again"));
}

}  // namespace
}  // namespace dd2
