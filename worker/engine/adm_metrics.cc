#include "worker/engine/adm_metrics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "common/check.h"

namespace dd2 {
namespace {

constexpr std::int64_t kNeighbour = 3;
constexpr std::int64_t kScoreRows = 500;  // images whose probabilities are held at once

std::span<const std::byte> AsBytes(const at::Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()};
}
std::span<std::byte> AsWritableBytes(at::Tensor& tensor) {
  return {static_cast<std::byte*>(tensor.mutable_data_ptr()), tensor.nbytes()};
}

std::int64_t BlocksIn(std::int64_t rows) { return (rows + kAdmBlock - 1) / kAdmBlock; }

BlockRange RangeOf(std::int64_t blocks, std::int64_t rank, std::int64_t world) {
  return {.begin = blocks * rank / world, .end = blocks * (rank + 1) / world};
}

// Rows [begin, end) of blocks [range.begin, range.end) of `count` rows.
std::pair<std::int64_t, std::int64_t> RowsOf(const BlockRange& range, std::int64_t count) {
  return {std::min(count, range.begin * kAdmBlock), std::min(count, range.end * kAdmBlock)};
}

// Whether all ranks are well; the error of those that are not.
Status AgreeOn(const Status& mine, Collectives& collectives) {
  const std::byte failed{static_cast<unsigned char>(mine ? 0 : 1)};
  std::vector<std::byte> all(static_cast<std::size_t>(collectives.world_size()));
  DD2_TRY(collectives.AllGather(std::span(&failed, 1), all));
  if (!mine) return mine.error();
  const auto other = std::ranges::find(all, std::byte{1});
  if (other == all.end()) return {};
  return Error(Code::kUnavailable,
               "rank " + std::to_string(other - all.begin()) +
                   " could not do its part of the evaluation: its log says why");
}

// `mine` [rows of this rank's blocks, ...] of a tensor of `count` rows -> all of them.
Result<at::Tensor> GatherRows(const at::Tensor& mine, std::int64_t count,
                              Collectives& collectives) {
  const std::int64_t world = collectives.world_size();
  if (world == 1) return mine;  // no copies of what may be large
  const std::int64_t blocks = BlocksIn(count);
  const std::int64_t most = (blocks + world - 1) / world * kAdmBlock;
  std::vector<std::int64_t> shape = mine.sizes().vec();
  shape[0] = most;
  at::Tensor padded = at::zeros(shape, mine.options());
  padded.narrow(0, 0, mine.size(0)).copy_(mine);
  shape.insert(shape.begin(), world);
  at::Tensor all = at::empty(shape, mine.options());
  DD2_TRY(collectives.AllGather(AsBytes(padded), AsWritableBytes(all)));
  std::vector<at::Tensor> parts;
  for (std::int64_t rank = 0; rank < world; ++rank) {
    const auto [begin, end] = RowsOf(RangeOf(blocks, rank, world), count);
    parts.push_back(all[rank].narrow(0, 0, end - begin));
  }
  return at::cat(parts);
}

}  // namespace

BlockRange BlocksOfRank(std::int64_t count, const Collectives& collectives) {
  return RangeOf(BlocksIn(count), collectives.rank(), collectives.world_size());
}

StreamedStats::StreamedStats(std::int64_t count, std::int64_t width)
    : count_(count), width_(width) {
  DD2_CHECK(count >= 2 && width >= 1);
}

std::int64_t StreamedStats::NodesIn(std::int64_t level) const {
  return ((BlocksIn(count_) - 1) >> level) + 1;
}

std::int64_t StreamedStats::RowsUnder(const Place& place) const {
  const std::int64_t rows = kAdmBlock << place.first;
  return std::min(count_, (place.second + 1) * rows) - place.second * rows;
}

void StreamedStats::AddBlock(std::int64_t block, const at::Tensor& rows) {
  DD2_CHECK(rows.dim() == 2 && rows.size(1) == width_ && rows.size(0) == RowsUnder({0, block}));
  const at::Tensor x = rows.to(at::kDouble);
  Node node{.count = x.size(0), .mean = x.mean(0), .products = {}};
  const at::Tensor centred = x - node.mean;
  node.products = centred.t().matmul(centred);
  Insert({0, block}, std::move(node));
}

// Climbs as long as the sibling is there (or there is none): a node's value depends only on what is
// under it, not on who arrives when.
void StreamedStats::Insert(Place place, Node node) {
  while (NodesIn(place.first) > 1) {
    const Place sibling{place.first, place.second ^ 1};
    if (sibling.second < NodesIn(place.first)) {
      const auto found = nodes_.find(sibling);
      if (found == nodes_.end()) break;
      Node other = std::move(found->second);
      nodes_.erase(found);
      if (sibling.second < place.second) std::swap(node, other);
      // Chan, Golub and LeVeque 1979.
      const auto total = static_cast<double>(node.count + other.count);
      const double share = static_cast<double>(other.count) / total;
      const at::Tensor shift = other.mean - node.mean;
      node.products.add_(other.products);
      node.products.addr_(shift, shift, 1.0, static_cast<double>(node.count) * share);
      node.mean = node.mean + shift * share;
      node.count += other.count;
    }
    place = {place.first + 1, place.second / 2};
  }
  const bool inserted = nodes_.emplace(place, std::move(node)).second;
  DD2_CHECK(inserted);
}

