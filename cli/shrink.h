#pragma once

#include <filesystem>
#include <optional>

#include "common/result.h"
#include "common/run_config.h"
#include "storage/teacher_layouts.h"

namespace dd2 {

// `dd2 run --shrink`: a rehearsal. Every phase of a configuration, each a few small steps, on small
// networks of the teacher's kind: the whole way of a large run in a minute, without its devices and
// without its teacher. What comes out is useless. Evaluation by FID (eval.inception) is left out.

// Random ones that stand for a released teacher.
struct SmallTeacher {
  TeacherSizes transformer;
  TeacherSizes tokenizer;
};

struct ShrunkRun {
  RunConfig config;  // a run of its own: "<name>-shrunk"
  // Takes the teacher's place, in config.teacher.path; nothing: the configuration's is small itself
  // (one that dd2 trained), and is used.
  std::optional<SmallTeacher> teacher;
};

// `folder`: of the run; empty: runs/<name>-shrunk. Where the configuration's teacher is not there,
// the last word of its path tells the kind ("teachers/var-d16"). kInvalidArgument: it does not.
Result<ShrunkRun> Shrink(const RunConfig& config, const std::filesystem::path& folder);

// Writes the teacher unless it is there: it is the same every time. Nothing to do without one.
Status WriteSmallTeacher(const ShrunkRun& run);

}  // namespace dd2
