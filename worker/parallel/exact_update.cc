#include "worker/parallel/exact_update.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "common/check.h"
#include "worker/kernels/torch_device.h"
#include "worker/parallel/tensor_exchange.h"
#include "worker/parallel/tensor_update.h"
#include "worker/parallel/update_kernels.h"

namespace dd2 {
namespace {

// Elements of each slice that travel at a time when slices are gathered.
constexpr std::int64_t kGatherPiece = std::int64_t{1} << 24;

// What every rank contributes to the exchange of scalars, followed by the squared norms of the
// chunks of its slice and by its per-shard scalars, all doubles.
struct ScalarHeader {
  std::uint64_t desired_version = 0;
  std::uint64_t checkpoint_requests = 0;
  std::uint32_t paused = 0;
  std::uint32_t stop = 0;
  std::uint32_t width = 0;
  std::uint32_t reserved = 0;
};
static_assert(sizeof(ScalarHeader) == 32);

int LocalShards(const ShardPlan& plan, int rank) { return plan.first[rank + 1] - plan.first[rank]; }

// Averages values [shards, width] over the shards in the order of the gradient tree.
std::vector<double> TreeMean(std::vector<double> values, int shards, int width) {
  for (int stride = 1; stride < shards; stride *= 2) {
    for (int shard = 0; shard < shards; shard += 2 * stride) {
      for (int k = 0; k < width; ++k)
        values[shard * width + k] += values[(shard + stride) * width + k];
    }
  }
  values.resize(static_cast<std::size_t>(width));
  for (double& value : values) value /= shards;
  return values;
}

}  // namespace

AdamFactors FactorsOf(const AdamStep& step, std::int64_t adam_steps, double norm) {
  const auto k = static_cast<double>(adam_steps);
  // PyTorch's clip_grad_norm_: the small number keeps the quotient finite.
  const double scale = step.clip_norm > 0 ? std::min(1.0, step.clip_norm / (norm + 1e-6)) : 1.0;
  AdamFactors factors;
  factors.gradient_scale = static_cast<float>(scale);
  factors.beta1 = static_cast<float>(step.beta1);
  factors.beta2 = static_cast<float>(step.beta2);
  factors.one_minus_beta1 = static_cast<float>(1 - step.beta1);
  factors.one_minus_beta2 = static_cast<float>(1 - step.beta2);
  factors.step_size = static_cast<float>(step.learning_rate / (1 - std::pow(step.beta1, k)));
  factors.root_bias_correction2 = static_cast<float>(std::sqrt(1 - std::pow(step.beta2, k)));
  factors.epsilon = static_cast<float>(step.epsilon);
  factors.ema_decay = static_cast<float>(step.ema_decay);
  factors.one_minus_ema_decay = static_cast<float>(1 - step.ema_decay);
  return factors;
}

NetworkState MakeNetworkState(const ParamLayout& layout, int local_rank, int local_size,
                              bool requires_grad) {
  DD2_CHECK(local_rank >= 0 && local_rank < local_size);
  const std::int64_t chunks = layout.size() / kParamChunk;
  NetworkState state;
  state.slice = (chunks + local_size - 1) / local_size * kParamChunk;
  state.begin = local_rank * state.slice;
  state.params = ParamBuffer(layout, requires_grad, state.slice * local_size);
  state.adam_m = at::zeros({state.slice}, OnDevice());
  state.adam_v = at::zeros({state.slice}, OnDevice());
  state.ema = at::zeros({state.slice}, OnDevice());
  return state;
}

// What depends on the world size.
struct ExactUpdater::Buffers {
  Buffers(const ShardPlan& plan, int rank, std::int64_t capacity)
      : sums(GradientSums::New(plan, rank, capacity)) {}

