#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"
#include "storage/pickle.h"
#include "storage/torch_file.h"

namespace dd2 {

// What a pickle of torch.save means: its tensors, found by walking from the root. Internal to
// torch_file.cc; apart from it because the two containers share it.

// A storage, as a persistent id names it: ("storage", type, key, device, elements).
struct TorchStorage {
  std::string key;
  std::optional<Dtype> dtype;  // nothing: untyped, the tensor says
  std::uint64_t elements = 0;  // bytes when untyped
  std::uint64_t bytes = 0;
  std::uint64_t begin = 0;  // of its bytes, from the start of the file
};

// Names that a file may use, for ReadPickle.
std::span<const std::string_view> TorchGlobals();
std::span<const std::string_view> TorchObjects();

// Storages by the node that names them; `begin` is not set. kCorruption.
Result<std::map<PickleId, TorchStorage>> StoragesOf(const Pickle& pickle);

// Tensors in the order of the walk, checked against their storages.
Result<std::vector<TorchTensor>> TensorsOf(const Pickle& pickle,
                                           const std::map<PickleId, TorchStorage>& storages);

}  // namespace dd2
