#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/file.h"
#include "common/result.h"
#include "proto/control.pb.h"
#include "storage/checkpoint_store.h"
#include "storage/safetensors.h"

namespace dd2 {

// What the writers of parts share; for storage/ only.

inline constexpr std::string_view kManifestName = "manifest.json";

// Elements of a tensor; -1 when the shape is impossible.
template <class Shape>
std::int64_t CountElements(const Shape& shape) {
  std::int64_t count = 1;
  for (const std::int64_t size : shape) {
    if (size < 0 || (size > 0 && count > std::numeric_limits<std::int64_t>::max() / size)) {
      return -1;
    }
    count *= size;
  }
  return count;
}

// "[begin, end)".
std::string RangeText(std::int64_t begin, std::int64_t end);

// A part before it is written. The data of `tensors` is that of the pieces.
struct PlannedPart {
  proto::CheckpointPart part;  // file and pieces; size and hash are known when it is written
  std::vector<TensorToWrite> tensors;
  std::map<std::string, std::string> metadata;
};
// `generation` 0: the file's name does not say one. kInvalidArgument: a piece that does not fit its
// tensor, or data that does not fit the piece.
Result<PlannedPart> PlanPart(std::int32_t rank, std::int32_t world_size, std::uint64_t generation,
                             std::span<const PieceToWrite> pieces);
// Writes a part as WriteCheckpointPart does, of pieces without data: `read` gives elements of piece
// `index`, counted from its begin, a few MiB at a time.
Result<proto::CheckpointPart> WriteCheckpointPartFrom(
    FileSystem& files, const std::filesystem::path& checkpoint_folder, std::int32_t rank,
    std::int32_t world_size, std::span<const PieceToWrite> pieces, const ReadElements& read);

// Makes the folder of a checkpoint ready for a part. kFailedPrecondition: it is committed, so
// nothing in it may change any more.
Status OpenForParts(FileSystem& files, const std::filesystem::path& checkpoint_folder);
// Makes a written part durable, and fills in its size and hash.
Result<proto::CheckpointPart> FinishPart(FileSystem& files,
                                         const std::filesystem::path& checkpoint_folder,
                                         proto::CheckpointPart part, const WrittenFile& written);

}  // namespace dd2
