// libFuzzer's entry: any bytes as a file of torch.save. How to run it: tests/fuzz/README.md.

#include "tests/fuzz/torch_file_target.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static_cast<void>(dd2::ReadEverything(std::as_bytes(std::span(data, size))));
  return 0;
}
