#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/result.h"
#include "storage/mapped_file.h"
#include "storage/safetensors.h"
#include "storage/zip_directory.h"

namespace dd2 {

// Files that PyTorch's torch.save writes, without PyTorch and without running anything that stands
// in them. Both containers are read: the zip archive (since 1.6) and the stream before it. The
// structure is described in pytorch/torch/serialization.py, the names in torch/_utils.py.
//
// One rule for what a file may say (pickle.h): it may name the classes and functions below, and
// nothing else. Any other name, wherever it stands, refuses the file.
//   collections.OrderedDict           a state dict
//   torch.FloatStorage and its like   the type of a storage; also torch.storage.UntypedStorage
//   torch._utils._rebuild_tensor_v2, _v3, _rebuild_parameter, _rebuild_parameter_with_state,
//   torch._tensor._rebuild_from_type_v2, torch.Tensor, torch.nn.parameter.Parameter
//                                     a tensor, plain or wrapped
//   torch.float32 and its like, torch.Size, torch.device
//                                     plain values beside tensors; harmless as data
//   argparse.Namespace                the options of a trainer (LlamaGen keeps them); dropped

// A tensor in a file. Element (i, j, ...) is element i * strides[0] + j * strides[1] + ... behind
// `begin`; all of them were checked to lie inside the tensor's storage.
struct TorchTensor {
  // The keys that lead to the dict or list it is in, joined by '/': "" (the file's value itself),
  // "model", "trainer/var_wo_ddp". A file that holds one tensor gives it the name "".
  std::string group;
  std::string name;
  Dtype dtype = Dtype::kF32;  // bool is kU8
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;  // in elements, never negative
  std::uint64_t begin = 0;            // of its first element, from the start of the file
  std::uint64_t elements = 0;
  bool contiguous = true;
};

// Immutable, so safe to read from several threads.
class TorchFile {
 public:
  // kNotFound. kCorruption: damaged, cut off, no such file, a name outside the list above, or a
  // feature that weights do not use (sparse, quantised, big-endian, compressed). The message names
  // the file, and what to do where something can be done.
  static Result<TorchFile> Open(const std::filesystem::path& path);
  // The same of bytes in memory, which must outlive the result.
  static Result<TorchFile> Parse(std::span<const std::byte> bytes);
  // Whether a file begins as one that torch.save wrote.
  static bool Recognises(std::span<const std::byte> bytes);

  // In the order of the file.
  const std::vector<TorchTensor>& tensors() const { return tensors_; }
  bool is_zip() const { return !entries_.empty(); }
  std::span<const std::byte> bytes() const { return bytes_; }

  // Elements [begin, begin + out.size()) of a tensor of this file, row-major, as fp32: exact from
  // fp16, bf16 and small integers, rounded from fp64 and large ones. Memory that the file took is
  // given back. kInvalidArgument: outside the tensor.
  Status Read(const TorchTensor& tensor, std::int64_t begin, std::span<float> out) const;

  // Reads everything and compares it with the CRC-32 that a zip archive keeps of each entry (the
  // older container has none, and torch.save can be told to write none). `progress` is called with
  // the bytes of each piece. kCorruption.
  Status CheckSums(const std::function<void(std::uint64_t)>& progress) const;

 private:
  TorchFile() = default;
  std::optional<MappedFile> mapped_;
  std::span<const std::byte> bytes_;
  std::map<std::string, ZipEntry> entries_;
  std::vector<TorchTensor> tensors_;
};

}  // namespace dd2
