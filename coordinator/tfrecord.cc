#include "coordinator/tfrecord.h"

#include <array>
#include <bit>
#include <cstddef>

namespace dd2 {
namespace {

constexpr std::array<std::uint32_t, 256> MakeCrcTable() {
  constexpr std::uint32_t polynomial = 0x82f63b78U;  // Castagnoli, reflected
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < table.size(); ++i) {
    std::uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) {
      value = (value & 1U) != 0 ? (value >> 1U) ^ polynomial : value >> 1U;
    }
    table[i] = value;
  }
  return table;
}

constexpr std::array<std::uint32_t, 256> crc_table = MakeCrcTable();

template <class Unsigned>
void AppendLittleEndian(Unsigned value, std::string& out) {
  for (std::size_t i = 0; i < sizeof(value); ++i) {
    out.push_back(static_cast<char>((value >> (8 * i)) & 0xffU));
  }
}

}  // namespace

std::uint32_t Crc32c(std::string_view bytes) {
  std::uint32_t crc = 0xffffffffU;
  for (const char c : bytes) {
    crc = crc_table[(crc ^ static_cast<unsigned char>(c)) & 0xffU] ^ (crc >> 8U);
  }
  return crc ^ 0xffffffffU;
}

std::uint32_t MaskedCrc32c(std::string_view bytes) {
  return std::rotr(Crc32c(bytes), 15) + 0xa282ead8U;
}

std::string FrameTfRecord(std::string_view payload) {
  std::string out;
  out.reserve(payload.size() + 16);
  AppendLittleEndian(static_cast<std::uint64_t>(payload.size()), out);
  AppendLittleEndian(MaskedCrc32c(out), out);
  out.append(payload);
  AppendLittleEndian(MaskedCrc32c(payload), out);
  return out;
}

}  // namespace dd2
