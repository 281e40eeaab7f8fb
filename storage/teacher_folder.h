#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/file.h"
#include "common/hash.h"
#include "common/json.h"
#include "common/result.h"
#include "storage/safetensors.h"
#include "storage/teacher_layouts.h"

namespace dd2 {

// The folder that `dd2 teacher import` writes (FORMAT.md 7): weights of a VAR or LlamaGen teacher
// as plain safetensors, and teacher.json, which is written last.

inline constexpr std::string_view kTransformerFile = "transformer.safetensors";
inline constexpr std::string_view kTokenizerFile = "vq.safetensors";
inline constexpr std::string_view kTeacherFile = "teacher.json";

// One of the two networks. All sizes are known, those that its tensors do not tell too.
struct TeacherNetwork {
  TeacherSizes sizes;
  std::string name;  // for people
  std::int64_t parameters = 0;
  Digest128 digest;  // of names, shapes and values in the order of the file
};

// A file that weights came from.
struct TeacherSource {
  std::string file;  // without its folder
  std::uint64_t bytes = 0;
  Digest128 hash;
  std::string network;  // "transformer" or "tokenizer"
  std::string group;    // where in the file: "", "model", "trainer/var_wo_ddp"
};

struct TeacherDescription {
  // At least one of the two is there; both are of one family and fit each other.
  std::optional<TeacherNetwork> transformer;
  std::optional<TeacherNetwork> tokenizer;
  std::vector<TeacherSource> sources;
  bool is_var() const;
  // Of all weights.
  Digest128 digest() const;
};

// Writes a network's weights (not atomically); `read` gives the values of the tensors of `layout`.
Result<TeacherNetwork> WriteTeacherNetwork(FileSystem& files, const std::filesystem::path& path,
                                           const TeacherSizes& sizes, const std::string& name,
                                           std::span<const TensorShape> layout,
                                           const ReadElements& read);

boost::json::object ToJson(const TeacherDescription& teacher);
// kCorruption: no such document, or one of another version.
Result<TeacherDescription> TeacherFromJson(const boost::json::value& document);

// kNotFound: `folder` has no teacher.json. kCorruption: it is damaged.
Result<TeacherDescription> ReadTeacherDescription(FileSystem& files,
                                                  const std::filesystem::path& folder);

}  // namespace dd2
