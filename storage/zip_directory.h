#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>

#include "common/result.h"

namespace dd2 {

enum class ZipMethod : std::uint8_t {
  kStored,    // as it is
  kDeflated,  // a bare deflate stream (RFC 1951)
  kOther,     // compressed in another way, or encrypted: nothing here reads that
};

// One file of a zip archive.
struct ZipEntry {
  std::uint64_t begin = 0;   // of what is stored of it, from the start of the archive
  std::uint64_t stored = 0;  // bytes in the archive
  std::uint64_t bytes = 0;   // of the file itself: `stored` when it is stored as it is
  std::uint32_t crc32 = 0;   // of the file itself, as the archive says; not checked
  ZipMethod method = ZipMethod::kStored;
};

// Reads the directory of a zip archive, zip64 too; every entry lies inside `archive`, in front of
// the directory, and none overlaps another. Which methods are accepted is up to the caller.
// kCorruption: damaged, cut off, or of sizes that the method cannot give.
Result<std::map<std::string, ZipEntry>> ReadZipDirectory(std::span<const std::byte> archive);

}  // namespace dd2
