#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>

#include "common/result.h"

namespace dd2 {

// One file of a zip archive that is stored as it is.
struct ZipEntry {
  std::uint64_t begin = 0;  // of its bytes, from the start of the archive
  std::uint64_t bytes = 0;
  std::uint32_t crc32 = 0;  // as the archive says; not checked
};

// Reads the directory of a zip archive, zip64 too; every entry lies inside `archive`, in front of
// the directory, and none overlaps another. kCorruption: damaged, cut off, or with an entry that is
// compressed or encrypted (torch.save never does that).
Result<std::map<std::string, ZipEntry>> ReadZipDirectory(std::span<const std::byte> archive);

}  // namespace dd2
