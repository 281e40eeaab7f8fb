#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "storage/kv_store.h"
#include "tests/unit/storage_testing.h"

namespace dd2 {
namespace {

using testing::ElementsAre;

std::vector<std::string> KeysWith(KvStore& store, std::string_view prefix, std::size_t limit = 99) {
  std::vector<std::string> keys;
  const Status scanned = store.Scan(prefix, [&](std::string_view key, std::string_view) {
    keys.emplace_back(key);
    return keys.size() < limit;
  });
  EXPECT_TRUE(scanned) << scanned.error().message();
  return keys;
}

// The same contract for both stores.
class KvStoreTest : public testing::TestWithParam<bool> {
 protected:
  KvStoreTest() {
    if (!GetParam()) {
      store_ = NewMemStore();
      return;
    }
    auto opened = OpenRocksStore(folder_.path() / "db", {});
    if (opened) store_ = *std::move(opened);
  }
  TemporaryFolder folder_;
  std::unique_ptr<KvStore> store_;
};

TEST_P(KvStoreTest, PutGetDeleteScan) {
  ASSERT_NE(store_, nullptr);
  EXPECT_EQ(store_->Get("a").error().code(), Code::kNotFound);
  ASSERT_TRUE(store_->Put("a1", std::string("x\0y", 3), Durability::kSynced));
  ASSERT_TRUE(store_->PutAll({{"b", "3"}, {"a2", "2"}, {"a1", "1"}}, Durability::kBuffered));
  EXPECT_EQ(*store_->Get("a1"), "1");
  EXPECT_THAT(KeysWith(*store_, "a"), ElementsAre("a1", "a2"));
  EXPECT_THAT(KeysWith(*store_, "", 2), ElementsAre("a1", "a2"));
  ASSERT_TRUE(store_->Delete("a1"));
  ASSERT_TRUE(store_->Delete("a1"));
  EXPECT_EQ(store_->Get("a1").error().code(), Code::kNotFound);
  EXPECT_TRUE(store_->CatchUp());
}

INSTANTIATE_TEST_SUITE_P(Stores, KvStoreTest, testing::Bool(),
                         [](const auto& each) { return each.param ? "Rocks" : "Mem"; });

TEST(RocksStoreTest, AFollowerSeesWhatTheOwnerWrote) {
  const TemporaryFolder folder;
  auto owner = OpenRocksStore(folder.path() / "db", {true, true});
  ASSERT_TRUE(owner) << owner.error().message();
  ASSERT_TRUE((*owner)->Put("a", std::string(5000, 'a'), Durability::kBuffered));
  auto follower = OpenRocksFollower(folder.path() / "db");
  ASSERT_TRUE(follower) << follower.error().message();
  EXPECT_EQ(*(*follower)->Get("a"), std::string(5000, 'a'));
  // Enough for several flushes, so that values come out of blob files too.
  for (int i = 0; i < 40; ++i) {
    ASSERT_TRUE((*owner)->Put("b" + std::to_string(i), std::string(1 << 20, static_cast<char>(i)),
                              Durability::kBuffered));
  }
  EXPECT_EQ((*follower)->Get("b7").error().code(), Code::kNotFound);
  const Status caught_up = (*follower)->CatchUp();
  ASSERT_TRUE(caught_up) << caught_up.error().message();
  for (int i = 0; i < 40; ++i) {
    const auto value = (*follower)->Get("b" + std::to_string(i));
    ASSERT_TRUE(value) << value.error().message();
    ASSERT_EQ(*value, std::string(1 << 20, static_cast<char>(i)));
  }
  EXPECT_EQ((*follower)->Put("c", "", Durability::kBuffered).error().code(),
            Code::kFailedPrecondition);
  EXPECT_EQ((*follower)->Delete("a").error().code(), Code::kFailedPrecondition);
}

// As the next run on a score cache finds those of the ranks beside it.
TEST(RocksStoreTest, AFollowerOfOneTableReadsItsBlobs) {
  const TemporaryFolder folder;
  const std::string value(5000, 'a');
  {
    auto owner = OpenRocksStore(folder.path() / "db", {true, true});
    ASSERT_TRUE(owner) << owner.error().message();
    ASSERT_TRUE((*owner)->Put("a", value, Durability::kBuffered));
  }
  const auto owner = OpenRocksStore(folder.path() / "db", {true, true});  // its log is a table now
  ASSERT_TRUE(owner) << owner.error().message();
  const auto follower = OpenRocksFollower(folder.path() / "db");
  ASSERT_TRUE(follower) << follower.error().message();
  const auto read = (*follower)->Get("a");
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_EQ(*read, value);
}

TEST(RocksStoreTest, FailuresHaveTheirCode) {
  const TemporaryFolder folder;
  EXPECT_EQ(OpenRocksStore(folder.path() / "none", {false, false}).error().code(),
            Code::kFailedPrecondition);
  EXPECT_FALSE(OpenRocksFollower(folder.path() / "none"));
  { ASSERT_TRUE((*OpenRocksStore(folder.path() / "db", {}))->Put("a", "b", Durability::kSynced)); }
  for (const auto& entry : std::filesystem::directory_iterator(folder.path() / "db")) {
    if (entry.path().filename().string().starts_with("MANIFEST")) WriteAll(entry.path(), "junk");
  }
  EXPECT_EQ(OpenRocksStore(folder.path() / "db", {}).error().code(), Code::kCorruption);
}

}  // namespace
}  // namespace dd2
