#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "common/result.h"

namespace dd2 {

// The same exchanges between memories of ComputeDevice() (device pointers, counts of floats), put
// on the default stream and done when they return. Only bytes are moved, and sums are the caller's:
// so they are as exact as those of host memory.
class DeviceExchange {
 public:
  virtual ~DeviceExchange() = default;
  virtual Status AllToAll(const float* d_send, std::span<const std::int64_t> send_counts,
                          float* d_receive, std::span<const std::int64_t> receive_counts) = 0;
  // d_all [world size * count] may hold d_mine [count] at this rank's place.
  virtual Status AllGather(const float* d_mine, float* d_all, std::int64_t count) = 0;
};

// The two exchanges that exact training needs, among the ranks of one generation. Every rank makes
// the same calls in the same order. An error (kAborted: a peer is gone; kDeadlineExceeded: silent
// longer than the time-out) ends the generation: destroy the object, form a new one. Call from the
// compute thread only, but for Abort.
class Collectives {
 public:
  virtual ~Collectives() = default;
  virtual int rank() const = 0;
  virtual int world_size() const = 0;
  // send_counts[r] floats go to rank r (consecutive in `send`); receive_counts[r] come from rank r.
  virtual Status AllToAll(std::span<const float> send, std::span<const std::int64_t> send_counts,
                          std::span<float> receive,
                          std::span<const std::int64_t> receive_counts) = 0;
  // Every rank gives equally many bytes; `all` receives them in rank order.
  virtual Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all) = 0;
  // Of this generation and as long as this object; null: the ranks' devices are not joined, what is
  // on them goes through host memory (tensor_exchange.h). All ranks have one or none.
  virtual DeviceExchange* devices() { return nullptr; }
  // From any thread, at any time: an exchange under way and all later ones fail soon with kAborted.
  virtual void Abort() = 0;
};

// The smallest of the ranks' numbers, on every rank. Collective.
Result<std::int64_t> Smallest(std::int64_t mine, Collectives& collectives);

// A world of one: copies.
std::unique_ptr<Collectives> NewLocalCollectives();

}  // namespace dd2
