#include "worker/engine/teacher_data.h"

#include <gtest/gtest.h>

#include <memory>
#include <numeric>

#include "storage/kv_store.h"
#include "tests/support/tiny_teacher.h"
#include "tests/unit/storage_testing.h"
#include "worker/distill/flow.h"

namespace dd2 {
namespace {

constexpr int kSequences = 24;
constexpr int kBlock = 8;

class TeacherDataTest : public testing::Test {
 protected:
  // A process that begins: nothing in memory, the cache as it lies on the disk.
  void Begin() {
    data_.reset();
    cache_.reset();
    auto cache = ScoreCache::Open(root(), 0);
    ASSERT_TRUE(cache) << cache.error().message();
    cache_ = *std::move(cache);
    TeacherDataSpec spec;
    spec.sequences = kSequences;
    spec.block = kBlock;
    spec.ode_steps = ode_steps_;
    data_ = std::make_unique<TeacherData>(spec, teacher_, cache_.get());
  }
  void EnsureAll() {
    for (int block = 0; block < data_->blocks(); ++block) ASSERT_TRUE(data_->EnsureBlock(block));
  }
  void DropScores(std::size_t count) {
    data_.reset();
    cache_.reset();
    auto store = OpenRocksStore(root() / "slot-00", {false, true});
    ASSERT_TRUE(store);
    std::vector<std::string> keys;
    ASSERT_TRUE((*store)->Scan("c", [&](std::string_view found, std::string_view) {
      keys.emplace_back(found);
      return keys.size() < count;
    }));
    ASSERT_EQ(keys.size(), count);
    for (const std::string& key : keys) ASSERT_TRUE((*store)->Delete(key));
  }
  void Expect(std::int64_t hits, std::int64_t misses, std::int64_t written) const {
    EXPECT_EQ(data_->stats().hits, hits);
    EXPECT_EQ(data_->stats().misses, misses);
    EXPECT_EQ(data_->stats().written, written);
  }
  std::filesystem::path root() const { return folder_.path() / "scores"; }

  const TemporaryFolder folder_;
  int ode_steps_ = 0;
  const TeacherBundle teacher_ = MakeTinyTeacher(5);
  std::unique_ptr<ScoreCache> cache_;
  std::unique_ptr<TeacherData> data_;
};

TEST_F(TeacherDataTest, FiguresCountSequencesWithTheirScores) {
  Begin();
  EnsureAll();
  Expect(0, kSequences, kSequences);  // a cold cache: all missing, all computed, all stored
  ASSERT_TRUE(data_->Load({3, 20, 3}));
  Expect(3, kSequences, kSequences);

  Begin();
  EnsureAll();
  Expect(kSequences, 0, 0);  // a warm one
  ASSERT_TRUE(data_->LoadSequences());
  Expect(kSequences, 0, 0);  // nothing had to be looked up again

  DropScores(1);
  Begin();
  EnsureAll();
  Expect(kSequences - 1, 1, kBlock);  // the teacher works in whole blocks
}

TEST_F(TeacherDataTest, SequencesAloneAreLookedUpOnce) {
  Begin();
  ASSERT_TRUE(data_->LoadSequences());
  Expect(0, kSequences, kSequences);
  Begin();
  ASSERT_TRUE(data_->LoadSequences());
  Expect(kSequences, 0, 0);
}

TEST_F(TeacherDataTest, AScoreThatIsGoneComesBackWithItsBits) {
  std::vector<std::uint64_t> all(kSequences);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = i;
  Begin();
  EnsureAll();
  const auto whole = data_->Load(all);
  ASSERT_TRUE(whole);
  DropScores(1);
  Begin();
  ASSERT_TRUE(data_->LoadSequences());
  const auto again = data_->Load(all);
  ASSERT_TRUE(again);
  EXPECT_TRUE(at::equal(again->logp, whole->logp));
  EXPECT_TRUE(at::equal(again->codes, whole->codes));
  Expect(2 * kSequences - 1, 1, kBlock);
}

// Whatever was expected, a batch is that of its own samples; each look-up is counted.
TEST_F(TeacherDataTest, WhatIsReadAheadIsWhatIsLoaded) {
  Begin();
  EnsureAll();
  const auto calm = data_->Load({3, 20, 7});
  ASSERT_TRUE(calm);
  Begin();
  ASSERT_TRUE(data_->LoadSequences());
  data_->Expect({3, 20, 7});
  const auto expected = data_->Load({3, 20, 7});
  data_->Expect({1, 2});
  const auto surprise = data_->Load({3, 20, 7});
  data_->Expect({5});  // nobody loads it
  for (const auto* batch : {&expected, &surprise}) {
    ASSERT_TRUE(*batch);
    EXPECT_TRUE(at::equal((*batch)->logp, calm->logp));
    EXPECT_TRUE(at::equal((*batch)->codes, calm->codes));
  }
  ASSERT_TRUE(data_->EnsureBlock(0));  // the cache is free again
  Expect(kSequences + 3 + 2 + 3 + 1 + kBlock, 0, 0);
}

// Two of a block: the teacher works once.
TEST_F(TeacherDataTest, ExpectedScoresThatAreGoneComeBack) {
  Begin();
  EnsureAll();
  const auto whole = data_->Load({0, 1, 2, 3, 4, 5, 6, 7});
  ASSERT_TRUE(whole);
  DropScores(kSequences);
  Begin();
  ASSERT_TRUE(data_->LoadSequences());
  data_->Expect({0, 1, 2, 3, 4, 5, 6, 7});
  const auto again = data_->Load({0, 1, 2, 3, 4, 5, 6, 7});
  ASSERT_TRUE(again);
  EXPECT_TRUE(at::equal(again->logp, whole->logp));
  Expect(kSequences, kBlock, kBlock);
}

TEST_F(TeacherDataTest, TrajectoriesAreOtherDataThanDraws) {
  std::vector<std::uint64_t> all(kSequences);
  std::iota(all.begin(), all.end(), std::uint64_t{0});
  Begin();
  EnsureAll();
  const auto drawn = data_->Load(all);
  ASSERT_TRUE(drawn);
  ode_steps_ = 4;
  Begin();
  EnsureAll();
  Expect(0, kSequences, kSequences);  // their entries do not answer for one another
  const auto flowed = data_->Load(all);
  ASSERT_TRUE(flowed);
  EXPECT_TRUE(at::equal(flowed->labels, drawn->labels));
  EXPECT_FALSE(at::equal(flowed->codes, drawn->codes));
}

TEST_F(TeacherDataTest, ASequenceEndsTheFlowOfItsNoise) {
  ode_steps_ = 4;
  Begin();
  ASSERT_TRUE(data_->LoadSequences());
  const auto batch = data_->Load({3, 20});
  ASSERT_TRUE(batch);
  const at::Tensor noise = data_->TrajectoryNoise({3, 20});
  EXPECT_TRUE(noise[1].equal(data_->TrajectoryNoise({20})[0]));
  const at::Tensor& codebook = teacher_.tokenizer->codebook();
  std::int64_t equal = 0;
  const std::int64_t positions = noise.size(1);
  for (std::int64_t i = 0; i < positions; ++i) {
    const at::Tensor tokens = FlowTokens(noise.select(1, i), batch->logp.select(1, i), codebook, 4);
    const at::Tensor codes = codebook.index_select(0, tokens);
    equal += codes.eq(batch->codes.select(1, i)).all(1).sum().item<std::int64_t>();
  }
  // The stored hidden vectors are rounded to half precision: a token on a border may differ.
  EXPECT_GE(equal, 2 * positions - 2);
}

}  // namespace
}  // namespace dd2
