#include "common/hash.h"

#include <xxhash.h>

#include <array>
#include <bit>

#include "common/check.h"

namespace dd2 {
namespace {

Digest128 FromXxh(XXH128_hash_t hash) { return Digest128{.high = hash.high64, .low = hash.low64}; }

XXH3_state_t* State(void* state) { return static_cast<XXH3_state_t*>(state); }

}  // namespace

std::string Digest128::Hex() const {
  static constexpr char digits[] = "0123456789abcdef";
  std::string hex(32, '0');
  for (std::size_t i = 0; i < 16; ++i) {
    hex[15 - i] = digits[(high >> (4 * i)) & 15U];
    hex[31 - i] = digits[(low >> (4 * i)) & 15U];
  }
  return hex;
}

std::optional<Digest128> Digest128::FromHex(std::string_view hex) {
  if (hex.size() != 32) return std::nullopt;
  std::array<std::uint64_t, 2> halves{};
  for (std::size_t i = 0; i < 32; ++i) {
    const char c = hex[i];
    std::uint64_t digit = 0;
    if (c >= '0' && c <= '9') {
      digit = static_cast<std::uint64_t>(c - '0');
    } else if (c >= 'a' && c <= 'f') {
      digit = static_cast<std::uint64_t>(c - 'a') + 10;
    } else {
      return std::nullopt;
    }
    halves[i / 16] = (halves[i / 16] << 4) | digit;
  }
  return Digest128{.high = halves[0], .low = halves[1]};
}

Digest128 Hash128(std::span<const std::byte> bytes) {
  return FromXxh(XXH3_128bits(bytes.data(), bytes.size()));
}

Digest128 Hash128(std::string_view bytes) {
  return FromXxh(XXH3_128bits(bytes.data(), bytes.size()));
}

Hasher128::Hasher128() : state_(XXH3_createState()) {
  DD2_CHECK(state_ != nullptr);
  XXH3_128bits_reset(State(state_));
}

Hasher128::~Hasher128() { XXH3_freeState(State(state_)); }

void Hasher128::Update(std::span<const std::byte> bytes) {
  XXH3_128bits_update(State(state_), bytes.data(), bytes.size());
}

void Hasher128::Update(std::string_view bytes) {
  XXH3_128bits_update(State(state_), bytes.data(), bytes.size());
}

void Hasher128::UpdateField(std::string_view bytes) {
  UpdateInt(bytes.size());
  Update(bytes);
}

void Hasher128::UpdateInt(std::uint64_t value) {
  static_assert(std::endian::native == std::endian::little, "digests are defined little-endian");
  XXH3_128bits_update(State(state_), &value, sizeof value);
}

Digest128 Hasher128::Finish() const { return FromXxh(XXH3_128bits_digest(State(state_))); }

}  // namespace dd2