  const std::unique_ptr<GradientSums> sums;
  std::int64_t zeroed_from = 0;      // of the shards' gradients
  at::Tensor slice;                  // of the mean, on the CPU
  std::vector<std::byte> mine, all;  // exchange of scalars
};

namespace {

// The parts of the own slice of the state, as positions in it: from step.first on, cut where the
// boosted range begins and ends.
std::vector<AdamRange> RangesOf(const NetworkState& network, const AdamStep& step, double norm) {
  const AdamFactors plain = FactorsOf(step, network.adam_steps, norm);
  AdamStep boosted_step = step;
  boosted_step.learning_rate *= step.boost;
  const AdamFactors boosted = FactorsOf(boosted_step, network.adam_steps, norm);
  const std::int64_t begin = network.begin;
  const std::int64_t first = std::clamp(step.first - begin, std::int64_t{0}, network.slice);
  const std::int64_t cut1 = std::clamp(step.boosted_begin - begin, first, network.slice);
  const std::int64_t cut2 = std::clamp(step.boosted_end - begin, cut1, network.slice);
  return {{first, cut1, plain}, {cut1, cut2, boosted}, {cut2, network.slice, plain}};
}

// One fused pass over the own slice of the state from step.first on. `gradient` is that of the
// network from element `gradient_begin` on.
void AdamOnSlice(NetworkState& network, const AdamStep& step, double norm,
                 const at::Tensor& gradient, std::int64_t gradient_begin) {
  std::vector<AdamRange> ranges = RangesOf(network, step, norm);
  const std::int64_t first = ranges.front().begin, count = network.slice - first;
  if (count == 0) return;
  for (AdamRange& range : ranges) {
    range.begin -= first;
    range.end -= first;
  }
  const auto of_slice = [&](const at::Tensor& tensor) { return tensor.narrow(0, first, count); };
  const std::int64_t begin = network.begin + first;
  AdamAndEma(ranges, gradient.narrow(0, begin - gradient_begin, count),
             network.params.flat().detach().narrow(0, begin, count), of_slice(network.adam_m),
             of_slice(network.adam_v), step.ema_decay < 0 ? at::Tensor() : of_slice(network.ema));
}

// What the ranks' contributions add up to. Chunks come in rank order, which is chunk order.
struct Exchanged {
  UpdateResult result;
  double squared_norm = 0;
};

Exchanged Unpack(std::span<const std::byte> all, const ShardPlan& plan, std::size_t chunks,
                 int width) {
  Exchanged exchanged;
  const std::size_t bytes = all.size() / static_cast<std::size_t>(plan.world_size);
  std::vector<double> scalars;
  for (int rank = 0; rank < plan.world_size; ++rank) {
    const std::byte* from = all.data() + static_cast<std::size_t>(rank) * bytes;
    ScalarHeader header;
    std::memcpy(&header, from, sizeof(header));
    DD2_CHECK(header.width == static_cast<std::uint32_t>(width));
    if (rank == 0 || header.desired_version > exchanged.result.desired_version) {
      exchanged.result.desired_version = header.desired_version;
      exchanged.result.checkpoint_requests = header.checkpoint_requests;
      exchanged.result.paused = header.paused != 0;
      exchanged.result.stop = header.stop != 0;
    }
    std::vector<double> values((bytes - sizeof(header)) / sizeof(double));
    std::memcpy(values.data(), from + sizeof(header), values.size() * sizeof(double));
    for (std::size_t i = 0; i < chunks; ++i) exchanged.squared_norm += values[i];
    const auto first = values.begin() + static_cast<std::ptrdiff_t>(chunks);
    scalars.insert(scalars.end(), first, first + LocalShards(plan, rank) * width);
  }
  exchanged.result.mean = TreeMean(std::move(scalars), plan.shards, width);
  return exchanged;
}

// One all-gather carries everything: chunk norms, scalars and the wish of the coordinator.
Result<Exchanged> Exchange(Collectives& collectives, const ShardPlan& plan,
                           const UpdateScalars& scalars, std::span<const double> chunk_squares,
                           std::vector<std::byte>& mine, std::vector<std::byte>& all) {
  const int local = LocalShards(plan, collectives.rank());
  DD2_CHECK(scalars.per_shard.size() == static_cast<std::size_t>(local * scalars.width));
  const ScalarHeader header{.desired_version = scalars.desired_version,
                            .checkpoint_requests = scalars.checkpoint_requests,
                            .paused = scalars.paused ? 1U : 0U,
                            .stop = scalars.stop ? 1U : 0U,
                            .width = static_cast<std::uint32_t>(scalars.width)};
  const int most = LocalShards(plan, 0);  // the first rank has no fewer shards than any other
  const std::size_t doubles = chunk_squares.size() + static_cast<std::size_t>(most * scalars.width);
  mine.assign(sizeof(header) + doubles * sizeof(double), std::byte{0});
  all.resize(mine.size() * static_cast<std::size_t>(plan.world_size));
  std::byte* to = mine.data();
  std::memcpy(to, &header, sizeof(header));
  to += sizeof(header);
  if (!chunk_squares.empty()) std::memcpy(to, chunk_squares.data(), chunk_squares.size_bytes());
  to += chunk_squares.size_bytes();
  if (!scalars.per_shard.empty()) {
    std::memcpy(to, scalars.per_shard.data(), scalars.per_shard.size() * sizeof(double));
  }
  DD2_TRY(collectives.AllGather(mine, all));
  return Unpack(all, plan, chunk_squares.size(), scalars.width);
}

}  // namespace

ExactUpdater::ExactUpdater(Collectives& collectives, const RankLayout& layout, int shards,
                           std::int64_t capacity)
    : collectives_(&collectives),
      layout_(layout),
      plan_(MakeShardPlan(shards, layout.world_size)),
      capacity_(capacity) {
  DD2_CHECK(capacity > 0 && capacity % kParamChunk == 0);
}

ExactUpdater::~ExactUpdater() = default;

void ExactUpdater::Regroup(Collectives& collectives, const RankLayout& layout) {
  collectives_ = &collectives;
  layout_ = layout;
  plan_ = MakeShardPlan(plan_.shards, layout.world_size);
  buffers_.reset();
}

ExactUpdater::Buffers& ExactUpdater::buffers() {
  if (buffers_) return *buffers_;
  DD2_CHECK(layout_.world_size == collectives_->world_size());
  DD2_CHECK(layout_.rank == collectives_->rank());
  DD2_CHECK(layout_.world_size % layout_.local_size == 0);
  buffers_ = std::make_unique<Buffers>(plan_, layout_.rank, capacity_);
  return *buffers_;
}

at::Tensor ExactUpdater::GradientOfShard(int local_shard, std::int64_t first) {
  Buffers& b = buffers();
  DD2_CHECK(local_shard >= 0);
  DD2_CHECK(local_shard < static_cast<int>(b.sums->shards().size()));
  const at::Tensor& gradient = b.sums->shards()[local_shard];
  b.zeroed_from = CutGradient(first, capacity_, layout_.world_size).first;
  gradient.narrow(0, b.zeroed_from, gradient.numel() - b.zeroed_from).zero_();
  return gradient;
}

Result<std::vector<double>> ExactUpdater::SumGradients(const GradientCut& cut) {
  Buffers& b = buffers();
  DD2_CHECK(b.zeroed_from <= cut.first);
  const at::Tensor sums = b.sums->SumNodes(cut);
  const std::int64_t count = cut.slice * layout_.world_size;
  if (!whole_gradient_.defined() || whole_gradient_.numel() != count) {
    whole_gradient_ = at::empty({count}, OnDevice());
  }
  const bool on_host = sums.is_cpu();
  // One rank has all that it needs: a device's memory is too dear for copies.
  if (layout_.world_size == 1 && !on_host) return b.sums->Finish(cut, sums, whole_gradient_);
  std::vector<std::int64_t> receive_counts;
  for (const std::vector<TreeNode>& nodes : plan_.nodes) {
    receive_counts.push_back(static_cast<std::int64_t>(nodes.size()) * cut.slice);
  }
  const std::vector<std::int64_t> send_counts(receive_counts.size(), receive_counts[layout_.rank]);
  const at::Tensor arrivals = b.sums->Arrivals(cut);
  DD2_TRY(AllToAll(*collectives_, sums, send_counts, arrivals, receive_counts));
  if (on_host && (!b.slice.defined() || b.slice.numel() != cut.slice)) {
    b.slice = at::empty({cut.slice}, at::kFloat);
  }
  const at::Tensor mean =
      on_host ? b.slice : whole_gradient_.narrow(0, layout_.rank * cut.slice, cut.slice);
  std::vector<double> chunk_squares = b.sums->Finish(cut, arrivals, mean);
  DD2_TRY(AllGather(*collectives_, mean, whole_gradient_));
  return chunk_squares;
}

Result<UpdateResult> ExactUpdater::Apply(NetworkState& network, const AdamStep& step,
                                         const UpdateScalars& scalars) {
  Buffers& b = buffers();
  DD2_CHECK(network.slice * layout_.local_size == capacity_);
  DD2_CHECK(network.params.flat().numel() == capacity_);
  DropPending();
  DD2_TRY_ASSIGN(const std::vector<double> chunk_squares,
                 SumGradients(CutGradient(step.first, capacity_, layout_.world_size)));
  pending_ = {.network = &network, .step = step};
  DD2_TRY_ASSIGN(Exchanged exchanged,
                 Exchange(*collectives_, plan_, scalars, chunk_squares, b.mine, b.all));
  UpdateResult& result = exchanged.result;
  result.gradient_norm = std::sqrt(exchanged.squared_norm);
  result.applied = Finish(result.gradient_norm);
  return std::move(result);
}

bool ExactUpdater::Finish(double norm) {
  const Pending pending = std::exchange(pending_, Pending());
  if (!std::isfinite(norm)) return false;
  ++pending.network->adam_steps;
  // Where it begins does not depend on the world.
  const std::int64_t begin = CutGradient(pending.step.first, capacity_, 1).first;
  AdamOnSlice(*pending.network, pending.step, norm, whole_gradient_, begin);
  return true;
}

bool ExactUpdater::RollForward() {
  DD2_CHECK(has_pending());
  // The owners computed these sums from the same values: a factor of 1 changes none.
  const std::vector<double> squares = ScaleAndSquareChunks(whole_gradient_, 1.0F, whole_gradient_);
  return Finish(std::sqrt(std::accumulate(squares.begin(), squares.end(), 0.0)));
}

Status ExactUpdater::GatherInDomain(const at::Tensor& slice, std::int64_t first,
                                    const at::Tensor& full) {
  const std::int64_t size = slice.numel();
  DD2_CHECK(slice.is_contiguous() && size * layout_.local_size == capacity_);
  DD2_CHECK(layout_.world_size == collectives_->world_size());
  // In pieces of all slices at a time, so that what is sent and what arrives stays small. Whole
  // slices lie as they arrive.
  const bool whole = size <= kGatherPiece;
  const std::int64_t most = layout_.local_size * std::min(size, kGatherPiece);
  const at::Tensor send_buffer = at::empty({most}, full.options());
  const at::Tensor receive_buffer = whole ? at::Tensor() : at::empty({most}, full.options());
  for (std::int64_t begin = 0; begin < size; begin += kGatherPiece) {
    const std::int64_t end = std::min(begin + kGatherPiece, size);
    std::vector<std::int64_t> counts(static_cast<std::size_t>(layout_.world_size), 0);
    std::int64_t total = 0;
    for (int local = 0; local < layout_.local_size; ++local) {
      const std::int64_t from = std::clamp(first - local * size, begin, end);
      total += counts[layout_.domain_begin() + local] = end - from;
    }
    const std::int64_t mine = counts[layout_.rank];
    // One copy per receiver: that is how the exchange takes it.
    const at::Tensor send = send_buffer.narrow(0, 0, layout_.local_size * mine);
    send.view({layout_.local_size, mine}).copy_(slice.detach().narrow(0, end - mine, mine));
    std::vector<std::int64_t> send_counts(counts.size(), 0);
    std::fill_n(send_counts.begin() + layout_.domain_begin(), layout_.local_size, mine);
    const at::Tensor received =
        whole ? full.narrow(0, capacity_ - total, total) : receive_buffer.narrow(0, 0, total);
    DD2_TRY(AllToAll(*collectives_, send, send_counts, received, counts));
    std::int64_t at = 0;
    for (int local = 0; local < layout_.local_size && !whole; ++local) {
      const std::int64_t count = counts[layout_.domain_begin() + local];
      full.narrow(0, local * size + end - count, count).copy_(received.narrow(0, at, count));
      at += count;
    }
  }
  return {};
}

Status ExactUpdater::Spread(NetworkState& network, std::int64_t first) {
  if (layout_.local_size == 1) return {};
  const at::Tensor full = network.params.flat().detach();
  return GatherInDomain(full.narrow(0, network.begin, network.slice), first, full);
}

Result<UpdateResult> ExactUpdater::ExchangeScalars(const UpdateScalars& scalars) {
  std::vector<std::byte> mine;
  std::vector<std::byte> all;
  DD2_TRY_ASSIGN(Exchanged exchanged, Exchange(*collectives_, plan_, scalars, {}, mine, all));
  return std::move(exchanged.result);
}

Result<at::Tensor> ExactUpdater::Gather(const at::Tensor& slice) {
  if (layout_.local_size == 1) return slice;
  at::Tensor full = at::empty({capacity_}, OnDevice());
  DD2_TRY(GatherInDomain(slice, 0, full));
  return full;
}

}  // namespace dd2
