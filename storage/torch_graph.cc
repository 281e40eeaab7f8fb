#include "storage/torch_graph.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "common/utf8.h"

namespace dd2 {
namespace {

// How deep containers may lie in each other, and how many values the walk may meet: shared nodes
// are met as often as they are named, so a small pickle can unfold to a huge tree.
constexpr int kDepthMax = 32;
constexpr std::size_t kVisitsMax = 300'000;
constexpr std::size_t kTensorsMax = 100'000;
constexpr std::size_t kDimensionsMax = 16;
constexpr std::size_t kKeyBytesMax = 512;
constexpr std::size_t kPathBytesMax = 1024;

constexpr std::string_view kTensor = "torch._utils._rebuild_tensor_v2";
constexpr std::string_view kTensorWithDtype = "torch._utils._rebuild_tensor_v3";
constexpr std::string_view kParameter = "torch._utils._rebuild_parameter";
constexpr std::string_view kParameterWithState = "torch._utils._rebuild_parameter_with_state";
constexpr std::string_view kFromType = "torch._tensor._rebuild_from_type_v2";

constexpr std::string_view kGlobals[] = {"collections.OrderedDict",
                                         "torch.FloatStorage",
                                         "torch.HalfStorage",
                                         "torch.BFloat16Storage",
                                         "torch.DoubleStorage",
                                         "torch.LongStorage",
                                         "torch.IntStorage",
                                         "torch.ByteStorage",
                                         "torch.BoolStorage",
                                         "torch.storage.UntypedStorage",
                                         kTensor,
                                         kTensorWithDtype,
                                         kParameter,
                                         kParameterWithState,
                                         kFromType,
                                         "torch.Tensor",
                                         "torch.nn.parameter.Parameter",
                                         "torch.float32",
                                         "torch.float16",
                                         "torch.bfloat16",
                                         "torch.float64",
                                         "torch.int64",
                                         "torch.int32",
                                         "torch.uint8",
                                         "torch.bool",
                                         "torch.Size",
                                         "torch.device",
                                         "argparse.Namespace"};
constexpr std::string_view kObjects[] = {"argparse.Namespace"};

struct DtypeNames {
  Dtype dtype;
  std::string_view storage;
  std::string_view name;
};
constexpr DtypeNames kDtypes[] = {
    {Dtype::kF32, "torch.FloatStorage", "torch.float32"},
    {Dtype::kF16, "torch.HalfStorage", "torch.float16"},
    {Dtype::kBf16, "torch.BFloat16Storage", "torch.bfloat16"},
    {Dtype::kF64, "torch.DoubleStorage", "torch.float64"},
    {Dtype::kI64, "torch.LongStorage", "torch.int64"},
    {Dtype::kI32, "torch.IntStorage", "torch.int32"},
    {Dtype::kU8, "torch.ByteStorage", "torch.uint8"},
    {Dtype::kU8, "torch.BoolStorage", "torch.bool"},
};

Error Damaged(std::string what) { return {Code::kCorruption, std::move(what)}; }

// a * b, or nothing when it does not fit.
std::optional<std::uint64_t> Multiply(std::uint64_t a, std::uint64_t b) {
  std::uint64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

Result<std::vector<std::int64_t>> SizesOf(const Pickle& pickle, PickleId id) {
  const PickleNode& node = pickle[id];
  if (node.kind == PickleKind::kCall && pickle[node.items[0]].text == "torch.Size") {
    const PickleNode& arguments = pickle[node.items[1]];
    if (arguments.items.size() == 1 && pickle[arguments.items[0]].kind == PickleKind::kTuple) {
      return SizesOf(pickle, arguments.items[0]);
    }
  }
  if (node.kind != PickleKind::kTuple || node.items.size() > kDimensionsMax) {
    return Damaged("it has no sizes");
  }
  std::vector<std::int64_t> sizes;
  for (const PickleId item : node.items) {
    if (pickle[item].kind != PickleKind::kInt || pickle[item].integer < 0) {
      return Damaged("it has a size or stride that is no count");
    }
    sizes.push_back(pickle[item].integer);
  }
  return sizes;
}

// Checks that every element lies in the storage, and fills in what follows from sizes and strides.
Status Place(const TorchStorage& storage, std::int64_t offset, TorchTensor& tensor) {
  const std::size_t width = DtypeBytes(tensor.dtype);
  const std::uint64_t room = storage.bytes / width;
  std::uint64_t count = 1;
  std::uint64_t last = static_cast<std::uint64_t>(offset);
  std::int64_t dense = 1;
  for (std::size_t i = tensor.shape.size(); i-- > 0;) {
    const auto size = static_cast<std::uint64_t>(tensor.shape[i]);
    const auto counted = Multiply(count, size);
    const auto along =
        Multiply(size == 0 ? 0 : size - 1, static_cast<std::uint64_t>(tensor.strides[i]));
    if (!counted || *counted > std::numeric_limits<std::int64_t>::max() / sizeof(double) ||
        !along || __builtin_add_overflow(last, *along, &last)) {
      return Damaged("its sizes are impossible");
    }
    if (size <= 1) tensor.strides[i] = 0;  // never taken, and it may be any number
    if (size > 1 && tensor.strides[i] != dense) tensor.contiguous = false;
    count = *counted;
    dense = static_cast<std::int64_t>(count);
  }
  tensor.elements = count;
  tensor.begin = storage.begin;
  if (count == 0) {
    tensor.contiguous = true;
    return {};
  }
  if (last >= room) {
    return Damaged("its elements reach beyond its storage of " + std::to_string(room));
  }
  if (count > room) {
    return Error(Code::kCorruption,
                 "it is expanded, so that its elements share memory: save "
                 "it again after .contiguous()");
  }
  tensor.begin += static_cast<std::uint64_t>(offset) * width;
  return {};
}

std::optional<Dtype> DtypeOfName(std::string_view name) {
  for (const DtypeNames& known : kDtypes) {
    if (known.name == name) return known.dtype;
  }
  return std::nullopt;
}

std::string PathOf(const std::string& group, const std::string& name) {
  return group.empty() ? name : group + "/" + name;
}

class Walk {
 public:
  Walk(const Pickle& pickle, const std::map<PickleId, TorchStorage>& storages)
      : pickle_(pickle), storages_(storages) {}

  Result<std::vector<TorchTensor>> Run() {
    DD2_TRY(Visit(pickle_.root, "", "", 0));
    return std::move(tensors_);
  }

 private:
  Status Visit(PickleId id, const std::string& group, const std::string& name, int depth) {
    if (++visits_ > kVisitsMax) return Damaged("the file unfolds to too many values");
    if (depth > kDepthMax) return Damaged("the file's values lie too deep in each other");
    const PickleNode& node = pickle_[id];
    switch (node.kind) {
      case PickleKind::kTuple:
      case PickleKind::kList:
      case PickleKind::kDict: return VisitItems(node, PathOf(group, name), depth + 1);
      case PickleKind::kCall: return VisitCall(node, group, name);
      default: return {};  // plain values, storages without a tensor
    }
  }

  Status VisitItems(const PickleNode& node, const std::string& path, int depth) {
    if (path.size() > kPathBytesMax) return Damaged("the file has too long keys");
    const bool is_dict = node.kind == PickleKind::kDict;
    for (std::size_t i = 0; i < node.items.size(); i += is_dict ? 2 : 1) {
      std::string key = std::to_string(i);
      if (is_dict) {
        DD2_TRY_ASSIGN(key, KeyOf(node.items[i], i / 2));
      }
      DD2_TRY(Visit(node.items[is_dict ? i + 1 : i], path, key, depth));
    }
    return {};
  }

  // A dict's key as a part of a path. `position` stands for one that is neither text nor a number.
  Result<std::string> KeyOf(PickleId id, std::size_t position) const {
    const PickleNode& node = pickle_[id];
    if (node.kind == PickleKind::kInt) return std::to_string(node.integer);
    if (node.kind != PickleKind::kString) return "(" + std::to_string(position) + ")";
    // Keys are printed and become names in other files.
    const bool plain = std::all_of(node.text.begin(), node.text.end(), [](char c) {
      return static_cast<unsigned char>(c) >= ' ' && c != 0x7f;
    });
    if (!plain || node.text.size() > kKeyBytesMax || ToUtf8(node.text) != node.text) {
      return Damaged("the file has a key that is no readable text");
    }
    return node.text;
  }

  Status VisitCall(const PickleNode& call, const std::string& group, const std::string& name) {
    const std::string& callable = pickle_[call.items[0]].text;
    if (callable == "torch.Size" || callable == "torch.device") return {};
    TorchTensor tensor;
    const Status built = Build(callable, pickle_[call.items[1]], tensor, 0);
    if (!built) {
      return built.error().Wrap("tensor '" + PathOf(group, name) + "'");
    }
    if (tensors_.size() >= kTensorsMax) return Damaged("the file has too many tensors");
    tensor.group = group;
    tensor.name = name;
    tensors_.push_back(std::move(tensor));
    return {};
  }

  // A tensor, out of the wrappers around it.
  Status Build(const std::string& callable, const PickleNode& arguments, TorchTensor& tensor,
               int depth) {
    const std::vector<PickleId>& items = arguments.items;
    if (depth > 2) return Damaged("it is wrapped too often");
    if (callable == kTensor && (items.size() == 6 || items.size() == 7)) {
      return BuildPlain(items, std::nullopt, tensor);
    }
    if (callable == kTensorWithDtype && (items.size() == 7 || items.size() == 8)) {
      const auto dtype = DtypeOfName(pickle_[items[6]].text);
      if (!dtype) return Error(Code::kCorruption, "it has a type that no weights have");
      return BuildPlain(items, dtype, tensor);
    }
    if ((callable == kParameter && items.size() == 3) ||
        (callable == kParameterWithState && items.size() == 4)) {
      const PickleNode& inner = pickle_[items[0]];
      if (inner.kind != PickleKind::kCall) return Damaged("a parameter without a tensor");
      return Build(pickle_[inner.items[0]].text, pickle_[inner.items[1]], tensor, depth + 1);
    }
    if (callable == kFromType && items.size() == 4) {
      const PickleNode& function = pickle_[items[0]];
      const PickleNode& inner = pickle_[items[2]];
      if (function.kind != PickleKind::kGlobal || inner.kind != PickleKind::kTuple) {
        return Damaged("a wrapper without a tensor");
      }
      return Build(function.text, inner, tensor, depth + 1);
    }
    return Error(Code::kCorruption, "it is made by " + callable + ", which gives no plain tensor");
  }

  // (storage, offset, sizes, strides, requires_grad, hooks, ...)
  Status BuildPlain(const std::vector<PickleId>& items, std::optional<Dtype> dtype,
                    TorchTensor& tensor) {
    const auto storage = storages_.find(items[0]);
    if (storage == storages_.end()) return Damaged("it has no storage");
    if (!dtype) dtype = storage->second.dtype;
    if (!dtype) return Damaged("it has no type");
    const PickleNode& offset = pickle_[items[1]];
    if (offset.kind != PickleKind::kInt || offset.integer < 0) return Damaged("it has no offset");
    tensor.dtype = *dtype;
    DD2_TRY_ASSIGN(tensor.shape, SizesOf(pickle_, items[2]));
    DD2_TRY_ASSIGN(tensor.strides, SizesOf(pickle_, items[3]));
    if (tensor.shape.size() != tensor.strides.size())
      return Damaged("it has sizes without strides");
    return Place(storage->second, offset.integer, tensor);
  }

  const Pickle& pickle_;
  const std::map<PickleId, TorchStorage>& storages_;
  std::vector<TorchTensor> tensors_;
  std::size_t visits_ = 0;
};

Result<TorchStorage> StorageOf(const Pickle& pickle, const PickleNode& identity) {
  const auto bad = [] { return Damaged("a storage is not described as torch.save does"); };
  if (identity.kind != PickleKind::kTuple || identity.items.size() < 5 ||
      identity.items.size() > 6) {
    return bad();
  }
  const PickleNode& type = pickle[identity.items[1]];
  const PickleNode& key = pickle[identity.items[2]];
  const PickleNode& elements = pickle[identity.items[4]];
  if (pickle[identity.items[0]].text != "storage" || type.kind != PickleKind::kGlobal ||
      key.kind != PickleKind::kString || elements.kind != PickleKind::kInt ||
      elements.integer < 0) {
    return bad();
  }
  if (identity.items.size() == 6 && pickle[identity.items[5]].kind != PickleKind::kNone) {
    return Error(Code::kCorruption,
                 "a storage is a view of another one, as PyTorch 0.4 and older wrote it; load the "
                 "file with a newer PyTorch and save it again");
  }
  TorchStorage storage;
  storage.key = key.text;
  storage.elements = static_cast<std::uint64_t>(elements.integer);
  storage.bytes = storage.elements;
  if (type.text == "torch.storage.UntypedStorage") return storage;
  for (const DtypeNames& known : kDtypes) {
    if (known.storage != type.text) continue;
    const auto bytes = Multiply(storage.elements, DtypeBytes(known.dtype));
    if (!bytes) return Damaged("a storage has an impossible size");
    storage.dtype = known.dtype;
    storage.bytes = *bytes;
    return storage;
  }
  return bad();
}

}  // namespace

std::span<const std::string_view> TorchGlobals() { return kGlobals; }
std::span<const std::string_view> TorchObjects() { return kObjects; }

Result<std::map<PickleId, TorchStorage>> StoragesOf(const Pickle& pickle) {
  std::map<PickleId, TorchStorage> storages;
  for (std::size_t i = 0; i < pickle.nodes.size(); ++i) {
    if (pickle.nodes[i].kind != PickleKind::kPersistent) continue;
    DD2_TRY_ASSIGN(TorchStorage storage, StorageOf(pickle, pickle[pickle.nodes[i].items[0]]));
    storages.emplace(static_cast<PickleId>(i), std::move(storage));
  }
  return storages;
}

Result<std::vector<TorchTensor>> TensorsOf(const Pickle& pickle,
                                           const std::map<PickleId, TorchStorage>& storages) {
  return Walk(pickle, storages).Run();
}

}  // namespace dd2
