#include "storage/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <optional>
#include <set>
#include <system_error>
#include <utility>

#include "common/check.h"
#include "common/json.h"

namespace dd2 {
namespace {

namespace json = boost::json;

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

constexpr std::uint64_t kAlignment = 64;                // a tensor that enters a GEMM needs it
constexpr std::uint64_t kLengthBytes = 8;               // the u64 in front of the header
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the reference implementation's limit

// Large enough that the system call costs nothing, small enough that the bytes which were just
// hashed are still in a cache when they are written. Offsets in the file are multiples of it.
constexpr std::size_t kWriteBytes = std::size_t{8} << 20;

struct DtypeName {
  Dtype dtype;
  std::string_view name;
  std::size_t bytes;
};
constexpr DtypeName kDtypes[] = {{Dtype::kF32, "F32", 4},   {Dtype::kF16, "F16", 2},
                                 {Dtype::kBf16, "BF16", 2}, {Dtype::kF64, "F64", 8},
                                 {Dtype::kI64, "I64", 8},   {Dtype::kI32, "I32", 4},
                                 {Dtype::kU8, "U8", 1}};

std::string_view NameOf(Dtype dtype) {
  for (const DtypeName& known : kDtypes) {
    if (known.dtype == dtype) return known.name;
  }
  return "unknown";
}

std::string ShapeText(std::span<const std::int64_t> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  }
  return text + "]";
}

// Elements of `shape`; nothing when a size is negative or the product does not fit.
std::optional<std::uint64_t> CountElements(std::span<const std::int64_t> shape) {
  std::uint64_t count = 1;
  for (const std::int64_t size : shape) {
    if (size < 0) return std::nullopt;
    const auto factor = static_cast<std::uint64_t>(size);
    if (factor != 0 && count > std::numeric_limits<std::uint64_t>::max() / factor) {
      return std::nullopt;
    }
    count *= factor;
  }
  return count;
}

std::uint64_t RoundUp(std::uint64_t value) {
  return (value + kAlignment - 1) / kAlignment * kAlignment;
}

// An unsigned integer of a JSON value, however Boost.JSON typed it.
std::optional<std::uint64_t> AsUnsigned(const json::value& value) {
  if (value.is_uint64()) return value.get_uint64();
  if (value.is_int64() && value.get_int64() >= 0) {
    return static_cast<std::uint64_t>(value.get_int64());
  }
  return std::nullopt;
}

// Where each tensor goes, from the start of the data section. The gaps that alignment leaves are
// not allowed by readers of the format, so each is a u8 tensor of its own.
struct Placed {
  std::string name;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  const TensorToWrite* tensor = nullptr;  // null: padding
};

std::vector<Placed> PlaceTensors(std::span<const TensorToWrite> tensors) {
  std::vector<Placed> placed;
  std::uint64_t at = 0;
  for (const TensorToWrite& tensor : tensors) {
    if (const std::uint64_t aligned = RoundUp(at); aligned != at) {
      placed.push_back({"__pad__." + std::to_string(placed.size()), at, aligned, nullptr});
      at = aligned;
    }
    // CheckTensors has counted them.
    const std::uint64_t bytes = *CountElements(tensor.shape) * sizeof(float);
    placed.push_back({tensor.name, at, at + bytes, &tensor});
    at += bytes;
  }
  return placed;
}

std::string HeaderText(const std::vector<Placed>& placed,
                       const std::map<std::string, std::string>& metadata) {
  json::object header;
  if (!metadata.empty()) {
    json::object& strings = header["__metadata__"].emplace_object();
    for (const auto& [key, value] : metadata) strings[key] = value;
  }
  for (const Placed& part : placed) {
    json::object& entry = header[part.name].emplace_object();
    entry["dtype"] = part.tensor == nullptr ? "U8" : "F32";
    json::array& shape = entry["shape"].emplace_array();
    if (part.tensor == nullptr) {
      shape.emplace_back(part.end - part.begin);
    } else {
      for (const std::int64_t size : part.tensor->shape) shape.emplace_back(size);
    }
    entry["data_offsets"] = json::array{part.begin, part.end};
  }
  std::string text = json::serialize(header);
  // Spaces, as the format asks, until the data starts at a multiple of the alignment.
  text.resize(RoundUp(kLengthBytes + text.size()) - kLengthBytes, ' ');
  return text;
}

bool IsPadding(std::string_view name) { return name.starts_with("__pad__."); }

Status CheckTensors(std::span<const TensorToWrite> tensors) {
  std::set<std::string_view> names;
  for (const TensorToWrite& tensor : tensors) {
    if (tensor.name.empty() || tensor.name == "__metadata__" || IsPadding(tensor.name) ||
        !names.insert(tensor.name).second) {
      return Error(Code::kInvalidArgument,
                   "tensor name '" + tensor.name + "' is empty, reserved or given twice");
    }
    const auto count = CountElements(tensor.shape);
    if (!count || *count > std::numeric_limits<std::int64_t>::max() / sizeof(float)) {
      return Error(Code::kInvalidArgument,
                   "tensor " + tensor.name + " has an impossible shape " + ShapeText(tensor.shape));
    }
  }
  return {};
}

Result<TensorInfo> ParseTensor(const json::value& value) {
  const auto bad = [](std::string what) { return Error(Code::kCorruption, std::move(what)); };
  const json::object* entry = value.if_object();
  if (entry == nullptr) return bad("is not an object");
  const json::value* dtype = entry->if_contains("dtype");
  const json::value* shape = entry->if_contains("shape");
  const json::value* offsets = entry->if_contains("data_offsets");
  if (dtype == nullptr || !dtype->is_string()) return bad("has no dtype");
  if (shape == nullptr || !shape->is_array()) return bad("has no shape");
  if (offsets == nullptr || !offsets->is_array() || offsets->get_array().size() != 2) {
    return bad("has no data_offsets [begin, end]");
  }
  TensorInfo info;
  const std::string_view dtype_name(dtype->get_string());
  const auto* known = std::find_if(std::begin(kDtypes), std::end(kDtypes),
                                   [&](const DtypeName& each) { return each.name == dtype_name; });
  if (known == std::end(kDtypes)) return bad("has unknown dtype " + std::string(dtype_name));
  info.dtype = known->dtype;
  for (const json::value& each : shape->get_array()) {
    const auto size = AsUnsigned(each);
    if (!size || *size > std::numeric_limits<std::int64_t>::max()) return bad("has a bad shape");
    info.shape.push_back(static_cast<std::int64_t>(*size));
  }
  const auto begin = AsUnsigned(offsets->get_array()[0]);
  const auto end = AsUnsigned(offsets->get_array()[1]);
  if (!begin || !end || *end < *begin) return bad("has bad data_offsets");
  const auto count = CountElements(info.shape);
  if (!count || *count > std::numeric_limits<std::uint64_t>::max() / known->bytes ||
      *count * known->bytes != *end - *begin) {
    return bad("has shape " + ShapeText(info.shape) + " and dtype " + std::string(dtype_name) +
               " but " + std::to_string(*end - *begin) + " bytes");
  }
  info.offset = *begin;  // from the start of the data section until the caller moves it
  info.bytes = *end - *begin;
  return info;
}

// The data section must be covered exactly: no overlap, no hole, nothing behind the last tensor.
Status CheckCoverage(const std::map<std::string, TensorInfo>& tensors, std::uint64_t data_bytes) {
  std::vector<std::pair<const std::string*, const TensorInfo*>> order;
  for (const auto& [name, info] : tensors) order.emplace_back(&name, &info);
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second->offset, a.second->bytes) <
           std::pair(b.second->offset, b.second->bytes);
  });
  std::uint64_t at = 0;
  for (const auto& [name, info] : order) {
    if (info->offset != at) {
      return Error(Code::kCorruption, "tensor " + *name + " starts at " +
                                          std::to_string(info->offset) +
                                          " but the one before it ends at " + std::to_string(at) +
                                          " (overlap or hole)");
    }
    if (info->bytes > data_bytes - at) {
      return Error(Code::kCorruption, "tensor " + *name + " ends at " +
                                          std::to_string(at + info->bytes) +
                                          " but there are only " + std::to_string(data_bytes) +
                                          " bytes of data (truncated?)");
    }
    at += info->bytes;
  }
  if (at != data_bytes) {
    return Error(Code::kCorruption,
                 std::to_string(data_bytes - at) + " bytes behind the last tensor");
  }
  return {};
}

