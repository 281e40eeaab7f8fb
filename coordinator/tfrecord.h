#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace dd2 {

// TensorFlow's record framing, as TensorBoard reads it: for each record
//   u64 length | u32 masked_crc(length) | bytes | u32 masked_crc(bytes)      all little-endian
// where masked_crc(x) = rotate_right(crc32c(x), 15) + 0xa282ead8.

// CRC-32C (Castagnoli), reflected, initial value and final xor all ones: Crc32c("123456789") is
// 0xe3069283.
std::uint32_t Crc32c(std::string_view bytes);

std::uint32_t MaskedCrc32c(std::string_view bytes);

// `payload` with its frame around it.
std::string FrameTfRecord(std::string_view payload);

}  // namespace dd2
