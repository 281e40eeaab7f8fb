// libFuzzer's entry: any bytes as a file of torch.save. See tests/fuzz/README.md.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "storage/teacher_import.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto file = dd2::TorchFile::Parse(std::as_bytes(std::span(data, size)));
  if (!file) return 0;
  std::vector<float> values(1024);
  for (const dd2::TorchTensor& tensor : file->tensors()) {
    const auto count = std::min<std::uint64_t>(tensor.elements, values.size());
    const auto out = std::span(values).first(count);
    // Its first and its last elements: nothing lies further out.
    if (!file->Read(tensor, 0, out)) __builtin_trap();
    if (!file->Read(tensor, static_cast<std::int64_t>(tensor.elements - count), out)) {
      __builtin_trap();
    }
  }
  static_cast<void>(file->CheckSums([](std::uint64_t) {}));
  static_cast<void>(dd2::StateDictsOf(*file));
  return 0;
}