struct Header {
  std::map<std::string, TensorInfo> tensors;  // offsets from the start of the file
  std::map<std::string, std::string> metadata;
};

// The length that a file of `file_bytes` begins with.
Status CheckHeaderLength(std::uint64_t length, std::uint64_t file_bytes) {
  if (length <= kMaxHeaderBytes && length <= file_bytes - kLengthBytes) return {};
  return Error(Code::kCorruption, "header length " + std::to_string(length) + " but the file has " +
                                      std::to_string(file_bytes) +
                                      " bytes: truncated, or not a safetensors file");
}

Result<Header> ParseHeader(std::string_view text, std::uint64_t file_bytes) {
  if (!text.starts_with('{')) return Error(Code::kCorruption, "the header is not a JSON object");
  boost::system::error_code code;
  const json::value parsed = json::parse(text, code);
  if (code || !parsed.is_object()) {
    return Error(Code::kCorruption, "the header is not JSON: " + code.message());
  }
  Header header;
  for (const auto& [key, value] : parsed.get_object()) {
    const std::string name(key);
    if (name == "__metadata__") {
      if (!value.is_object()) return Error(Code::kCorruption, "__metadata__ is not an object");
      for (const auto& [entry, string] : value.get_object()) {
        if (!string.is_string()) {
          return Error(Code::kCorruption, "metadata " + std::string(entry) + " is not a string");
        }
        header.metadata.emplace(std::string(entry), std::string(string.get_string()));
      }
      continue;
    }
    auto info = ParseTensor(value);
    if (!info) return Error(Code::kCorruption, "tensor " + name + " " + info.error().message());
    header.tensors.emplace(name, *std::move(info));
  }
  const std::uint64_t data_begin = kLengthBytes + text.size();
  DD2_TRY(CheckCoverage(header.tensors, file_bytes - data_begin));
  for (auto& [name, info] : header.tensors) info.offset += data_begin;
  std::erase_if(header.tensors, [](const auto& each) { return IsPadding(each.first); });
  return header;
}

