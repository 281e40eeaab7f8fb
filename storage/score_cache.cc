#include "storage/score_cache.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <system_error>
#include <utility>

#include "common/check.h"
#include "common/file.h"
#include "proto/records.pb.h"
#include "storage/sealed.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kFormat = "dd2-score-cache 1";
constexpr int kSlotsMax = 64;

std::string TwoDigits(int number) { return (number < 10 ? "0" : "") + std::to_string(number); }
std::string SlotName(int slot) { return "slot-" + TwoDigits(slot); }

std::string SequenceKey(const Digest128& settings, std::uint64_t sample) {
  std::string key = "s";
  AppendDigest(key, settings);
  AppendBigEndian(key, sample);
  return key;
}

std::string ScoreEntryKey(const Digest128& content) {
  std::string key = "c";
  AppendDigest(key, content);
  return key;
}

template <class T>
std::string ToBytes(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

template <class T>
std::vector<T> FromBytes(std::string_view bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

std::string EncodeSequence(const TeacherSequence& sequence) {
  proto::SequenceRecord record;
  record.set_label(sequence.label);
  record.set_tokens(ToBytes(sequence.tokens));
  return record.SerializeAsString();
}

// Nothing when the payload is not a sequence.
std::optional<TeacherSequence> DecodeSequence(std::string_view payload) {
  proto::SequenceRecord record;
  if (!record.ParseFromArray(payload.data(), static_cast<int>(payload.size())) ||
      record.tokens().size() % sizeof(std::uint16_t) != 0) {
    return std::nullopt;
  }
  return TeacherSequence{record.label(), FromBytes<std::uint16_t>(record.tokens())};
}

std::string EncodeScore(const TeacherScore& score) {
  proto::ScoreRecord record;
  record.set_tokens(score.tokens);
  record.set_width(score.width);
  record.set_hidden_fp16(ToBytes(score.hidden));
  record.set_threshold_fp32(ToBytes(score.threshold));
  return record.SerializeAsString();
}

// Nothing when the payload is not a score with arrays of the sizes it says.
std::optional<TeacherScore> DecodeScore(std::string_view payload) {
  proto::ScoreRecord record;
  if (!record.ParseFromArray(payload.data(), static_cast<int>(payload.size())) ||
      record.tokens() < 0 || record.width() < 0) {
    return std::nullopt;
  }
  const auto tokens = static_cast<std::uint64_t>(record.tokens());
  const auto width = static_cast<std::uint64_t>(record.width());
  if (record.hidden_fp16().size() != tokens * width * sizeof(std::uint16_t) ||
      record.threshold_fp32().size() != tokens * sizeof(float)) {
    return std::nullopt;
  }
  TeacherScore score;
  score.tokens = record.tokens();
  score.width = record.width();
  score.hidden = FromBytes<std::uint16_t>(record.hidden_fp16());
  score.threshold = FromBytes<float>(record.threshold_fp32());
  return score;
}

class RocksScoreCache : public ScoreCache {
 public:
  RocksScoreCache(fs::path root, int slot, std::unique_ptr<KvStore> own)
      : root_(std::move(root)), slot_(slot), own_(std::move(own)) {}

  Result<TeacherEntry> FindEntry(const Digest128& settings, std::uint64_t sample) override {
    std::optional<TeacherEntry> entry;
    if (auto sequence = Find<TeacherSequence>(SequenceKey(settings, sample), DecodeSequence)) {
      const std::string key = ScoreEntryKey(ScoreKey(settings, *sequence));
      if (auto score = Find<TeacherScore>(key, DecodeScore)) {
        entry = TeacherEntry{*std::move(sequence), *std::move(score)};
      }
    }
    return Counted(std::move(entry));
  }
  Result<TeacherSequence> FindSequence(const Digest128& settings, std::uint64_t sample) override {
    return Counted(Find<TeacherSequence>(SequenceKey(settings, sample), DecodeSequence));
  }
  Result<TeacherScore> FindScore(const Digest128& content) override {
    return Counted(Find<TeacherScore>(ScoreEntryKey(content), DecodeScore));
  }

  Status StoreBlock(const Digest128& settings, std::uint64_t first,
                    const std::vector<TeacherSequence>& sequences,
                    const std::vector<TeacherScore>& scores) override {
    DD2_CHECK(sequences.size() == scores.size());
    std::vector<std::pair<std::string, std::string>> entries;
    const auto add = [&entries](std::string key, const std::string& payload) {
      std::string value = Seal(key, payload);
      entries.emplace_back(std::move(key), std::move(value));
    };
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      DD2_CHECK(scores[i].hidden.size() == static_cast<std::size_t>(scores[i].tokens) *
                                               static_cast<std::size_t>(scores[i].width));
      DD2_CHECK(scores[i].threshold.size() == static_cast<std::size_t>(scores[i].tokens));
      add(SequenceKey(settings, first + i), EncodeSequence(sequences[i]));
      add(ScoreEntryKey(ScoreKey(settings, sequences[i])), EncodeScore(scores[i]));
    }
    DD2_TRY(own_->PutAll(entries, Durability::kBuffered));
    Count(&CacheStats::written, static_cast<std::int64_t>(sequences.size()));
    return {};
  }

  Status Refresh() override {
    for (auto& [slot, follower] : followers_) {
      // One that fails is opened anew below.
      if (!follower->CatchUp()) follower.reset();
    }
    std::erase_if(followers_, [](const auto& each) { return each.second == nullptr; });
    for (int slot = 0; slot < kSlotsMax; ++slot) {
      std::error_code ignored;
      const fs::path folder = root_ / SlotName(slot);
      if (slot == slot_ || followers_.contains(slot) || !fs::exists(folder / "CURRENT", ignored)) {
        continue;
      }
      // Its owner may be in the middle of creating it: the next Refresh will find it.
      auto follower = OpenRocksFollower(folder);
      if (follower && (*follower)->Get("format")) followers_.emplace(slot, *std::move(follower));
    }
    return {};
  }

  CacheStats stats() const override {
    const std::lock_guard lock(stats_mutex_);
    return stats_;
  }

 private:
  void Count(std::int64_t CacheStats::*what, std::int64_t times) {
    const std::lock_guard lock(stats_mutex_);
    stats_.*what += times;
  }

  // The end of one look-up.
  template <class T>
  Result<T> Counted(std::optional<T> found) {
    if (damaged_) Count(&CacheStats::corrupt, 1);
    damaged_ = false;
    Count(found ? &CacheStats::hits : &CacheStats::misses, 1);
    if (found) return *std::move(found);
    return Error(Code::kNotFound, "not in the score cache");
  }

  template <class T, class Decode>
  std::optional<T> Find(const std::string& key, const Decode& decode) {
    if (auto value = FindIn<T>(*own_, key, decode)) return value;
    for (auto& [slot, follower] : followers_) {
      if (auto value = FindIn<T>(*follower, key, decode)) return value;
    }
    return std::nullopt;
  }

  // Any failure to read is a miss: what is missing is computed again with the same bits.
  template <class T, class Decode>
  std::optional<T> FindIn(KvStore& store, const std::string& key, const Decode& decode) {
    const auto sealed = store.Get(key);
    if (!sealed && sealed.error().code() != Code::kCorruption) return std::nullopt;
    if (sealed) {
      if (const auto payload = Unseal(key, *sealed)) {
        if (auto value = decode(*payload)) return value;
      }
    }
    damaged_ = true;
    // The next StoreBlock writes it anew; if the deletion fails it is found bad again, no more.
    if (&store == own_.get()) static_cast<void>(own_->Delete(key));
    return std::nullopt;
  }

  const fs::path root_;
  const int slot_;
  const std::unique_ptr<KvStore> own_;
  std::map<int, std::unique_ptr<KvStore>> followers_;  // by slot
  mutable std::mutex stats_mutex_;
  CacheStats stats_;
  bool damaged_ = false;  // by the look-up that is under way
};

// A cache that does not open is worth less than its place: keeps it for a look and starts empty.
Status MoveAside(const fs::path& folder) {
  for (int number = 1; number < 1000; ++number) {
    const fs::path aside = folder.string() + ".bad-" + std::to_string(number);
    std::error_code ignored;
    if (!fs::exists(aside, ignored)) return RealFileSystem().Rename(folder, aside);
  }
  return Error(Code::kFailedPrecondition,
               "too many damaged copies of " + folder.string() + ": remove them");
}

Result<std::unique_ptr<KvStore>> OpenSlot(const fs::path& folder) {
  RocksOptions options;
  options.blob_files = true;
  DD2_TRY_ASSIGN(std::unique_ptr<KvStore> store, OpenRocksStore(folder, options));
  if (auto claimed = ClaimFormat(*store, kFormat); !claimed) {
    return claimed.error().Wrap(folder.string());
  }
  return store;
}

}  // namespace

