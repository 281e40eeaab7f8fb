#include "storage/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <system_error>
#include <utility>

namespace dd2 {
namespace {

constexpr std::uintptr_t kPage = 4096;

}  // namespace

Result<MappedFile> MappedFile::Open(const std::filesystem::path& path) {
  const auto failed = [&path](const char* what) {
    const int number = errno;
    const Code code = number == ENOENT || number == ENOTDIR ? Code::kNotFound : Code::kUnavailable;
    return Error(
        code, std::string(what) + path.string() + ": " + std::generic_category().message(number));
  };
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return failed("cannot open ");
  struct stat status = {};
  if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size == 0) {
    ::close(descriptor);
    return Error(Code::kCorruption, path.string() + ": empty, or not a regular file");
  }
  const auto size = static_cast<std::size_t>(status.st_size);
  void* mapping = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
  if (mapping == MAP_FAILED) {
    const Error error = failed("cannot map ");
    ::close(descriptor);
    return error;
  }
  ::close(descriptor);
  static_cast<void>(::madvise(mapping, size, MADV_SEQUENTIAL));
  return MappedFile({static_cast<const std::byte*>(mapping), size});
}

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  if (bytes_.empty()) return;
  ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void ForgetPages(std::span<const std::byte> read) {
  // Whole pages only: what else lies in the first and last one may be wanted.
  const auto begin = (reinterpret_cast<std::uintptr_t>(read.data()) + kPage - 1) / kPage * kPage;
  const auto end = (reinterpret_cast<std::uintptr_t>(read.data()) + read.size()) / kPage * kPage;
  if (begin >= end) return;
  static_cast<void>(::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED));
}

}  // namespace dd2
