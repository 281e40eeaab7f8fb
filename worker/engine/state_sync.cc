#include "worker/engine/state_sync.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "common/hash.h"
#include "worker/kernels/torch_device.h"

namespace dd2 {
namespace {

using Means = proto::GenerationMember::Means;

constexpr std::int64_t kPiece = std::int64_t{4} << 20;  // elements: 16 MiB
// The digest of a piece travels behind it, as bits of that many elements.
constexpr std::int64_t kDigestElements = 4;
static_assert(sizeof(Digest128) == kDigestElements * sizeof(float));

// The bytes that rank `source` gives, on every rank.
Result<std::string> ShareFrom(int source, const std::string& mine, Collectives& collectives) {
  const auto world = static_cast<std::size_t>(collectives.world_size());
  const auto from = static_cast<std::size_t>(source);
  const std::uint64_t size = collectives.rank() == source ? mine.size() : 0;
  std::vector<std::uint64_t> sizes(world);
  DD2_TRY(collectives.AllGather(std::as_bytes(std::span(&size, 1)),
                                std::as_writable_bytes(std::span(sizes))));
  std::string padded = collectives.rank() == source ? mine : std::string();
  padded.resize(sizes[from]);
  std::string all(padded.size() * world, '\0');
  if (padded.empty()) return padded;
  DD2_TRY(collectives.AllGather(std::as_bytes(std::span(padded)),
                                std::as_writable_bytes(std::span(all))));
  return all.substr(from * padded.size(), padded.size());
}

// Sends slices from the ranks of rank 0's domain to those with the same local rank that receive.
// They lie in memory of ComputeDevice() and go through the host's, piece by piece.
class SliceTransfer {
 public:
  SliceTransfer(const RankLayout& ranks, int first_receiver, Collectives& collectives)
      : collectives_(collectives), receives_(ranks.rank >= first_receiver) {
    const auto world = static_cast<std::size_t>(ranks.world_size);
    send_to_.assign(world, false);
    receive_from_.assign(world, false);
    if (receives_) receive_from_[static_cast<std::size_t>(ranks.local_rank)] = true;
    if (ranks.domain() != 0) return;
    for (int rank = ranks.local_rank; rank < ranks.world_size; rank += ranks.local_size) {
      if (rank < first_receiver) continue;
      send_to_[static_cast<std::size_t>(rank)] = true;
      ++receivers_;
    }
  }

  // `slice`: contiguous; given by donors, overwritten on receivers. As long on all ranks.
  Status Move(const at::Tensor& slice) {
    const std::span<float> values(slice.data_ptr<float>(), static_cast<std::size_t>(slice.numel()));
    for (std::size_t begin = 0; begin < values.size(); begin += kPiece) {
      DD2_TRY(MovePiece(values.subspan(
          begin, std::min(static_cast<std::size_t>(kPiece), values.size() - begin))));
    }
    return {};
  }

 private:
  Status MovePiece(std::span<float> piece) {
    const std::size_t length = piece.size() + kDigestElements;
    std::vector<float> send;
    if (receivers_ > 0) {
      std::vector<float> packet(length);
      DD2_TRY(CopyMemory(packet.data(), piece.data(), piece.size_bytes()));
      const Digest128 digest = Hash128(std::as_bytes(std::span(packet).first(piece.size())));
      std::memcpy(packet.data() + piece.size(), &digest, sizeof(digest));
      for (int i = 0; i < receivers_; ++i) send.insert(send.end(), packet.begin(), packet.end());
    }
    std::vector<float> received(receives_ ? length : 0);
    DD2_TRY(collectives_.AllToAll(send, Counts(send_to_, length), received,
                                  Counts(receive_from_, length)));
    if (!receives_) return {};
    const std::span<const float> body = std::span(received).first(piece.size());
    Digest128 digest;
    std::memcpy(static_cast<void*>(&digest), received.data() + piece.size(), sizeof(digest));
    if (Hash128(std::as_bytes(body)) != digest) {
      return Error(Code::kCorruption, "a piece of the training state arrived damaged");
    }
    return CopyMemory(piece.data(), body.data(), body.size_bytes());
  }