Result<std::unique_ptr<ScoreCache>> ScoreCache::Open(const fs::path& root, int preferred_slot) {
  DD2_CHECK(preferred_slot >= 0 && preferred_slot < kSlotsMax);
  DD2_TRY(RealFileSystem().MakeDirectories(root));
  for (int tried = 0; tried < kSlotsMax; ++tried) {
    const int slot = (preferred_slot + tried) % kSlotsMax;
    const fs::path folder = root / SlotName(slot);
    auto store = OpenSlot(folder);
    if (!store && store.error().code() == Code::kCorruption) {
      DD2_TRY(MoveAside(folder));
      store = OpenSlot(folder);
    }
    if (!store && store.error().code() == Code::kUnavailable) continue;
    if (!store) return store.error();
    auto cache = std::make_unique<RocksScoreCache>(root, slot, *std::move(store));
    DD2_TRY(cache->Refresh());
    return std::unique_ptr<ScoreCache>(std::move(cache));
  }
  return Error(Code::kUnavailable, "all " + std::to_string(kSlotsMax) + " slots of " +
                                       root.string() + " are open in other processes");
}

Digest128 ScoreKey(const Digest128& settings, const TeacherSequence& sequence) {
  Hasher128 hasher;
  std::string bytes;
  AppendDigest(bytes, settings);
  hasher.Update(bytes);
  hasher.UpdateInt(static_cast<std::uint64_t>(sequence.label));
  hasher.UpdateInt(sequence.tokens.size());
  hasher.Update(std::as_bytes(std::span(sequence.tokens)));
  return hasher.Finish();
}

int OwnerOfBlock(const Digest128& settings, std::uint64_t block, int slots) {
  DD2_CHECK(slots > 0);
  int owner = 0;
  Digest128 best;
  for (int slot = 0; slot < slots; ++slot) {
    Hasher128 hasher;
    hasher.UpdateInt(settings.high);
    hasher.UpdateInt(settings.low);
    hasher.UpdateInt(block);
    hasher.UpdateInt(static_cast<std::uint64_t>(slot));
    if (const Digest128 weight = hasher.Finish(); slot == 0 || weight > best) {
      best = weight;
      owner = slot;
    }
  }
  return owner;
}

}  // namespace dd2
