#include "storage/memory_snapshot.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <numeric>
#include <system_error>
#include <thread>
#include <utility>

namespace dd2 {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kPage = 4096;
constexpr int kPlaces = 2;
constexpr std::string_view kMagic = "DD2 snapshots 1";

std::size_t RoundUp(std::size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

// First page of the file.
struct FileHead {
  std::array<char, 16> magic;
  Digest128 identity;
  std::uint64_t note_bytes_max;
  std::uint64_t data_bytes;
};

Error SystemError(Code code, const std::string& what) {
  return {code, what + ": " + std::generic_category().message(errno)};
}

template <class Span>
std::size_t TotalBytes(std::span<const Span> pieces) {
  return std::accumulate(pieces.begin(), pieces.end(), std::size_t{0},
                         [](std::size_t sum, const Span& piece) { return sum + piece.size(); });
}

Status Lock(int descriptor, const fs::path& file, std::chrono::milliseconds patience) {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  while (flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
    if (std::chrono::steady_clock::now() > deadline) {
      return SystemError(Code::kUnavailable, file.string() + " is used by another process");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return {};
}

// Memory for all of it is there afterwards, or it fails here and not with a signal at the first
// touch.
Status Reserve(int descriptor, std::size_t size, const fs::path& file) {
  struct stat info {};
  if (fstat(descriptor, &info) != 0) return SystemError(Code::kUnavailable, file.string());
  if (static_cast<std::size_t>(info.st_size) != size && ftruncate(descriptor, 0) != 0) {
    return SystemError(Code::kUnavailable, "cannot shorten " + file.string());
  }
  int failure = EINTR;
  while (failure == EINTR) {
    failure = posix_fallocate(descriptor, 0, static_cast<off_t>(size));
  }
  if (failure == 0) return {};
  static_cast<void>(ftruncate(descriptor, 0));  // what it did get would be missed elsewhere
  return Error(Code::kResourceExhausted, "no " + std::to_string(size) + " bytes for " +
                                             file.string() + ": " +
                                             std::generic_category().message(failure));
}

}  // namespace

// First page of a place; the note and the data follow, each from a page of its own.
struct MemorySnapshots::Place {
  std::uint64_t sealed;  // 1: all else is written. Changed last, and before anything else
  std::uint64_t number;  // larger: newer
  std::uint64_t note_bytes;
  Digest128 digest;  // of number, note and data
};

Result<MemorySnapshots> MemorySnapshots::Open(const fs::path& file, std::string_view identity,
                                              std::size_t note_bytes_max, std::size_t data_bytes,
                                              std::chrono::milliseconds patience) {
  static_assert(sizeof(FileHead) <= kPage && sizeof(Place) <= kPage);
  MemorySnapshots snapshots;
  snapshots.note_bytes_max_ = note_bytes_max;
  snapshots.data_bytes_ = data_bytes;
  snapshots.size_ = kPage + kPlaces * (kPage + RoundUp(note_bytes_max) + RoundUp(data_bytes));
  snapshots.descriptor_ = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (snapshots.descriptor_ < 0)
    return SystemError(Code::kUnavailable, "cannot open " + file.string());
  DD2_TRY(Lock(snapshots.descriptor_, file, patience));
  DD2_TRY(Reserve(snapshots.descriptor_, snapshots.size_, file));
  void* mapping = ::mmap(nullptr, snapshots.size_, PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_POPULATE, snapshots.descriptor_, 0);
  if (mapping == MAP_FAILED) {
    return SystemError(Code::kResourceExhausted, "cannot map " + file.string());
  }
  snapshots.memory_ = static_cast<std::byte*>(mapping);
  FileHead ours{};
  std::copy(kMagic.begin(), kMagic.end(), ours.magic.begin());
  ours.identity = Hash128(identity);
  ours.note_bytes_max = note_bytes_max;
  ours.data_bytes = data_bytes;
  if (std::memcmp(mapping, &ours, sizeof ours) != 0) {
    for (int i = 0; i < kPlaces; ++i) snapshots.place(i) = Place{};
    std::memcpy(mapping, &ours, sizeof ours);
  }
  return snapshots;
}

MemorySnapshots::MemorySnapshots(MemorySnapshots&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      memory_(std::exchange(other.memory_, nullptr)),
      size_(other.size_),
      note_bytes_max_(other.note_bytes_max_),
      data_bytes_(other.data_bytes_) {}

MemorySnapshots& MemorySnapshots::operator=(MemorySnapshots&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(memory_, other.memory_);
  std::swap(size_, other.size_);
  std::swap(note_bytes_max_, other.note_bytes_max_);
  std::swap(data_bytes_, other.data_bytes_);
  return *this;
}

MemorySnapshots::~MemorySnapshots() {
  if (memory_ != nullptr) ::munmap(memory_, size_);
  if (descriptor_ >= 0) ::close(descriptor_);
}

MemorySnapshots::Place& MemorySnapshots::place(int number) const {
  const std::size_t whole = kPage + RoundUp(note_bytes_max_) + RoundUp(data_bytes_);
  return *reinterpret_cast<Place*>(memory_ + kPage + static_cast<std::size_t>(number) * whole);
}

std::byte* MemorySnapshots::note_of(int number) const {
  return reinterpret_cast<std::byte*>(&place(number)) + kPage;
}

std::byte* MemorySnapshots::data_of(int number) const {
  return note_of(number) + RoundUp(note_bytes_max_);
}

bool MemorySnapshots::Has(int number) const {
  return std::atomic_ref(place(number).sealed).load(std::memory_order_acquire) == 1;
}

Digest128 MemorySnapshots::DigestOf(int number) const {
  const Place& one = place(number);
  Hasher128 hasher;
  hasher.UpdateInt(one.number);
  hasher.Update(std::span<const std::byte>(note_of(number),
                                           std::min<std::size_t>(one.note_bytes, note_bytes_max_)));
  hasher.Update(std::span<const std::byte>(data_of(number), data_bytes_));
  return hasher.Finish();
}

std::vector<MemorySnapshots::Found> MemorySnapshots::Verify() const {
  std::vector<Found> found;
  for (int i = 0; i < kPlaces; ++i) {
    const Place& one = place(i);
    if (!Has(i) || one.note_bytes > note_bytes_max_ || DigestOf(i) != one.digest) continue;
    found.push_back(
        {.place = i, .note = {reinterpret_cast<const char*>(note_of(i)), one.note_bytes}});
  }
  if (found.size() == 2 && place(0).number < place(1).number) std::swap(found[0], found[1]);
  return found;
}

int MemorySnapshots::next_place() const {
  return Has(0) && (!Has(1) || place(1).number < place(0).number) ? 1 : 0;
}

Result<int> MemorySnapshots::Save(std::string_view note,
                                  std::span<const std::span<const std::byte>> pieces,
                                  const CopyBytes& copy, const std::function<void()>& copied) {
  if (note.size() > note_bytes_max_ || TotalBytes(pieces) != data_bytes_) {
    return Error(Code::kInvalidArgument,
                 "a snapshot of " + std::to_string(note.size()) + " + " +
                     std::to_string(TotalBytes(pieces)) + " bytes in a place for at most " +
                     std::to_string(note_bytes_max_) + " + " + std::to_string(data_bytes_));
  }
  const int target = next_place();
  const std::uint64_t number = std::max(place(0).number, place(1).number) + 1;
  Place& one = place(target);
  // Nothing below moves in front of it; a fence would say the same, but not to the thread
  // sanitizer.
  std::atomic_ref(one.sealed).exchange(0, std::memory_order_seq_cst);
  one.number = number;
  one.note_bytes = note.size();
  std::ranges::copy(std::as_bytes(std::span(note)), note_of(target));
  std::byte* to = data_of(target);
  for (const std::span<const std::byte> piece : pieces) {
    if (!piece.empty()) DD2_TRY(copy(to, piece.data(), piece.size()));
    to += piece.size();
  }
  copied();
  one.digest = DigestOf(target);
  std::atomic_ref(one.sealed).store(1, std::memory_order_release);
  return target;
}

Status MemorySnapshots::Load(int number, std::span<const std::span<std::byte>> pieces,
                             const CopyBytes& copy) const {
  if (number < 0 || number >= kPlaces || TotalBytes(pieces) != data_bytes_) {
    return Error(Code::kInvalidArgument, "no such snapshot, or memory of another size");
  }
  if (!Has(number) || DigestOf(number) != place(number).digest) {
    return Error(Code::kCorruption, "a snapshot in memory is not what was saved any more");
  }
  const std::byte* from = data_of(number);
  for (const std::span<std::byte> piece : pieces) {
    if (!piece.empty()) DD2_TRY(copy(piece.data(), from, piece.size()));
    from += piece.size();
  }
  return {};
}

}  // namespace dd2
