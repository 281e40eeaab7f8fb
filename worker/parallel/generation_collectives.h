#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>

#include "common/result.h"
#include "worker/parallel/collectives.h"

namespace dd2 {

// Lets another thread end the forming of a group that is under way.
class ConnectAbort {
 public:
  // Any thread, any number of times.
  void Abort();
  bool aborted() const;
  // Of who connects: `end` is called by Abort, on its thread, until it is replaced (nullptr: by
  // nothing). Called at once when Abort has been called already.
  void OnAbort(std::function<void()> end);

 private:
  mutable std::mutex mutex_;
  bool aborted_ = false;
  std::function<void()> end_;
};

// The exchanges of whatever generation this process belongs to: an object that stays when ranks
// come and go. Between generations it is of nobody: rank 0 of 1, and every exchange fails with
// kAborted. Compute thread, but for what says otherwise.
class GenerationCollectives final : public Collectives {
 public:
  using Connect = std::function<Result<std::unique_ptr<Collectives>>(ConnectAbort&)>;

  // Leaves the former generation and forms this one. kAborted: AbortBefore() said that it is over.
  Status Enter(std::uint64_t generation, const Connect& connect);
  void Leave();
  // Whether an exchange of this generation, or its forming, has failed.
  bool failed() const { return failed_; }

  // Any thread: generations below `generation` are over, whether formed, being formed or not yet
  // known here.
  void AbortBefore(std::uint64_t generation);
  // Any thread: exchanges of this generation that were begun, and whether one is under way.
  std::uint64_t entered() const { return entered_; }
  bool waiting() const { return waiting_; }

  int rank() const override;
  int world_size() const override;
  Status AllToAll(std::span<const float> send, std::span<const std::int64_t> send_counts,
                  std::span<float> receive, std::span<const std::int64_t> receive_counts) override;
  Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all) override;
  DeviceExchange* devices() override;
  void Abort() override;  // the current generation

 private:
  // Those of the current generation, counted as the others are.
  class Devices final : public DeviceExchange {
   public:
    explicit Devices(GenerationCollectives& all) : all_(all) {}
    Status AllToAll(const float* d_send, std::span<const std::int64_t> send_counts,
                    float* d_receive, std::span<const std::int64_t> receive_counts) override;
    Status AllGather(const float* d_mine, float* d_all, std::int64_t count) override;

   private:
    GenerationCollectives& all_;
  };
  Status Counted(const std::function<Status(Collectives&)>& exchange);

  std::mutex mutex_;  // guards what AbortBefore reads
  std::uint64_t over_before_ = 0;
  std::uint64_t generation_ = 0;
  ConnectAbort* connecting_ = nullptr;
  std::unique_ptr<Collectives> current_;  // changed by the compute thread only, under the mutex
  Devices devices_{*this};
  bool failed_ = false;
  std::atomic<std::uint64_t> entered_{0};
  std::atomic<bool> waiting_{false};
};

}  // namespace dd2
