#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/hash.h"
#include "common/result.h"
#include "storage/copy_bytes.h"

namespace dd2 {

// Copies of a rank's state in memory that outlives its process: a file in a tmpfs (FORMAT.md 6).
// There are two places, used in turn, so one whole copy is there at whatever moment the process
// dies. Gone with the machine. One process at a time; not thread-safe.
class MemorySnapshots {
 public:
  struct Found {
    int place = 0;
    std::string note;  // as it was saved
  };

  // Maps `file`, of this size, with all its memory reserved and touched. What an earlier process
  // left there stays if it had the same identity and sizes. kResourceExhausted: there is not that
  // much shared memory; kUnavailable: another process still has the file after `patience`, or the
  // system refuses it.
  static Result<MemorySnapshots> Open(const std::filesystem::path& file, std::string_view identity,
                                      std::size_t note_bytes_max, std::size_t data_bytes,
                                      std::chrono::milliseconds patience);
  MemorySnapshots(MemorySnapshots&& other) noexcept;
  MemorySnapshots& operator=(MemorySnapshots&& other) noexcept;
  ~MemorySnapshots();

  // The snapshots whose every byte is as it was saved, newest first.
  std::vector<Found> Verify() const;
  // The place that the next Save takes: the older one's.
  int next_place() const;
  // Replaces the older one; its place. `pieces`: data_bytes in all, read by `copy` alone, for the
  // last time before `copied` is called; what follows is a hash over the copy. kInvalidArgument:
  // other sizes. After an error of `copy` the older one is gone.
  Result<int> Save(
      std::string_view note, std::span<const std::span<const std::byte>> pieces,
      const CopyBytes& copy = CopyOnHost, const std::function<void()>& copied = [] {});
  // Copies what was saved into memory of the same sizes, by `copy` alone. kCorruption: it is not
  // what was saved any more, `pieces` are as they were. kInvalidArgument: other sizes.
  Status Load(int place, std::span<const std::span<std::byte>> pieces,
              const CopyBytes& copy = CopyOnHost) const;
  // The whole mapping, as long as this object: for pinning it.
  std::span<std::byte> memory() const { return {memory_, size_}; }

 private:
  struct Place;
  MemorySnapshots() = default;
  bool Has(int place) const;
  Digest128 DigestOf(int place) const;
  Place& place(int number) const;
  std::byte* note_of(int number) const;
  std::byte* data_of(int number) const;

  int descriptor_ = -1;  // holds the lock
  std::byte* memory_ = nullptr;
  std::size_t size_ = 0;
  std::size_t note_bytes_max_ = 0;
  std::size_t data_bytes_ = 0;
};

}  // namespace dd2
