#include "storage/npy_header.h"

#include <algorithm>
#include <charconv>
#include <limits>

namespace dd2 {
namespace {

constexpr std::size_t kMaxRank = 8;
constexpr std::uint64_t kAlignment = 64;
constexpr std::size_t kPreambleBytes = 10;  // magic, version and length of format 1

struct TypeName {
  Dtype dtype;
  std::string_view name;
};
constexpr TypeName kTypes[] = {{Dtype::kF16, "<f2"}, {Dtype::kF32, "<f4"}, {Dtype::kF64, "<f8"},
                               {Dtype::kU8, "|u1"},  {Dtype::kI32, "<i4"}, {Dtype::kI64, "<i8"}};

// Walks through the Python text of a header: {'descr': '<f4', 'fortran_order': False, 'shape':
// (2,)}.
class HeaderText {
 public:
  explicit HeaderText(std::string_view text) : rest_(text) {}

  // Spaces, then `token`; false (and no step) when something else comes.
  bool Take(std::string_view token) {
    const std::size_t begin = rest_.find_first_not_of(" \n");
    if (begin == std::string_view::npos || !rest_.substr(begin).starts_with(token)) return false;
    rest_.remove_prefix(begin + token.size());
    return true;
  }
  std::optional<std::string_view> Quoted() {
    if (!Take("'")) return std::nullopt;
    const std::size_t end = rest_.find('\'');
    if (end == std::string_view::npos) return std::nullopt;
    const std::string_view word = rest_.substr(0, end);
    rest_.remove_prefix(end + 1);
    return word;
  }
  std::optional<std::int64_t> Number() {
    Take("");  // the spaces
    std::int64_t number = -1;
    const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), number);
    if (error != std::errc() || number < 0) return std::nullopt;
    rest_.remove_prefix(static_cast<std::size_t>(end - rest_.data()));
    return number;
  }
  std::optional<std::vector<std::int64_t>> Tuple() {
    if (!Take("(")) return std::nullopt;
    std::vector<std::int64_t> numbers;
    while (!Take(")")) {
      const std::optional<std::int64_t> number = Number();
      if (!number || numbers.size() == kMaxRank) return std::nullopt;
      numbers.push_back(*number);
      if (!Take(",")) return Take(")") ? std::optional(numbers) : std::nullopt;
    }
    return numbers;
  }
  bool AtEnd() const { return rest_.find_first_not_of(" \n") == std::string_view::npos; }

 private:
  std::string_view rest_;
};

}  // namespace

std::optional<Dtype> DtypeOfNpy(std::string_view type) {
  const auto* const found = std::ranges::find(kTypes, type, &TypeName::name);
  return found == std::end(kTypes) ? std::nullopt : std::optional(found->dtype);
}

std::string NpyShapeText(std::span<const std::int64_t> shape) {
  std::string text = "(";
  for (const std::int64_t extent : shape) {
    text += (text.size() > 1 ? ", " : "") + (extent < 0 ? "any" : std::to_string(extent));
  }
  return text + ")";
}

std::optional<std::uint64_t> NpyBytes(std::span<const std::int64_t> shape, Dtype dtype) {
  constexpr auto kMost = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  std::uint64_t bytes = DtypeBytes(dtype);
  for (const std::int64_t extent : shape) {
    if (extent < 0) return std::nullopt;
    const auto factor = static_cast<std::uint64_t>(extent);
    if (factor != 0 && bytes > kMost / factor) return std::nullopt;
    bytes *= factor;
  }
  return bytes;
}

std::optional<NpyHeader> ParseNpyHeader(std::string_view text) {
  HeaderText cursor(text);
  NpyHeader header;
  int found = 0;  // the three keys, each once
  if (!cursor.Take("{")) return std::nullopt;
  while (true) {
    const std::optional<std::string_view> key = cursor.Quoted();
    if (!key || !cursor.Take(":")) return std::nullopt;
    if (*key == "descr") {
      const auto type = cursor.Quoted();
      if (!type) return NpyHeader{.type = "structured", .shape = {}};
      header.type = *type;
      found |= 1;
    } else if (*key == "fortran_order") {
      header.fortran = cursor.Take("True");
      if (!header.fortran && !cursor.Take("False")) return std::nullopt;
      found |= 2;
    } else if (*key == "shape") {
      auto shape = cursor.Tuple();
      if (!shape) return std::nullopt;
      header.shape = std::move(*shape);
      found |= 4;
    } else {
      return std::nullopt;
    }
    const bool more = cursor.Take(",");  // also after the last one
    if (cursor.Take("}")) break;
    if (!more) return std::nullopt;
  }
  return found == 7 && cursor.AtEnd() ? std::optional(header) : std::nullopt;
}

std::optional<std::string> FormatNpyHeader(Dtype dtype, std::span<const std::int64_t> shape) {
  const auto* const type = std::ranges::find(kTypes, dtype, &TypeName::dtype);
  if (type == std::end(kTypes)) return std::nullopt;
  std::string extents;
  for (const std::int64_t extent : shape) extents += std::to_string(extent) + ", ";
  std::string text = "{'descr': '" + std::string(type->name) +
                     "', 'fortran_order': False, 'shape': (" + extents + "), }";
  const std::size_t whole =
      (kPreambleBytes + text.size() + kAlignment) / kAlignment * kAlignment - kPreambleBytes;
  text.resize(whole - 1, ' ');
  text += '\n';
  std::string head(kNpyMagic);
  head += {'\x01', '\0', static_cast<char>(whole & 0xFFU), static_cast<char>(whole >> 8U)};
  return head + text;
}

}  // namespace dd2
