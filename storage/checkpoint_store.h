#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/file.h"
#include "common/hash.h"
#include "common/result.h"

namespace dd2 {

namespace proto {
class CheckpointHeader;
class CheckpointManifest;
class CheckpointPart;
}  // namespace proto

// Checkpoints of a run: RUN/checkpoints/<id>/ with one safetensors part per rank and manifest.json.
// A checkpoint exists only when its manifest does (design 6); parts without one are litter of a
// crash.

// Elements [begin, end) of a logical fp32 tensor, to be written by this rank.
struct PieceToWrite {
  std::string tensor;               // "guidance.adam_m/head.input_proj.weight"
  std::vector<std::int64_t> shape;  // of the whole logical tensor
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::span<const float> data;  // end - begin elements
};

// "p003-s000000120": sorts by position.
std::string CheckpointId(std::int32_t phase, std::int64_t step);

// Writes and syncs this rank's part: rank-<r>-of-<w>.safetensors. A whole tensor keeps its shape; a
// partial one is stored flat, its range in the part's metadata. kFailedPrecondition: the folder has
// a manifest. AsyncCheckpointWriter (checkpoint_writer.h) does the same beside the training.
Result<proto::CheckpointPart> WriteCheckpointPart(FileSystem& files,
                                                  const std::filesystem::path& checkpoint_folder,
                                                  std::int32_t rank, std::int32_t world_size,
                                                  std::span<const PieceToWrite> pieces);

// Makes the checkpoint visible: writes manifest.json atomically. Called by the coordinator after it
// journalled the manifest. kCorruption: parts overlap, leave a hole, or have another size on disk.
Status PublishManifest(FileSystem& files, const std::filesystem::path& checkpoints,
                       const proto::CheckpointManifest& manifest);
// Removes the manifest first (synced), then the parts.
Status DeleteCheckpoint(FileSystem& files, const std::filesystem::path& checkpoints,
                        const std::string& id);
// Removes folders that have no manifest; unless `before` is empty, only those that sort before it
// (later ones are being written).
Status RemoveUncommitted(FileSystem& files, const std::filesystem::path& checkpoints,
                         const std::string& before);

// Ids with a manifest, oldest first. Does not verify.
Result<std::vector<std::string>> ListCheckpoints(FileSystem& files,
                                                 const std::filesystem::path& checkpoints);
Result<proto::CheckpointManifest> ReadManifest(FileSystem& files,
                                               const std::filesystem::path& checkpoints,
                                               const std::string& id);

// Reads and hashes every part. kCorruption with file and reason.
Status VerifyCheckpoint(FileSystem& files, const std::filesystem::path& checkpoints,
                        const std::string& id);

// Copies elements [begin, end) of a logical tensor of a verified checkpoint. The bytes stay on the
// disk: they are hashed and copied piece by piece.
class CheckpointReader {
 public:
  // Verifies every byte first. kNotFound, kCorruption.
  static Result<CheckpointReader> Open(FileSystem& files, const std::filesystem::path& checkpoints,
                                       const std::string& id);
  CheckpointReader(CheckpointReader&&) noexcept;
  CheckpointReader& operator=(CheckpointReader&&) noexcept;
  ~CheckpointReader();
  const proto::CheckpointManifest& manifest() const;
  // kNotFound: no such tensor in the manifest; kInvalidArgument: range outside it; kUnavailable:
  // the disk failed.
  Status Read(const std::string& tensor, std::int64_t begin, std::span<float> out) const;

 private:
  struct State;
  explicit CheckpointReader(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// One digest per group ("generator.param", "generator.ema", "guidance.adam_m", ...: the part of a
// tensor's name before '/'), over its tensors in name order: name, shape, bytes. It does not depend
// on how the checkpoint is sharded, so two runs can be compared by a line.
Result<std::map<std::string, Digest128>> DigestByGroup(const CheckpointReader& reader);

}  // namespace dd2
