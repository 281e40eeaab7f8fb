#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/records.pb.h"
#include "storage/journal.h"
#include "tests/unit/storage_testing.h"

namespace dd2 {
namespace {

using testing::HasSubstr;

// Passes on to a store that the test keeps.
class SharedStore : public KvStore {
 public:
  explicit SharedStore(KvStore& store) : store_(store) {}
  Result<std::string> Get(std::string_view key) override { return store_.Get(key); }
  Status Put(std::string_view key, std::string_view value, Durability durability) override {
    EXPECT_EQ(durability, Durability::kSynced);
    return store_.Put(key, value, durability);
  }
  Status PutAll(const std::vector<std::pair<std::string, std::string>>& entries,
                Durability durability) override {
    EXPECT_EQ(durability, Durability::kSynced);
    if (fail) return Error(Code::kResourceExhausted, "disk full");
    return store_.PutAll(entries, durability);
  }
  Status Delete(std::string_view key) override { return store_.Delete(key); }
  Status Scan(std::string_view prefix,
              const std::function<bool(std::string_view, std::string_view)>& visit) override {
    return store_.Scan(prefix, visit);
  }
  Status CatchUp() override { return store_.CatchUp(); }
  bool fail = false;

 private:
  KvStore& store_;
};

std::vector<proto::JournalRecord> Phases(std::initializer_list<int> phases) {
  std::vector<proto::JournalRecord> records;
  for (const int phase : phases) {
    records.emplace_back().mutable_phase_started()->set_phase(phase);
  }
  return records;
}

class JournalTest : public testing::Test {
 protected:
  Result<std::unique_ptr<Journal>> Open() {
    return Journal::Open(std::make_unique<SharedStore>(*store_));
  }
  std::vector<std::string> Keys() {
    std::vector<std::string> keys;
    EXPECT_TRUE(store_->Scan("j", [&](std::string_view key, std::string_view) {
      keys.emplace_back(key);
      return true;
    }));
    return keys;
  }
  std::unique_ptr<KvStore> store_ = NewMemStore();
};

// What a damaged file or a command line says gets into records.
TEST_F(JournalTest, ATextThatIsNoUtf8CanBeReadAgain) {
  auto journal = Open();
  ASSERT_TRUE(journal);
  std::vector<proto::JournalRecord> records(2);
  records[0].mutable_checkpoint_dropped()->set_reason("no tensor 'w\xfe'");
  records[1].mutable_checkpoint_committed()->add_parts()->set_file("rank-\xc3");
  ASSERT_TRUE((*journal)->Append(records, 7));
  const auto again = Open();
  ASSERT_TRUE(again) << again.error().message();
  EXPECT_EQ((*again)->records().at(0).checkpoint_dropped().reason(), "no tensor 'w?'");
  EXPECT_EQ((*again)->records().at(1).checkpoint_committed().parts(0).file(), "rank-?");
}

TEST_F(JournalTest, ReopeningOnADiskFindsEveryRecordInOrder) {
  const TemporaryFolder folder;
  for (int round = 0; round < 3; ++round) {
    auto store = OpenRocksStore(folder.path() / "journal", {});
    ASSERT_TRUE(store) << store.error().message();
    auto journal = Journal::Open(*std::move(store));
    ASSERT_TRUE(journal) << journal.error().message();
    ASSERT_EQ((*journal)->records().size(), static_cast<std::size_t>(3 * round));
    ASSERT_TRUE(
        (*journal)->Append(Phases({3 * round, 3 * round + 1, 3 * round + 2}), 1000 + round));
    EXPECT_EQ(OpenRocksStore(folder.path() / "journal", {}).error().code(), Code::kUnavailable);
  }
  auto journal = Journal::Open(*OpenRocksStore(folder.path() / "journal", {}));
  ASSERT_TRUE(journal);
  ASSERT_EQ((*journal)->records().size(), 9U);
  for (int i = 0; i < 9; ++i) {
    const proto::JournalRecord& record = (*journal)->records()[static_cast<std::size_t>(i)];
    EXPECT_EQ(record.sequence(), static_cast<std::uint64_t>(i) + 1);
    EXPECT_EQ(record.phase_started().phase(), i);
    EXPECT_EQ(record.unix_ms(), 1000 + i / 3);
  }
}

TEST_F(JournalTest, AHoleIsCorruption) {
  ASSERT_TRUE((*Open())->Append(Phases({1, 2, 3}), 5));
  const std::string second = Keys()[1];
  const std::string value = *store_->Get(second);
  ASSERT_TRUE(store_->Delete(second));
  const auto journal = Open();
  ASSERT_FALSE(journal);
  EXPECT_EQ(journal.error().code(), Code::kCorruption);
  EXPECT_THAT(journal.error().message(), HasSubstr("record 2 is missing"));
  ASSERT_TRUE(store_->Put(second, value, Durability::kSynced));
  EXPECT_EQ((*Open())->records().size(), 3U);
}

TEST_F(JournalTest, EveryFlippedByteIsCorruption) {
  ASSERT_TRUE((*Open())->Append(Phases({1, 2}), 5));
  for (const std::string& key : Keys()) {
    const std::string good = *store_->Get(key);
    for (std::size_t at = 0; at < good.size(); ++at) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ 0x04);
      ASSERT_TRUE(store_->Put(key, bad, Durability::kSynced));
      const auto journal = Open();
      ASSERT_FALSE(journal) << at;
      ASSERT_EQ(journal.error().code(), Code::kCorruption);
    }
    ASSERT_TRUE(store_->Put(key, good, Durability::kSynced));
  }
  EXPECT_TRUE(Open());
}

TEST_F(JournalTest, AFailedWriteIsNotRemembered) {
  auto shared = std::make_unique<SharedStore>(*store_);
  SharedStore& hook = *shared;
  auto journal = Journal::Open(std::move(shared));
  ASSERT_TRUE(journal);
  hook.fail = true;
  EXPECT_EQ((*journal)->Append(Phases({1}), 5).error().code(), Code::kResourceExhausted);
  EXPECT_TRUE((*journal)->records().empty());
  hook.fail = false;
  ASSERT_TRUE((*journal)->Append(Phases({2}), 6));
  EXPECT_EQ((*journal)->records().at(0).sequence(), 1U);
}

TEST_F(JournalTest, AStoreOfAnotherKindIsLeftAlone) {
  ASSERT_TRUE(store_->Put("something", "else", Durability::kBuffered));
  EXPECT_EQ(Open().error().code(), Code::kCorruption);
  EXPECT_EQ(store_->Get("format").error().code(), Code::kNotFound);
}

}  // namespace
}  // namespace dd2
