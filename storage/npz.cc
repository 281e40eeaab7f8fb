#include "storage/npz.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <optional>
#include <system_error>
#include <utility>

#include "common/check.h"
#include "storage/npy_header.h"
#include "storage/zip_records.h"

namespace dd2 {
namespace {

static_assert(std::endian::native == std::endian::little, "zip and our arrays are little-endian");

constexpr std::string_view kSuffix = ".npy";
constexpr std::uint64_t kMaxHeaderText = 1 << 16;
constexpr std::uint64_t kMaxDirectoryBytes = std::uint64_t{16} << 20;
constexpr std::uint64_t kMaxMembers = 1 << 16;
constexpr std::uint64_t kMaxRatio = 1032;  // deflate cannot do better: 258 bytes in 2 bits
constexpr std::size_t kInputBytes = std::size_t{1} << 18;
constexpr std::size_t kSkipBytes = std::size_t{1} << 20;

template <class Number>
Number Load(std::string_view bytes, std::uint64_t at) {
  Number number{};
  DD2_CHECK(at + sizeof(Number) <= bytes.size());
  std::memcpy(&number, bytes.data() + at, sizeof(Number));
  return number;
}

// Where the directory of an archive is, from the record at its end.
struct DirectoryPlace {
  std::uint64_t members = 0;
  std::uint64_t bytes = 0;
  std::uint64_t offset = 0;
};

// `tail`: the last bytes of a file of `size` bytes. The record at the end; nothing when there is
// none. `end` becomes its position in `tail`.
std::optional<DirectoryPlace> FindEnd(std::string_view tail, std::uint64_t* end) {
  if (tail.size() < zip::kEndBytes) return std::nullopt;
  for (std::uint64_t at = tail.size() - zip::kEndBytes + 1; at-- > 0;) {
    // A comment of any bytes may follow, so its length has to fit too.
    if (Load<std::uint32_t>(tail, at) != zip::kEndSignature ||
        at + zip::kEndBytes + Load<std::uint16_t>(tail, at + 20) != tail.size()) {
      continue;
    }
    *end = at;
    return DirectoryPlace{.members = Load<std::uint16_t>(tail, at + 10),
                          .bytes = Load<std::uint32_t>(tail, at + 12),
                          .offset = Load<std::uint32_t>(tail, at + 16)};
  }
  return std::nullopt;
}

// Replaces what did not fit into 32 bits by the fields of the 64-bit record, which hold those in
// this order. False: they are not there.
bool WidenFields(std::string_view extra, std::span<std::uint64_t* const> fields) {
  while (extra.size() >= 4) {
    const auto kind = Load<std::uint16_t>(extra, 0);
    const std::uint64_t length = Load<std::uint16_t>(extra, 2);
    if (length > extra.size() - 4) return false;
    std::string_view values = extra.substr(4, length);
    extra.remove_prefix(4 + length);
    if (kind != zip::kWideFields) continue;
    for (std::uint64_t* field : fields) {
      if (*field != zip::kWider) continue;
      if (values.size() < 8) return false;
      *field = Load<std::uint64_t>(values, 0);
      values.remove_prefix(8);
    }
  }
  return true;
}

}  // namespace

// An open file of known size.
class NpzFile::Descriptor {
 public:
  static Result<std::shared_ptr<const Descriptor>> Open(const std::filesystem::path& path) {
    const int number = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);  // NOLINT(*-vararg)
    if (number < 0) {
      const int reason = errno;
      return Error(reason == ENOENT ? Code::kNotFound : Code::kUnavailable,
                   "cannot open " + path.string() + ": " + std::generic_category().message(reason));
    }
    auto file = std::make_shared<Descriptor>(number, path);
    struct stat info {};
    if (::fstat(number, &info) != 0 || !S_ISREG(info.st_mode)) {
      return Error(Code::kInvalidArgument, path.string() + " is no file");
    }
    file->size_ = static_cast<std::uint64_t>(info.st_size);
    return std::shared_ptr<const Descriptor>(std::move(file));
  }
  Descriptor(int number, std::filesystem::path path) : number_(number), path_(std::move(path)) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { ::close(number_); }