// Hashes what it appends.
class HashedFile {
 public:
  explicit HashedFile(WritableFile& file) : file_(file) {}
  Status Append(std::span<const std::byte> bytes) {
    hasher_.Update(bytes);
    size_bytes_ += bytes.size();
    return file_.Append(bytes);
  }
  std::uint64_t size_bytes() const { return size_bytes_; }
  WrittenFile Finish() const { return {size_bytes_, hasher_.Finish()}; }

 private:
  WritableFile& file_;
  Hasher128 hasher_;
  std::uint64_t size_bytes_ = 0;
};

// Creates `path`, lets `fill(HashedFile&)` append to it, syncs and closes it.
template <class Fill>
Result<WrittenFile> WriteHashed(FileSystem& files, const std::filesystem::path& path,
                                const Fill& fill) {
  DD2_TRY_ASSIGN(auto file, files.Create(path));
  HashedFile hashed(*file);
  Status written = fill(hashed);
  if (written) written = file->Sync();
  if (written) written = file->Close();
  if (written) return hashed.Finish();
  // A disk that is full needs the space back before anything is tried again. The first error is the
  // one to report.
  file.reset();
  static_cast<void>(files.Remove(path));
  return written.error();
}

}  // namespace

std::size_t DtypeBytes(Dtype dtype) {
  for (const DtypeName& known : kDtypes) {
    if (known.dtype == dtype) return known.bytes;
  }
  DD2_CHECK_MSG(false, "a Dtype without a size");
}

