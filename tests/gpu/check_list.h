#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "tests/gpu/device_array.h"
#include "tests/gpu/kernel_checks.h"
#include "tests/gpu/random_input.h"

// What checks of kernels have in common: input and output of either type, and how far they are off.
namespace dd2 {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

inline Doubles ToDouble(const Floats& values) { return {values.begin(), values.end()}; }

// Largest |difference| of a row over 1 + the row's largest magnitude; a NaN is infinitely wrong,
// unless both have one.
inline double LargestError(const Floats& got, const Doubles& wanted, std::int64_t width) {
  double worst = 0;
  const auto step = static_cast<std::size_t>(width);
  for (std::size_t row = 0; row < wanted.size(); row += step) {
    double scale = 1, error = 0;
    for (std::size_t i = row; i < row + step; ++i) {
      if (std::isnan(wanted[i]) && std::isnan(got[i])) continue;
      scale = std::max(scale, std::abs(wanted[i]));
      const double difference = std::abs(static_cast<double>(got[i]) - wanted[i]);
      error = std::max(error, std::isfinite(difference) ? difference : 1e300);
    }
    worst = std::max(worst, error / scale);
  }
  return worst;
}

inline double UnequalBits(const Floats& a, const Floats& b) {
  double unequal = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    unequal += std::bit_cast<std::uint32_t>(a[i]) != std::bit_cast<std::uint32_t>(b[i]) ? 1 : 0;
  }
  return unequal;
}

class Checks {
 public:
  explicit Checks(const Dd2DeviceApi& api) : api_(api) {}
  const Dd2DeviceApi& api() const { return api_; }
  void Add(const std::string& name, double error, double limit) {
    found_.push_back({.name = name, .error = error, .limit = limit});
  }
  // `run` gives all outputs of a kernel, in one row; it is run twice.
  Floats Twice(const std::string& name, const std::function<Floats()>& run) {
    const Floats first = run();
    Floats second = run();
    Add(name + ", same bits twice", UnequalBits(first, second), 0);
    return second;
  }
  std::vector<KernelCheck> found() && { return std::move(found_); }

 private:
  const Dd2DeviceApi& api_;
  std::vector<KernelCheck> found_;
};

// The numbers that a type can hold nearest to these.
inline Floats Rounded(Floats values, std::int32_t type) {
  if (type != DD2_DEVICE_BF16) return values;
  for (float& value : values) value = FromBf16(ToBf16(value));
  return values;
}

// Activations or logits of one type on the device.
class Typed {
 public:
  Typed(const Dd2DeviceApi& api, const Floats& values, std::int32_t type)
      : is_bf16_(type == DD2_DEVICE_BF16),
        halves_(api, is_bf16_ ? Halves(values) : std::vector<std::uint16_t>{}),
        floats_(api, is_bf16_ ? Floats{} : values) {}
  void* data() const { return is_bf16_ ? static_cast<void*>(halves_.data()) : floats_.data(); }
  Floats Get() const {
    if (!is_bf16_) return floats_.Get();
    Floats values;
    for (const std::uint16_t half : halves_.Get()) values.push_back(FromBf16(half));
    return values;
  }

 private:
  static std::vector<std::uint16_t> Halves(const Floats& values) {
    std::vector<std::uint16_t> halves;
    for (const float value : values) halves.push_back(ToBf16(value));
    return halves;
  }
  bool is_bf16_;
  DeviceArray<std::uint16_t> halves_;
  DeviceArray<float> floats_;
};

// A kernel's output: NaN everywhere before it runs.
inline Typed Output(const Dd2DeviceApi& api, std::int64_t count, std::int32_t type) {
  return {api, Floats(static_cast<std::size_t>(count), std::numeric_limits<float>::quiet_NaN()),
          type};
}

inline void Append(Floats& all, const Floats& more) {
  all.insert(all.end(), more.begin(), more.end());
}

inline std::string Name(const char* kernel, std::int32_t type) {
  return std::string(kernel) + (type == DD2_DEVICE_BF16 ? " bf16" : " fp32");
}

}  // namespace dd2
