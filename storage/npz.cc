#include "storage/npz.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <optional>
#include <system_error>
#include <utility>

#include "common/check.h"
#include "storage/mapped_file.h"
#include "storage/npy_header.h"
#include "storage/zip_directory.h"

namespace dd2 {
namespace {

static_assert(std::endian::native == std::endian::little, "zip and our arrays are little-endian");

constexpr std::string_view kSuffix = ".npy";
constexpr std::uint64_t kMaxHeaderText = 1 << 16;
constexpr std::size_t kInputBytes = std::size_t{1} << 18;
constexpr std::size_t kSkipBytes = std::size_t{1} << 20;

template <class Number>
Number Load(std::string_view bytes, std::uint64_t at) {
  Number number{};
  DD2_CHECK(at + sizeof(Number) <= bytes.size());
  std::memcpy(&number, bytes.data() + at, sizeof(Number));
  return number;
}

}  // namespace

// An open file.
class NpzFile::Descriptor {
 public:
  static Result<std::shared_ptr<const Descriptor>> Open(const std::filesystem::path& path) {
    const int number = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);  // NOLINT(*-vararg)
    if (number < 0) {
      const int reason = errno;
      return Error(reason == ENOENT ? Code::kNotFound : Code::kUnavailable,
                   "cannot open " + path.string() + ": " + std::generic_category().message(reason));
    }
    auto file = std::make_shared<const Descriptor>(number, path);
    struct stat info {};
    if (::fstat(number, &info) != 0 || !S_ISREG(info.st_mode)) {
      return Error(Code::kInvalidArgument, path.string() + " is no file");
    }
    return file;
  }
  Descriptor(int number, std::filesystem::path path) : number_(number), path_(std::move(path)) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { ::close(number_); }

  const std::filesystem::path& path() const { return path_; }

  Status ReadAt(std::uint64_t offset, std::span<std::byte> out) const {
    while (!out.empty()) {
      const ssize_t got = ::pread(number_, out.data(), out.size(), static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) {
        return Error(Code::kUnavailable, "cannot read " + path_.string() + ": " +
                                             std::generic_category().message(errno));
      }
      if (got == 0) return Damaged("it ends at byte " + std::to_string(offset));
      offset += static_cast<std::uint64_t>(got);
      out = out.subspan(static_cast<std::size_t>(got));
    }
    return {};
  }
  Error Damaged(const std::string& what) const {
    return {Code::kCorruption,
            path_.string() + " is cut off, damaged or no NumPy file: " + what + "; make it again"};
  }

 private:
  int number_;
  std::filesystem::path path_;
};

// The bytes of a member, inflated where they must be.
class NpyReader::Source {
 public:
  // `summed`: the entry's checksum is one.
  Source(std::shared_ptr<const NpzFile::Descriptor> file, const ZipEntry& entry, bool summed)
      : file_(std::move(file)), entry_(entry), summing_(summed) {}
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;
  ~Source() {
    if (inflating_) inflateEnd(&stream_);
  }

  std::uint64_t left() const { return entry_.bytes - position_; }
  const NpzFile::Descriptor& file() const { return *file_; }

  Status Read(std::span<std::byte> out) {
    if (out.size() > left()) return file_->Damaged("an array is shorter than its header says");
    if (deflated()) {
      DD2_TRY(Inflate(out));
    } else {
      DD2_TRY(file_->ReadAt(entry_.begin + position_, out));
    }
    position_ += out.size();
    if (summing_ && !out.empty()) {  // a null pointer would begin the sum again
      checksum_ = static_cast<std::uint32_t>(
          crc32_z(checksum_, reinterpret_cast<const Bytef*>(out.data()), out.size()));
    }
    if (left() > 0) return {};
    if (deflated()) DD2_TRY(ExpectEnd());
    if (summing_ && checksum_ != entry_.crc32) {
      return file_->Damaged("the checksum of an array is wrong");
    }
    return {};
  }

  Status Skip(std::uint64_t count) {
    if (count > left()) return file_->Damaged("an array is shorter than its header says");
    if (count == 0) return {};
    if (!deflated()) {
      summing_ = false;
      position_ += count;
      return {};
    }
    std::vector<std::byte> dropped(std::min<std::uint64_t>(count, kSkipBytes));
    while (count > 0) {
      const auto part = std::span(dropped).first(std::min<std::uint64_t>(count, dropped.size()));
      DD2_TRY(Read(part));
      count -= part.size();
    }
    return {};
  }

