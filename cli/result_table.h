#pragma once

#include <string>
#include <string_view>

#include "common/result.h"

namespace dd2 {

// The table that ends `dd2 run`, from the text of RUN/result.json (fdr_start, fdr_end, fdr_teacher,
// accuracy, speedup_batch1, speedup_batch64, seconds{phase}, cache{hits, misses},
// checkpoints{count, bytes, stall_seconds}). A row whose figure is missing is left out.
// kCorruption: not a JSON object.
Result<std::string> FormatResultTable(std::string_view result_json);

}  // namespace dd2
