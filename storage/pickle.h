#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace dd2 {

// Python's pickle format, protocol 2, as far as torch.save writes it, read as data. A pickle is a
// program for a stack machine whose instructions may import anything and call it. This machine has
// no such power: an import is a name that must stand on a list, a call is a node that holds the
// name and the arguments. What they mean is for the caller (torch_file.h) to say.

enum class PickleKind : std::uint8_t {
  kNone,
  kBool,        // integer
  kInt,         // integer
  kBigInt,      // text: two's complement, little-endian, more than 8 bytes
  kFloat,       // real
  kString,      // text
  kTuple,       // items
  kList,        // items
  kDict,        // items: key, value, key, value, ... in order; collections.OrderedDict as well
  kGlobal,      // text: "module.name"
  kCall,        // items: a kGlobal, then a kTuple of arguments
  kObject,      // items: the kGlobal that is its class; what it holds is dropped
  kPersistent,  // items: what identifies a thing outside the pickle
};

// Index of a node. Nodes are shared (memo) and a foreign pickle can make cycles of them: whoever
// follows items must count.
using PickleId = std::uint32_t;

struct PickleNode {
  PickleKind kind = PickleKind::kNone;
  std::int64_t integer = 0;
  double real = 0;
  std::string text{};
  std::vector<PickleId> items{};
};

struct Pickle {
  std::vector<PickleNode> nodes;
  PickleId root = 0;
  std::size_t bytes = 0;  // how many bytes it took, where others may follow it
  const PickleNode& operator[](PickleId id) const { return nodes[id]; }
};

// What a pickle may be at most. A released checkpoint has about 100 KB and 10,000 nodes.
inline constexpr std::size_t kPickleBytesMax = std::size_t{64} << 20;
inline constexpr std::size_t kPickleNodesMax = 1'000'000;
inline constexpr std::size_t kPickleStackMax = 4'000'000;  // pushes, those of shared nodes too
inline constexpr std::size_t kPickleTextMax = std::size_t{1} << 20;
inline constexpr std::size_t kPickleNameMax = 256;  // module, and name in it

// Reads the pickle at the front of `bytes`. `globals`: the names ("module.name") that may occur.
// `objects`: those among them that may have instances with a state of their own, which is dropped
// (kObject); of the others only calls are read.
// kCorruption: another global, which the message names; an instruction that torch.save does not
// write; damaged; beyond a limit.
Result<Pickle> ReadPickle(std::span<const std::byte> bytes,
                          std::span<const std::string_view> globals,
                          std::span<const std::string_view> objects);

}  // namespace dd2
