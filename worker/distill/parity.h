#pragma once

#include <string>
#include <vector>

#include "common/json.h"
#include "common/result.h"

namespace dd2 {

// The cases of dd2-parity: inputs and outputs of our numerics as JSON, so that any other
// implementation can be held against ours. Single-threaded.

// An array of numbers, row-major.
struct Matrix {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::vector<double> values;
};

// Largest error of one output.
struct ParityError {
  std::string output;
  double absolute = 0;
  double relative = 0;  // absolute / largest magnitude that was expected
};

struct ParityReport {
  std::string against;  // what the outputs were compared with
  std::vector<ParityError> errors;
  boost::json::object outputs;  // name -> [[...], ...]
};

// object[key] as a matrix; a flat list becomes one column. kInvalidArgument names what is wrong:
// not there, ragged, not a number. `null_value`: what null stands for, not allowed when NaN.
Result<Matrix> ReadMatrix(const boost::json::object& object, std::string_view key,
                          double null_value);
boost::json::array WriteMatrix(const Matrix& matrix);
// Compares values; shapes must be equal.
ParityError Compare(std::string output, const std::vector<double>& ours,
                    const std::vector<double>& expected);

// {codebook [V, C], logp [N, V] (null: impossible), t [N], x [N, C], u [N, C]} -> mu, velocity,
// score, jtu [N, C]. Compared with the outputs that the file holds (beside the inputs or in an
// object "expected"), else with our fp64 path. `in_double`: take the outputs from the fp64 path.
Result<ParityReport> RunScoreCase(const boost::json::object& input, bool in_double);

// The golden format of a MAR head with weights made by rule: {rule, note, params, time_sinusoid,
// out}. Outputs: time_sinusoid and out; compared with strided values and sums.
Result<ParityReport> RunHeadCase(const boost::json::object& input);

// The image tokenizers in the same format: VAR's quantiser alone (indices, f_hat after each scale,
// the transformer's input), VAR's and LlamaGen's whole tokenizer (features, indices, images).
// Indices must be equal.
Result<ParityReport> RunVarQuantizerCase(const boost::json::object& input);
Result<ParityReport> RunVarTokenizerCase(const boost::json::object& input);
Result<ParityReport> RunLlamaGenTokenizerCase(const boost::json::object& input);

// The transformers: teacher-forced logits with class, without and guided, the same from cached
// steps, arg-max codes. VAR's file also holds {sides, quantizer {first, codebook_factor, params}},
// from which the rows that enter are made; LlamaGen's the rotary embedding and the cross-entropy.
Result<ParityReport> RunVarTransformerCase(const boost::json::object& input);
Result<ParityReport> RunLlamaGenGptCase(const boost::json::object& input);

// {convention: "VAR" or "LlamaGen", note (logits), kept {topkK_toppP: [[code, ...] per row]}}: the
// codes that the filter keeps must be those. VAR writes "no top-p" as 0.
Result<ParityReport> RunFilterCase(const boost::json::object& input);

}  // namespace dd2
