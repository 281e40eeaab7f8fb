// dd2-parity CASE.json [--out FILE.json] [--tolerance X] [--fp64]
//
// Runs one case through the worker's own numerics and prints the largest error of each output. Exit
// codes: 0 done; 1 an error is above the tolerance; otherwise as in common/exit_codes.h.
#include <ATen/Parallel.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <utility>

#include "common/exit_codes.h"
#include "common/json.h"
#include "worker/distill/parity.h"
#include "worker/torch.h"

namespace dd2 {
namespace {

constexpr const char* kUsage =
    "usage: dd2-parity CASE.json [--out FILE.json] [--tolerance X] [--fp64]\n"
    "  CASE.json       a score case {codebook, logp, t, x, u}, golden tensors of a MAR\n"
    "                  head, an image tokenizer or a transformer, or kept codes of a filter\n"
    "  --out FILE      write the outputs as JSON\n"
    "  --tolerance X   fail when a relative error is above X\n"
    "  --fp64          take the outputs of a score case from the fp64 path\n";

struct Arguments {
  std::string input;
  std::string output;
  std::optional<double> tolerance;
  bool in_double = false;
};

Result<Arguments> ParseArguments(int argc, char** argv) {
  Arguments arguments;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--fp64") {
      arguments.in_double = true;
    } else if (word == "--out" || word == "--tolerance") {
      if (++i == argc) return Error(Code::kInvalidArgument, word + " needs a value");
      if (word == "--out") {
        arguments.output = argv[i];
        continue;
      }
      char* end = nullptr;
      arguments.tolerance = std::strtod(argv[i], &end);
      if (end == argv[i] || *end != '\0' || !(*arguments.tolerance >= 0)) {
        return Error(Code::kInvalidArgument,
                     "--tolerance " + std::string(argv[i]) + " is not a number >= 0");
      }
    } else if (word.starts_with("-") || !arguments.input.empty()) {
      return Error(Code::kInvalidArgument, "unexpected argument " + word);
    } else {
      arguments.input = word;
    }
  }
  if (arguments.input.empty()) return Error(Code::kInvalidArgument, "no CASE.json was given");
  return arguments;
}

Result<boost::json::object> ReadObject(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return Error(Code::kNotFound, path + ": cannot be opened");
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  boost::json::error_code failure;
  boost::json::value value = boost::json::parse(text, failure);
  if (failure) return Error(Code::kInvalidArgument, path + ": not JSON: " + failure.message());
  if (!value.is_object()) return Error(Code::kInvalidArgument, path + ": not a JSON object");
  return std::move(value.as_object());
}

Result<ParityReport> RunCase(const boost::json::object& object, bool in_double) {
  if (object.contains("codebook")) return RunScoreCase(object, in_double);
  if (object.contains("params")) {
    if (object.contains("time_sinusoid")) return RunHeadCase(object);
    if (object.contains("fhat_after_scale")) return RunVarQuantizerCase(object);
    if (object.contains("decoded_clamped")) return RunVarTokenizerCase(object);
    if (object.contains("quantised")) return RunLlamaGenTokenizerCase(object);
    if (object.contains("input_rows")) return RunVarTransformerCase(object);
    if (object.contains("rope_applied_to_ones")) return RunLlamaGenGptCase(object);
  }
  if (object.contains("kept")) return RunFilterCase(object);
  return Error(Code::kInvalidArgument,
               "neither a score case (codebook, logp, t, x, u) nor golden tensors (params and the "
               "outputs of a MAR head, a VAR quantiser, or a VAR or LlamaGen tokenizer or "
               "transformer) nor a filter's codes (convention, note, kept)");
}

Status WriteOutputs(const std::string& path, const boost::json::object& outputs) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << boost::json::serialize(outputs) << '\n';
  file.close();
  if (!file) return Error(Code::kUnavailable, path + ": cannot be written");
  return {};
}

// False when an error is above the tolerance.
Result<bool> Run(const Arguments& arguments) {
  at::set_num_threads(1);
  DD2_TRY_ASSIGN(const boost::json::object object, ReadObject(arguments.input));
  const Result<ParityReport> report = RunCase(object, arguments.in_double);
  if (!report) return report.error().Wrap(arguments.input);
  std::printf("largest errors against %s\n", report->against.c_str());
  bool within = true;
  for (const ParityError& error : report->errors) {
    std::printf("  %-30s absolute %.3e  relative %.3e\n", error.output.c_str(), error.absolute,
                error.relative);
    if (arguments.tolerance && !(error.relative <= *arguments.tolerance)) within = false;
  }
  if (!arguments.output.empty()) DD2_TRY(WriteOutputs(arguments.output, report->outputs));
  return within;
}

int Main(int argc, char** argv) {
  const Result<Arguments> arguments = ParseArguments(argc, argv);
  if (!arguments) {
    std::fprintf(stderr, "dd2-parity: %s\n%s", arguments.error().message().c_str(), kUsage);
    return kExitUsage;
  }
  const Result<bool> within = Run(*arguments);
  if (!within) {
    std::fprintf(stderr, "dd2-parity: %s\n", within.error().message().c_str());
    return ExitCodeFor(within.error().code());
  }
  if (!*within) {
    std::fprintf(stderr, "dd2-parity: above the tolerance of %g\n", *arguments->tolerance);
    return kExitInternal;
  }
  return kExitOk;
}

}  // namespace
}  // namespace dd2

int main(int argc, char** argv) {
  try {
    return dd2::Main(argc, argv);
  } catch (const std::exception& exception) {
    std::fprintf(stderr, "dd2-parity: %s\n", exception.what());
    return dd2::kExitInternal;
  }
}
