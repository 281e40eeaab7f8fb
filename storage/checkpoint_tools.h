#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "common/file.h"
#include "common/result.h"
#include "storage/checkpoint_store.h"
#include "storage/safetensors.h"

namespace dd2 {

// What can be made of a checkpoint without the program that trains. All of it goes through a few
// MiB of memory, whatever the size of the checkpoint is.

// The part of a tensor's name before '/': "generator.ema".
std::string GroupOf(const std::string& tensor);

struct TensorGroup {
  std::int64_t tensors = 0;
  std::int64_t elements = 0;
};
std::map<std::string, TensorGroup> GroupsOf(const proto::CheckpointManifest& manifest);

// Writes the checkpoint once more into the folder `to`, under the same id, as `ranks` parts: each
// has the same share of every group. Parts are synced before the manifest appears; after an error
// nothing of it is left, if the disk allows. kInvalidArgument: ranks; kFailedPrecondition: `to` has
// a checkpoint of this id already.
Status ReshardCheckpoint(FileSystem& files, const CheckpointReader& source, std::int32_t ranks,
                         const std::filesystem::path& to);

// Writes the tensors of a group, without the group's name, as one safetensors file. It appears as a
// whole, in place of an older one. kNotFound: no such group; the message names those that exist.
Result<WrittenFile> ExportGroup(FileSystem& files, const CheckpointReader& source,
                                const std::string& group, const std::filesystem::path& out);

}  // namespace dd2
