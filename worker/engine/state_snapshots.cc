#include "worker/engine/state_snapshots.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "common/log.h"
#include "proto/position.h"
#include "worker/kernels/torch_device.h"

namespace dd2 {
namespace {

// The small state is a few hundred bytes and the progress of the steps that are leased.
constexpr std::size_t kNoteBytesMax = std::size_t{1} << 20;

// A process that was killed just now still has its files while the kernel takes its memory down;
// longer where the driver of a GPU gives pinned memory back first.
constexpr auto kPatience = std::chrono::seconds(5), kDevicePatience = std::chrono::seconds(60);

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

// Given once, at the latest when it ends.
class CopiedSignal {
 public:
  explicit CopiedSignal(std::promise<void>& promise) : promise_(promise) {}
  ~CopiedSignal() { Give(); }
  CopiedSignal(const CopiedSignal&) = delete;
  CopiedSignal& operator=(const CopiedSignal&) = delete;
  void Give() {
    if (!std::exchange(given_, true)) promise_.set_value();
  }

 private:
  std::promise<void>& promise_;
  bool given_ = false;
};

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
      IdentityText(identity, run_id, local_rank, local_size), kNoteBytesMax, data_bytes,
      ComputeDevice().is_cpu() ? kPatience : kDevicePatience);
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
  if (!ComputeDevice().is_cpu()) Pin();
}

StateSnapshots::~StateSnapshots() {
  Finish();
  if (pinned_) DeviceKernels().unpin(memory_->memory().data());
}

// A GPU copies to memory that it knows by itself, and several times as fast as to other.
void StateSnapshots::Pin() {
  const Dd2DeviceApi& api = DeviceKernels();
  const std::span<std::byte> memory = memory_->memory();
  const Status pinned = DeviceStatus(api, api.pin(memory.data(), memory.size()));
  pinned_ = static_cast<bool>(pinned);
  if (pinned_) return;
  LogWarning("the memory of snapshots cannot be pinned, copies to it are slow: " +
             pinned.error().message());
}

std::vector<proto::MemorySnapshot> StateSnapshots::held() {
  if (saved_.valid() && saved_.wait_for(std::chrono::seconds(0)) == std::future_status::ready) {
    Finish();
  }
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
  Finish();
  if (const Status still = WaitForCompute(); !still) return;  // what comes next says why
  taking_ = std::make_unique<Taking>();
  Held& held = taking_->held;
  held.place = memory_->next_place();
  *held.note.mutable_snapshot()->mutable_position() = small.position();
  *held.note.mutable_snapshot()->mutable_recorded() =
      RecordedBefore(small.position(), small.unrecorded().empty() ? nullptr : &small.unrecorded(0));
  held.note.mutable_snapshot()->set_generation(generation);
  *held.note.mutable_state() = std::move(small);
  taking_->note = held.note.SerializeAsString();
  for (const std::span<std::byte> piece : BytesOf(state_)) taking_->pieces.push_back(piece);
  std::erase_if(held_, [&held](const Held& other) { return other.place == held.place; });
  copied_ = taking_->copied.get_future();
  const auto save = [this, &taking = *taking_]() -> Result<int> {
    CopiedSignal copied(taking.copied);
    try {
      return memory_->Save(taking.note, taking.pieces, CopyMemory, [&] { copied.Give(); });
    } catch (const std::exception& failure) {
      return Error(Code::kInternal, failure.what());
    }
  };
  // At once where the system has no thread left.
  saved_ = std::async(std::launch::async | std::launch::deferred, save);
  if (saved_.wait_for(std::chrono::seconds(0)) == std::future_status::deferred) saved_.wait();
}

void StateSnapshots::BeforeChange() {
  if (copied_.valid()) copied_.get();
}

void StateSnapshots::Finish() {
  if (!saved_.valid()) return;
  BeforeChange();
  const Result<int> place = saved_.get();
  if (place) {
    held_.insert(held_.begin(), std::move(taking_->held));
  } else {
    LogWarning("no snapshot in memory: " + place.error().message());
  }
  taking_.reset();
}

Result<proto::RankState> StateSnapshots::Recall(const proto::Position& position) {
  Finish();
  for (const Held& held : held_) {
    if (!Same(held.note.snapshot().position(), position)) continue;
    state_.whole = false;
    DD2_TRY(WaitForCompute());  // it may still change them
    const std::vector<std::span<std::byte>> bytes = BytesOf(state_);
    DD2_TRY(memory_->Load(held.place, bytes, CopyMemory));
    return held.note.state();
  }
  return Error(Code::kInternal, "told to go on from a snapshot that this rank does not have");
}

}  // namespace dd2
