#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "common/hash.h"
#include "common/result.h"
#include "storage/kv_store.h"

namespace dd2 {

// A teacher sequence: class and the n codebook indices that the teacher drew.
struct TeacherSequence {
  std::int32_t label = 0;
  std::vector<std::uint16_t> tokens;  // n
};

// What the teacher says about a sequence: everything the ground truth score needs at any (x_t, t).
struct TeacherScore {
  std::int32_t tokens = 0;            // n
  std::int32_t width = 0;             // hidden size d
  std::vector<std::uint16_t> hidden;  // [n, d] guided hidden vectors, IEEE half bits
  std::vector<float> threshold;       // [n] lowest kept guided logit, -inf when nothing is filtered
};

// What the cache holds of one sample. Stored together; counted as one.
struct TeacherEntry {
  TeacherSequence sequence;
  TeacherScore score;
};

// All of them count entries. A batch that was read ahead in vain (after a regrouping, before a
// validation) is looked up twice.
struct CacheStats {
  std::int64_t hits = 0;     // look-ups (calls of Find...) that gave what was asked for
  std::int64_t misses = 0;   // look-ups that did not
  std::int64_t corrupt = 0;  // look-ups that met a damaged value, which was dropped
  std::int64_t written = 0;
};

// The score cache of this machine (design 7): one RocksDB per slot under `root` (slot-00, slot-01,
// ...), each owned by one process at a time; the slots of others are followed read-only.
//
// Every value carries an XXH3-128 of itself which is verified on read; a bad entry counts as
// missing and is deleted where this process owns it. Values are immutable: the same key always
// means the same bytes. It never computes a score. One cache object per worker, used by one thread
// at a time; stats() by any.
class ScoreCache {
 public:
  // Takes the first free slot at or after `preferred_slot` (a run beside ours may hold it).
  static Result<std::unique_ptr<ScoreCache>> Open(const std::filesystem::path& root,
                                                  int preferred_slot);
  virtual ~ScoreCache() = default;

  // Each call of the three is one look-up of one entry, whole or the half that is needed. settings:
  // digest of teacher, tokenizer, sampling settings, numeric mode and data seed. kNotFound: never
  // stored, or dropped as corrupt.
  virtual Result<TeacherEntry> FindEntry(const Digest128& settings, std::uint64_t sample) = 0;
  virtual Result<TeacherSequence> FindSequence(const Digest128& settings, std::uint64_t sample) = 0;
  // content: ScoreKey(settings, label, tokens).
  virtual Result<TeacherScore> FindScore(const Digest128& content) = 0;
  // A whole block at once (atomic): sequence and score of samples first .. first + size.
  virtual Status StoreBlock(const Digest128& settings, std::uint64_t first,
                            const std::vector<TeacherSequence>& sequences,
                            const std::vector<TeacherScore>& scores) = 0;
  // Sees what the owners of other slots have written since; opens slots that appeared.
  virtual Status Refresh() = 0;
  virtual CacheStats stats() const = 0;
};

// Key of a score: digest of settings, class and token ids.
Digest128 ScoreKey(const Digest128& settings, const TeacherSequence& sequence);

// Which of `slots` computes (and stores) block `block`: highest random weight of (settings, block,
// slot), so that few blocks move when a slot comes or goes.
int OwnerOfBlock(const Digest128& settings, std::uint64_t block, int slots);

}  // namespace dd2