Result<SafetensorsLayout> LayOutSafetensors(std::span<const TensorToWrite> tensors,
                                            const std::map<std::string, std::string>& metadata) {
  DD2_TRY(CheckTensors(tensors));
  const std::vector<Placed> placed = PlaceTensors(tensors);
  const std::string text = HeaderText(placed, metadata);
  const std::uint64_t length = text.size();
  SafetensorsLayout layout;
  layout.head.assign(reinterpret_cast<const char*>(&length), sizeof(length));
  layout.head += text;
  for (const Placed& part : placed) {
    if (part.tensor != nullptr) layout.offsets.push_back(layout.head.size() + part.begin);
  }
  layout.file_bytes = layout.head.size() + (placed.empty() ? 0 : placed.back().end);
  return layout;
}

namespace {

// `append(index, file)` appends the data of a tensor.
template <class AppendData>
Result<WrittenFile> WriteTensors(FileSystem& files, const std::filesystem::path& path,
                                 std::span<const TensorToWrite> tensors,
                                 const std::map<std::string, std::string>& metadata,
                                 const AppendData& append) {
  auto layout = LayOutSafetensors(tensors, metadata);
  if (!layout) return layout.error().Wrap(path.string());
  return WriteHashed(files, path, [&](HashedFile& file) -> Status {
    DD2_TRY(file.Append(std::as_bytes(std::span(layout->head))));
    constexpr std::byte kZeros[kAlignment] = {};
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      const std::uint64_t gap = layout->offsets[i] - file.size_bytes();
      if (gap > 0) DD2_TRY(file.Append(std::span(kZeros).first(gap)));
      DD2_TRY(append(i, file));
    }
    return {};
  });
}

}  // namespace

Result<WrittenFile> WriteSafetensors(FileSystem& files, const std::filesystem::path& path,
                                     std::span<const TensorToWrite> tensors,
                                     const std::map<std::string, std::string>& metadata) {
  for (const TensorToWrite& tensor : tensors) {
    if (CountElements(tensor.shape) == tensor.data.size()) continue;
    return Error(Code::kInvalidArgument, path.string() + ": tensor " + tensor.name + " has shape " +
                                             ShapeText(tensor.shape) + " but " +
                                             std::to_string(tensor.data.size()) + " elements");
  }
  return WriteTensors(files, path, tensors, metadata, [&](std::size_t i, HashedFile& file) {
    return file.Append(std::as_bytes(tensors[i].data));
  });
}

Result<WrittenFile> WriteSafetensorsFrom(FileSystem& files, const std::filesystem::path& path,
                                         std::span<const TensorToWrite> tensors,
                                         const std::map<std::string, std::string>& metadata,
                                         const ReadElements& read) {
  std::vector<float> buffer(kWriteBytes / sizeof(float));
  const auto append = [&](std::size_t i, HashedFile& file) -> Status {
    const auto count = static_cast<std::int64_t>(*CountElements(tensors[i].shape));
    const auto most = static_cast<std::int64_t>(buffer.size());
    for (std::int64_t at = 0; at < count; at += most) {
      const auto out =
          std::span(buffer).first(static_cast<std::size_t>(std::min(most, count - at)));
      DD2_TRY(read(i, at, out));
      DD2_TRY(file.Append(std::as_bytes(out)));
    }
    return {};
  };
  return WriteTensors(files, path, tensors, metadata, append);
}

Result<WrittenFile> WriteSafetensorsImage(FileSystem& files, const std::filesystem::path& path,
                                          std::span<const std::byte> image) {
  return WriteHashed(files, path, [&](HashedFile& file) -> Status {
    for (std::size_t at = 0; at < image.size(); at += kWriteBytes) {
      DD2_TRY(file.Append(image.subspan(at, std::min(kWriteBytes, image.size() - at))));
    }
    return {};
  });
}