// One node of each rank at a time, so that memory stays small.
Status StreamedStats::Exchange(Collectives& collectives) {
  const auto world = static_cast<std::size_t>(collectives.world_size());
  const auto mine = static_cast<std::int64_t>(nodes_.size());
  std::vector<std::int64_t> counts(world);
  DD2_TRY(collectives.AllGather(std::as_bytes(std::span(&mine, 1)),
                                std::as_writable_bytes(std::span(counts))));
  const std::map<Place, Node> own = std::exchange(nodes_, {});
  auto next = own.begin();
  const std::int64_t rounds = *std::ranges::max_element(counts);
  const std::int64_t numbers = width_ + width_ * width_;
  for (std::int64_t round = 0; round < rounds; ++round) {
    std::array<std::int64_t, 2> place{};
    at::Tensor values = at::zeros({numbers}, at::kDouble);
    if (next != own.end()) {
      place = {next->first.first, next->first.second};
      values.narrow(0, 0, width_).copy_(next->second.mean);
      values.narrow(0, width_, width_ * width_).copy_(next->second.products.flatten());
      ++next;
    }
    std::vector<std::array<std::int64_t, 2>> places(world);
    DD2_TRY(collectives.AllGather(std::as_bytes(std::span(place)),
                                  std::as_writable_bytes(std::span(places))));
    at::Tensor all = at::empty({static_cast<std::int64_t>(world), numbers}, at::kDouble);
    DD2_TRY(collectives.AllGather(AsBytes(values), AsWritableBytes(all)));
    for (std::size_t rank = 0; rank < world; ++rank) {
      if (round >= counts[rank]) continue;
      const at::Tensor row = all[static_cast<std::int64_t>(rank)];
      const Place from{places[rank][0], places[rank][1]};
      Insert(from,
             {.count = RowsUnder(from),
              .mean = row.narrow(0, 0, width_).clone(),
              .products = row.narrow(0, width_, width_ * width_).clone().view({width_, width_})});
    }
  }
  return {};
}

Result<FeatureStats> StreamedStats::Finish(Collectives& collectives) {
  if (collectives.world_size() > 1) DD2_TRY(Exchange(collectives));
  DD2_CHECK_MSG(nodes_.size() == 1 && NodesIn(nodes_.begin()->first.first) == 1,
                "a block is missing");
  const Node& root = nodes_.begin()->second;
  return FeatureStats{.mean = root.mean,
                      .covariance = root.products / static_cast<double>(root.count - 1),
                      .count = root.count};
}

Result<AdmSet> CollectAdmSet(std::int64_t count, std::int64_t pool_width,
                             std::int64_t spatial_width, const AdmSource& source,
                             Collectives& collectives) {
  const at::NoGradGuard no_grad;
  const BlockRange range = BlocksOfRank(count, collectives);
  const std::pair<std::int64_t, std::int64_t> rows = RowsOf(range, count);
  at::Tensor pool = at::empty({rows.second - rows.first, pool_width}, at::kFloat);
  StreamedStats pool_stats(count, pool_width);
  StreamedStats spatial_stats(count, spatial_width);
  const auto add_block = [&](std::int64_t block) -> Status {
    const std::int64_t begin = block * kAdmBlock;
    const std::int64_t end = std::min(count, begin + kAdmBlock);
    DD2_TRY_ASSIGN(const AdmFeatures features, source(begin, end));
    pool.narrow(0, begin - rows.first, end - begin).copy_(features.pool);
    pool_stats.AddBlock(block, features.pool);
    spatial_stats.AddBlock(block, features.spatial);
    return {};
  };
  Status made;
  // After each block all wait for each other: an error, or a rank that is lost, is noticed soon.
  const std::int64_t world = collectives.world_size();
  const std::int64_t rounds = (BlocksIn(count) + world - 1) / world;
  for (std::int64_t round = 0; round < rounds; ++round) {
    const std::int64_t block = range.begin + round;
    if (block < range.end) made = add_block(block);
    DD2_TRY(AgreeOn(made, collectives));
  }
  AdmSet set;
  DD2_TRY_ASSIGN(set.pool, GatherRows(pool, count, collectives));
  DD2_TRY_ASSIGN(set.pool_stats, pool_stats.Finish(collectives));
  DD2_TRY_ASSIGN(set.spatial_stats, spatial_stats.Finish(collectives));
  return set;
}

