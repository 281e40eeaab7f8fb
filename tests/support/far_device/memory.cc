#include "tests/support/far_device/memory.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

namespace dd2::far_device {
namespace {

std::size_t NumberIn(const char* variable, std::size_t otherwise) {
  const char* text = std::getenv(variable);
  return text == nullptr ? otherwise : std::strtoul(text, nullptr, 10);
}

constexpr std::size_t kBytes = std::size_t{64}
                               << 30;  // of addresses; pages come when they are used
std::atomic<int> in_use{0};

constexpr std::size_t kUnit = 512;

// Blocks of a size are used again for that size alone: a training asks for the same ones.
class Memory {
 public:
  Memory() {
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* far = mmap(nullptr, kBytes, PROT_NONE, kFlags, -1, 0);
    void* near = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, kFlags, -1, 0);
    if (far == MAP_FAILED || near == MAP_FAILED) return;
    far_ = static_cast<std::byte*>(far);
    near_ = static_cast<std::byte*>(near);
  }

  void* Allocate(std::size_t bytes) {
    const std::size_t size = (bytes / kUnit + 1) * kUnit;
    const std::lock_guard lock(mutex_);
    if (used_ + size > MemoryBytes()) return nullptr;
    std::vector<std::size_t>& free = free_[size];
    std::size_t offset = end_;
    if (!free.empty()) {
      offset = free.back();
      free.pop_back();
    } else {
      if (far_ == nullptr || size > kBytes - end_) return nullptr;
      end_ += size;
    }
    sizes_[offset] = size;
    used_ += size;
    return far_ + offset;
  }

  void Release(void* memory) {
    const std::lock_guard lock(mutex_);
    const auto found =
        sizes_.find(static_cast<std::size_t>(static_cast<std::byte*>(memory) - far_));
    free_[found->second].push_back(found->first);
    used_ -= found->second;
    sizes_.erase(found);
  }

  bool Holds(const void* memory) const {
    const auto at = reinterpret_cast<std::uintptr_t>(memory);
    const auto begin = reinterpret_cast<std::uintptr_t>(far_);
    return begin != 0 && at >= begin && at < begin + kBytes;
  }

  const void* Near(const void* memory) const {
    return Holds(memory) ? near_ + (static_cast<const std::byte*>(memory) - far_) : memory;
  }

 private:
  std::mutex mutex_;
  std::byte* far_ = nullptr;
  std::byte* near_ = nullptr;
  std::size_t end_ = 0;
  std::size_t used_ = 0;
  std::map<std::size_t, std::size_t> sizes_;              // of what is in use, by offset
  std::map<std::size_t, std::vector<std::size_t>> free_;  // offsets, by size
};

Memory& TheMemory() {
  static Memory* memory = new Memory;  // tensors may outlive every other static object
  return *memory;
}

}  // namespace

int DeviceCount() {
  static const auto count = static_cast<int>(NumberIn("DD2_FAR_DEVICES", 8));
  return count;
}
void UseDevice(int number) { in_use = number; }
int DeviceInUse() { return in_use; }
std::size_t MemoryBytes() {
  static const std::size_t bytes = NumberIn("DD2_FAR_MEMORY_MIB", kBytes >> 20) << 20;
  return bytes;
}

void* Allocate(std::size_t bytes) { return TheMemory().Allocate(bytes); }
void Release(void* memory) { TheMemory().Release(memory); }
bool IsFar(const void* memory) { return TheMemory().Holds(memory); }
const void* NearAddress(const void* memory) { return TheMemory().Near(memory); }

}  // namespace dd2::far_device
