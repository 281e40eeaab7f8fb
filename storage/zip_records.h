#pragma once

#include <cstdint>

// Signatures, fixed sizes and values of the records of a zip archive (PKWARE's APPNOTE 4.3 to 4.5).
namespace dd2::zip {

inline constexpr std::uint32_t kLocalSignature = 0x04034b50;
inline constexpr std::uint64_t kLocalBytes = 30;
inline constexpr std::uint32_t kCentralSignature = 0x02014b50;
inline constexpr std::uint64_t kCentralBytes = 46;
inline constexpr std::uint32_t kEndSignature = 0x06054b50;
inline constexpr std::uint64_t kEndBytes = 22;
inline constexpr std::uint32_t kLocatorSignature = 0x07064b50;
inline constexpr std::uint64_t kLocatorBytes = 20;
inline constexpr std::uint32_t kEnd64Signature = 0x06064b50;
inline constexpr std::uint64_t kEnd64Bytes = 56;
inline constexpr std::uint16_t kWideFields = 1;      // kind of the extra field with 64-bit sizes
inline constexpr std::uint16_t kWide = 0xFFFF;       // the true value is in a 64-bit record
inline constexpr std::uint32_t kWider = 0xFFFFFFFF;  // the same
inline constexpr std::uint32_t kDescriptorSignature = 0x08074b50;
inline constexpr std::uint16_t kEncrypted = 1;   // bit of the flags
inline constexpr std::uint16_t kDescriptor = 8;  // bit: checksum and sizes follow the data
inline constexpr std::uint16_t kStored = 0;
inline constexpr std::uint16_t kDeflated = 8;
inline constexpr std::uint16_t kVersion64 = 45;  // needed to read 64-bit sizes

}  // namespace dd2::zip
