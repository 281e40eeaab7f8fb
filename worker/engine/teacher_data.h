#pragma once

#include <cstdint>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "common/hash.h"
#include "common/result.h"
#include "common/rng.h"
#include "common/run_config.h"
#include "storage/score_cache.h"
#include "worker/models/teacher.h"

namespace dd2 {

// What a data set of teacher sequences is made from; its digest is the cache's settings key.
struct TeacherDataSpec {
  TeacherConfig sampling;
  std::uint64_t seed = 0;
  std::uint32_t phase = 0;  // index of the sample phase: part of the random position
  int sequences = 0;        // a multiple of block
  int block = 0;            // sequences computed together, always with the same shapes
  int ode_steps = 0;        // > 0: tokens follow the flow (FlowTokens) from TrajectoryNoise
  bool use_cache = true;
  std::string numeric_mode;  // threads, precision, library versions: other modes, other bits
};

// The sequences that the teacher drew and what it said about them. A block of sequences is always
// computed with the same shapes, so a recomputed entry has the bits of the stored one (design 7).
// Everything goes through the score cache; without it (use_cache = false) sequences are kept in
// memory and the teacher is asked again for every batch. Compute thread only.
class TeacherData {
 public:
  // The cache may be null when use_cache is false. Keeps references: teacher outlives this.
  TeacherData(TeacherDataSpec spec, const TeacherBundle& teacher, ScoreCache* cache);

  int blocks() const { return spec_.sequences / spec_.block; }
  int size() const { return spec_.sequences; }
  const Digest128& settings() const { return settings_; }
  // Makes sure that the cache holds block `block`: looks every entry up (verified), computes the
  // whole block when one is missing.
  Status EnsureBlock(int block);
  // Makes every sequence known to this process (from the cache, or computed where it lacks them).
  Status LoadSequences();

  // A batch of sequences by index: tokens and labels, and the teacher's filtered guided logits.
  struct Batch {
    at::Tensor codes;   // q [B, n, C], standardised codebook vectors
    at::Tensor labels;  // [B] int64
    at::Tensor logp;    // [B, n, V] unnormalised
  };
  // LoadSequences() first. A missing or damaged entry is recomputed with its block.
  Result<Batch> Load(const std::vector<std::uint64_t>& samples);
  // The next Load will be of these: a thread of its own reads what the cache has of them meanwhile.
  void Expect(std::vector<std::uint64_t> samples);
  // Only tokens and labels.
  Result<std::pair<at::Tensor, at::Tensor>> Tokens(const std::vector<std::uint64_t>& samples);

  // Where the flow of each sequence began [B, n, C]: by position, nothing is stored.
  at::Tensor TrajectoryNoise(const std::vector<std::uint64_t>& samples) const;

  // Look-ups of this process so far; zeros without a cache.
  CacheStats stats() const;

 private:
  struct Block {
    std::vector<TeacherSequence> sequences;
    std::vector<TeacherScore> scores;
  };
  RngKey Key(RngUse use, std::uint64_t sample) const;
  Block Compute(int block) const;
  // Sequences [first, first + B) of the data set; labels [B].
  SampledBlock Draw(std::uint64_t first, const at::Tensor& labels) const;
  // The cache, once nothing is read ahead any more: it is one thread's at a time.
  ScoreCache& Cache();
  // Computes, stores and remembers a block; its scores.
  Result<std::vector<TeacherScore>> Recompute(int block);
  // From the cache, or computed again where it lacks them.
  Result<std::vector<TeacherScore>> Scores(const std::vector<std::uint64_t>& samples);
  at::Tensor LogitsOf(const std::vector<TeacherScore>& scores) const;

  const TeacherDataSpec spec_;
  const TeacherBundle& teacher_;
  ScoreCache* cache_;
  Digest128 settings_;
  std::vector<TeacherSequence> sequences_;  // [size] once known; tokens empty: not known
  std::vector<std::uint64_t> expected_;     // samples of `ahead_`
  std::future<std::vector<Result<TeacherScore>>> ahead_;  // last: ends before what it reads from
};

}  // namespace dd2
