#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "common/hash.h"
#include "common/result.h"
#include "common/run_config.h"

namespace dd2 {

// Reads the settings of a run from YAML. Every setting is declared once
// (common/config_settings.cc): key, unit, default, bounds and one sentence. Errors are
// kInvalidArgument (kNotFound when there is no such file) and list ALL problems, one a line:
// "file:line: key: problem".
//
// An override is "key.path=value" as in `--set`; lists by index as the file counts them
// ("phases.2.steps=10"). The value is read as YAML. Relative paths in the file are resolved against
// the file's folder, those in overrides against the working folder. A missing teacher check is put
// in front of the phases. No global state; callable from any thread.
Result<RunConfig> LoadRunConfig(const std::filesystem::path& path,
                                const std::vector<std::string>& overrides = {});

// The same from memory: `label` stands for the file name in messages, `folder` for its folder.
Result<RunConfig> ParseRunConfig(std::string_view yaml, const std::string& label,
                                 const std::filesystem::path& folder,
                                 const std::vector<std::string>& overrides = {});

// The effective settings as YAML that loads back to the same RunConfig (RUN/config.yaml).
std::string DumpRunConfig(const RunConfig& config);

// Names what determines the trained bits: seed, threads, sampling, model, shards and the phases
// without their checkpoint and curve intervals. Not: names, paths (the teacher has a digest of its
// own), ranks, cache, API, evaluation sizes. A checkpoint is only resumed under the same digest.
Digest128 ConfigDigest(const RunConfig& config);

// Every setting with unit, default, bounds and sentence, as Markdown (`dd2 config show`, docs).
std::string DescribeSettings();

// The score cache's folder: cache.path, or $XDG_CACHE_HOME/dd2/scores, or ~/.cache/dd2/scores.
std::filesystem::path ScoreCacheFolder(const RunConfig& config);

}  // namespace dd2
