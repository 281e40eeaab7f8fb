#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace dd2 {

// A 128-bit content digest (XXH3-128, not cryptographic): finds damage and names content.
struct Digest128 {
  std::uint64_t high = 0;
  std::uint64_t low = 0;
  auto operator<=>(const Digest128&) const = default;
  // 32 lower-case hexadecimal digits, high half first.
  std::string Hex() const;
  // The inverse of Hex; nothing when `hex` is not 32 hexadecimal digits.
  static std::optional<Digest128> FromHex(std::string_view hex);
};

Digest128 Hash128(std::span<const std::byte> bytes);
Digest128 Hash128(std::string_view bytes);

// Hashes a sequence of pieces as if they were one. Owns its state; not thread-safe.
class Hasher128 {
 public:
  Hasher128();
  ~Hasher128();
  Hasher128(const Hasher128&) = delete;
  Hasher128& operator=(const Hasher128&) = delete;
  void Update(std::span<const std::byte> bytes);
  void Update(std::string_view bytes);
  // Length-prefixed, so that ("ab","c") and ("a","bc") differ.
  void UpdateField(std::string_view bytes);
  void UpdateInt(std::uint64_t value);
  Digest128 Finish() const;

 private:
  void* state_;  // XXH3_state_t, kept out of this header
};

}  // namespace dd2
