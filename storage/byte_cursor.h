#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "common/result.h"

namespace dd2 {

// Reads little-endian bytes of a foreign file from front to back. Every read says how much it
// wants, and is kCorruption where there is less; a length is only ever compared, never trusted.
class ByteCursor {
 public:
  explicit ByteCursor(std::span<const std::byte> bytes, std::size_t at = 0)
      : bytes_(bytes), at_(std::min(at, bytes.size())) {}
  std::size_t at() const { return at_; }
  std::size_t left() const { return bytes_.size() - at_; }

  Result<std::span<const std::byte>> Take(std::uint64_t count) {
    if (count > left()) {
      return Error(Code::kCorruption, "ends early: " + std::to_string(count) +
                                          " bytes wanted at byte " + std::to_string(at_) + ", " +
                                          std::to_string(left()) + " left");
    }
    const auto taken = bytes_.subspan(at_, count);
    at_ += count;
    return taken;
  }
  Result<std::string_view> TakeText(std::uint64_t count) {
    DD2_TRY_ASSIGN(const auto taken, Take(count));
    return std::string_view(reinterpret_cast<const char*>(taken.data()), taken.size());
  }
  // An integer, as the machine (little-endian, checked in safetensors.cc) has it.
  template <class T>
  Result<T> TakeInt() {
    static_assert(std::is_integral_v<T>);
    DD2_TRY_ASSIGN(const auto taken, Take(sizeof(T)));
    T value = 0;
    std::memcpy(&value, taken.data(), sizeof(T));
    return value;
  }
  // Up to the next '\n', which is passed over.
  Result<std::string_view> TakeLine(std::size_t most) {
    const auto rest = bytes_.subspan(at_, std::min(left(), most + 1));
    const auto end = std::find(rest.begin(), rest.end(), std::byte{'\n'});
    if (end == rest.end()) {
      return Error(Code::kCorruption, "no end of line within " + std::to_string(most) +
                                          " bytes of byte " + std::to_string(at_));
    }
    DD2_TRY_ASSIGN(const auto line, TakeText(static_cast<std::uint64_t>(end - rest.begin())));
    at_ += 1;
    return line;
  }

 private:
  std::span<const std::byte> bytes_;
  std::size_t at_;
};

}  // namespace dd2
