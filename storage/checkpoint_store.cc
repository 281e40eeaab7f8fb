#include "storage/checkpoint_store.h"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <system_error>
#include <utility>

#include "common/json.h"
#include "proto/control.pb.h"
#include "proto/wire.h"
#include "storage/checkpoint_part.h"
#include "storage/safetensors.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;

constexpr int kFormatVersion = 1;

// A single path component: names come from files and the network, and must stay in their folder.
bool IsPlainName(std::string_view name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\0", 2)) == std::string_view::npos;
}

Status CheckId(const std::string& id) {
  if (IsPlainName(id)) return {};
  return Error(Code::kInvalidArgument, "'" + id + "' is not a checkpoint id");
}

// Where a piece is stored.
struct Located {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  int part = 0;
  const proto::TensorPiece* piece = nullptr;
};
using Layout = std::map<std::string, std::vector<Located>>;  // by tensor, pieces in order

Status CheckTensorCovered(const std::string& name, std::int64_t count,
                          std::vector<Located>& pieces) {
  if (count < 0) return Error(Code::kCorruption, "tensor " + name + " has an impossible shape");
  std::sort(pieces.begin(), pieces.end(), [](const Located& a, const Located& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  std::int64_t at = 0;
  for (const Located& piece : pieces) {
    if (piece.begin != at || piece.end < piece.begin) {
      return Error(
          Code::kCorruption,
          "tensor " + name + ": piece " + RangeText(piece.begin, piece.end) +
              (piece.begin > at ? " leaves a hole after " : " overlaps the pieces up to ") +
              std::to_string(at));
    }
    at = piece.end;
  }
  if (at != count) {
    return Error(Code::kCorruption, "tensor " + name + ": pieces end at " + std::to_string(at) +
                                        " of " + std::to_string(count) + " elements");
  }
  return {};
}

// The pieces of each logical tensor. kCorruption unless they cover each exactly once.
Result<Layout> LayOut(const proto::CheckpointManifest& manifest) {
  Layout layout;
  for (const proto::LogicalTensor& tensor : manifest.header().tensors()) {
    if (!layout.emplace(tensor.name(), std::vector<Located>()).second) {
      return Error(Code::kCorruption, "tensor " + tensor.name() + " is listed twice");
    }
  }
  for (int part = 0; part < manifest.parts_size(); ++part) {
    if (!IsPlainName(manifest.parts(part).file())) {
      return Error(Code::kCorruption,
                   "part '" + manifest.parts(part).file() + "' is not a plain file name");
    }
    for (const proto::TensorPiece& piece : manifest.parts(part).pieces()) {
      const auto found = layout.find(piece.tensor());
      if (found == layout.end()) {
        return Error(Code::kCorruption, manifest.parts(part).file() + " has a piece of " +
                                            piece.tensor() + ", which the header does not list");
      }
      found->second.push_back({piece.begin(), piece.end(), part, &piece});
    }
  }
  for (const proto::LogicalTensor& tensor : manifest.header().tensors()) {
    DD2_TRY(
        CheckTensorCovered(tensor.name(), CountElements(tensor.shape()), layout.at(tensor.name())));
  }
  return layout;
}

std::string ManifestHash(proto::CheckpointManifest manifest) {
  manifest.clear_manifest_hash();
  return Hash128(manifest.SerializeAsString()).Hex();
}

Status CheckPartSize(const fs::path& folder, const proto::CheckpointPart& part) {
  std::error_code code;
  const std::uintmax_t size = fs::file_size(folder / part.file(), code);
  if (code) {
    return Error(Code::kCorruption,
                 (folder / part.file()).string() + " cannot be read: " + code.message());
  }
  if (size != static_cast<std::uintmax_t>(part.size_bytes())) {
    return Error(Code::kCorruption, (folder / part.file()).string() + " has " +
                                        std::to_string(size) + " bytes, the manifest says " +
                                        std::to_string(part.size_bytes()));
  }
  return {};
}

// Opens a part and compares every byte with the manifest.
Result<SafetensorsFile> OpenPart(const fs::path& folder, const proto::CheckpointPart& part) {
  const fs::path path = folder / part.file();
  DD2_TRY(CheckPartSize(folder, part));
  auto file = SafetensorsFile::Open(path);
  if (!file) {
    // A part that is gone is damage, not an answer.
    if (file.error().code() == Code::kNotFound) {
      return Error(Code::kCorruption, file.error().message());
    }
    return file.error();
  }
  DD2_TRY_ASSIGN(const Digest128 hash, file->FileHash());
  if (hash.Hex() != part.hash()) {
    return Error(Code::kCorruption, path.string() + " has hash " + hash.Hex() +
                                        ", the manifest says " + part.hash() +
                                        ": its bytes changed on the disk");
  }
  for (const proto::TensorPiece& piece : part.pieces()) {
    const auto found = file->tensors().find(piece.stored_as());
    if (found == file->tensors().end() || found->second.dtype != Dtype::kF32 ||
        found->second.bytes / sizeof(float) !=
            static_cast<std::uint64_t>(piece.end() - piece.begin())) {
      return Error(Code::kCorruption,
                   path.string() + ": " + piece.stored_as() + " is not the fp32 piece " +
                       RangeText(piece.begin(), piece.end()) + " of " + piece.tensor());
    }
  }
  return file;
}

// What a name in checkpoints/ is.
enum class Kind { kNoFolder, kUncommitted, kCommitted };

// Only "there is no such folder" means that: a folder that could not be read may be committed, and
// whoever asks may be about to delete it.
Result<Kind> KindOf(FileSystem& files, const fs::path& folder) {
  const auto names = files.List(folder);
  if (!names) {
    if (names.error().code() == Code::kNotFound) return Kind::kNoFolder;
    return names.error();
  }
  return std::binary_search(names->begin(), names->end(), kManifestName) ? Kind::kCommitted
                                                                         : Kind::kUncommitted;
}

}  // namespace

std::string CheckpointId(std::int32_t phase, std::int64_t step) {
  char id[48];
  std::snprintf(id, sizeof(id), "p%03d-s%09lld", static_cast<int>(phase),
                static_cast<long long>(step));
  return id;
}

Status PublishManifest(FileSystem& files, const fs::path& checkpoints,
                       const proto::CheckpointManifest& manifest) {
  DD2_TRY(CheckId(manifest.checkpoint_id()));
  const fs::path folder = checkpoints / manifest.checkpoint_id();
  if (auto layout = LayOut(manifest); !layout) return layout.error().Wrap(folder.string());
  for (const proto::CheckpointPart& part : manifest.parts()) DD2_TRY(CheckPartSize(folder, part));
  proto::CheckpointManifest complete = manifest;
  complete.set_format_version(kFormatVersion);
  complete.set_manifest_hash(ManifestHash(complete));
  DD2_TRY_ASSIGN(const std::string json, MessageToJson(complete));
  DD2_TRY(WriteFileAtomically(files, folder / kManifestName, json));
  DD2_TRY(files.SyncDirectory(checkpoints));
  // The first checkpoint of a run made `checkpoints` itself.
  return files.SyncDirectory(checkpoints.parent_path());
}

Status DeleteCheckpoint(FileSystem& files, const fs::path& checkpoints, const std::string& id) {
  DD2_TRY(CheckId(id));
  const fs::path folder = checkpoints / id;
  DD2_TRY_ASSIGN(const Kind kind, KindOf(files, folder));
  if (kind == Kind::kNoFolder) return {};
  DD2_TRY(files.Remove(folder / kManifestName));
  DD2_TRY(files.SyncDirectory(folder));
  DD2_TRY(files.RemoveTree(folder));
  return files.SyncDirectory(checkpoints);
}

Status RemoveUncommitted(FileSystem& files, const fs::path& checkpoints,
                         const std::string& before) {
  const auto names = files.List(checkpoints);
  if (!names) return names.error().code() == Code::kNotFound ? Status() : names.error();
  for (const std::string& name : *names) {
    const fs::path folder = checkpoints / name;
    if (!before.empty() && name >= before) continue;
    // Files beside the folders are not ours to remove.
    DD2_TRY_ASSIGN(const Kind kind, KindOf(files, folder));
    if (kind == Kind::kUncommitted) DD2_TRY(files.RemoveTree(folder));
  }
  return files.SyncDirectory(checkpoints);
}

Result<std::vector<std::string>> ListCheckpoints(FileSystem& files, const fs::path& checkpoints) {
  auto names = files.List(checkpoints);
  if (!names) {
    if (names.error().code() == Code::kNotFound) return std::vector<std::string>();
    return names.error();
  }
  std::vector<std::string> committed;
  for (const std::string& name : *names) {
    DD2_TRY_ASSIGN(const Kind kind, KindOf(files, checkpoints / name));
    if (kind == Kind::kCommitted) committed.push_back(name);
  }
  return committed;
}

Result<proto::CheckpointManifest> ReadManifest(FileSystem& files, const fs::path& checkpoints,
                                               const std::string& id) {
  DD2_TRY(CheckId(id));
  const fs::path path = checkpoints / id / kManifestName;
  const auto json = files.Read(path);
  if (!json) {
    if (json.error().code() != Code::kNotFound) return json.error();
    return Error(Code::kNotFound, "no committed checkpoint " + id + " in " + checkpoints.string());
  }
  proto::CheckpointManifest manifest;
  if (auto parsed = JsonToMessage(*json, manifest); !parsed) {
    return Error(Code::kCorruption, path.string() + ": " + parsed.error().message());
  }
  if (manifest.format_version() != kFormatVersion) {
    return Error(Code::kCorruption, path.string() + " has format version " +
                                        std::to_string(manifest.format_version()) +
                                        ", this program reads " + std::to_string(kFormatVersion));
  }
  if (manifest.manifest_hash() != ManifestHash(manifest) || manifest.checkpoint_id() != id) {
    return Error(Code::kCorruption, path.string() +
                                        " does not match its own hash or folder: it was changed "
                                        "after it was committed");
  }
  return manifest;
}

struct CheckpointReader::State {
  proto::CheckpointManifest manifest;
  std::vector<SafetensorsFile> parts;  // in the manifest's order
  Layout layout;                       // points into manifest
  std::map<std::string, const proto::LogicalTensor*> tensors;
};

CheckpointReader::CheckpointReader(std::unique_ptr<State> state) : state_(std::move(state)) {}
CheckpointReader::CheckpointReader(CheckpointReader&&) noexcept = default;
CheckpointReader& CheckpointReader::operator=(CheckpointReader&&) noexcept = default;
CheckpointReader::~CheckpointReader() = default;

Result<CheckpointReader> CheckpointReader::Open(FileSystem& files, const fs::path& checkpoints,
                                                const std::string& id) {
  auto state = std::make_unique<State>();
  DD2_TRY_ASSIGN(state->manifest, ReadManifest(files, checkpoints, id));
  const fs::path folder = checkpoints / id;
  auto layout = LayOut(state->manifest);
  if (!layout) return layout.error().Wrap(folder.string());
  state->layout = *std::move(layout);
  for (const proto::CheckpointPart& part : state->manifest.parts()) {
    DD2_TRY_ASSIGN(SafetensorsFile file, OpenPart(folder, part));
    state->parts.push_back(std::move(file));
  }
  for (const proto::LogicalTensor& tensor : state->manifest.header().tensors()) {
    state->tensors.emplace(tensor.name(), &tensor);
  }
  return CheckpointReader(std::move(state));
}

const proto::CheckpointManifest& CheckpointReader::manifest() const { return state_->manifest; }

Status CheckpointReader::Read(const std::string& tensor, std::int64_t begin,
                              std::span<float> out) const {
  const std::string& id = state_->manifest.checkpoint_id();
  const auto found = state_->layout.find(tensor);
  if (found == state_->layout.end()) {
    return Error(Code::kNotFound, "checkpoint " + id + " has no tensor " + tensor);
  }
  const std::int64_t count = CountElements(state_->tensors.at(tensor)->shape());
  const auto size = static_cast<std::int64_t>(out.size());
  if (begin < 0 || begin > count || size > count - begin) {
    return Error(Code::kInvalidArgument, "elements " + RangeText(begin, begin + size) + " of " +
                                             tensor + ", which has " + std::to_string(count));
  }
  for (const Located& piece : found->second) {
    const std::int64_t from = std::max(begin, piece.begin);
    const std::int64_t to = std::min(begin + size, piece.end);
    if (from >= to) continue;
    const SafetensorsFile& part = state_->parts[static_cast<std::size_t>(piece.part)];
    DD2_TRY(part.ReadBytes(
        piece.piece->stored_as(), static_cast<std::uint64_t>(from - piece.begin) * sizeof(float),
        std::as_writable_bytes(out.subspan(static_cast<std::size_t>(from - begin),
                                           static_cast<std::size_t>(to - from)))));
  }
  return {};
}

Status VerifyCheckpoint(FileSystem& files, const fs::path& checkpoints, const std::string& id) {
  DD2_TRY(CheckpointReader::Open(files, checkpoints, id));
  return {};
}

Result<std::map<std::string, Digest128>> DigestByGroup(const CheckpointReader& reader) {
  std::map<std::string, const proto::LogicalTensor*> tensors;
  for (const proto::LogicalTensor& tensor : reader.manifest().header().tensors()) {
    tensors.emplace(tensor.name(), &tensor);
  }
  std::map<std::string, Hasher128> hashers;
  std::vector<float> buffer(std::size_t{1} << 20);
  for (const auto& [name, tensor] : tensors) {
    Hasher128& hasher = hashers[name.substr(0, name.find('/'))];
    hasher.UpdateField(name);
    hasher.UpdateInt(static_cast<std::uint64_t>(tensor->shape_size()));
    for (const std::int64_t size : tensor->shape()) {
      hasher.UpdateInt(static_cast<std::uint64_t>(size));
    }
    const std::int64_t count = CountElements(tensor->shape());
    const auto most = static_cast<std::int64_t>(buffer.size());
    for (std::int64_t at = 0; at < count; at += most) {
      const auto values =
          std::span(buffer).first(static_cast<std::size_t>(std::min(most, count - at)));
      DD2_TRY(reader.Read(name, at, values));
      hasher.Update(std::as_bytes(values));
    }
  }
  std::map<std::string, Digest128> digests;
  for (const auto& [group, hasher] : hashers) digests.emplace(group, hasher.Finish());
  return digests;
}

}  // namespace dd2
