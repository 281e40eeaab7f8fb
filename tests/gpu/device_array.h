#pragma once

#include <cstddef>
#include <cstring>
#include <vector>

#include "common/check.h"
#include "worker/kernels/device_api.h"

namespace dd2 {

// In a program that only checks and measures, a call that fails ends it.
inline void Must(const Dd2DeviceApi& api, Dd2DeviceCode code) {
  DD2_CHECK_MSG(code == DD2_DEVICE_OK, api.last_error());
}

// An array in device memory. Owns it.
template <class T>
class DeviceArray {
 public:
  // Every byte is 0xFF, a NaN, so that what a kernel does not write shows.
  DeviceArray(const Dd2DeviceApi& api, std::size_t size) : DeviceArray(api, Filled(size)) {}
  DeviceArray(const Dd2DeviceApi& api, const std::vector<T>& values)
      : api_(&api), size_(values.size()) {
    if (values.empty()) return;
    void* memory = nullptr;
    Must(api, api.allocate(values.size() * sizeof(T), &memory));
    data_ = static_cast<T*>(memory);
    Set(values);
  }
  DeviceArray(DeviceArray&& other) noexcept
      : api_(other.api_), size_(other.size_), data_(other.data_) {
    other.data_ = nullptr;
  }
  DeviceArray& operator=(DeviceArray&&) = delete;
  ~DeviceArray() {
    if (data_ != nullptr) api_->release(data_);
  }

  T* data() const { return data_; }
  std::size_t bytes() const { return size_ * sizeof(T); }
  void Set(const std::vector<T>& values) {
    DD2_CHECK(values.size() == size_);
    Must(*api_, api_->copy(data_, values.data(), bytes(), nullptr));
    Must(*api_, api_->wait_stream(nullptr));
  }
  std::vector<T> Get() const {
    std::vector<T> values(size_);
    Must(*api_, api_->copy(values.data(), data_, bytes(), nullptr));
    Must(*api_, api_->wait_stream(nullptr));
    return values;
  }

 private:
  static std::vector<T> Filled(std::size_t size) {
    std::vector<T> values(size);
    if (size > 0) std::memset(values.data(), 0xFF, size * sizeof(T));
    return values;
  }

  const Dd2DeviceApi* api_;
  std::size_t size_;
  T* data_ = nullptr;
};

}  // namespace dd2
