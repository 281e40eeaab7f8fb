#include "worker/parallel/exact_update.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "common/check.h"
#include "worker/parallel/update_kernels.h"

namespace dd2 {
namespace {

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

AdamFactors MakeFactors(const AdamStep& step, std::int64_t adam_steps, double norm) {
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

}  // namespace

NetworkState MakeNetworkState(const ParamLayout& layout, int local_rank, int local_size,
                              bool requires_grad) {
  DD2_CHECK(local_rank >= 0 && local_rank < local_size);
  const std::int64_t chunks = layout.size() / kParamChunk;
  NetworkState state;
  state.slice = (chunks + local_size - 1) / local_size * kParamChunk;
  state.begin = local_rank * state.slice;
  state.params = ParamBuffer(layout, requires_grad, state.slice * local_size);
  state.adam_m = at::zeros({state.slice}, at::kFloat);
  state.adam_v = at::zeros({state.slice}, at::kFloat);
  state.ema = at::zeros({state.slice}, at::kFloat);
  return state;
}

// What depends on the world size. The gradient is padded so that every rank of the world owns an
// equal run of whole chunks, whatever the state is padded to.
struct ExactUpdater::Buffers {
  Buffers(const ShardPlan& plan, int my_rank, std::int64_t state_capacity)
      : rank(my_rank),
        slice(SliceFor(state_capacity, plan.world_size)),
        capacity(slice * plan.world_size),
        summer(std::countr_zero(static_cast<unsigned>(plan.shards)), kParamChunk) {
    for (int i = 0; i < LocalShards(plan, rank); ++i) {
      shard_gradients.push_back(at::zeros({capacity}, at::kFloat));
    }
    const auto my_nodes = static_cast<std::int64_t>(plan.nodes[rank].size());
    send = at::zeros({my_nodes * capacity}, at::kFloat);
    send_counts.assign(plan.world_size, my_nodes * slice);
    std::int64_t received_nodes = 0;
    for (const std::vector<TreeNode>& nodes : plan.nodes) {
      receive_counts.push_back(static_cast<std::int64_t>(nodes.size()) * slice);
      received_nodes += static_cast<std::int64_t>(nodes.size());
    }
    receive = at::zeros({received_nodes * slice}, at::kFloat);
    const float* values = receive.const_data_ptr<float>();
    for (const std::vector<TreeNode>& nodes : plan.nodes) {
      for (const TreeNode& node : nodes) {
        received.push_back({node, values});
        values += slice;
      }
    }
    gradient = at::zeros({slice}, at::kFloat);
    chunk_squares.assign(slice / kParamChunk, 0.0);
  }

  static std::int64_t SliceFor(std::int64_t state_capacity, int world_size) {
    const std::int64_t chunks = state_capacity / kParamChunk;
    return (chunks + world_size - 1) / world_size * kParamChunk;
  }
  void SumLocalShards(const ShardPlan& plan);
  void FinishTree(const ShardPlan& plan);

