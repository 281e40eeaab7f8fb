#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

#include "common/result.h"

namespace dd2 {

// A file mapped for reading. It must not be cut while it is mapped: reading what is gone ends the
// process with SIGBUS. Immutable after Open, so safe to read from several threads.
class MappedFile {
 public:
  // kNotFound; kUnavailable: cannot be read; kCorruption: no regular file, or an empty one.
  static Result<MappedFile> Open(const std::filesystem::path& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  explicit MappedFile(std::span<const std::byte> bytes) : bytes_(bytes) {}
  std::span<const std::byte> bytes_;
};

// Lets go of memory that holds `read`, a part of a mapped file that was read and is not wanted
// again soon; another read brings it back from the disk.
void ForgetPages(std::span<const std::byte> read);

}  // namespace dd2