  static std::vector<std::int64_t> Counts(const std::vector<bool>& ranks, std::size_t length) {
    std::vector<std::int64_t> counts;
    for (const bool takes_part : ranks) {
      counts.push_back(takes_part ? static_cast<std::int64_t>(length) : 0);
    }
    return counts;
  }

  Collectives& collectives_;
  const bool receives_;
  int receivers_ = 0;
  std::vector<bool> send_to_, receive_from_;  // by rank
};

// Own slices only: the domain of a receiver is complete, so it has every slice afterwards, and
// spreads them.
Status MoveNetworks(SliceTransfer& transfer, const TrainingState& state) {
  DD2_TRY(WaitForCompute());  // it may still change them
  for (const at::Tensor& slice : SlicesOf(state)) DD2_TRY(transfer.Move(slice));
  return {};
}

// The coordinator plans with what ranks have said; a rank that is elsewhere would mix two states.
Status CheckMeans(Means means, const Trainer& trainer, const proto::Position& start) {
  const proto::HeldState held = trainer.Held();
  proto::Position rolled = held.position();
  rolled.set_updates(rolled.updates() + 1);
  const bool fits = means == proto::GenerationMember::RECEIVE ||
                    means == proto::GenerationMember::RECALL ||
                    (means == proto::GenerationMember::KEEP && held.has_state() &&
                     trainer.SameState(held.position(), start)) ||
                    (means == proto::GenerationMember::ROLL && held.pending() &&
                     trainer.SameState(rolled, start));
  if (fits) return {};
  return Error(Code::kInternal, "told to " + proto::GenerationMember::Means_Name(means) +
                                    " a state that this rank does not hold");
}

}  // namespace

RankLayout LayoutOf(const proto::Assignment& assignment) {
  if (!assignment.has_member()) return OneDomain(assignment.rank(), assignment.world_size());
  const proto::GenerationMember& mine = assignment.member();
  return {.rank = assignment.rank(),
          .world_size = assignment.world_size(),
          .local_rank = mine.local_rank(),
          .local_size = mine.local_size()};
}

Status SyncState(const proto::Assignment& assignment, const proto::RankState& mine,
                 Trainer& trainer, TrainingState& state, Collectives& collectives,
                 const std::function<void(const proto::RankState&)>& take_over) {
  const RankLayout ranks = LayoutOf(assignment);
  const Means my_means = assignment.member().means();
  if ((my_means == proto::GenerationMember::RECEIVE) !=
      (ranks.rank >= assignment.first_receiver())) {
    return Error(Code::kInternal, "the assignment contradicts itself on who receives");
  }
  DD2_TRY(CheckMeans(my_means, trainer, assignment.start()));
  DD2_TRY_ASSIGN(const std::string bytes,
                 ShareFrom(assignment.source(), mine.SerializeAsString(), collectives));
  proto::RankState small;
  if (!small.ParseFromString(bytes)) {
    return Error(Code::kCorruption, "the small state of the source does not parse");
  }
  // From here to the next exchange nothing can fail: networks, position and progress change as one.
  if (my_means == proto::GenerationMember::ROLL) trainer.RollForward();
  trainer.DropPending();
  if (my_means == proto::GenerationMember::RECEIVE) {
    state.whole = false;
  } else {
    TakeOver(small, state);
    take_over(small);
    state.whole = true;  // RECALL: its networks are there, now it has their position
  }
  if (assignment.first_receiver() < assignment.world_size()) {
    SliceTransfer transfer(ranks, assignment.first_receiver(), collectives);
    DD2_TRY(MoveNetworks(transfer, state));
  }
  if (my_means == proto::GenerationMember::RECEIVE) {
    TakeOver(small, state);
    take_over(small);
    state.whole = true;
  }
  return trainer.SpreadParameters();
}

}  // namespace dd2