  const int rank;
  const std::int64_t slice;     // of the gradient
  const std::int64_t capacity;  // of the gradient
  TreeSummer summer;
  std::vector<at::Tensor> shard_gradients;  // [capacity] per local shard
  at::Tensor send;                          // [world, my nodes, slice]
  at::Tensor receive;                       // [all nodes in rank order, slice]
  std::vector<std::int64_t> send_counts, receive_counts;
  std::vector<TreeLeaf> received;
  at::Tensor gradient;                // [slice] mean over the shards
  std::vector<double> chunk_squares;  // squared norm of each chunk of `gradient`
  std::vector<std::byte> mine, all;   // exchange of scalars
};

// Sums each node of this rank and lays it out by destination.
void ExactUpdater::Buffers::SumLocalShards(const ShardPlan& plan) {
  std::vector<TreeLeaf> leaves;
  for (int i = 0; i < static_cast<int>(shard_gradients.size()); ++i) {
    leaves.push_back({{plan.first[rank] + i, 1}, shard_gradients[i].const_data_ptr<float>()});
  }
  const auto node_count = static_cast<std::int64_t>(plan.nodes[rank].size());
  float* out = send.data_ptr<float>();
  for (std::int64_t offset = 0; offset < capacity; offset += kParamChunk) {
    const std::int64_t destination = offset / slice;
    for (std::int64_t n = 0; n < node_count; ++n) {
      const float* sum = summer.Sum(plan.nodes[rank][n], leaves, offset, kParamChunk);
      std::copy_n(sum, kParamChunk, out + (destination * node_count + n) * slice + offset % slice);
    }
  }
}

void ExactUpdater::Buffers::FinishTree(const ShardPlan& plan) {
  const float factor = 1.0F / static_cast<float>(plan.shards);  // exact: a power of two
  float* out = gradient.data_ptr<float>();
  for (std::int64_t offset = 0; offset < slice; offset += kParamChunk) {
    const float* sum = summer.Sum({0, plan.shards}, received, offset, kParamChunk);
    chunk_squares[offset / kParamChunk] = ScaleAndSquareSum(sum, factor, kParamChunk, out + offset);
  }
}

namespace {

// One fused pass over the own slice of the state from step.first on, which is cut where the boosted
// range begins and ends. `gradient` is that of the whole network.
void AdamOnSlice(NetworkState& network, const AdamStep& step, double norm,
                 const at::Tensor& gradient) {
  const AdamFactors plain = MakeFactors(step, network.adam_steps, norm);
  AdamStep boosted_step = step;
  boosted_step.learning_rate *= step.boost;
  const AdamFactors boosted = MakeFactors(boosted_step, network.adam_steps, norm);
  const std::int64_t begin = network.begin;
  const std::int64_t first = std::clamp(step.first - begin, std::int64_t{0}, network.slice);
  const std::int64_t cut1 = std::clamp(step.boosted_begin - begin, first, network.slice);
  const std::int64_t cut2 = std::clamp(step.boosted_end - begin, cut1, network.slice);
  const at::Tensor updated = at::empty({network.slice}, at::kFloat);
  const float* gradients = gradient.const_data_ptr<float>() + begin;
  float* parameters = network.params.flat().data_ptr<float>() + begin;
  float* ema = step.ema_decay < 0 ? nullptr : network.ema.data_ptr<float>();
  const auto run = [&](const AdamFactors& factors, std::int64_t from, std::int64_t to) {
    AdamAndEma(factors, to - from, gradients + from, parameters + from,
               network.adam_m.data_ptr<float>() + from, network.adam_v.data_ptr<float>() + from,
               ema == nullptr ? nullptr : ema + from, updated.data_ptr<float>() + from);
  };
  run(plain, first, cut1);
  run(boosted, cut1, cut2);
  run(plain, cut2, network.slice);
  std::copy(updated.const_data_ptr<float>() + first,
            updated.const_data_ptr<float>() + network.slice, parameters + first);
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

std::span<const std::byte> Bytes(const at::Tensor& tensor) {
  return std::as_bytes(
      std::span(tensor.const_data_ptr<float>(), static_cast<std::size_t>(tensor.numel())));
}

std::span<std::byte> WritableBytes(const at::Tensor& tensor) {
  return std::as_writable_bytes(
      std::span(tensor.data_ptr<float>(), static_cast<std::size_t>(tensor.numel())));
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

at::Tensor ExactUpdater::GradientOfShard(int local_shard) {
  Buffers& b = buffers();
  DD2_CHECK(local_shard >= 0);
  DD2_CHECK(local_shard < static_cast<int>(b.shard_gradients.size()));
  return b.shard_gradients[local_shard].zero_();
}

Result<UpdateResult> ExactUpdater::Apply(NetworkState& network, const AdamStep& step,
                                         const UpdateScalars& scalars) {
  Buffers& b = buffers();
  DD2_CHECK(network.slice * layout_.local_size == capacity_);
  DD2_CHECK(network.params.flat().numel() == capacity_);
  DropPending();
  b.SumLocalShards(plan_);
  DD2_TRY(collectives_->AllToAll(
      {b.send.const_data_ptr<float>(), static_cast<std::size_t>(b.send.numel())}, b.send_counts,
      {b.receive.data_ptr<float>(), static_cast<std::size_t>(b.receive.numel())},
      b.receive_counts));
  b.FinishTree(plan_);
  if (!whole_gradient_.defined() || whole_gradient_.numel() != b.capacity) {
    whole_gradient_ = at::zeros({b.capacity}, at::kFloat);
  }
  DD2_TRY(collectives_->AllGather(Bytes(b.gradient), WritableBytes(whole_gradient_)));
  pending_ = {.network = &network, .step = step};
  DD2_TRY_ASSIGN(Exchanged exchanged,
                 Exchange(*collectives_, plan_, scalars, b.chunk_squares, b.mine, b.all));
  UpdateResult& result = exchanged.result;
  result.gradient_norm = std::sqrt(exchanged.squared_norm);
  result.applied = Finish(result.gradient_norm);
  return std::move(result);
}

bool ExactUpdater::Finish(double norm) {
  const Pending pending = std::exchange(pending_, Pending());
  if (!std::isfinite(norm)) return false;
  ++pending.network->adam_steps;
  AdamOnSlice(*pending.network, pending.step, norm, whole_gradient_);
  return true;
}

bool ExactUpdater::RollForward() {
  DD2_CHECK(has_pending());
  // The owners computed these sums from the same values: a factor of 1 changes none.
  double squared_norm = 0;
  float* values = whole_gradient_.data_ptr<float>();
  for (std::int64_t offset = 0; offset < whole_gradient_.numel(); offset += kParamChunk) {
    squared_norm += ScaleAndSquareSum(values + offset, 1.0F, kParamChunk, values + offset);
  }
  return Finish(std::sqrt(squared_norm));
}

Status ExactUpdater::GatherInDomain(const at::Tensor& slice, const at::Tensor& full) {
  const std::int64_t count = slice.numel();
  DD2_CHECK(slice.is_contiguous() && count * layout_.local_size == capacity_);
  DD2_CHECK(layout_.world_size == collectives_->world_size());
  std::vector<std::int64_t> counts(static_cast<std::size_t>(layout_.world_size), 0);
  std::fill_n(counts.begin() + layout_.domain_begin(), layout_.local_size, count);
  // One copy per receiver: that is how the exchange takes it.
  const at::Tensor send = slice.detach().repeat({layout_.local_size});
  return collectives_->AllToAll(
      {send.const_data_ptr<float>(), static_cast<std::size_t>(send.numel())}, counts,
      {full.data_ptr<float>(), static_cast<std::size_t>(capacity_)}, counts);
}

Status ExactUpdater::Spread(NetworkState& network) {
  if (layout_.local_size == 1) return {};
  const at::Tensor full = network.params.flat().detach();
  return GatherInDomain(full.narrow(0, network.begin, network.slice), full);
}

Result<UpdateResult> ExactUpdater::ExchangeScalars(const UpdateScalars& scalars) {
  std::vector<std::byte> mine;
  std::vector<std::byte> all;
  DD2_TRY_ASSIGN(Exchanged exchanged, Exchange(*collectives_, plan_, scalars, {}, mine, all));
  return std::move(exchanged.result);
}

Result<at::Tensor> ExactUpdater::Gather(const at::Tensor& slice) {
  if (layout_.local_size == 1) return slice;
  at::Tensor full = at::empty({capacity_}, at::kFloat);
  DD2_TRY(GatherInDomain(slice, full));
  return full;
}

}  // namespace dd2
