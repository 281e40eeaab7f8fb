#include "storage/checkpoint_part.h"

#include <algorithm>
#include <utility>

#include "common/json.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPartFormat = "dd2-checkpoint-part 1";

bool IsWhole(const PieceToWrite& piece) {
  return piece.begin == 0 && piece.end == CountElements(piece.shape);
}

std::string StoredName(const PieceToWrite& piece) {
  if (IsWhole(piece)) return piece.tensor;
  return piece.tensor + "@" + std::to_string(piece.begin) + "-" + std::to_string(piece.end);
}

std::string SliceText(const PieceToWrite& piece) {
  boost::json::object slice;
  slice["tensor"] = piece.tensor;
  slice["begin"] = piece.begin;
  slice["end"] = piece.end;
  boost::json::array& shape = slice["shape"].emplace_array();
  for (const std::int64_t size : piece.shape) shape.emplace_back(size);
  return boost::json::serialize(slice);
}

Status CheckPiece(const PieceToWrite& piece) {
  const std::int64_t count = CountElements(piece.shape);
  if (piece.begin >= 0 && piece.begin <= piece.end && piece.end <= count) return {};
  return Error(Code::kInvalidArgument, "piece " + RangeText(piece.begin, piece.end) + " of " +
                                           piece.tensor + " does not fit a tensor of " +
                                           std::to_string(count));
}

Status CheckData(const PieceToWrite& piece) {
  if (static_cast<std::int64_t>(piece.data.size()) == piece.end - piece.begin) return {};
  return Error(Code::kInvalidArgument, "piece " + RangeText(piece.begin, piece.end) + " of " +
                                           piece.tensor + " with " +
                                           std::to_string(piece.data.size()) + " elements");
}

Result<PlannedPart> PlanRanges(std::int32_t rank, std::int32_t world_size, std::uint64_t generation,
                               std::span<const PieceToWrite> pieces) {
  PlannedPart planned;
  planned.part.set_file("rank-" + std::to_string(rank) + "-of-" + std::to_string(world_size) +
                        (generation == 0 ? "" : "-g" + std::to_string(generation)) +
                        ".safetensors");
  planned.metadata = {{"format", std::string(kPartFormat)},
                      {"rank", std::to_string(rank)},
                      {"world_size", std::to_string(world_size)}};
  for (const PieceToWrite& piece : pieces) {
    DD2_TRY(CheckPiece(piece));
    TensorToWrite tensor{StoredName(piece), piece.shape, piece.data};
    if (!IsWhole(piece)) {
      tensor.shape = {piece.end - piece.begin};
      planned.metadata["slice/" + tensor.name] = SliceText(piece);
    }
    proto::TensorPiece& listed = *planned.part.add_pieces();
    listed.set_tensor(piece.tensor);
    listed.set_stored_as(tensor.name);
    listed.set_begin(piece.begin);
    listed.set_end(piece.end);
    planned.tensors.push_back(std::move(tensor));
  }
  return planned;
}

}  // namespace

std::string RangeText(std::int64_t begin, std::int64_t end) {
  return "[" + std::to_string(begin) + ", " + std::to_string(end) + ")";
}

Result<PlannedPart> PlanPart(std::int32_t rank, std::int32_t world_size, std::uint64_t generation,
                             std::span<const PieceToWrite> pieces) {
  DD2_TRY_ASSIGN(PlannedPart planned, PlanRanges(rank, world_size, generation, pieces));
  for (const PieceToWrite& piece : pieces) DD2_TRY(CheckData(piece));
  return planned;
}

Status OpenForParts(FileSystem& files, const fs::path& checkpoint_folder) {
  DD2_TRY(files.MakeDirectories(checkpoint_folder));
  DD2_TRY_ASSIGN(const auto names, files.List(checkpoint_folder));
  if (!std::binary_search(names.begin(), names.end(), kManifestName)) return {};
  return Error(Code::kFailedPrecondition,
               checkpoint_folder.string() +
                   " is a committed checkpoint, its parts are never written again; go on from it, "
                   "or delete it first (dd2 checkpoint prune)");
}

Result<proto::CheckpointPart> FinishPart(FileSystem& files, const fs::path& checkpoint_folder,
                                         proto::CheckpointPart part, const WrittenFile& written) {
  DD2_TRY(files.SyncDirectory(checkpoint_folder));
  part.set_size_bytes(static_cast<std::int64_t>(written.size_bytes));
  part.set_hash(written.hash.Hex());
  return part;
}

Result<proto::CheckpointPart> WriteCheckpointPart(FileSystem& files,
                                                  const fs::path& checkpoint_folder,
                                                  std::int32_t rank, std::int32_t world_size,
                                                  std::span<const PieceToWrite> pieces) {
  DD2_TRY_ASSIGN(PlannedPart planned, PlanPart(rank, world_size, 0, pieces));
  DD2_TRY(OpenForParts(files, checkpoint_folder));
  DD2_TRY_ASSIGN(const WrittenFile written,
                 WriteSafetensors(files, checkpoint_folder / planned.part.file(), planned.tensors,
                                  planned.metadata));
  return FinishPart(files, checkpoint_folder, std::move(planned.part), written);
}

Result<proto::CheckpointPart> WriteCheckpointPartFrom(FileSystem& files,
                                                      const fs::path& checkpoint_folder,
                                                      std::int32_t rank, std::int32_t world_size,
                                                      std::span<const PieceToWrite> pieces,
                                                      const ReadElements& read) {
  DD2_TRY_ASSIGN(PlannedPart planned, PlanRanges(rank, world_size, 0, pieces));
  DD2_TRY(OpenForParts(files, checkpoint_folder));
  DD2_TRY_ASSIGN(const WrittenFile written,
                 WriteSafetensorsFrom(files, checkpoint_folder / planned.part.file(),
                                      planned.tensors, planned.metadata, read));
  return FinishPart(files, checkpoint_folder, std::move(planned.part), written);
}

}  // namespace dd2
