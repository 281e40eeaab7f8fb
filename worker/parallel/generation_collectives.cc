#include "worker/parallel/generation_collectives.h"

#include <algorithm>
#include <utility>

namespace dd2 {
namespace {

Error Over() { return Error(Code::kAborted, "the generation is over"); }

}  // namespace

void ConnectAbort::Abort() {
  const std::lock_guard lock(mutex_);
  aborted_ = true;
  if (end_) end_();
}

bool ConnectAbort::aborted() const {
  const std::lock_guard lock(mutex_);
  return aborted_;
}

void ConnectAbort::OnAbort(std::function<void()> end) {
  const std::lock_guard lock(mutex_);
  end_ = std::move(end);
  if (aborted_ && end_) end_();
}

Status GenerationCollectives::Enter(std::uint64_t generation, const Connect& connect) {
  Leave();
  ConnectAbort abort;
  {
    const std::lock_guard lock(mutex_);
    generation_ = generation;
    entered_ = 0;
    failed_ = generation < over_before_;
    if (failed_) return Over();
    connecting_ = &abort;
  }
  Result<std::unique_ptr<Collectives>> formed = connect(abort);
  const std::lock_guard lock(mutex_);
  connecting_ = nullptr;
  failed_ = !formed || generation < over_before_;
  if (generation < over_before_) return Over();
  if (!formed) return formed.error();
  current_ = *std::move(formed);
  return {};
}

void GenerationCollectives::Leave() {
  std::unique_ptr<Collectives> left;  // ends outside the lock: closing its connections takes time
  const std::lock_guard lock(mutex_);
  left = std::move(current_);
}

void GenerationCollectives::AbortBefore(std::uint64_t generation) {
  const std::lock_guard lock(mutex_);
  over_before_ = std::max(over_before_, generation);
  if (generation_ >= over_before_) return;
  if (connecting_ != nullptr) connecting_->Abort();
  if (current_) current_->Abort();
}

void GenerationCollectives::Abort() {
  const std::lock_guard lock(mutex_);
  if (current_) current_->Abort();
}

int GenerationCollectives::rank() const { return current_ ? current_->rank() : 0; }

int GenerationCollectives::world_size() const { return current_ ? current_->world_size() : 1; }

Status GenerationCollectives::Counted(const std::function<Status(Collectives&)>& exchange) {
  if (!current_ || failed_) return Over();
  ++entered_;
  waiting_ = true;
  Status status = exchange(*current_);
  waiting_ = false;
  failed_ = !status;
  return status;
}

Status GenerationCollectives::AllToAll(std::span<const float> send,
                                       std::span<const std::int64_t> send_counts,
                                       std::span<float> receive,
                                       std::span<const std::int64_t> receive_counts) {
  return Counted([&](Collectives& current) {
    return current.AllToAll(send, send_counts, receive, receive_counts);
  });
}

Status GenerationCollectives::AllGather(std::span<const std::byte> mine, std::span<std::byte> all) {
  return Counted([&](Collectives& current) { return current.AllGather(mine, all); });
}

DeviceExchange* GenerationCollectives::devices() {
  return current_ && current_->devices() != nullptr ? &devices_ : nullptr;
}

Status GenerationCollectives::Devices::AllToAll(const float* d_send,
                                                std::span<const std::int64_t> send_counts,
                                                float* d_receive,
                                                std::span<const std::int64_t> receive_counts) {
  return all_.Counted([&](Collectives& current) {
    return current.devices()->AllToAll(d_send, send_counts, d_receive, receive_counts);
  });
}

Status GenerationCollectives::Devices::AllGather(const float* d_mine, float* d_all,
                                                 std::int64_t count) {
  return all_.Counted(
      [&](Collectives& current) { return current.devices()->AllGather(d_mine, d_all, count); });
}

}  // namespace dd2
