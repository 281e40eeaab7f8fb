#include "worker/engine/dataset.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <vector>

namespace dd2 {
namespace {

constexpr std::int64_t kSide = 28;
constexpr std::int64_t kPixels = kSide * kSide;
constexpr std::int64_t kClasses = 10;
constexpr std::int64_t kMaxItems = 1 << 24;
constexpr std::uint32_t kImagesMagic = 0x00000803;  // unsigned bytes, three dimensions
constexpr std::uint32_t kLabelsMagic = 0x00000801;  // unsigned bytes, one dimension

struct CloseGzip {
  void operator()(gzFile file) const { gzclose(file); }
};
using GzipFile = std::unique_ptr<std::remove_pointer_t<gzFile>, CloseGzip>;

// A gzip-compressed IDX file: big-endian magic, extents, then bytes.
class IdxReader {
 public:
  static Result<IdxReader> Open(const std::filesystem::path& path) {
    if (!std::filesystem::exists(path)) {
      return Error(Code::kNotFound,
                   "no data set file '" + path.string() +
                       "': install the Debian package dataset-fashion-mnist (apt install "
                       "dataset-fashion-mnist) or set the data set's path to its folder");
    }
    GzipFile file(gzopen(path.c_str(), "rb"));
    if (file == nullptr) {
      return Error(Code::kUnavailable, "cannot open '" + path.string() + "'");
    }
    return IdxReader(path, std::move(file));
  }

  Result<std::uint32_t> Word() {
    std::array<std::uint8_t, 4> bytes{};
    DD2_TRY(Read(bytes.data(), bytes.size()));
    std::uint32_t word = 0;
    for (const std::uint8_t byte : bytes) word = word << 8U | byte;
    return word;
  }

  Status ExpectWord(const char* what, std::uint32_t expected) {
    DD2_TRY_ASSIGN(const std::uint32_t word, Word());
    if (word == expected) return {};
    return Error(Code::kCorruption, "'" + path_.string() + "': " + what + " is " +
                                        std::to_string(word) + ", expected " +
                                        std::to_string(expected));
  }

  Result<std::int64_t> Count() {
    DD2_TRY_ASSIGN(const std::uint32_t word, Word());
    if (word >= 1 && word <= kMaxItems) return static_cast<std::int64_t>(word);
    return Error(Code::kCorruption, "'" + path_.string() + "': holds " + std::to_string(word) +
                                        " items, expected 1 to " + std::to_string(kMaxItems));
  }

  Result<std::vector<std::uint8_t>> Bytes(std::int64_t count) {
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(count));
    DD2_TRY(Read(bytes.data(), bytes.size()));
    return bytes;
  }

 private:
  IdxReader(std::filesystem::path path, GzipFile file)
      : path_(std::move(path)), file_(std::move(file)) {}

  Status Read(std::uint8_t* target, std::size_t count) {
    const z_size_t got = gzfread(target, 1, count, file_.get());
    if (got == count) return {};
    return Error(Code::kCorruption,
                 "'" + path_.string() + "' is damaged: " + std::to_string(count) +
                     " bytes wanted, " + std::to_string(got) + " read; fetch the file again");
  }

  std::filesystem::path path_;
  GzipFile file_;
};

}  // namespace

Result<LabelledImages> LoadFashionMnist(const std::filesystem::path& folder, Split split,
                                        std::int64_t limit) {
  const std::string stem = split == Split::kTrain ? "train" : "t10k";
  DD2_TRY_ASSIGN(IdxReader images, IdxReader::Open(folder / (stem + "-images-idx3-ubyte.gz")));
  DD2_TRY(images.ExpectWord("magic number", kImagesMagic));
  DD2_TRY_ASSIGN(std::int64_t count, images.Count());
  DD2_TRY(images.ExpectWord("image height", kSide));
  DD2_TRY(images.ExpectWord("image width", kSide));
  DD2_TRY_ASSIGN(IdxReader labels, IdxReader::Open(folder / (stem + "-labels-idx1-ubyte.gz")));
  DD2_TRY(labels.ExpectWord("magic number", kLabelsMagic));
  DD2_TRY(labels.ExpectWord("number of labels", static_cast<std::uint32_t>(count)));
  if (limit > 0) count = std::min(count, limit);
  DD2_TRY_ASSIGN(const auto pixels, images.Bytes(count * kPixels));
  DD2_TRY_ASSIGN(const auto classes, labels.Bytes(count));

  LabelledImages set{at::empty({count, 1, kSide, kSide}, at::kFloat),
                     at::empty({count}, at::kLong)};
  float* pixel = set.images.data_ptr<float>();
  for (const std::uint8_t byte : pixels) *pixel++ = static_cast<float>(byte) / 127.5F - 1.0F;
  std::int64_t* label = set.labels.data_ptr<std::int64_t>();
  for (const std::uint8_t byte : classes) {
    if (byte >= kClasses) {
      return Error(Code::kCorruption, "'" + (folder / stem).string() + "...': label " +
                                          std::to_string(byte) + ", expected 0 to 9");
    }
    *label++ = byte;
  }
  return set;
}

}  // namespace dd2
