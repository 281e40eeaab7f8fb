#include "storage/zip_directory.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "storage/byte_cursor.h"
#include "storage/zip_records.h"

namespace dd2 {
namespace {

constexpr std::size_t kCommentMax = 0xffff;
constexpr std::uint64_t kMaxRatio = 1032;  // deflate cannot do better: 258 bytes in 2 bits

Error Damaged(std::string what) { return {Code::kCorruption, "zip archive: " + std::move(what)}; }

struct Directory {
  std::uint64_t entries = 0;
  std::uint64_t bytes = 0;
  std::uint64_t begin = 0;
};

// Where the last record begins: its comment must reach to the end of the archive.
Result<std::size_t> FindEnd(std::span<const std::byte> archive) {
  for (std::size_t comment = 0; comment <= kCommentMax; ++comment) {
    if (archive.size() < zip::kEndBytes + comment) break;
    const std::size_t at = archive.size() - zip::kEndBytes - comment;
    std::uint32_t signature = 0;
    std::uint16_t length = 0;
    std::memcpy(&signature, &archive[at], sizeof(signature));
    std::memcpy(&length, &archive[at + zip::kEndBytes - sizeof(length)], sizeof(length));
    if (signature == zip::kEndSignature && length == comment) return at;
  }
  return Damaged("it has no directory at its end: cut off, or the download is not finished");
}

Result<Directory> FindDirectory(std::span<const std::byte> archive) {
  DD2_TRY_ASSIGN(const std::size_t end, FindEnd(archive));
  ByteCursor record(archive, end + 10);
  Directory directory;
  DD2_TRY_ASSIGN(directory.entries, record.TakeInt<std::uint16_t>());
  DD2_TRY_ASSIGN(directory.bytes, record.TakeInt<std::uint32_t>());
  DD2_TRY_ASSIGN(directory.begin, record.TakeInt<std::uint32_t>());
  if (end < zip::kLocatorBytes) return directory;
  ByteCursor locator(archive, end - zip::kLocatorBytes);
  DD2_TRY_ASSIGN(const auto signature, locator.TakeInt<std::uint32_t>());
  if (signature != zip::kLocatorSignature) return directory;
  DD2_TRY(locator.TakeInt<std::uint32_t>());
  DD2_TRY_ASSIGN(const auto at, locator.TakeInt<std::uint64_t>());
  if (at > archive.size()) return Damaged("its zip64 record is beyond its end");
  ByteCursor wide(archive, at);
  DD2_TRY_ASSIGN(const auto wide_signature, wide.TakeInt<std::uint32_t>());
  if (wide_signature != zip::kEnd64Signature) {
    return Damaged("its zip64 record is not where it should be");
  }
  DD2_TRY(wide.Take(28));
  DD2_TRY_ASSIGN(directory.entries, wide.TakeInt<std::uint64_t>());
  DD2_TRY_ASSIGN(directory.bytes, wide.TakeInt<std::uint64_t>());
  DD2_TRY_ASSIGN(directory.begin, wide.TakeInt<std::uint64_t>());
  return directory;
}

// An entry as the directory has it, without the place of its bytes.
struct Listed {
  std::string name;
  std::uint16_t flags = 0;
  std::uint16_t method = 0;
  std::uint32_t crc32 = 0;
  std::uint64_t stored = 0;
  std::uint64_t bytes = 0;
  std::uint64_t header = 0;  // of the local header
};

// Values that do not fit 32 bits stand in a field of their own, in this order.
Status TakeWideValues(std::span<const std::byte> extra, Listed& listed) {
  ByteCursor fields(extra);
  while (fields.left() >= 4) {
    DD2_TRY_ASSIGN(const auto kind, fields.TakeInt<std::uint16_t>());
    DD2_TRY_ASSIGN(const auto length, fields.TakeInt<std::uint16_t>());
    DD2_TRY_ASSIGN(const auto content, fields.Take(length));
    if (kind != zip::kWideFields) continue;
    ByteCursor wide(content);
    for (std::uint64_t* value : {&listed.bytes, &listed.stored, &listed.header}) {
      if (*value != zip::kWider) continue;
      DD2_TRY_ASSIGN(*value, wide.TakeInt<std::uint64_t>());
    }
    return {};
  }
  return {};
}

Result<Listed> TakeListed(ByteCursor& cursor) {
  DD2_TRY_ASSIGN(const auto fixed, cursor.Take(zip::kCentralBytes));
  ByteCursor fields(fixed);
  DD2_TRY_ASSIGN(const auto signature, fields.TakeInt<std::uint32_t>());
  if (signature != zip::kCentralSignature) return Damaged("its directory is damaged");
  DD2_TRY(fields.TakeInt<std::uint32_t>());  // versions
  Listed listed;
  DD2_TRY_ASSIGN(listed.flags, fields.TakeInt<std::uint16_t>());
  DD2_TRY_ASSIGN(listed.method, fields.TakeInt<std::uint16_t>());
  DD2_TRY(fields.TakeInt<std::uint32_t>());  // time and date
  DD2_TRY_ASSIGN(listed.crc32, fields.TakeInt<std::uint32_t>());
  DD2_TRY_ASSIGN(listed.stored, fields.TakeInt<std::uint32_t>());
  DD2_TRY_ASSIGN(listed.bytes, fields.TakeInt<std::uint32_t>());
  DD2_TRY_ASSIGN(const auto name, fields.TakeInt<std::uint16_t>());
  DD2_TRY_ASSIGN(const auto extra, fields.TakeInt<std::uint16_t>());
  DD2_TRY_ASSIGN(const auto comment, fields.TakeInt<std::uint16_t>());
  DD2_TRY(fields.TakeInt<std::uint64_t>());  // disk and attributes
  DD2_TRY_ASSIGN(listed.header, fields.TakeInt<std::uint32_t>());
  DD2_TRY_ASSIGN(listed.name, cursor.TakeText(name));
  DD2_TRY_ASSIGN(const auto extra_bytes, cursor.Take(extra));
  DD2_TRY(cursor.Take(comment));
  DD2_TRY(TakeWideValues(extra_bytes, listed));
  return listed;
}

ZipMethod MethodOf(const Listed& listed) {
  if ((listed.flags & zip::kEncrypted) != 0) return ZipMethod::kOther;
  if (listed.method == zip::kStored) return ZipMethod::kStored;
  return listed.method == zip::kDeflated ? ZipMethod::kDeflated : ZipMethod::kOther;
}

bool SizesArePossible(const Listed& listed, ZipMethod method) {
  switch (method) {
    case ZipMethod::kStored: return listed.bytes == listed.stored;
    case ZipMethod::kDeflated: return listed.bytes / kMaxRatio <= listed.stored;
    case ZipMethod::kOther: return true;
  }
  return false;
}

Result<ZipEntry> Locate(std::span<const std::byte> before_directory, const Listed& listed) {
  const ZipMethod method = MethodOf(listed);
  if (!SizesArePossible(listed, method)) {
    return Damaged("the sizes of " + listed.name + " are impossible");
  }
  if (listed.header > before_directory.size()) return Damaged(listed.name + " is beyond its end");
  ByteCursor header(before_directory, listed.header);
  DD2_TRY_ASSIGN(const auto signature, header.TakeInt<std::uint32_t>());
  if (signature != zip::kLocalSignature) return Damaged(listed.name + " has no header");
  DD2_TRY(header.Take(22));
  DD2_TRY_ASSIGN(const auto name_bytes, header.TakeInt<std::uint16_t>());
  DD2_TRY_ASSIGN(const auto extra_bytes, header.TakeInt<std::uint16_t>());
  DD2_TRY_ASSIGN(const auto name, header.TakeText(name_bytes));
  if (name != listed.name) return Damaged(listed.name + " has another name in its header");
  DD2_TRY(header.Take(extra_bytes));
  const std::uint64_t begin = header.at();
  DD2_TRY(header.Take(listed.stored));
  return ZipEntry{begin, listed.stored, listed.bytes, listed.crc32, method};
}

Status CheckOverlap(const std::map<std::string, ZipEntry>& entries) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
  for (const auto& [name, entry] : entries) ranges.emplace_back(entry.begin, entry.stored);
  std::sort(ranges.begin(), ranges.end());
  for (std::size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].first < ranges[i - 1].first + ranges[i - 1].second) {
      return Damaged("two of its files lie in the same place");
    }
  }
  return {};
}

}  // namespace

Result<std::map<std::string, ZipEntry>> ReadZipDirectory(std::span<const std::byte> archive) {
  DD2_TRY_ASSIGN(const Directory directory, FindDirectory(archive));
  if (directory.begin > archive.size() || directory.bytes > archive.size() - directory.begin) {
    return Damaged("its directory is beyond its end");
  }
  ByteCursor cursor(archive.subspan(directory.begin, directory.bytes));
  std::map<std::string, ZipEntry> entries;
  for (std::uint64_t i = 0; i < directory.entries; ++i) {
    auto listed = TakeListed(cursor);
    if (!listed) return listed.error().Wrap("zip archive: entry " + std::to_string(i));
    auto entry = Locate(archive.first(directory.begin), *listed);
    if (!entry) return entry.error();
    if (!entries.emplace(listed->name, *entry).second) {
      return Damaged(listed->name + " is there twice");
    }
  }
  DD2_TRY(CheckOverlap(entries));
  return entries;
}

}  // namespace dd2
