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

// An array to write: `bytes` are its elements in C order and must stay alive until the write
// returns.
struct ArrayToWrite {
  std::string name;
  Dtype dtype = Dtype::kF32;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;
};
// Writes and syncs `path` as an archive of stored members that numpy.load reads (not atomically).
// kInvalidArgument: a shape that does not fit its bytes, a type that NumPy does not have.
Status WriteNpz(FileSystem& files, const std::filesystem::path& path,
                std::span<const ArrayToWrite> arrays);

}  // namespace dd2
