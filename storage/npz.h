#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/file.h"
#include "common/result.h"
#include "storage/safetensors.h"
#include "storage/zip_directory.h"

namespace dd2 {

// NumPy's array files: `.npy` (format 1 and 2: magic, header of Python text, data) and `.npz` (a
// zip archive of them, stored or deflated, with 64-bit sizes). Numbers are little-endian f2, f4,
// f8, u1, i4 and i8 in C order; everything else is refused with what to do about it. No length of a
// file is believed before it was compared with what is there, and data is never read ahead of its
// use.

// One array, read from its beginning to its end. Not thread-safe.
class NpyReader {
 public:
  NpyReader(NpyReader&&) noexcept;
  NpyReader& operator=(NpyReader&&) noexcept;
  ~NpyReader();

  Dtype dtype() const { return dtype_; }
  const std::vector<std::int64_t>& shape() const { return shape_; }
  std::uint64_t bytes() const { return bytes_; }  // of all elements
  // The next bytes of the elements. Once the last byte of a member of an archive was read, its
  // checksum is compared, unless parts of it were skipped. kCorruption: cut off, damaged;
  // kInvalidArgument: more than there is; kUnavailable: the disk.
  Status Read(std::span<std::byte> out);
  // As if so many bytes had been read; costs nothing where they are not deflated.
  Status Skip(std::uint64_t count);

 private:
  friend class NpzFile;
  class Source;
  explicit NpyReader(std::unique_ptr<Source> source);
  Status ReadHeader();
  Status ParseHeader(std::string_view text);
  Error Damaged(const std::string& what) const;

  std::unique_ptr<Source> source_;
  Dtype dtype_ = Dtype::kU8;
  std::vector<std::int64_t> shape_;
  std::uint64_t bytes_ = 0;
  std::uint64_t left_ = 0;  // of bytes_
};

// The directory of a `.npz`; a `.npy` counts as one with the array "arr_0". Immutable, so safe to
// open arrays of from several threads.
class NpzFile {
 public:
  // kNotFound; kCorruption: no archive, or a damaged one; kInvalidArgument: of a kind that is not
  // read (encrypted, another compression, several disks).
  static Result<NpzFile> Open(const std::filesystem::path& path);
  bool Has(const std::string& name) const { return members_.contains(name); }
  std::vector<std::string> names() const;  // without ".npy", sorted
  // kNotFound: no such array; otherwise as Open.
  Result<NpyReader> Array(const std::string& name) const;
  // All bytes of a small array of known shape (-1: any extent). kInvalidArgument: another shape, or
  // more than `most` bytes.
  Result<std::vector<std::byte>> ReadAll(const std::string& name,
                                         std::span<const std::int64_t> shape,
                                         std::uint64_t most) const;

 private:
  friend class NpyReader;
  class Descriptor;

  std::shared_ptr<const Descriptor> file_;
  std::map<std::string, ZipEntry> members_;
  bool bare_ = false;  // a .npy file, which has no checksum
};

// Writes an archive of stored members that numpy.load reads, array by array, as the elements come:
// nothing of them stays in memory. The file has its name from Finish on; a crash before leaves one
// with another name. After an error there is nothing to do but to let go of the writer, which
// removes what it wrote. Equal arrays give equal files. Not thread-safe.
class NpzWriter {
 public:
  // Removes what killed processes of this machine left of the same file. kUnavailable,
  // kResourceExhausted: the disk, as in all that follows.
  static Result<std::unique_ptr<NpzWriter>> Create(FileSystem& files,
                                                   const std::filesystem::path& path);
  NpzWriter(const NpzWriter&) = delete;
  NpzWriter& operator=(const NpzWriter&) = delete;
  ~NpzWriter();

  // The array that Append's elements belong to from now on. kInvalidArgument: an impossible shape,
  // a type that NumPy does not have, or the array before lacks elements.
  Status Begin(const std::string& name, Dtype dtype, std::span<const std::int64_t> shape);
  // The next elements, in C order. kInvalidArgument: more than the shape has.
  Status Append(std::span<const std::byte> bytes);
  // Writes the directory, syncs and renames. kInvalidArgument: the last array lacks elements.
  Status Finish();

 private:
  // A member as its two records describe it.
  struct Entry {
    std::string name;
    std::uint64_t bytes = 0;   // .npy header and elements
    std::uint64_t offset = 0;  // of the local record
    std::uint64_t checksum = 0;
  };
  NpzWriter(FileSystem& files, const std::filesystem::path& path);
  Status Write(std::string_view record);
  Status EndMember();
  static void PutCommon(std::string& out, const Entry& entry, bool local);
  static std::string LocalRecord(const Entry& entry);
  static std::string CentralRecord(const Entry& entry);
  std::string Ending() const;

  FileSystem& files_;
  std::filesystem::path path_;
  std::filesystem::path temporary_;  // empty once it has its name
  std::unique_ptr<WritableFile> file_;
  std::vector<Entry> entries_;
  std::uint64_t offset_ = 0;  // bytes written
  std::uint64_t left_ = 0;    // of the elements of the array that was begun
};

// An array to write: `bytes` are its elements in C order and must stay alive until the write
// returns.
struct ArrayToWrite {
  std::string name;
  Dtype dtype = Dtype::kF32;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;
};
// The same of arrays that are in memory.
Status WriteNpz(FileSystem& files, const std::filesystem::path& path,
                std::span<const ArrayToWrite> arrays);

}  // namespace dd2
