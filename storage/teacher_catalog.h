#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "storage/safetensors.h"
#include "storage/teacher_layouts.h"

namespace dd2 {

// Which teacher a list of tensors is. Sizes are read off the shapes, so that any depth and width is
// recognised, and every other shape must then follow from them (teacher_layouts.h).

struct StoredTensor {
  std::string name;
  std::vector<std::int64_t> shape;
  Dtype dtype = Dtype::kF32;
};

// The nearest of the networks that we know.
struct TeacherMatch {
  TeacherSizes sizes;
  std::string name;             // "VAR-d16 (256 px)", "LlamaGen GPT-B", "VAR tokenizer ch160 ..."
  std::int64_t parameters = 0;  // elements of the tensors that fit
  std::vector<TensorShape> layout;  // all that it should have
  // What does not fit: names, of `wrong` with both shapes or the type.
  std::vector<std::string> missing;
  std::vector<std::string> extra;
  std::vector<std::string> wrong;
  // Masks, counters and tables that are computed anew and never read from a file.
  std::vector<std::string> ignored;
  bool complete() const { return missing.empty() && extra.empty() && wrong.empty(); }
};

// `levels`: the values of the tensor lvl_1L, which tells the scales of a VAR transformer apart;
// empty where there is none. Nothing when fewer than 8, or a quarter, of any network's names are
// there.
std::optional<TeacherMatch> MatchTeacher(std::span<const StoredTensor> tensors,
                                         std::span<const float> levels);

inline constexpr std::string_view kVarLevels = "lvl_1L";

bool IsTransformer(TeacherPart part);
bool IsVar(TeacherPart part);
// Whether a tensor is one of `ignored`.
bool IsTeacherBuffer(std::string_view name);

// "F32", "BF16", ...; bool is "U8".
std::string_view DtypeText(Dtype dtype);
// "1x16x1x1"; "scalar".
std::string ShapeText(std::span<const std::int64_t> shape);

}  // namespace dd2
