#include "storage/torch_file.h"

#include <zlib.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>
#include <utility>

#include "storage/byte_cursor.h"
#include "storage/pickle.h"
#include "storage/torch_graph.h"

namespace dd2 {
namespace {

constexpr std::string_view kZipStart = "PK\x03\x04";
// The first thing in a file of the older container: the pickle of 0x1950a86a20f9469cfc6c.
constexpr std::string_view kStreamStart =
    "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
constexpr std::int64_t kStreamProtocol = 1001;
constexpr std::string_view kPickleName = "/data.pkl";
constexpr std::size_t kPieceBytes = std::size_t{8} << 20;

Error Damaged(std::string what) { return {Code::kCorruption, std::move(what)}; }

Error BigEndian() {
  return {Code::kCorruption,
          "it was written on a big-endian machine; load it with PyTorch here and save it again"};
}

std::string_view AsText(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// "<root>", from the one entry "<root>/data.pkl".
Result<std::string> RootOf(const std::map<std::string, ZipEntry>& entries) {
  std::string root;
  for (const auto& [name, entry] : entries) {
    if (!name.ends_with(kPickleName)) continue;
    if (!root.empty()) return Damaged("it holds more than one data.pkl");
    root = name.substr(0, name.size() - kPickleName.size());
  }
  if (root.empty()) {
    return Error(Code::kCorruption,
                 "it is a zip archive, but none that torch.save wrote (no data.pkl); if the "
                 "checkpoint is packed in it, unpack it first");
  }
  if (entries.contains(root + "/constants.pkl")) {
    return Error(Code::kCorruption,
                 "it is a TorchScript program, not a checkpoint; save its state_dict() instead");
  }
  return root;
}

Status CheckStored(const std::map<std::string, ZipEntry>& entries) {
  for (const auto& [name, entry] : entries) {
    if (entry.method == ZipMethod::kStored) continue;
    return Damaged("zip archive: " + name +
                   " is compressed or encrypted, which torch.save never does; unpack the archive "
                   "and use the file inside, or save it again with torch.save");
  }
  return {};
}

std::span<const std::byte> BytesOf(std::span<const std::byte> file, const ZipEntry& entry) {
  return file.subspan(entry.begin, entry.bytes);
}

Result<std::vector<TorchTensor>> ReadZip(std::span<const std::byte> file,
                                         const std::map<std::string, ZipEntry>& entries) {
  DD2_TRY_ASSIGN(const std::string root, RootOf(entries));
  if (const auto order = entries.find(root + "/byteorder"); order != entries.end()) {
    if (AsText(BytesOf(file, order->second)) != "little") return BigEndian();
  }
  DD2_TRY_ASSIGN(const Pickle pickle,
                 ReadPickle(BytesOf(file, entries.at(root + std::string(kPickleName))),
                            TorchGlobals(), TorchObjects()));
  DD2_TRY_ASSIGN(auto storages, StoragesOf(pickle));
  for (auto& [id, storage] : storages) {
    const auto entry = entries.find(root + "/data/" + storage.key);
    if (entry == entries.end() || entry->second.bytes != storage.bytes) {
      return Damaged("the data of storage " + storage.key + " is missing or of another size");
    }
    storage.begin = entry->second.begin;
  }
  return TensorsOf(pickle, storages);
}

// Whether the third pickle, a dict about the machine that wrote the file, says little-endian.
bool IsLittleEndian(const Pickle& about) {
  const PickleNode& root = about[about.root];
  if (root.kind != PickleKind::kDict) return false;
  for (std::size_t i = 0; i < root.items.size(); i += 2) {
    const PickleNode& value = about[root.items[i + 1]];
    if (about[root.items[i]].text == "little_endian") {
      return value.kind == PickleKind::kBool && value.integer == 1;
    }
  }
  return false;
}

// Behind the pickles: for each key, in the order of the list, how many elements, then the elements.
Status FindStorages(const Pickle& keys, ByteCursor& cursor,
                    std::map<PickleId, TorchStorage>& storages) {
  std::map<std::string_view, TorchStorage*> by_key;
  for (auto& [id, storage] : storages) {
    const auto [first, is_new] = by_key.emplace(storage.key, &storage);
    if (!is_new &&
        (first->second->dtype != storage.dtype || first->second->elements != storage.elements)) {
      return Damaged("storage " + storage.key + " is described in two ways");
    }
  }
  const PickleNode& list = keys[keys.root];
  if (list.kind != PickleKind::kList || list.items.size() != by_key.size()) {
    return Damaged("its list of storages does not fit its tensors");
  }
  std::map<std::string_view, std::uint64_t> begins;
  for (const PickleId item : list.items) {
    const auto found = by_key.find(keys[item].text);
    if (found == by_key.end()) return Damaged("its list of storages does not fit its tensors");
    DD2_TRY_ASSIGN(const auto elements, cursor.TakeInt<std::uint64_t>());
    const TorchStorage& storage = *found->second;
    if (elements != storage.elements || !begins.emplace(storage.key, cursor.at()).second) {
      return Damaged("storage " + storage.key + " has another size than its tensors say");
    }
    DD2_TRY(cursor.Take(storage.bytes));
  }
  for (auto& [id, storage] : storages) storage.begin = begins.at(storage.key);
  return {};
}

Result<Pickle> TakePickle(std::span<const std::byte> file, ByteCursor& cursor) {
  DD2_TRY_ASSIGN(Pickle pickle,
                 ReadPickle(file.subspan(cursor.at()), TorchGlobals(), TorchObjects()));
  DD2_TRY(cursor.Take(pickle.bytes));
  return pickle;
}

// The container before PyTorch 1.6: pickles one after the other (magic number, protocol, machine,
// value, keys of storages), then the storages.
Result<std::vector<TorchTensor>> ReadStream(std::span<const std::byte> file) {
  ByteCursor cursor(file, kStreamStart.size());
  DD2_TRY_ASSIGN(const Pickle protocol, TakePickle(file, cursor));
  if (protocol[protocol.root].integer != kStreamProtocol) {
    return Damaged("it is of an unknown protocol");
  }
  DD2_TRY_ASSIGN(const Pickle about, TakePickle(file, cursor));
  if (!IsLittleEndian(about)) return BigEndian();
  DD2_TRY_ASSIGN(const Pickle value, TakePickle(file, cursor));
  DD2_TRY_ASSIGN(auto storages, StoragesOf(value));
  DD2_TRY_ASSIGN(const Pickle keys, TakePickle(file, cursor));
  DD2_TRY(FindStorages(keys, cursor, storages));
  return TensorsOf(value, storages);
}

template <class T>
T Load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

float FromHalf(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000U) << 16U;
  const std::uint32_t exponent = (half >> 10U) & 0x1fU;
  const std::uint32_t fraction = half & 0x3ffU;
  if (exponent == 0) {  // zero, or a multiple of 2^-24
    const float value = static_cast<float>(fraction) * 0x1p-24F;
    return sign != 0 ? -value : value;
  }
  const std::uint32_t wide = exponent == 0x1fU ? 0xffU : exponent + 112U;
  return std::bit_cast<float>(sign | wide << 23U | fraction << 13U);
}

float ToFloat(Dtype dtype, const std::byte* at) {
  switch (dtype) {
    case Dtype::kF32: return Load<float>(at);
    case Dtype::kF16: return FromHalf(Load<std::uint16_t>(at));
    case Dtype::kBf16:
      return std::bit_cast<float>(static_cast<std::uint32_t>(Load<std::uint16_t>(at)) << 16U);
    case Dtype::kF64: return static_cast<float>(Load<double>(at));
    case Dtype::kI64: return static_cast<float>(Load<std::int64_t>(at));
    case Dtype::kI32: return static_cast<float>(Load<std::int32_t>(at));
    case Dtype::kU8: return static_cast<float>(Load<std::uint8_t>(at));
  }
  return 0;
}

void ReadContiguous(const TorchTensor& tensor, std::span<const std::byte> from,
                    std::span<float> out) {
  if (tensor.dtype == Dtype::kF32) {
    std::memcpy(out.data(), from.data(), from.size());
    return;
  }
  const std::size_t width = DtypeBytes(tensor.dtype);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = ToFloat(tensor.dtype, &from[i * width]);
}

// Counts through the elements like an odometer, from number `begin` on.
void ReadStrided(const TorchTensor& tensor, const std::byte* base, std::int64_t begin,
                 std::span<float> out) {
  const std::size_t dimensions = tensor.shape.size();
  const std::size_t width = DtypeBytes(tensor.dtype);
  std::vector<std::int64_t> index(dimensions);
  std::int64_t at = 0;  // in elements behind base
  for (std::size_t i = dimensions; i-- > 0;) {
    index[i] = begin % tensor.shape[i];
    begin /= tensor.shape[i];
    at += index[i] * tensor.strides[i];
  }
  for (float& value : out) {
    value = ToFloat(tensor.dtype, base + static_cast<std::size_t>(at) * width);
    for (std::size_t i = dimensions; i-- > 0;) {
      at += tensor.strides[i];
      if (++index[i] < tensor.shape[i]) break;
      at -= index[i] * tensor.strides[i];
      index[i] = 0;
    }
  }
}

// A dict that names a tensor twice: which one is meant?
Status CheckNames(const std::vector<TorchTensor>& tensors) {
  std::set<std::pair<std::string_view, std::string_view>> names;
  for (const TorchTensor& tensor : tensors) {
    if (names.emplace(tensor.group, tensor.name).second) continue;
    return Damaged("it has two tensors " + tensor.group + "/" + tensor.name);
  }
  return {};
}

}  // namespace

bool TorchFile::Recognises(std::span<const std::byte> bytes) {
  return AsText(bytes).starts_with(kZipStart) || AsText(bytes).starts_with(kStreamStart);
}

Result<TorchFile> TorchFile::Parse(std::span<const std::byte> bytes) {
  if (!Recognises(bytes)) {
    return Error(Code::kCorruption,
                 "it is no file of torch.save (it begins neither as a zip archive nor as the "
                 "container before PyTorch 1.6)");
  }
  TorchFile file;
  file.bytes_ = bytes;
  if (AsText(bytes).starts_with(kZipStart)) {
    DD2_TRY_ASSIGN(file.entries_, ReadZipDirectory(bytes));
    DD2_TRY(CheckStored(file.entries_));
    DD2_TRY_ASSIGN(file.tensors_, ReadZip(bytes, file.entries_));
  } else {
    DD2_TRY_ASSIGN(file.tensors_, ReadStream(bytes));
  }
  DD2_TRY(CheckNames(file.tensors_));
  return file;
}

Result<TorchFile> TorchFile::Open(const std::filesystem::path& path) {
  DD2_TRY_ASSIGN(MappedFile mapped, MappedFile::Open(path));
  auto file = Parse(mapped.bytes());
  if (!file) return file.error().Wrap(path.string());
  file->mapped_ = std::move(mapped);
  return file;
}

Status TorchFile::Read(const TorchTensor& tensor, std::int64_t begin, std::span<float> out) const {
  if (begin < 0 || static_cast<std::uint64_t>(begin) > tensor.elements ||
      out.size() > tensor.elements - static_cast<std::uint64_t>(begin)) {
    return Error(Code::kInvalidArgument, std::to_string(out.size()) + " elements from " +
                                             std::to_string(begin) + " of " + tensor.name +
                                             ", which has " + std::to_string(tensor.elements));
  }
  if (out.empty()) return {};
  if (!tensor.contiguous) {
    ReadStrided(tensor, &bytes_[tensor.begin], begin, out);
    return {};
  }
  const std::size_t width = DtypeBytes(tensor.dtype);
  const auto from =
      bytes_.subspan(tensor.begin + static_cast<std::uint64_t>(begin) * width, out.size() * width);
  ReadContiguous(tensor, from, out);
  if (mapped_) ForgetPages(from);
  return {};
}

Status TorchFile::CheckSums(const std::function<void(std::uint64_t)>& progress) const {
  for (const auto& [name, entry] : entries_) {
    const auto content = BytesOf(bytes_, entry);
    auto sum = ::crc32(0, nullptr, 0);
    for (std::size_t at = 0; at < content.size(); at += kPieceBytes) {
      const auto piece = content.subspan(at, std::min(kPieceBytes, content.size() - at));
      sum = ::crc32_z(sum, reinterpret_cast<const unsigned char*>(piece.data()), piece.size());
      if (mapped_) ForgetPages(piece);
      progress(piece.size());
    }
    // 0 is what torch.save writes when it is told not to compute any.
    if (entry.crc32 == 0 || entry.crc32 == sum) continue;
    return Damaged(name + " is damaged (its checksum differs): copy or download the file again");
  }
  return {};
}

}  // namespace dd2
