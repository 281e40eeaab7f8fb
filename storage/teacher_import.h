#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/file.h"
#include "common/result.h"
#include "storage/teacher_catalog.h"
#include "storage/teacher_folder.h"
#include "storage/torch_file.h"

namespace dd2 {

// Tensors that lie in one dict of a file, and which teacher they are.
struct StateDict {
  std::string path;  // TorchTensor::group
  std::vector<StoredTensor> tensors;
  std::optional<TeacherMatch> match;
};
// All of them, in the order of the file.
Result<std::vector<StateDict>> StateDictsOf(const TorchFile& file);

struct ImportRequest {
  std::vector<std::filesystem::path> files;
  std::filesystem::path out;
  // "model" or "ema": which weights, where a file has both; empty: ema.
  std::string weights;
  // What no tensor tells of a LlamaGen transformer; 0: by the released configurations, and 256
  // pixels unless the file's name says 384.
  std::int64_t heads = 0;
  std::int64_t image_size = 0;
  bool overwrite = false;
  // Work done and all of it, in bytes; called after every piece.
  std::function<void(std::uint64_t done, std::uint64_t all)> progress = [](auto, auto) {};
};

// Reads checkpoints of VAR or LlamaGen and writes a teacher folder (FORMAT.md 7). Weights become
// fp32 on their way, a few MiB at a time: neither file nor network is ever in memory as a whole.
// teacher.json is written last, so that a folder without it is none. When something fails, what
// was written is removed.
// kCorruption: a damaged file, or one that is no such checkpoint (the message says what is missing,
// too much or of a wrong shape), or has a weight that is NaN or infinite. kInvalidArgument: files
// that do not fit each other, an option that does not fit the files. kFailedPrecondition: `out`
// holds a teacher and overwrite is not set. kResourceExhausted: not enough room on the disk.
// kNotFound: no such file.
Result<TeacherDescription> ImportTeacher(FileSystem& files, const ImportRequest& request);

// What is wrong with a match, in one line: "2 missing (a, b), 1 of another shape (c: ...)".
std::string ProblemsOf(const TeacherMatch& match);

}  // namespace dd2
