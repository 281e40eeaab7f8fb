#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/file.h"
#include "common/hash.h"
#include "common/result.h"

namespace dd2 {

// The safetensors file format (u64 header length, JSON header, data), fp32 written, fp32/fp16/bf16/
// i64/u8 read as raw bytes. See FORMAT.md.

enum class Dtype : std::uint8_t { kF32, kF16, kBf16, kF64, kI64, kI32, kU8 };
std::size_t DtypeBytes(Dtype dtype);

struct TensorInfo {
  Dtype dtype = Dtype::kF32;
  std::vector<std::int64_t> shape;
  std::uint64_t offset = 0;  // of the first byte, from the start of the file
  std::uint64_t bytes = 0;
};

// A tensor to write: `data` must stay alive until the write returns.
struct TensorToWrite {
  std::string name;
  std::vector<std::int64_t> shape;
  std::span<const float> data;
};

struct WrittenFile {
  std::uint64_t size_bytes = 0;
  Digest128 hash;  // of the whole file
};

// How a file will look, before there is any data.
struct SafetensorsLayout {
  std::string head;                    // the length, the JSON and spaces: what is before the data
  std::vector<std::uint64_t> offsets;  // of each tensor's first byte, from the start of the file
  std::uint64_t file_bytes = 0;        // bytes that are neither head nor tensor are 0
};
// Data of each tensor starts at a multiple of 64 bytes. Tensors keep the order given; their data is
// not looked at. `metadata` becomes __metadata__. kInvalidArgument: a name that is empty, reserved
// or given twice, or an impossible shape.
Result<SafetensorsLayout> LayOutSafetensors(std::span<const TensorToWrite> tensors,
                                            const std::map<std::string, std::string>& metadata);

// Writes and syncs `path` (not atomically: a partial file has no manifest), as LayOutSafetensors
// says. After an error nothing is left of it, if the disk allows. kInvalidArgument also: a shape
// that does not fit the data.
Result<WrittenFile> WriteSafetensors(FileSystem& files, const std::filesystem::path& path,
                                     std::span<const TensorToWrite> tensors,
                                     const std::map<std::string, std::string>& metadata);

// Gives elements [begin, begin + out.size()) of tensor `index`. Asked for in the order of the file.
using ReadElements =
    std::function<Status(std::size_t index, std::int64_t begin, std::span<float> out)>;
// The same file from a source that gives the data in pieces of a few MiB; the tensors carry none.
Result<WrittenFile> WriteSafetensorsFrom(FileSystem& files, const std::filesystem::path& path,
                                         std::span<const TensorToWrite> tensors,
                                         const std::map<std::string, std::string>& metadata,
                                         const ReadElements& read);

// The same for a file that lies in memory as it will lie on the disk: one pass of hashing and
// writing, in pieces of several MiB, without a copy.
Result<WrittenFile> WriteSafetensorsImage(FileSystem& files, const std::filesystem::path& path,
                                          std::span<const std::byte> image);

// A parsed file. Its header is in memory, its data stays on the disk and is read piece by piece.
// Immutable after Open, so safe to read from several threads. A read that fails is kUnavailable,
// one that finds the file shorter than it was kCorruption.
class SafetensorsFile {
 public:
  // kNotFound: no such file. kCorruption: truncated, malformed or overlapping header; the message
  // names the file and what is wrong, and nothing of it is used.
  static Result<SafetensorsFile> Open(const std::filesystem::path& path);
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;
  ~SafetensorsFile();

  const std::map<std::string, TensorInfo>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // Copies an fp32 tensor. kNotFound: no such tensor; kInvalidArgument: another dtype or shape than
  // `shape` (message with both).
  Result<std::vector<float>> ReadF32(std::string_view name,
                                     std::span<const std::int64_t> shape) const;
  // Copies raw bytes of a tensor, from byte `begin` of it. kNotFound; kInvalidArgument: outside it.
  Status ReadBytes(std::string_view name, std::uint64_t begin, std::span<std::byte> out) const;
  // Hash of the whole file as it is on disk now.
  Result<Digest128> FileHash() const;
  std::uint64_t size_bytes() const { return size_; }

 private:
  SafetensorsFile() = default;
  Status ReadAt(std::uint64_t offset, std::span<std::byte> out) const;
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
  std::map<std::string, TensorInfo> tensors_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace dd2
