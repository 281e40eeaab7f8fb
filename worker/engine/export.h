#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "common/result.h"
#include "common/run_config.h"
#include "worker/models/networks.h"
#include "worker/models/teacher.h"

namespace dd2 {

// An exported model is a folder with two files, which draw images with nothing else, or with the
// folder of an imported teacher, whose tokenizer is too large to be in every export:
//   generator.safetensors   EMA weights by name ("backbone.*", "head.*") and the tokenizer
//                           ("tokenizer.*"), fp32
//   generator.json          network and tokenizer shapes, teacher (path, digest, guidance), seed,
//                           hash of the weights, and the run's figures when they were known

struct ExportedModel {
  std::filesystem::path folder;
  std::string name;                  // of the run
  std::uint64_t seed = 0;            // of the run
  std::unique_ptr<Network> network;  // EMA weights, no gradients
  std::unique_ptr<Tokenizer> tokenizer;
  TeacherConfig teacher;  // path (absolute when it was written) and guidance
  std::string teacher_digest;
  std::string dataset;  // folder of the real images
};

// Writes both files, each under a temporary name first. `params` holds the EMA weights (its layout
// is Network::Layout(spec)). `result_json`: text of RUN/result.json, or empty.
Status WriteExport(const std::filesystem::path& folder, const NetworkSpec& spec,
                   const ParamBuffer& params, const RunConfig& config, const TeacherBundle& teacher,
                   const std::string& result_json = {});

// `path`: the folder, or either file. kNotFound: no such export; kCorruption: JSON or weights
// damaged, or not belonging together; kInvalidArgument: another kind of file, wrong shapes.
// `teacher`: the folder of an imported teacher, where it is not any more where the run had it.
// kFailedPrecondition: it is another teacher.
Result<ExportedModel> LoadExport(const std::filesystem::path& path,
                                 const std::string& teacher = "");

// Exports the generator's EMA from a checkpoint of a run (its newest when `checkpoint` is empty).
// Returns the checkpoint's id. kNotFound: no run or checkpoint; kCorruption: damaged;
// kFailedPrecondition: the teacher is another one than the run had, or no generator was trained
// yet.
Result<std::string> ExportCheckpoint(const std::filesystem::path& run, std::string checkpoint,
                                     const std::filesystem::path& folder);

}  // namespace dd2
