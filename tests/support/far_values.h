#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <vector>

#include "common/result.h"
#include "tests/support/far_device/memory.h"

namespace dd2 {

// Values in memory that the host cannot touch: a slip ends the process.
class FarValues {
 public:
  explicit FarValues(std::span<const float> values)
      : size_(values.size()),
        data_(static_cast<float*>(far_device::Allocate(values.size_bytes()))) {
    Set(values);
  }
  ~FarValues() { far_device::Release(data_); }
  FarValues(const FarValues&) = delete;
  FarValues& operator=(const FarValues&) = delete;

  std::span<float> far() const { return {data_, size_}; }
  std::vector<float> Get() const {
    const float* near = far_device::Near(data_);
    return {near, near + size_};
  }
  void Set(std::span<const float> values) {
    std::memcpy(far_device::Near(data_), values.data(), values.size_bytes());
  }

 private:
  std::size_t size_;
  float* data_;
};

// The copy function of that memory; counts, and fails when it is told to.
struct FarCopies {
  Status operator()(void* to, const void* from, std::size_t bytes) {
    if (++count == fails_at) return Error(Code::kInternal, "the device has failed");
    std::memcpy(far_device::Near(to), far_device::Near(from), bytes);
    return {};
  }
  int count = 0;
  int fails_at = 0;  // 0: never
};

}  // namespace dd2
