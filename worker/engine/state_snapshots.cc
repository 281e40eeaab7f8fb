#include "worker/engine/state_snapshots.h"

#include <algorithm>
#include <span>

#include "common/log.h"
#include "proto/position.h"
#include "worker/kernels/torch_device.h"

namespace dd2 {
namespace {

// The small state is a few hundred bytes and the progress of the steps that are leased.
constexpr std::size_t kNoteBytesMax = std::size_t{1} << 20;

// In memory of ComputeDevice().
std::vector<std::span<std::byte>> BytesOf(const TrainingState& state) {
  std::vector<std::span<std::byte>> bytes;
  for (const at::Tensor& slice : SlicesOf(state)) {
    bytes.push_back(std::as_writable_bytes(
        std::span(slice.data_ptr<float>(), static_cast<std::size_t>(slice.numel()))));
  }
  return bytes;
}

// What the next process must have in common with this one.
std::string IdentityText(const CheckpointIdentity& identity, const std::string& run_id,
                         int local_rank, int local_size) {
  return run_id + '\n' + identity.config_digest + '\n' + identity.teacher_digest + '\n' +
         identity.numeric_mode + '\n' + identity.code_version + '\n' +
         std::to_string(identity.seed) + '\n' + std::to_string(local_rank) + '/' +
         std::to_string(local_size);
}

// A copy to or from a device costs more to begin than a piece gains in the CPU's cache.
std::size_t PieceBytes() {
  return ComputeDevice().is_cpu() ? MemorySnapshots::kPiece : std::size_t{16} << 20U;
}

}  // namespace

StateSnapshots::StateSnapshots(const std::filesystem::path& folder, const std::string& run_id,
                               int local_rank, int local_size, const CheckpointIdentity& identity,
                               TrainingState& state)
    : state_(state) {
  if (folder.empty()) return;
  std::size_t data_bytes = 0;
  for (const std::span<std::byte> piece : BytesOf(state)) data_bytes += piece.size();
  Result<MemorySnapshots> memory = MemorySnapshots::Open(
      folder / ("rank-" + std::to_string(local_rank) + "-of-" + std::to_string(local_size)),
      IdentityText(identity, run_id, local_rank, local_size), kNoteBytesMax, data_bytes);
  if (!memory) {
    LogWarning(
        "no snapshots in memory, a domain whose workers end goes on from a peer or a "
        "checkpoint: " +
        memory.error().message() +
        "; make /dev/shm larger, use more ranks, or set checkpoint.memory_every: 0");
    return;
  }
  memory_ = std::move(*memory);
  for (MemorySnapshots::Found& found : memory_->Verify()) {
    Held held;
    held.place = found.place;
    if (held.note.ParseFromString(found.note)) held_.push_back(std::move(held));
  }
}

std::vector<proto::MemorySnapshot> StateSnapshots::held() const {
  std::vector<proto::MemorySnapshot> snapshots;
  for (const Held& held : held_) {
    const proto::MemorySnapshot& one = held.note.snapshot();
    // Of two at one position (it was done again) Recall takes the newer.
    const bool again = std::ranges::any_of(
        snapshots, [&one](const auto& listed) { return Same(listed.position(), one.position()); });
    if (!again) snapshots.push_back(one);
  }
  return snapshots;
}

void StateSnapshots::Take(std::uint64_t generation, proto::RankState small) {
  if (!memory_) return;
  Held held;
  *held.note.mutable_snapshot()->mutable_position() = small.position();
  *held.note.mutable_snapshot()->mutable_recorded() =
      RecordedBefore(small.position(), small.unrecorded().empty() ? nullptr : &small.unrecorded(0));
  held.note.mutable_snapshot()->set_generation(generation);
  *held.note.mutable_state() = std::move(small);
  const std::vector<std::span<std::byte>> bytes = BytesOf(state_);
  const std::vector<std::span<const std::byte>> pieces(bytes.begin(), bytes.end());
  const auto save = [&]() -> Result<int> {
    DD2_TRY(WaitForCompute());
    return memory_->Save(held.note.SerializeAsString(), pieces, CopyMemory, PieceBytes());
  };
  const Result<int> place = save();
  std::erase_if(held_, [&](const Held& other) {
    return !memory_->Has(other.place) || (place && other.place == *place);
  });
  if (!place) {
    LogWarning("no snapshot in memory: " + place.error().message());
    return;
  }
  held.place = *place;
  held_.insert(held_.begin(), std::move(held));
}

Result<proto::RankState> StateSnapshots::Recall(const proto::Position& position) {
  for (const Held& held : held_) {
    if (!Same(held.note.snapshot().position(), position)) continue;
    state_.whole = false;
    DD2_TRY(WaitForCompute());  // it may still change them
    const std::vector<std::span<std::byte>> bytes = BytesOf(state_);
    DD2_TRY(memory_->Load(held.place, bytes, CopyMemory, PieceBytes()));
    return held.note.state();
  }
  return Error(Code::kInternal, "told to go on from a snapshot that this rank does not have");
}

}  // namespace dd2
