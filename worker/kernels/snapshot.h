#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <memory>
#include <span>

#include "common/hash.h"
#include "common/result.h"
#include "worker/kernels/device_api.h"

namespace dd2 {

// Device memory that belongs to a snapshot.
struct DevicePiece {
  const void* d_memory = nullptr;
  std::size_t bytes = 0;
};

// Copies of device memory in pinned host memory, made on a stream of their own while the training
// computes (design 6). There are two places, used in turn: one can be copied into while the other
// is still being written to a disk. A place is free, then being copied into (Begin), then read
// (Take), then free again (Release). Begin, HoldUntilCopied on the compute thread; Copied, Take and
// Release of a place on any one thread.
class DeviceSnapshots {
 public:
  // Pins two places of `bytes` each. kResourceExhausted: there is not that much memory to pin.
  // `api` must outlive it.
  static Result<std::unique_ptr<DeviceSnapshots>> Create(const Dd2DeviceApi& api,
                                                         std::size_t bytes);
  // Waits for copies under way.
  ~DeviceSnapshots();
  DeviceSnapshots(const DeviceSnapshots&) = delete;
  DeviceSnapshots& operator=(const DeviceSnapshots&) = delete;

  // Begins to copy `pieces`, one behind the other, as they are when everything that `compute` has
  // been given so far is done. Neither the host nor `compute` waits. The place. kUnavailable: no
  // place is free; kInvalidArgument: more bytes than a place has.
  Result<int> Begin(std::span<const DevicePiece> pieces, Dd2Stream compute);
  // What `compute` is given from now on comes after the copies that have begun: call it before work
  // that changes the pieces. The host does not wait.
  Status HoldUntilCopied(Dd2Stream compute);
  // Whether the copy into `place` is made.
  Result<bool> Copied(int place);

  struct Copy {
    std::span<const std::byte> bytes;  // until Release
    Digest128 hash;
  };
  // Waits until the copy is made, and hashes it.
  Result<Copy> Take(int place);
  void Release(int place);

 private:
  enum class State : unsigned char { kFree, kCopying, kTaken };
  struct Place {
    void* memory = nullptr;
    Dd2Event copied = nullptr;
    std::size_t bytes = 0;
    std::atomic<State> state{State::kFree};
  };

  explicit DeviceSnapshots(const Dd2DeviceApi& api) : api_(api) {}
  Status Allocate();
  Status BeginCopies(const Place& place, std::span<const DevicePiece> pieces, Dd2Stream compute);

  const Dd2DeviceApi& api_;
  std::size_t capacity_ = 0;
  Dd2Stream side_ = nullptr;
  Dd2Event computed_ = nullptr;
  std::array<Place, 2> places_;
};

}  // namespace dd2
