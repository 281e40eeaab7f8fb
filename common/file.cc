#include "common/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <system_error>
#include <thread>
#include <utility>

namespace dd2 {
namespace {

namespace fs = std::filesystem;

Error FromErrno(int number, std::string_view what, const fs::path& path) {
  std::string message =
      std::string(what) + " " + path.string() + ": " + std::generic_category().message(number);
  switch (number) {
    case ENOENT:
    case ENOTDIR: return {Code::kNotFound, std::move(message)};
    case ENOSPC:
    case EDQUOT:
    case EMFILE:
    case ENFILE:
    case ENOMEM: return {Code::kResourceExhausted, message + "; free some, then try again"};
    case EACCES:
    case EPERM:
    case EROFS:
      return {Code::kFailedPrecondition, message + "; check the owner and mode of the folder"};
    default: return {Code::kUnavailable, std::move(message)};
  }
}

Status FromErrorCode(const std::error_code& code, std::string_view what, const fs::path& path) {
  if (!code) return {};
  return FromErrno(code.value(), what, path);
}

// Writes all of `size` bytes; 0 or the errno.
int WriteFully(int descriptor, const char* data, std::size_t size) {
  while (size > 0) {
    const ssize_t written = ::write(descriptor, data, size);
    if (written < 0) {
      if (errno == EINTR) continue;
      return errno;
    }
    data += written;
    size -= static_cast<std::size_t>(written);
  }
  return 0;
}

// A holder that was killed keeps its lock until the kernel has taken it down.
constexpr std::chrono::milliseconds kLockPatience{1000};
// What direct writes need of address, length and position on every disk that we know.
constexpr std::size_t kBlock = 4096;
constexpr std::size_t kDirectBytesMin = std::size_t{1} << 20;

class PosixFile : public WritableFile {
 public:
  PosixFile(int descriptor, fs::path path) : descriptor_(descriptor), path_(std::move(path)) {}
  PosixFile(const PosixFile&) = delete;
  PosixFile& operator=(const PosixFile&) = delete;
  ~PosixFile() override {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  Status Append(std::span<const std::byte> bytes) override {
    bytes = bytes.subspan(AppendDirectly(bytes));
    const int failed =
        WriteFully(descriptor_, reinterpret_cast<const char*>(bytes.data()), bytes.size());
    if (failed != 0) return FromErrno(failed, "cannot write", path_);
    position_ += bytes.size();
    return {};
  }
  Status Sync() override {
    if (::fsync(descriptor_) != 0) return FromErrno(errno, "cannot sync", path_);
    return {};
  }
  Status Close() override {
    const int descriptor = std::exchange(descriptor_, -1);
    if (descriptor >= 0 && ::close(descriptor) != 0) return FromErrno(errno, "cannot close", path_);
    return {};
  }

 private:
  // Large pieces go from the memory to the disk without a copy into fresh pages of the page cache,
  // which costs several times the write itself. Returns how much it has written: what does not fit,
  // and everything where the file system does not do it, goes the ordinary way. Errors show there.
  std::size_t AppendDirectly(std::span<const std::byte> bytes) {
    const std::size_t wanted = bytes.size() / kBlock * kBlock;
    const bool fits = reinterpret_cast<std::uintptr_t>(bytes.data()) % kBlock == 0 &&
                      position_ % kBlock == 0 && bytes.size() >= kDirectBytesMin;
    if (!fits || !direct_works_) return 0;
    direct_works_ = ::fcntl(descriptor_, F_SETFL, O_DIRECT) == 0;
    std::size_t done = 0;
    while (direct_works_ && done < wanted) {
      const ssize_t written = ::write(descriptor_, bytes.data() + done, wanted - done);
      if (written < 0 && errno == EINTR) continue;
      if (written > 0) done += static_cast<std::size_t>(written);
      direct_works_ = written > 0 && done % kBlock == 0;
    }
    static_cast<void>(::fcntl(descriptor_, F_SETFL, 0));
    position_ += done;
    return done;
  }

  int descriptor_;
  fs::path path_;
  std::uint64_t position_ = 0;
  bool direct_works_ = true;
};

class PosixFileSystem : public FileSystem {
 public:
  Result<std::unique_ptr<WritableFile>> Create(const fs::path& path) override {
    const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (descriptor < 0) return FromErrno(errno, "cannot create", path);
    return std::unique_ptr<WritableFile>(std::make_unique<PosixFile>(descriptor, path));
  }

  Result<std::string> Read(const fs::path& path) override {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return FromErrno(errno, "cannot open", path);
    std::string content;
    char buffer[1 << 16];
    int failed = 0;
    while (true) {
      const ssize_t got = ::read(descriptor, buffer, sizeof(buffer));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) failed = errno;
      if (got <= 0) break;
      content.append(buffer, static_cast<std::size_t>(got));
    }
    ::close(descriptor);
    if (failed != 0) return FromErrno(failed, "cannot read", path);
    return content;
  }

  Status Rename(const fs::path& from, const fs::path& to) override {
    if (::rename(from.c_str(), to.c_str()) != 0) {
      return FromErrno(errno, "cannot rename to " + to.string() + ":", from);
    }
    return {};
  }

