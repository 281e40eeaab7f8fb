#pragma once

#include <filesystem>

#include "common/result.h"

namespace dd2 {

// Writes RUN/report.html: one self-contained page (pictures as base64, charts as inline SVG, no
// scripts, no network) with what the run reached, from
//   result.json                 figures of the finished run (optional while metrics.jsonl is there)
//   metrics.jsonl               one object a line {phase, kind, step, time, "<metric>": value, ...}
//   config.yaml                 settings as used (optional)
//   incidents.jsonl             losses and arrivals (optional)
//   samples/{teacher,generator,start,real,reconstruction}.png   grids, rows = classes (optional)
// What is missing is left out of the page. Written atomically; callable from any thread.
// kNotFound: neither result.json nor metrics.jsonl; kCorruption: result.json is not a JSON object.
Status WriteReport(const std::filesystem::path& run);

}  // namespace dd2
