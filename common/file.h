#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace dd2 {

// A file opened for appending from empty. Close() or the destructor closes; nothing is durable
// before Sync(). Not thread-safe.
class WritableFile {
 public:
  virtual ~WritableFile() = default;
  // kResourceExhausted: no space or quota; kUnavailable: any other write error.
  virtual Status Append(std::span<const std::byte> bytes) = 0;
  virtual Status Sync() = 0;
  virtual Status Close() = 0;
};

// Every durable effect of ours goes through this interface, so that a test can drop, shorten or
// fail each one (design 6). The real one is RealFileSystem(). Thread-safe.
class FileSystem {
 public:
  virtual ~FileSystem() = default;
  // Creates or truncates.
  virtual Result<std::unique_ptr<WritableFile>> Create(const std::filesystem::path& path) = 0;
  // kNotFound when there is no such file.
  virtual Result<std::string> Read(const std::filesystem::path& path) = 0;
  virtual Status Rename(const std::filesystem::path& from, const std::filesystem::path& to) = 0;
  // Not an error when `path` does not exist.
  virtual Status Remove(const std::filesystem::path& path) = 0;
  virtual Status RemoveTree(const std::filesystem::path& path) = 0;
  virtual Status MakeDirectories(const std::filesystem::path& path) = 0;
  // Makes created, renamed and removed names inside `directory` durable.
  virtual Status SyncDirectory(const std::filesystem::path& directory) = 0;
  // Names (not paths) inside `directory`, sorted. kNotFound when it does not exist.
  virtual Result<std::vector<std::string>> List(const std::filesystem::path& directory) = 0;
};

// Bytes that this user may still write on the disk that holds `path`. kNotFound, kUnavailable.
Result<std::uint64_t> FreeBytes(const std::filesystem::path& path);

// The process's real file system.
FileSystem& RealFileSystem();

// Writes `path` so that after a crash it holds either the old or the new content: temporary name,
// sync, rename, sync of the folder.
Status WriteFileAtomically(FileSystem& files, const std::filesystem::path& path,
                           std::string_view content);
// The same with permission bits 0600, for secrets and tokens (real file system only).
Status WritePrivateFile(const std::filesystem::path& path, std::string_view content);

// Holds an exclusive advisory lock (flock) on a file while it lives; the kernel drops it when the
// process dies, however it dies.
class FileLock {
 public:
  // kUnavailable when somebody else holds it (the message says who, read from the file).
  static Result<FileLock> Acquire(const std::filesystem::path& path, std::string_view owner);
  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&& other) noexcept;
  ~FileLock();

 private:
  explicit FileLock(int descriptor) : descriptor_(descriptor) {}
  int descriptor_ = -1;
};

}  // namespace dd2
