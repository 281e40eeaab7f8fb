#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <utility>

#include "common/result.h"
#include "worker/engine/frechet.h"
#include "worker/parallel/collectives.h"
#include "worker/torch.h"

namespace dd2 {

// The quality figures of ADM's evaluation suite (Dhariwal and Nichol 2021; evaluations/evaluator.py
// of openai/guided-diffusion; models.md 6.1), from features of images. FID and sFID are
// FrechetDistance (frechet.h) of pooled and of spatial features. Images are taken in blocks of
// kAdmBlock in their order; a rank owns a contiguous range of blocks, and nothing that is summed
// depends on where the ranges are cut: any number of ranks gives the same bits.

inline constexpr std::int64_t kAdmBlock = 250;

// Blocks [begin, end) that a rank owns.
struct BlockRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};
BlockRange BlocksOfRank(std::int64_t count, const Collectives& collectives);

// Mean and covariance of rows that come in blocks and are not kept: each block's own statistics in
// double precision, combined pairwise in a fixed binary tree over the blocks. Holds one [D, D]
// matrix for each level of the tree.
class StreamedStats {
 public:
  StreamedStats(std::int64_t count, std::int64_t width);
  // rows [kAdmBlock, D], the last block [rest, D]. Every block once, by whichever rank.
  void AddBlock(std::int64_t block, const at::Tensor& rows);
  // The statistics of all blocks of all ranks, on every rank. Collective.
  Result<FeatureStats> Finish(Collectives& collectives);

 private:
  struct Node {
    std::int64_t count = 0;
    at::Tensor mean;      // [D]
    at::Tensor products;  // [D, D]: sum of outer products of deviations from the mean
  };
  using Place = std::pair<std::int64_t, std::int64_t>;  // level (0: a block), index in the level
  std::int64_t NodesIn(std::int64_t level) const;
  std::int64_t RowsUnder(const Place& place) const;
  void Insert(Place place, Node node);
  Status Exchange(Collectives& collectives);

  std::int64_t count_;
  std::int64_t width_;
  std::map<Place, Node> nodes_;  // those whose sibling is missing so far
};

// What the figures need of a set of images.
struct AdmSet {
  at::Tensor pool;  // [N, D] fp32
  FeatureStats pool_stats;
  FeatureStats spatial_stats;
  std::int64_t count() const { return pool.size(0); }
};
struct AdmFeatures {
  at::Tensor pool;     // [B, D] fp32
  at::Tensor spatial;  // [B, S] fp32
};
// Features of images [begin, end), one block. Called with rising blocks.
using AdmSource = std::function<Result<AdmFeatures>(std::int64_t begin, std::int64_t end)>;
// N = count >= 2 images. Collective: every rank computes its blocks and gets the whole set. An
// error of the source on one rank ends it on all.
Result<AdmSet> CollectAdmSet(std::int64_t count, std::int64_t pool_width,
                             std::int64_t spatial_width, const AdmSource& source,
                             Collectives& collectives);

struct InceptionScoreResult {
  double mean = 0;
  double deviation = 0;  // standard deviation over the splits
};
// Images per split: 50,000 images are the 10 splits of the published figures. ADM's evaluator fixes
// this number and not the number of splits; the last split may be shorter.
inline constexpr std::int64_t kScoreSplit = 5000;
// exp of the mean KL divergence of a split's class probabilities to their mean, averaged over the
// splits. Probabilities are the softmax of pool [N, D] times weight^T [D, C], without bias.
InceptionScoreResult InceptionScore(const at::Tensor& pool, const at::Tensor& weight,
                                    std::int64_t split = kScoreSplit);

struct PrecisionRecallResult {
  double precision = 0;  // share of the samples inside the ball of some reference image
  double recall = 0;     // share of the reference images inside the ball of some sample
};
// Improved precision and recall (Kynkaanniemi et al. 2019): the ball of a vector reaches to its
// third neighbour in its own set. reference [M, D], samples [N, D] fp32, M and N >= 4. Distances in
// fp32 (ADM's evaluator takes fp16 where it does not overflow). Collective: every rank holds both
// sets and computes the rows of its blocks.
Result<PrecisionRecallResult> PrecisionRecall(const at::Tensor& reference,
                                              const at::Tensor& samples, Collectives& collectives);

}  // namespace dd2
