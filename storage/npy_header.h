#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "storage/safetensors.h"

namespace dd2 {

// The text in front of the elements of a `.npy` file, a Python dictionary:
// {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }

inline constexpr std::string_view kNpyMagic = "\x93NUMPY";

struct NpyHeader {
  std::string type;  // NumPy's name, "<f4"; "structured" when it is no single name
  bool fortran = false;
  std::vector<std::int64_t> shape;
};

// Nothing when the text is not such a header, or has more than 8 dimensions.
std::optional<NpyHeader> ParseNpyHeader(std::string_view text);
// Nothing for a type that npz.h does not read.
std::optional<Dtype> DtypeOfNpy(std::string_view type);
// Magic, version 1, length and text, padded so that the elements begin at a multiple of 64 bytes.
// Nothing for a type that NumPy does not have.
std::optional<std::string> FormatNpyHeader(Dtype dtype, std::span<const std::int64_t> shape);

// Bytes of all elements; nothing when a size is negative or the product does not fit.
std::optional<std::uint64_t> NpyBytes(std::span<const std::int64_t> shape, Dtype dtype);
// "(2, 3)"; -1 is "any".
std::string NpyShapeText(std::span<const std::int64_t> shape);

}  // namespace dd2
