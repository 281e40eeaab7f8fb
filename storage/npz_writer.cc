#include <zlib.h>

#include <string>

#include "storage/npy_header.h"
#include "storage/npz.h"
#include "storage/zip_records.h"

namespace dd2 {
namespace {

constexpr std::uint16_t kFirstDay = 0x21;  // 1980-01-01: equal arrays give equal files

void Put16(std::string& out, std::uint64_t value) {
  for (int shift = 0; shift < 16; shift += 8) out += static_cast<char>(value >> shift & 0xFFU);
}
void Put32(std::string& out, std::uint64_t value) {
  for (int shift = 0; shift < 32; shift += 16) Put16(out, value >> shift & zip::kWide);
}
void Put64(std::string& out, std::uint64_t value) {
  for (int shift = 0; shift < 64; shift += 32) Put32(out, value >> shift & zip::kWider);
}

// A member as its two records describe it.
struct Entry {
  std::string name;
  std::string header;        // of the .npy
  std::uint64_t bytes = 0;   // header and elements
  std::uint64_t offset = 0;  // of the local record
  std::uint64_t checksum = 0;
};

// Version, flags, method, time, date, checksum and the sizes, which are in the extra field.
void PutCommon(std::string& out, const Entry& entry, std::uint64_t extra_bytes) {
  Put16(out, zip::kVersion64);
  Put16(out, 0);
  Put16(out, zip::kStored);
  Put16(out, 0);
  Put16(out, kFirstDay);
  Put32(out, entry.checksum);
  Put32(out, zip::kWider);
  Put32(out, zip::kWider);
  Put16(out, entry.name.size());
  Put16(out, extra_bytes);
}

std::string LocalRecord(const Entry& entry) {
  std::string out;
  Put32(out, zip::kLocalSignature);
  PutCommon(out, entry, 20);
  out += entry.name;
  Put16(out, zip::kWideFields);
  Put16(out, 16);
  Put64(out, entry.bytes);
  Put64(out, entry.bytes);
  return out;
}

std::string CentralRecord(const Entry& entry) {
  std::string out;
  Put32(out, zip::kCentralSignature);
  Put16(out, zip::kVersion64);  // made by
  PutCommon(out, entry, 28);
  Put16(out, 0);  // comment
  Put16(out, 0);  // disk
  Put16(out, 0);  // attributes
  Put32(out, 0);
  Put32(out, zip::kWider);  // offset
  out += entry.name;
  Put16(out, zip::kWideFields);
  Put16(out, 24);
  Put64(out, entry.bytes);
  Put64(out, entry.bytes);
  Put64(out, entry.offset);
  return out;
}

// The directory, which begins at `offset`, and the records at the end of the file.
std::string Ending(const std::vector<Entry>& entries, std::uint64_t offset) {
  std::string out;
  for (const Entry& entry : entries) out += CentralRecord(entry);
  const std::uint64_t bytes = out.size();
  Put32(out, zip::kEnd64Signature);
  Put64(out, zip::kEnd64Bytes - 12);  // of what follows
  Put16(out, zip::kVersion64);
  Put16(out, zip::kVersion64);
  Put32(out, 0);  // this disk, the directory's disk
  Put32(out, 0);
  Put64(out, entries.size());
  Put64(out, entries.size());
  Put64(out, bytes);
  Put64(out, offset);
  Put32(out, zip::kLocatorSignature);
  Put32(out, 0);
  Put64(out, offset + bytes);
  Put32(out, 1);  // disks
  Put32(out, zip::kEndSignature);
  Put32(out, 0);  // disks
  Put16(out, zip::kWide);
  Put16(out, zip::kWide);
  Put32(out, zip::kWider);
  Put32(out, zip::kWider);
  Put16(out, 0);  // comment
  return out;
}

Result<Entry> Describe(const ArrayToWrite& array, std::uint64_t offset) {
  const auto header = FormatNpyHeader(array.dtype, array.shape);
  if (!header || NpyBytes(array.shape, array.dtype) != array.bytes.size()) {
    return Error(Code::kInvalidArgument, "array '" + array.name + "' of shape " +
                                             NpyShapeText(array.shape) +
                                             " does not fit its bytes, or NumPy's types");
  }
  Entry entry{.name = array.name + ".npy",
              .header = *header,
              .bytes = header->size() + array.bytes.size(),
              .offset = offset};
  // Not a null pointer: zlib would begin again.
  entry.checksum = crc32_z(0, reinterpret_cast<const Bytef*>(header->data()), header->size());
  if (!array.bytes.empty()) {
    entry.checksum = crc32_z(entry.checksum, reinterpret_cast<const Bytef*>(array.bytes.data()),
                             array.bytes.size());
  }
  return entry;
}

std::span<const std::byte> Bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

}  // namespace

Status WriteNpz(FileSystem& files, const std::filesystem::path& path,
                std::span<const ArrayToWrite> arrays) {
  std::vector<Entry> entries;
  std::uint64_t offset = 0;
  DD2_TRY_ASSIGN(const std::unique_ptr<WritableFile> file, files.Create(path));
  for (const ArrayToWrite& array : arrays) {
    DD2_TRY_ASSIGN(Entry entry, Describe(array, offset));
    const std::string local = LocalRecord(entry) + entry.header;
    DD2_TRY(file->Append(Bytes(local)));
    DD2_TRY(file->Append(array.bytes));
    offset += local.size() + array.bytes.size();
    entries.push_back(std::move(entry));
  }
  DD2_TRY(file->Append(Bytes(Ending(entries, offset))));
  DD2_TRY(file->Sync());
  return file->Close();
}

}  // namespace dd2
