#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"
#include "storage/copy_bytes.h"

namespace dd2 {

// Copies of a rank's state in memory that outlives its process: a file in a tmpfs (FORMAT.md 6).
// There are two places, used in turn, so one whole copy is there at whatever moment the process
// dies. Gone with the machine. One process at a time; not thread-safe.
class MemorySnapshots {
 public:
  // Copied and hashed in pieces of so many bytes, which stay in the CPU's cache in between.
  static constexpr std::size_t kPiece = std::size_t{256} << 10;

  struct Found {
    int place = 0;
    std::string note;  // as it was saved
  };

  // Maps `file`, of this size, with all its memory reserved and touched. What an earlier process
  // left there stays if it had the same identity and sizes. kResourceExhausted: there is not that
  // much shared memory; kUnavailable: another process has the file, or the system refuses it.
  static Result<MemorySnapshots> Open(const std::filesystem::path& file, std::string_view identity,
                                      std::size_t note_bytes_max, std::size_t data_bytes);
  MemorySnapshots(MemorySnapshots&& other) noexcept;
  MemorySnapshots& operator=(MemorySnapshots&& other) noexcept;
  ~MemorySnapshots();

  // The snapshots whose every byte is as it was saved, newest first.
  std::vector<Found> Verify() const;
  // Replaces the older one; its place. `pieces`: data_bytes in all, read by `copy` alone.
  // kInvalidArgument: other sizes. After an error of `copy` the older one is gone.
  Result<int> Save(std::string_view note, std::span<const std::span<const std::byte>> pieces,
                   const CopyBytes& copy = CopyOnHost, std::size_t piece_bytes = kPiece);
  // Whether a snapshot lies at a place of Verify or Save: false once it is being replaced.
  bool Has(int place) const;
  // Copies what was saved into memory of the same sizes, by `copy` alone. kCorruption: it is not
  // what was saved any more; `pieces` are void then, as after an error of `copy`.
  // kInvalidArgument: other sizes.
  Status Load(int place, std::span<const std::span<std::byte>> pieces,
              const CopyBytes& copy = CopyOnHost, std::size_t piece_bytes = kPiece) const;

 private:
  struct Place;
  MemorySnapshots() = default;
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