 private:
  bool deflated() const { return entry_.method == ZipMethod::kDeflated; }

  Status Inflate(std::span<std::byte> out) {
    if (!inflating_) {
      // Negative: the bare stream, as zip has it.
      if (inflateInit2(&stream_, -MAX_WBITS) != Z_OK) {
        return Error(Code::kResourceExhausted, "no memory to inflate " + file_->path().string());
      }
      inflating_ = true;
      input_.resize(std::min<std::uint64_t>(entry_.stored, kInputBytes));
    }
    while (!out.empty()) {
      DD2_TRY(Refill());
      const auto room = std::min<std::size_t>(out.size(), std::numeric_limits<uInt>::max());
      stream_.next_out = reinterpret_cast<Bytef*>(out.data());
      stream_.avail_out = static_cast<uInt>(room);
      const int result = inflate(&stream_, Z_NO_FLUSH);
      const std::size_t made = room - stream_.avail_out;
      if ((result != Z_OK && result != Z_STREAM_END) ||
          (made < out.size() && result == Z_STREAM_END)) {
        return file_->Damaged("deflated data is not readable");
      }
      out = out.subspan(made);
    }
    return {};
  }

  Status Refill() {
    if (stream_.avail_in > 0) return {};
    const std::uint64_t rest = entry_.stored - taken_;
    const auto part = std::span(input_).first(std::min<std::uint64_t>(rest, input_.size()));
    if (part.empty()) return file_->Damaged("deflated data ends too early");
    DD2_TRY(file_->ReadAt(entry_.begin + taken_, part));
    taken_ += part.size();
    stream_.next_in = reinterpret_cast<Bytef*>(part.data());
    stream_.avail_in = static_cast<uInt>(part.size());
    return {};
  }

  // Nothing but the end mark may follow the last byte.
  Status ExpectEnd() {
    Bytef more = 0;
    int result = Z_OK;
    while (result == Z_OK) {
      stream_.next_out = &more;
      stream_.avail_out = 1;
      if (taken_ < entry_.stored) DD2_TRY(Refill());
      result = inflate(&stream_, Z_NO_FLUSH);
      if (stream_.avail_out == 0) break;
    }
    if (result == Z_STREAM_END && stream_.avail_out == 1) return {};
    return file_->Damaged("deflated data does not end where it should");
  }

  std::shared_ptr<const NpzFile::Descriptor> file_;
  ZipEntry entry_;
  std::uint64_t position_ = 0;  // bytes given
  std::uint64_t taken_ = 0;     // stored bytes read
  bool summing_ = true;         // there is a checksum, and nothing was skipped
  std::uint32_t checksum_ = 0;
  bool inflating_ = false;
  z_stream stream_{};
  std::vector<std::byte> input_;
};

NpyReader::NpyReader(std::unique_ptr<Source> source) : source_(std::move(source)) {}
NpyReader::NpyReader(NpyReader&&) noexcept = default;
NpyReader& NpyReader::operator=(NpyReader&&) noexcept = default;
NpyReader::~NpyReader() = default;

Error NpyReader::Damaged(const std::string& what) const { return source_->file().Damaged(what); }

Status NpyReader::ReadHeader() {
  std::string head(kNpyMagic.size() + 4, '\0');
  DD2_TRY(source_->Read(std::as_writable_bytes(std::span(head))));
  const auto version = Load<std::uint8_t>(head, kNpyMagic.size());
  if (!head.starts_with(kNpyMagic) || version < 1 || version > 2) {
    return Damaged("an array does not begin as .npy of format 1 or 2");
  }
  std::uint64_t length = Load<std::uint16_t>(head, kNpyMagic.size() + 2);
  if (version == 2) {
    std::string high(2, '\0');
    DD2_TRY(source_->Read(std::as_writable_bytes(std::span(high))));
    length |= std::uint64_t{Load<std::uint16_t>(high, 0)} << 16U;
  }
  if (length > kMaxHeaderText) return Damaged("the header of an array is too long");
  std::string text(length, '\0');
  DD2_TRY(source_->Read(std::as_writable_bytes(std::span(text))));
  return ParseHeader(text);
}

