#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "common/check.h"
#include "storage/teacher_import.h"

namespace dd2 {

// Does all that an import does with the bytes of a file, short of writing: every tensor is read at
// both ends, beyond which nothing lies. What the fuzzer runs, and the unit test on its corpus.
// Whether it was a file of torch.save.
inline bool ReadEverything(std::span<const std::byte> bytes) {
  const auto file = TorchFile::Parse(bytes);
  if (!file) {
    DD2_CHECK(file.error().code() == Code::kCorruption);
    return false;
  }
  std::vector<float> values(1024);
  for (const TorchTensor& tensor : file->tensors()) {
    const auto count = std::min<std::uint64_t>(tensor.elements, values.size());
    const auto out = std::span(values).first(count);
    DD2_CHECK(file->Read(tensor, 0, out));
    DD2_CHECK(file->Read(tensor, static_cast<std::int64_t>(tensor.elements - count), out));
  }
  static_cast<void>(file->CheckSums([](std::uint64_t) {}));
  static_cast<void>(StateDictsOf(*file));
  return true;
}

}  // namespace dd2