InceptionScoreResult InceptionScore(const at::Tensor& pool, const at::Tensor& weight,
                                    std::int64_t split) {
  DD2_CHECK(pool.dim() == 2 && weight.dim() == 2 && pool.size(1) == weight.size(1));
  const at::NoGradGuard no_grad;
  std::vector<double> scores;
  for (std::int64_t begin = 0; begin < pool.size(0); begin += split) {
    const std::int64_t end = std::min(pool.size(0), begin + split);
    at::Tensor sum = at::zeros({weight.size(0)}, at::kDouble);
    double negative_entropy = 0;  // sum over the split of sum_c p log p
    for (std::int64_t row = begin; row < end; row += kScoreRows) {
      const at::Tensor rows = pool.narrow(0, row, std::min(end - row, kScoreRows));
      const at::Tensor logs = rows.matmul(weight.t()).to(at::kDouble).log_softmax(1);
      const at::Tensor shares = logs.exp();
      sum += shares.sum(0);
      negative_entropy += (shares * logs).sum().item<double>();
    }
    // The mean of sum_c p (log p - log q), where q is the mean of p.
    const at::Tensor mean = sum / static_cast<double>(end - begin);
    const double cross = at::xlogy(mean, mean).sum().item<double>();
    scores.push_back(std::exp(negative_entropy / static_cast<double>(end - begin) - cross));
  }
  InceptionScoreResult result;
  const auto splits = static_cast<double>(scores.size());
  for (const double score : scores) result.mean += score / splits;
  double squares = 0;
  for (const double score : scores) squares += (score - result.mean) * (score - result.mean);
  result.deviation = std::sqrt(squares / splits);
  return result;
}

namespace {

// Squared distances [A, B] of the rows of a and b.
at::Tensor SquaredDistances(const at::Tensor& a, const at::Tensor& b, const at::Tensor& b_squares) {
  at::Tensor distances = at::addmm(b_squares, a, b.t(), 1.0, -2.0);
  return distances.add_(a.square().sum(1, /*keepdim=*/true)).clamp_min_(0);
}

// Squared distance of every row to its third neighbour among the others: [N].
Result<at::Tensor> Radii(const at::Tensor& features, Collectives& collectives) {
  const std::int64_t count = features.size(0);
  const at::Tensor squares = features.square().sum(1);
  const BlockRange range = BlocksOfRank(count, collectives);
  const auto [first, last] = RowsOf(range, count);
  at::Tensor mine = at::empty({last - first}, at::kFloat);
  for (std::int64_t begin = first; begin < last; begin += kAdmBlock) {
    const std::int64_t rows = std::min(last - begin, kAdmBlock);
    const at::Tensor distances =
        SquaredDistances(features.narrow(0, begin, rows), features, squares);
    // The row itself is the nearest.
    const at::Tensor nearest = std::get<0>(distances.topk(kNeighbour + 1, 1, /*largest=*/false));
    mine.narrow(0, begin - first, rows).copy_(nearest.select(1, kNeighbour));
  }
  return GatherRows(mine, count, collectives);
}

double ShareSet(const at::Tensor& flags) { return flags.to(at::kDouble).mean().item<double>(); }

}  // namespace

Result<PrecisionRecallResult> PrecisionRecall(const at::Tensor& reference,
                                              const at::Tensor& samples, Collectives& collectives) {
  DD2_CHECK(reference.dim() == 2 && samples.dim() == 2 && reference.size(1) == samples.size(1));
  DD2_CHECK(reference.size(0) > kNeighbour && samples.size(0) > kNeighbour);
  const at::NoGradGuard no_grad;
  DD2_TRY_ASSIGN(const at::Tensor reference_radii, Radii(reference, collectives));
  DD2_TRY_ASSIGN(const at::Tensor sample_radii, Radii(samples, collectives));
  const at::Tensor squares = reference.square().sum(1);
  const std::int64_t count = samples.size(0);
  const auto [first, last] = RowsOf(BlocksOfRank(count, collectives), count);
  at::Tensor inside = at::zeros({last - first}, at::kByte);
  at::Tensor covered = at::zeros({1, reference.size(0)}, at::kByte);
  for (std::int64_t begin = first; begin < last; begin += kAdmBlock) {
    const std::int64_t rows = std::min(last - begin, kAdmBlock);
    const at::Tensor distances =
        SquaredDistances(samples.narrow(0, begin, rows), reference, squares);
    inside.narrow(0, begin - first, rows).copy_(distances.le(reference_radii).any(1));
    const at::Tensor radii = sample_radii.narrow(0, begin, rows).unsqueeze(1);
    covered.bitwise_or_(distances.le(radii).any(0, /*keepdim=*/true));
  }
  DD2_TRY_ASSIGN(const at::Tensor all_inside, GatherRows(inside, count, collectives));
  at::Tensor all_covered = at::empty({collectives.world_size(), reference.size(0)}, at::kByte);
  DD2_TRY(collectives.AllGather(AsBytes(covered), AsWritableBytes(all_covered)));
  return PrecisionRecallResult{.precision = ShareSet(all_inside),
                               .recall = ShareSet(all_covered.any(0))};
}

}  // namespace dd2