Status NpyReader::ParseHeader(std::string_view text) {
  const std::string file = source_->file().path().string();
  std::optional<NpyHeader> header = ParseNpyHeader(text);
  if (!header) return Damaged("the header of an array is not readable");
  const std::optional<Dtype> dtype = DtypeOfNpy(header->type);
  if (!dtype) {
    return Error(Code::kInvalidArgument,
                 file + ": an array has type '" + header->type +
                     "'; f2, f4, f8, u1, i4 and i8, little-endian, are read: save it with "
                     "array.astype('<f4') or the like");
  }
  if (header->fortran) {
    return Error(Code::kInvalidArgument,
                 file + ": an array is in Fortran order: save numpy.ascontiguousarray(array)");
  }
  dtype_ = *dtype;
  shape_ = std::move(header->shape);
  const std::optional<std::uint64_t> bytes = NpyBytes(shape_, dtype_);
  if (!bytes || *bytes != source_->left()) {
    return Damaged("an array of shape " + NpyShapeText(shape_) + " does not have " +
                   std::to_string(source_->left()) + " bytes");
  }
  bytes_ = *bytes;
  return {};
}

Status NpyReader::Read(std::span<std::byte> out) {
  if (out.size() <= source_->left()) return source_->Read(out);
  return Error(Code::kInvalidArgument,
               source_->file().path().string() + ": the array has no more elements");
}

Status NpyReader::Skip(std::uint64_t count) { return source_->Skip(count); }

Result<NpzFile> NpzFile::Open(const std::filesystem::path& path) {
  NpzFile file;
  DD2_TRY_ASSIGN(file.file_, Descriptor::Open(path));
  // For the directory alone: a file that is cut while its arrays are read is an error, not SIGBUS.
  DD2_TRY_ASSIGN(const MappedFile mapped, MappedFile::Open(path));
  const std::span<const std::byte> bytes = mapped.bytes();
  if (std::ranges::equal(bytes.first(std::min(bytes.size(), kNpyMagic.size())),
                         std::as_bytes(std::span(kNpyMagic)))) {
    file.members_["arr_0"] = {.stored = bytes.size(), .bytes = bytes.size()};
    file.bare_ = true;
    return file;
  }
  const auto entries = ReadZipDirectory(bytes);
  if (!entries) return file.file_->Damaged(entries.error().message());
  for (const auto& [name, entry] : *entries) {
    if (!name.ends_with(kSuffix)) continue;
    if (entry.method == ZipMethod::kOther) {
      return Error(Code::kInvalidArgument,
                   path.string() + ": '" + name +
                       "' is encrypted or compressed in a way that is not read: save it with "
                       "numpy.savez or numpy.savez_compressed");
    }
    file.members_.emplace(name.substr(0, name.size() - kSuffix.size()), entry);
  }
  return file;
}

std::vector<std::string> NpzFile::names() const {
  std::vector<std::string> names;
  for (const auto& [name, member] : members_) names.push_back(name);
  return names;
}

Result<NpyReader> NpzFile::Array(const std::string& name) const {
  const auto found = members_.find(name);
  if (found == members_.end()) {
    return Error(Code::kNotFound, file_->path().string() + " has no array '" + name + "'");
  }
  NpyReader reader(std::make_unique<NpyReader::Source>(file_, found->second, !bare_));
  if (const Status read = reader.ReadHeader(); !read) {
    return read.error().Wrap("array '" + name + "'");
  }
  return reader;
}

Result<std::vector<std::byte>> NpzFile::ReadAll(const std::string& name,
                                                std::span<const std::int64_t> shape,
                                                std::uint64_t most) const {
  DD2_TRY_ASSIGN(NpyReader reader, Array(name));
  const bool fits = std::ranges::equal(
      reader.shape(), shape,
      [](std::int64_t is, std::int64_t wanted) { return wanted == -1 || is == wanted; });
  if (!fits || reader.bytes() > most) {
    return Error(Code::kInvalidArgument, file_->path().string() + ": array '" + name +
                                             "' has shape " + NpyShapeText(reader.shape()) +
                                             ", expected " + NpyShapeText(shape));
  }
  std::vector<std::byte> bytes(reader.bytes());
  DD2_TRY(reader.Read(bytes));
  return bytes;
}

}  // namespace dd2
