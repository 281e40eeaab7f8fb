#pragma once

#include <cstddef>
#include <cstring>
#include <functional>

#include "common/result.h"

namespace dd2 {

// Copies between memory of the host and memory that the host cannot touch (a GPU's), either way;
// done when it returns. What is in storage/ reads and writes the latter by such a function alone.
// Called with at least one byte, on any thread.
using CopyBytes = std::function<Status(void* to, const void* from, std::size_t bytes)>;

// Where all memory is the host's.
inline Status CopyOnHost(void* to, const void* from, std::size_t bytes) {
  std::memcpy(to, from, bytes);
  return {};
}

}  // namespace dd2
