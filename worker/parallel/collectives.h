#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "common/result.h"

namespace dd2 {

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
  // From any thread, at any time: an exchange under way and all later ones fail soon with kAborted.
  virtual void Abort() = 0;
};

// A world of one: copies.
std::unique_ptr<Collectives> NewLocalCollectives();

}  // namespace dd2
