#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "storage/score_cache.h"
#include "storage/sealed.h"
#include "tests/unit/storage_testing.h"

namespace dd2 {
namespace {

const Digest128 kSettings{1, 2};

TeacherSequence SequenceOf(int sample) {
  TeacherSequence sequence;
  sequence.label = sample % 10;
  for (int i = 0; i < 4; ++i) sequence.tokens.push_back(static_cast<std::uint16_t>(sample * 7 + i));
  return sequence;
}

TeacherScore ScoreOf(int sample) {
  TeacherScore score;
  score.tokens = 4;
  score.width = 3;
  for (int i = 0; i < 12; ++i) score.hidden.push_back(static_cast<std::uint16_t>(sample + i));
  score.threshold = {-std::numeric_limits<float>::infinity(), 0.5F, static_cast<float>(sample),
                     -0.0F};
  return score;
}

bool Same(const TeacherScore& a, const TeacherScore& b) {
  return a.tokens == b.tokens && a.width == b.width && a.hidden == b.hidden &&
         a.threshold == b.threshold;
}

Status StoreSamples(ScoreCache& cache, int first, int count) {
  std::vector<TeacherSequence> sequences;
  std::vector<TeacherScore> scores;
  for (int i = first; i < first + count; ++i) {
    sequences.push_back(SequenceOf(i));
    scores.push_back(ScoreOf(i));
  }
  return cache.StoreBlock(kSettings, static_cast<std::uint64_t>(first), sequences, scores);
}

std::unique_ptr<ScoreCache> OpenCache(const std::filesystem::path& root, int slot) {
  auto cache = ScoreCache::Open(root, slot);
  if (!cache) ADD_FAILURE() << cache.error().message();
  return cache ? *std::move(cache) : nullptr;
}

TEST(ScoreCacheTest, ABlockIsFoundAgainAlsoAfterReopening) {
  const TemporaryFolder folder;
  for (int round = 0; round < 2; ++round) {
    auto cache = OpenCache(folder.path() / "scores", 0);
    ASSERT_NE(cache, nullptr);
    if (round == 0) {
      ASSERT_TRUE(StoreSamples(*cache, 100, 5));
    }
    for (int sample = 100; sample < 105; ++sample) {
      const auto sequence = cache->FindSequence(kSettings, static_cast<std::uint64_t>(sample));
      ASSERT_TRUE(sequence) << sequence.error().message();
      EXPECT_EQ(sequence->label, sample % 10);
      EXPECT_EQ(sequence->tokens, SequenceOf(sample).tokens);
      const auto score = cache->FindScore(ScoreKey(kSettings, *sequence));
      ASSERT_TRUE(score) << score.error().message();
      EXPECT_TRUE(Same(*score, ScoreOf(sample)));
      EXPECT_TRUE(std::signbit(score->threshold[3]));
    }
    EXPECT_EQ(cache->FindSequence(kSettings, 105).error().code(), Code::kNotFound);
    EXPECT_EQ(cache->FindSequence(Digest128{1, 3}, 100).error().code(), Code::kNotFound);
    EXPECT_EQ(cache->stats().hits, 10);
    EXPECT_EQ(cache->stats().misses, 2);
    EXPECT_EQ(cache->stats().corrupt, 0);
    EXPECT_EQ(cache->stats().written, round == 0 ? 5 : 0);
  }
}

TEST(ScoreCacheTest, HitsMissesAndWrittenCountEntries) {
  const TemporaryFolder folder;
  const auto root = folder.path() / "scores";
  {
    auto cache = OpenCache(root, 0);
    ASSERT_TRUE(StoreSamples(*cache, 0, 4));
    const auto entry = cache->FindEntry(kSettings, 3);
    ASSERT_TRUE(entry) << entry.error().message();
    EXPECT_EQ(entry->sequence.tokens, SequenceOf(3).tokens);
    EXPECT_TRUE(Same(entry->score, ScoreOf(3)));
    EXPECT_EQ(cache->FindEntry(kSettings, 4).error().code(), Code::kNotFound);
    EXPECT_EQ(cache->stats().hits, 1);
    EXPECT_EQ(cache->stats().misses, 1);
    EXPECT_EQ(cache->stats().written, 4);
  }
  {
    // One loses its score: half an entry is none.
    auto store = OpenRocksStore(root / "slot-00", {false, true});
    std::string key;
    ASSERT_TRUE((*store)->Scan("c", [&](std::string_view found, std::string_view) {
      key = found;
      return false;
    }));
    ASSERT_TRUE((*store)->Delete(key));
  }
  auto cache = OpenCache(root, 0);
  for (std::uint64_t sample = 0; sample < 4; ++sample) {
    static_cast<void>(cache->FindEntry(kSettings, sample));
  }
  EXPECT_EQ(cache->stats().hits, 3);
  EXPECT_EQ(cache->stats().misses, 1);
  EXPECT_EQ(cache->stats().corrupt, 0);
}

TEST(ScoreCacheTest, EveryFlippedByteIsNoticedAndDropped) {
  const TemporaryFolder folder;
  const auto root = folder.path() / "scores";
  ASSERT_TRUE(StoreSamples(*OpenCache(root, 0), 0, 1));
  std::vector<std::pair<std::string, std::string>> good;
  {
    auto store = OpenRocksStore(root / "slot-00", {false, true});
    ASSERT_TRUE(store);
    ASSERT_TRUE((*store)->Scan("", [&](std::string_view key, std::string_view value) {
      if (key != "format") good.emplace_back(key, value);
      return true;
    }));
  }
  ASSERT_EQ(good.size(), 2U);
  for (const auto& [key, value] : good) {
    for (std::size_t at = 0; at < value.size(); ++at) {
      std::string flipped = value;
      flipped[at] = static_cast<char>(flipped[at] ^ 0x01);
      ASSERT_EQ(Unseal(key, flipped).error().code(), Code::kCorruption) << at;
      if (at % 8 != 0 && at + 1 != value.size()) continue;  // the whole way for some of them
      {
        auto store = OpenRocksStore(root / "slot-00", {false, true});
        ASSERT_TRUE((*store)->Put(key, flipped, Durability::kBuffered));
      }
      auto cache = OpenCache(root, 0);
      for (int again = 0; again < 2; ++again) {  // the second time it is simply gone
        const Code code = key[0] == 's'
                              ? cache->FindSequence(kSettings, 0).error().code()
                              : cache->FindScore(ScoreKey(kSettings, SequenceOf(0))).error().code();
        ASSERT_EQ(code, Code::kNotFound) << at;
        ASSERT_EQ(cache->stats().corrupt, 1) << at;
      }
      // What is computed again replaces it.
      ASSERT_TRUE(StoreSamples(*cache, 0, 1));
      ASSERT_TRUE(cache->FindSequence(kSettings, 0));
      ASSERT_TRUE(Same(*cache->FindScore(ScoreKey(kSettings, SequenceOf(0))), ScoreOf(0)));
    }
  }
}

TEST(ScoreCacheTest, AValueUnderAnotherKeyIsNoticed) {
  const TemporaryFolder folder;
  const auto root = folder.path() / "scores";
  ASSERT_TRUE(StoreSamples(*OpenCache(root, 0), 0, 2));
  {
    auto store = OpenRocksStore(root / "slot-00", {false, true});
    std::vector<std::pair<std::string, std::string>> sequences;
    ASSERT_TRUE((*store)->Scan("s", [&](std::string_view key, std::string_view value) {
      sequences.emplace_back(key, value);
      return true;
    }));
    ASSERT_EQ(sequences.size(), 2U);
    ASSERT_TRUE((*store)->Put(sequences[0].first, sequences[1].second, Durability::kBuffered));
  }
  auto cache = OpenCache(root, 0);
  EXPECT_EQ(cache->FindSequence(kSettings, 0).error().code(), Code::kNotFound);
  EXPECT_EQ(cache->stats().corrupt, 1);
}

TEST(ScoreCacheTest, ASlotThatDoesNotOpenIsMovedAside) {
  const TemporaryFolder folder;
  const auto root = folder.path() / "scores";
  ASSERT_TRUE(StoreSamples(*OpenCache(root, 0), 0, 1));
  for (const auto& entry : std::filesystem::directory_iterator(root / "slot-00")) {
    if (entry.path().filename().string().starts_with("MANIFEST")) WriteAll(entry.path(), "junk");
  }
  auto cache = OpenCache(root, 0);
  ASSERT_NE(cache, nullptr);
  EXPECT_EQ(cache->FindSequence(kSettings, 0).error().code(), Code::kNotFound);
  EXPECT_TRUE(std::filesystem::exists(root / "slot-00.bad-1"));
  EXPECT_TRUE(StoreSamples(*cache, 0, 1));
  EXPECT_TRUE(cache->FindSequence(kSettings, 0));
}

TEST(ScoreCacheTest, SlotsOfOthersAreFollowed) {
  const TemporaryFolder folder;
  auto first = OpenCache(folder.path(), 0);
  auto second = OpenCache(folder.path(), 0);  // busy: takes the next
  ASSERT_NE(second, nullptr);
  EXPECT_TRUE(std::filesystem::exists(folder.path() / "slot-01" / "CURRENT"));
  ASSERT_TRUE(StoreSamples(*first, 0, 3));
  ASSERT_TRUE(StoreSamples(*second, 3, 3));
  EXPECT_EQ(first->FindSequence(kSettings, 4).error().code(), Code::kNotFound);
  ASSERT_TRUE(first->Refresh());
  ASSERT_TRUE(second->Refresh());
  for (int sample = 0; sample < 6; ++sample) {
    EXPECT_TRUE(first->FindSequence(kSettings, static_cast<std::uint64_t>(sample))) << sample;
    EXPECT_TRUE(Same(*second->FindScore(ScoreKey(kSettings, SequenceOf(sample))), ScoreOf(sample)));
  }
}

TEST(ScoreCacheTest, ScoreKeysDifferInEveryPart) {
  const TeacherSequence sequence = SequenceOf(1);
  const Digest128 key = ScoreKey(kSettings, sequence);
  EXPECT_EQ(key, ScoreKey(kSettings, SequenceOf(1)));
  EXPECT_NE(key, ScoreKey(Digest128{2, 2}, sequence));
  TeacherSequence label = sequence;
  label.label += 1;
  EXPECT_NE(key, ScoreKey(kSettings, label));
  TeacherSequence token = sequence;
  token.tokens[3] += 1;
  EXPECT_NE(key, ScoreKey(kSettings, token));
}

TEST(ScoreCacheTest, FewBlocksMoveWhenASlotComes) {
  int moved = 0;
  std::vector<int> counts(4);
  for (std::uint64_t block = 0; block < 4000; ++block) {
    const int before = OwnerOfBlock(kSettings, block, 3);
    const int after = OwnerOfBlock(kSettings, block, 4);
    ++counts[static_cast<std::size_t>(after)];
    if (before != after) {
      EXPECT_EQ(after, 3);  // never between two old ones
      ++moved;
    }
  }
  EXPECT_NEAR(moved, 1000, 150);
  for (const int count : counts) EXPECT_NEAR(count, 1000, 150);
  EXPECT_EQ(OwnerOfBlock(kSettings, 5, 1), 0);
}

}  // namespace
}  // namespace dd2