  std::uint64_t size() const { return size_; }
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
  // `count` bytes from `offset`, which must lie inside the file.
  Result<std::string> Text(std::uint64_t offset, std::uint64_t count) const {
    if (offset > size_ || count > size_ - offset) return Damaged("a record is outside the file");
    std::string text(count, '\0');
    DD2_TRY(ReadAt(offset, std::as_writable_bytes(std::span(text))));
    return text;
  }
  template <std::size_t kBytes>
  Result<std::array<char, kBytes>> Record(std::uint64_t offset) const {
    std::array<char, kBytes> record{};
    DD2_TRY(ReadAt(std::min(offset, size_), std::as_writable_bytes(std::span(record))));
    return record;
  }
  Error Damaged(const std::string& what) const {
    return {Code::kCorruption,
            path_.string() + " is cut off, damaged or no NumPy file: " + what + "; make it again"};
  }

 private:
  int number_;
  std::filesystem::path path_;
  std::uint64_t size_ = 0;
};

// The bytes of a member, inflated where they must be.
class NpyReader::Source {
 public:
  Source(std::shared_ptr<const NpzFile::Descriptor> file, NpzFile::Member member,
         std::uint64_t begin)
      : file_(std::move(file)), member_(member), begin_(begin) {}
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;
  ~Source() {
    if (inflating_) inflateEnd(&stream_);
  }

  std::uint64_t left() const { return member_.bytes - position_; }
  const NpzFile::Descriptor& file() const { return *file_; }

  Status Read(std::span<std::byte> out) {
    if (out.size() > left()) return file_->Damaged("an array is shorter than its header says");
    if (member_.deflated) {
      DD2_TRY(Inflate(out));
    } else {
      DD2_TRY(file_->ReadAt(begin_ + position_, out));
    }
    position_ += out.size();
    if (whole_ && !out.empty()) {  // a null pointer would begin the sum again
      checksum_ = static_cast<std::uint32_t>(
          crc32_z(checksum_, reinterpret_cast<const Bytef*>(out.data()), out.size()));
    }
    if (left() > 0) return {};
    if (member_.deflated) DD2_TRY(ExpectEnd());
    if (whole_ && !member_.bare && checksum_ != member_.checksum) {
      return file_->Damaged("the checksum of an array is wrong");
    }
    return {};
  }