  Status Remove(const fs::path& path) override {
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
      return FromErrno(errno, "cannot remove", path);
    }
    return {};
  }

  Status RemoveTree(const fs::path& path) override {
    std::error_code code;
    fs::remove_all(path, code);
    return FromErrorCode(code, "cannot remove", path);
  }

  Status MakeDirectories(const fs::path& path) override {
    std::error_code code;
    fs::create_directories(path, code);
    return FromErrorCode(code, "cannot make folder", path);
  }

  Status SyncDirectory(const fs::path& directory) override {
    const fs::path folder = directory.empty() ? fs::path(".") : directory;
    const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) return FromErrno(errno, "cannot open folder", folder);
    // EINVAL: a file system that has nothing to sync for folders.
    const int failed = ::fsync(descriptor) != 0 && errno != EINVAL ? errno : 0;
    ::close(descriptor);
    if (failed != 0) return FromErrno(failed, "cannot sync folder", folder);
    return {};
  }

  Result<std::vector<std::string>> List(const fs::path& directory) override {
    std::error_code code;
    fs::directory_iterator entry(directory, code);
    std::vector<std::string> names;
    while (!code && entry != fs::directory_iterator()) {
      names.push_back(entry->path().filename().string());
      entry.increment(code);
    }
    if (code) return FromErrno(code.value(), "cannot list", directory);
    std::sort(names.begin(), names.end());
    return names;
  }
};

// A name beside `path` that no other writer on this machine uses.
fs::path TemporaryBeside(const fs::path& path) {
  static std::atomic<unsigned> counter{0};
  fs::path temporary = path;
  temporary += ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(counter++);
  return temporary;
}

Status WriteTemporary(FileSystem& files, const fs::path& temporary, std::string_view content) {
  DD2_TRY_ASSIGN(const auto file, files.Create(temporary));
  DD2_TRY(file->Append(std::as_bytes(std::span(content))));
  DD2_TRY(file->Sync());
  return file->Close();
}

}  // namespace

Result<std::uint64_t> FreeBytes(const fs::path& path) {
  std::error_code code;
  const fs::space_info space = fs::space(path, code);
  if (code) return FromErrno(code.value(), "cannot ask for the free space of", path);
  return std::uint64_t{space.available};
}

FileSystem& RealFileSystem() {
  static PosixFileSystem instance;
  return instance;
}

Status WriteFileAtomically(FileSystem& files, const fs::path& path, std::string_view content) {
  const fs::path temporary = TemporaryBeside(path);
  Status written = WriteTemporary(files, temporary, content);
  if (written) written = files.Rename(temporary, path);
  if (!written) {
    // The first error is the one to report; a file left behind is only litter.
    static_cast<void>(files.Remove(temporary));
    return written;
  }
  return files.SyncDirectory(path.parent_path());
}

Status WritePrivateFile(const fs::path& path, std::string_view content) {
  const fs::path temporary = TemporaryBeside(path);
  // The mode is set at creation: there is no moment at which others could open it.
  const int descriptor =
      ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (descriptor < 0) return FromErrno(errno, "cannot create", temporary);
  PosixFile file(descriptor, temporary);
  Status written = file.Append(std::as_bytes(std::span(content)));
  if (written) written = file.Sync();
  if (written) written = file.Close();
  if (written) written = RealFileSystem().Rename(temporary, path);
  if (!written) {
    static_cast<void>(RealFileSystem().Remove(temporary));
    return written;
  }
  return RealFileSystem().SyncDirectory(path.parent_path());
}

Result<FileLock> FileLock::Acquire(const fs::path& path, std::string_view owner) {
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (descriptor < 0) return FromErrno(errno, "cannot open lock file", path);
  FileLock lock(descriptor);
  int failed = 0;
  const auto deadline = std::chrono::steady_clock::now() + kLockPatience;
  while (::flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
    failed = errno;
    if (failed == EINTR) continue;
    if (failed != EWOULDBLOCK) return FromErrno(failed, "cannot lock", path);
    if (std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      continue;
    }
    auto holder = RealFileSystem().Read(path);
    std::string who = holder && !holder->empty() ? *holder : std::string("somebody else");
    while (!who.empty() && who.back() == '\n') who.pop_back();
    return Error(Code::kUnavailable,
                 path.string() + " is held by " + who + "; wait for it to end, or stop it");
  }
  // Who holds it, for the message above. The lock itself does not depend on these bytes.
  std::string line(owner);
  line += '\n';
  if (::ftruncate(descriptor, 0) != 0) return FromErrno(errno, "cannot truncate", path);
  if (failed = WriteFully(descriptor, line.data(), line.size()); failed != 0) {
    return FromErrno(failed, "cannot write", path);
  }
  return lock;
}

FileLock::FileLock(FileLock&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}

FileLock& FileLock::operator=(FileLock&& other) noexcept {
  if (this != &other) {
    if (descriptor_ >= 0) ::close(descriptor_);
    descriptor_ = std::exchange(other.descriptor_, -1);
  }
  return *this;
}

FileLock::~FileLock() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

}  // namespace dd2
