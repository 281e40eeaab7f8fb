#include "storage/checkpoint_tools.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "common/limits.h"
#include "proto/control.pb.h"
#include "storage/checkpoint_part.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;

// Borders of shares are multiples of it, so that most pieces stay aligned as their tensor was.
constexpr std::int64_t kShareUnit = 16;

// Where the share of `rank` begins among the elements of a group.
std::int64_t ShareBegin(std::int64_t elements, std::int32_t rank, std::int32_t ranks) {
  if (rank == ranks) return elements;
  const std::int64_t units = elements / kShareUnit;
  // In two parts, because their product may not fit.
  return (units / ranks * rank + units % ranks * rank / ranks) * kShareUnit;
}

std::vector<PieceToWrite> ShareOf(const proto::CheckpointManifest& manifest, std::int32_t rank,
                                  std::int32_t ranks) {
  const std::map<std::string, TensorGroup> groups = GroupsOf(manifest);
  std::map<std::string, std::int64_t> passed;  // elements of the group in the tensors before
  std::vector<PieceToWrite> pieces;
  for (const proto::LogicalTensor& tensor : manifest.header().tensors()) {
    const std::string group = GroupOf(tensor.name());
    const std::int64_t elements = groups.at(group).elements;
    const std::int64_t count = CountElements(tensor.shape());
    const std::int64_t before = passed[group];
    passed[group] += count;
    const std::int64_t begin =
        std::max<std::int64_t>(ShareBegin(elements, rank, ranks) - before, 0);
    const std::int64_t end = std::min(ShareBegin(elements, rank + 1, ranks) - before, count);
    if (begin >= end) continue;
    PieceToWrite piece;
    piece.tensor = tensor.name();
    piece.shape.assign(tensor.shape().begin(), tensor.shape().end());
    piece.begin = begin;
    piece.end = end;
    pieces.push_back(std::move(piece));
  }
  return pieces;
}

Status WriteShares(FileSystem& files, const CheckpointReader& source, std::int32_t ranks,
                   const fs::path& to) {
  proto::CheckpointManifest manifest = source.manifest();
  manifest.mutable_header()->set_world_size(ranks);
  manifest.clear_parts();
  for (std::int32_t rank = 0; rank < ranks; ++rank) {
    const std::vector<PieceToWrite> pieces = ShareOf(source.manifest(), rank, ranks);
    const auto read = [&](std::size_t index, std::int64_t begin, std::span<float> out) {
      return source.Read(pieces[index].tensor, pieces[index].begin + begin, out);
    };
    DD2_TRY_ASSIGN(
        *manifest.add_parts(),
        WriteCheckpointPartFrom(files, to / manifest.checkpoint_id(), rank, ranks, pieces, read));
  }
  return PublishManifest(files, to, manifest);
}

}  // namespace

std::string GroupOf(const std::string& tensor) { return tensor.substr(0, tensor.find('/')); }

std::map<std::string, TensorGroup> GroupsOf(const proto::CheckpointManifest& manifest) {
  std::map<std::string, TensorGroup> groups;
  for (const proto::LogicalTensor& tensor : manifest.header().tensors()) {
    TensorGroup& group = groups[GroupOf(tensor.name())];
    group.tensors += 1;
    group.elements += CountElements(tensor.shape());
  }
  return groups;
}

Status ReshardCheckpoint(FileSystem& files, const CheckpointReader& source, std::int32_t ranks,
                         const fs::path& to) {
  const std::string& id = source.manifest().checkpoint_id();
  if (ranks < 1 || ranks > static_cast<std::int32_t>(kConnectionsMax)) {
    return Error(Code::kInvalidArgument,
                 "a checkpoint can have 1 to " + std::to_string(kConnectionsMax) + " ranks");
  }
  DD2_TRY_ASSIGN(const std::vector<std::string> present, ListCheckpoints(files, to));
  if (std::find(present.begin(), present.end(), id) != present.end()) {
    return Error(Code::kFailedPrecondition,
                 (to / id).string() + " is there already: choose another folder");
  }
  // Parts that an earlier attempt left would be taken along for ever.
  DD2_TRY(DeleteCheckpoint(files, to, id));
  const Status written = WriteShares(files, source, ranks, to);
  // The first error is the one to report.
  if (!written) static_cast<void>(DeleteCheckpoint(files, to, id));
  return written;
}

Result<WrittenFile> ExportGroup(FileSystem& files, const CheckpointReader& source,
                                const std::string& group, const fs::path& out) {
  const proto::CheckpointManifest& manifest = source.manifest();
  const std::string prefix = group + "/";
  std::vector<TensorToWrite> tensors;
  for (const proto::LogicalTensor& tensor : manifest.header().tensors()) {
    if (!tensor.name().starts_with(prefix)) continue;
    tensors.push_back(
        {tensor.name().substr(prefix.size()), {tensor.shape().begin(), tensor.shape().end()}, {}});
  }
  if (tensors.empty()) {
    std::string known;
    for (const auto& [name, counts] : GroupsOf(manifest)) known += " " + name;
    return Error(Code::kNotFound, "checkpoint " + manifest.checkpoint_id() + " has no " + group +
                                      "; it has" + known);
  }
  // "format" is what readers of other programs look at: tensors as PyTorch has them.
  const std::map<std::string, std::string> metadata{
      {"format", "pt"},
      {"dd2.group", group},
      {"dd2.run", manifest.run_id()},
      {"dd2.checkpoint", manifest.checkpoint_id()},
      {"dd2.config_digest", manifest.header().config_digest()},
      {"dd2.teacher_digest", manifest.header().teacher_digest()},
      {"dd2.code_version", manifest.header().code_version()}};
  const auto read = [&](std::size_t index, std::int64_t begin, std::span<float> values) {
    return source.Read(prefix + tensors[index].name, begin, values);
  };
  fs::path temporary = out;
  temporary += ".tmp";
  DD2_TRY_ASSIGN(const WrittenFile written,
                 WriteSafetensorsFrom(files, temporary, tensors, metadata, read));
  if (const Status moved = files.Rename(temporary, out); !moved) {
    static_cast<void>(files.Remove(temporary));
    return moved.error();
  }
  const fs::path folder = out.parent_path();
  DD2_TRY(files.SyncDirectory(folder.empty() ? fs::path(".") : folder));
  return written;
}

}  // namespace dd2