  Status Skip(std::uint64_t count) {
    if (count > left()) return file_->Damaged("an array is shorter than its header says");
    if (count == 0) return {};
    if (!member_.deflated) {
      whole_ = false;
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
  Status Inflate(std::span<std::byte> out) {
    if (!inflating_) {
      // Negative: the bare stream, as zip has it.
      if (inflateInit2(&stream_, -MAX_WBITS) != Z_OK) {
        return Error(Code::kResourceExhausted, "no memory to inflate " + file_->path().string());
      }
      inflating_ = true;
      input_.resize(std::min<std::uint64_t>(member_.stored_bytes, kInputBytes));
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
    const std::uint64_t rest = member_.stored_bytes - taken_;
    const auto part = std::span(input_).first(std::min<std::uint64_t>(rest, input_.size()));
    if (part.empty()) return file_->Damaged("deflated data ends too early");
    DD2_TRY(file_->ReadAt(begin_ + taken_, part));
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
      if (taken_ < member_.stored_bytes) DD2_TRY(Refill());
      result = inflate(&stream_, Z_NO_FLUSH);
      if (stream_.avail_out == 0) break;
    }
    if (result == Z_STREAM_END && stream_.avail_out == 1) return {};
    return file_->Damaged("deflated data does not end where it should");
  }

  std::shared_ptr<const NpzFile::Descriptor> file_;
  NpzFile::Member member_;
  std::uint64_t begin_ = 0;     // of the data in the file
  std::uint64_t position_ = 0;  // bytes given
  std::uint64_t taken_ = 0;     // stored bytes read
  bool whole_ = true;           // nothing was skipped
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
  const std::uint64_t size = file.file_->size();
  DD2_TRY_ASSIGN(const std::string head,
                 file.file_->Text(0, std::min<std::uint64_t>(size, kNpyMagic.size())));
  if (head == kNpyMagic) {
    file.members_["arr_0"] = {.stored_bytes = size, .bytes = size, .bare = true};
    return file;
  }
  DD2_TRY(file.ReadDirectory());
  return file;
}

Status NpzFile::ReadDirectory() {
  const std::uint64_t size = file_->size();
  const std::uint64_t tail_bytes = std::min(size, zip::kEndBytes + zip::kWide);
  DD2_TRY_ASSIGN(const std::string tail, file_->Text(size - tail_bytes, tail_bytes));
  std::uint64_t end = 0;
  std::optional<DirectoryPlace> place = FindEnd(tail, &end);
  if (!place) return file_->Damaged("it has no directory at its end");
  if (end >= zip::kLocatorBytes &&
      Load<std::uint32_t>(tail, end - zip::kLocatorBytes) == zip::kLocatorSignature) {
    const auto offset = Load<std::uint64_t>(tail, end - zip::kLocatorBytes + 8);
    DD2_TRY_ASSIGN(const auto record, file_->Record<zip::kEnd64Bytes>(offset));
    const std::string_view wide(record.data(), record.size());
    if (Load<std::uint32_t>(wide, 0) != zip::kEnd64Signature) {
      return file_->Damaged("the 64-bit record at its end is wrong");
    }
    place = {.members = Load<std::uint64_t>(wide, 32),
             .bytes = Load<std::uint64_t>(wide, 40),
             .offset = Load<std::uint64_t>(wide, 48)};
  }
  if (place->bytes > kMaxDirectoryBytes || place->members > kMaxMembers) {
    return file_->Damaged("its directory is too large");
  }
  DD2_TRY_ASSIGN(const std::string directory, file_->Text(place->offset, place->bytes));
  std::string_view rest = directory;
  for (std::uint64_t i = 0; i < place->members; ++i) DD2_TRY(AddMember(rest));
  return {};
}

Status NpzFile::AddMember(std::string_view& rest) {
  if (rest.size() < zip::kCentralBytes || Load<std::uint32_t>(rest, 0) != zip::kCentralSignature) {
    return file_->Damaged("its directory is not readable");
  }
  const std::uint64_t name_bytes = Load<std::uint16_t>(rest, 28);
  const std::uint64_t extra_bytes = Load<std::uint16_t>(rest, 30);
  const std::uint64_t all =
      zip::kCentralBytes + name_bytes + extra_bytes + Load<std::uint16_t>(rest, 32);
  if (all > rest.size()) return file_->Damaged("its directory is not readable");
  std::string name(rest.substr(zip::kCentralBytes, name_bytes));
  const auto flags = Load<std::uint16_t>(rest, 8);
  const auto method = Load<std::uint16_t>(rest, 10);
  Member member{.header = Load<std::uint32_t>(rest, 42),
                .stored_bytes = Load<std::uint32_t>(rest, 20),
                .bytes = Load<std::uint32_t>(rest, 24),
                .checksum = Load<std::uint32_t>(rest, 16),
                .deflated = method == zip::kDeflated};
  std::uint64_t* const fields[] = {&member.bytes, &member.stored_bytes, &member.header};
  if (!WidenFields(rest.substr(zip::kCentralBytes + name_bytes, extra_bytes), fields)) {
    return file_->Damaged("the 64-bit sizes of '" + name + "' are not readable");
  }
  rest.remove_prefix(all);
  if (!name.ends_with(kSuffix)) return {};
  if ((flags & 1U) != 0 || (method != zip::kStored && method != zip::kDeflated)) {
    return Error(Code::kInvalidArgument,
                 file_->path().string() + ": '" + name +
                     "' is encrypted or compressed in a way that is not read: save it with "
                     "numpy.savez or numpy.savez_compressed");
  }
  const bool possible = member.deflated ? member.bytes / kMaxRatio <= member.stored_bytes
                                        : member.bytes == member.stored_bytes;
  if (!possible || member.stored_bytes > file_->size() || member.header > file_->size()) {
    return file_->Damaged("the sizes of '" + name + "' are impossible");
  }
  name.resize(name.size() - kSuffix.size());
  if (!members_.emplace(name, member).second) {
    return file_->Damaged("array '" + name + "' is there twice");
  }
  return {};
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
  const Member& member = found->second;
  std::uint64_t begin = 0;
  if (!member.bare) {
    DD2_TRY_ASSIGN(const auto record, file_->Record<zip::kLocalBytes>(member.header));
    const std::string_view local(record.data(), record.size());
    if (Load<std::uint32_t>(local, 0) != zip::kLocalSignature) {
      return file_->Damaged("no member where the directory says");
    }
    begin = member.header + zip::kLocalBytes + Load<std::uint16_t>(local, 26) +
            Load<std::uint16_t>(local, 28);
    if (begin > file_->size() || member.stored_bytes > file_->size() - begin) {
      return file_->Damaged("a member ends outside the file");
    }
  }
  NpyReader reader(std::make_unique<NpyReader::Source>(file_, member, begin));
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
