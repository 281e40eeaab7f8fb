#pragma once

#include <compare>
#include <cstdint>
#include <functional>

namespace dd2 {

// An integer that cannot be mistaken for another kind of integer.
template <class Tag, class Rep>
class Id {
 public:
  constexpr explicit Id(Rep value = Rep{}) : value_(value) {}
  constexpr Rep value() const { return value_; }
  auto operator<=>(const Id&) const = default;

 private:
  Rep value_;
};

// Position of a worker in the current generation, 0 .. world size - 1.
using Rank = Id<struct RankTag, std::int32_t>;
// The fence: every membership of a run has its own number, and only the newest acts (design 2).
using Generation = Id<struct GenerationTag, std::uint64_t>;

}  // namespace dd2
