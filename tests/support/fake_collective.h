#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>

#include "proto/control.pb.h"

namespace dd2 {

// How long a fake waits for anything before it gives up.
inline constexpr std::chrono::seconds kFakePatience{30};

// The collective of a step: all ranks learn the newest wish that any of them knows.
class FakeCollective {
 public:
  explicit FakeCollective(int ranks) : ranks_(ranks) {}
  // Nothing: another rank is gone.
  std::optional<proto::Desired> Agree(const proto::Desired& mine) {
    std::unique_lock lock(mutex_);
    if (mine.version() >= newest_.version()) newest_ = mine;
    const std::uint64_t round = round_;
    if (++arrived_ == ranks_) {
      arrived_ = 0;
      ++round_;
      agreed_ = newest_;
      changed_.notify_all();
    }
    changed_.wait_for(lock, kFakePatience, [&] { return broken_ || round_ != round; });
    if (round_ == round) return std::nullopt;
    return agreed_;
  }
  void Break() {
    const std::lock_guard lock(mutex_);
    broken_ = true;
    changed_.notify_all();
  }

 private:
  const int ranks_;
  std::mutex mutex_;
  std::condition_variable changed_;
  proto::Desired newest_;
  proto::Desired agreed_;
  std::uint64_t round_ = 0;
  int arrived_ = 0;
  bool broken_ = false;
};

}  // namespace dd2