Result<SafetensorsFile> SafetensorsFile::Open(const std::filesystem::path& path) {
  const auto failed = [&path](std::string_view what, int number) {
    const Code code = number == ENOENT || number == ENOTDIR ? Code::kNotFound : Code::kUnavailable;
    return Error(code, std::string(what) + " " + path.string() + ": " +
                           std::generic_category().message(number));
  };
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return failed("cannot open", errno);
  struct stat status = {};
  if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor);
    return Error(Code::kCorruption, path.string() + ": not a regular file");
  }
  SafetensorsFile file;
  file.path_ = path;
  file.descriptor_ = descriptor;
  file.size_ = static_cast<std::uint64_t>(status.st_size);
  if (file.size_ < kLengthBytes) {
    return Error(Code::kCorruption, path.string() + ": only " + std::to_string(file.size_) +
                                        " bytes, too short for a safetensors file");
  }
  std::uint64_t length = 0;
  DD2_TRY(file.ReadAt(0, std::as_writable_bytes(std::span(&length, 1))));
  if (const Status fits = CheckHeaderLength(length, file.size_); !fits) {
    return fits.error().Wrap(path.string());
  }
  std::string text(length, '\0');
  DD2_TRY(file.ReadAt(kLengthBytes, std::as_writable_bytes(std::span(text))));
  auto header = ParseHeader(text, file.size_);
  if (!header) return header.error().Wrap(path.string());
  file.tensors_ = std::move(header->tensors);
  file.metadata_ = std::move(header->metadata);
  return file;
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept { *this = std::move(other); }

SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(size_, other.size_);
  std::swap(tensors_, other.tensors_);
  std::swap(metadata_, other.metadata_);
  return *this;
}

SafetensorsFile::~SafetensorsFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

Status SafetensorsFile::ReadAt(std::uint64_t offset, std::span<std::byte> out) const {
  while (!out.empty()) {
    const ssize_t got = ::pread(descriptor_, out.data(), out.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      return Error(Code::kUnavailable,
                   "cannot read " + path_.string() + ": " + std::generic_category().message(errno));
    }
    if (got == 0) {
      return Error(Code::kCorruption, path_.string() + " ends at byte " + std::to_string(offset) +
                                          ", it had " + std::to_string(size_) +
                                          " when it was opened");
    }
    offset += static_cast<std::uint64_t>(got);
    out = out.subspan(static_cast<std::size_t>(got));
  }
  return {};
}

Result<std::vector<float>> SafetensorsFile::ReadF32(std::string_view name,
                                                    std::span<const std::int64_t> shape) const {
  const auto found = tensors_.find(std::string(name));
  if (found == tensors_.end()) {
    return Error(Code::kNotFound, path_.string() + " has no tensor " + std::string(name));
  }
  const TensorInfo& info = found->second;
  if (info.dtype != Dtype::kF32 ||
      !std::equal(shape.begin(), shape.end(), info.shape.begin(), info.shape.end())) {
    return Error(Code::kInvalidArgument, path_.string() + ": tensor " + std::string(name) + " is " +
                                             std::string(NameOf(info.dtype)) + " " +
                                             ShapeText(info.shape) + ", expected F32 " +
                                             ShapeText(shape));
  }
  std::vector<float> values(info.bytes / sizeof(float));
  DD2_TRY(ReadAt(info.offset, std::as_writable_bytes(std::span(values))));
  return values;
}

Status SafetensorsFile::ReadBytes(std::string_view name, std::uint64_t begin,
                                  std::span<std::byte> out) const {
  const auto found = tensors_.find(std::string(name));
  if (found == tensors_.end()) {
    return Error(Code::kNotFound, path_.string() + " has no tensor " + std::string(name));
  }
  const TensorInfo& info = found->second;
  if (begin > info.bytes || out.size() > info.bytes - begin) {
    return Error(Code::kInvalidArgument, path_.string() + ": " + std::to_string(out.size()) +
                                             " bytes from byte " + std::to_string(begin) + " of " +
                                             std::string(name) + ", which has " +
                                             std::to_string(info.bytes));
  }
  return ReadAt(info.offset + begin, out);
}

Result<Digest128> SafetensorsFile::FileHash() const {
  std::vector<std::byte> buffer(std::min<std::uint64_t>(size_, kWriteBytes));
  Hasher128 hasher;
  for (std::uint64_t at = 0; at < size_; at += buffer.size()) {
    const auto piece = std::span(buffer).first(std::min<std::uint64_t>(buffer.size(), size_ - at));
    DD2_TRY(ReadAt(at, piece));
    hasher.Update(std::span<const std::byte>(piece));
  }
  return hasher.Finish();
}

}  // namespace dd2
