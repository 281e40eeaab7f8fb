#pragma once

#include <cstdint>
#include <filesystem>

#include "common/file.h"
#include "common/result.h"
#include "storage/teacher_folder.h"

namespace dd2 {

// A teacher of a released family with random weights, in the folder of an import (FORMAT.md 7): to
// go the whole way of a run where the released files are not there, or are too large. Finite and
// of the usual magnitude everywhere, but what it draws is noise.
//
// The weights are a function of seed and sizes. teacher.json is written last.
// kInvalidArgument: an empty layout (sizes of another family); errors of writing.
Result<TeacherDescription> WriteRandomTeacher(FileSystem& files,
                                              const std::filesystem::path& folder,
                                              const TeacherSizes& transformer,
                                              const TeacherSizes& tokenizer, std::uint64_t seed);

}  // namespace dd2
