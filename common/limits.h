#pragma once

#include <cstddef>

namespace dd2 {

// Every limit of the system in one place. A full queue or an oversized message is an error with a
// name, never growth.

inline constexpr std::size_t frame_bytes_max = std::size_t{16} << 20;  // one control message

}  // namespace dd2
