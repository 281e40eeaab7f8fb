#include <signal.h>
#include <unistd.h>
#include <zlib.h>

#include <cerrno>
#include <charconv>
#include <string>

#include "common/process.h"
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

std::span<const std::byte> Bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

// What a file is called while a process of this machine writes it, up to the process's number.
std::string TemporaryStem(const std::filesystem::path& path) {
  return path.filename().string() + ".tmp." + HostName() + ".";
}

bool IsOver(std::string_view process) {
  pid_t pid = 0;
  const char* const end = process.data() + process.size();
  const auto [rest, problem] = std::from_chars(process.data(), end, pid);
  return problem == std::errc() && rest == end && pid > 0 && ::kill(pid, 0) != 0 && errno == ESRCH;
}

// Of processes of this machine that were killed while they wrote `path`. Those of other machines
// that share the folder cannot be told from live ones.
void RemoveLeftovers(FileSystem& files, const std::filesystem::path& path) {
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
  const Result<std::vector<std::string>> names = files.List(folder);
  if (!names) return;  // Create says what is wrong
  const std::string stem = TemporaryStem(path);
  for (const std::string& name : *names) {
    if (!name.starts_with(stem) || !IsOver(std::string_view(name).substr(stem.size()))) continue;
    static_cast<void>(files.Remove(folder / name));
  }
}

}  // namespace

// Version, flags, method, time, date, checksum and the sizes, which are in the extra field; in the
// local record they are zero, as nobody knows them yet.
void NpzWriter::PutCommon(std::string& out, const Entry& entry, bool local) {
  Put16(out, zip::kVersion64);
  Put16(out, zip::kDescriptor);
  Put16(out, zip::kStored);
  Put16(out, 0);
  Put16(out, kFirstDay);
  Put32(out, local ? 0 : entry.checksum);
  Put32(out, zip::kWider);
  Put32(out, zip::kWider);
  Put16(out, entry.name.size());
  Put16(out, local ? 20 : 28);
}

std::string NpzWriter::LocalRecord(const Entry& entry) {
  std::string out;
  Put32(out, zip::kLocalSignature);
  PutCommon(out, entry, /*local=*/true);
  out += entry.name;
  Put16(out, zip::kWideFields);
  Put16(out, 16);
  Put64(out, 0);
  Put64(out, 0);
  return out;
}

std::string NpzWriter::CentralRecord(const Entry& entry) {
  std::string out;
  Put32(out, zip::kCentralSignature);
  Put16(out, zip::kVersion64);  // made by
  PutCommon(out, entry, /*local=*/false);
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

// The directory, and the records at the end of the file.
std::string NpzWriter::Ending() const {
  std::string out;
  for (const Entry& entry : entries_) out += CentralRecord(entry);
  const std::uint64_t bytes = out.size();
  Put32(out, zip::kEnd64Signature);
  Put64(out, zip::kEnd64Bytes - 12);  // of what follows
  Put16(out, zip::kVersion64);
  Put16(out, zip::kVersion64);
  Put32(out, 0);  // this disk, the directory's disk
  Put32(out, 0);
  Put64(out, entries_.size());
  Put64(out, entries_.size());
  Put64(out, bytes);
  Put64(out, offset_);
  Put32(out, zip::kLocatorSignature);
  Put32(out, 0);
  Put64(out, offset_ + bytes);
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

NpzWriter::NpzWriter(FileSystem& files, const std::filesystem::path& path)
    : files_(files),
      path_(path),
      temporary_(path.parent_path() / (TemporaryStem(path) + std::to_string(::getpid()))) {}

Result<std::unique_ptr<NpzWriter>> NpzWriter::Create(FileSystem& files,
                                                     const std::filesystem::path& path) {
  RemoveLeftovers(files, path);
  std::unique_ptr<NpzWriter> writer(new NpzWriter(files, path));
  DD2_TRY_ASSIGN(writer->file_, files.Create(writer->temporary_));
  return writer;
}

NpzWriter::~NpzWriter() {
  if (!temporary_.empty()) static_cast<void>(files_.Remove(temporary_));
}

Status NpzWriter::Write(std::string_view record) {
  offset_ += record.size();
  return file_->Append(Bytes(record));
}

Status NpzWriter::Begin(const std::string& name, Dtype dtype, std::span<const std::int64_t> shape) {
  DD2_TRY(EndMember());
  const auto header = FormatNpyHeader(dtype, shape);
  const auto bytes = NpyBytes(shape, dtype);
  if (!header || !bytes) {
    return Error(Code::kInvalidArgument, "array '" + name + "' of shape " + NpyShapeText(shape) +
                                             " is impossible, or of a type that NumPy lacks");
  }
  entries_.push_back({.name = name + ".npy", .offset = offset_});
  DD2_TRY(Write(LocalRecord(entries_.back())));
  left_ = header->size() + *bytes;
  return Append(Bytes(*header));
}

Status NpzWriter::Append(std::span<const std::byte> bytes) {
  if (bytes.empty()) return {};  // a null pointer would begin the sum again
  if (bytes.size() > left_) {
    return Error(Code::kInvalidArgument, path_.string() + ": more elements than the shape has");
  }
  Entry& entry = entries_.back();
  entry.checksum =
      crc32_z(entry.checksum, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size());
  entry.bytes += bytes.size();
  left_ -= bytes.size();
  offset_ += bytes.size();
  return file_->Append(bytes);
}

Status NpzWriter::EndMember() {
  if (entries_.empty()) return {};
  const Entry& entry = entries_.back();
  if (left_ > 0) {
    return Error(Code::kInvalidArgument, path_.string() + ": '" + entry.name + "' lacks " +
                                             std::to_string(left_) + " bytes of its elements");
  }
  std::string descriptor;
  Put32(descriptor, zip::kDescriptorSignature);
  Put32(descriptor, entry.checksum);
  Put64(descriptor, entry.bytes);
  Put64(descriptor, entry.bytes);
  return Write(descriptor);
}

Status NpzWriter::Finish() {
  DD2_TRY(EndMember());
  DD2_TRY(file_->Append(Bytes(Ending())));
  DD2_TRY(file_->Sync());
  DD2_TRY(file_->Close());
  DD2_TRY(files_.Rename(temporary_, path_));
  temporary_.clear();
  return files_.SyncDirectory(path_.parent_path());
}

Status WriteNpz(FileSystem& files, const std::filesystem::path& path,
                std::span<const ArrayToWrite> arrays) {
  DD2_TRY_ASSIGN(const std::unique_ptr<NpzWriter> writer, NpzWriter::Create(files, path));
  for (const ArrayToWrite& array : arrays) {
    DD2_TRY(writer->Begin(array.name, array.dtype, array.shape));
    DD2_TRY(writer->Append(array.bytes));
  }
  return writer->Finish();
}

}  // namespace dd2
