#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "worker/distill/parity.h"
#include "worker/distill/score.h"

namespace dd2 {
namespace {

constexpr double kNoNull = std::numeric_limits<double>::quiet_NaN();

struct ScoreInput {
  Matrix codebook, logp, t, x, u;
};

struct ScoreOutputs {
  Matrix mu, velocity, score, jtu;
};

constexpr std::pair<const char*, Matrix ScoreOutputs::*> kOutputs[] = {
    {"mu", &ScoreOutputs::mu},
    {"velocity", &ScoreOutputs::velocity},
    {"score", &ScoreOutputs::score},
    {"jtu", &ScoreOutputs::jtu}};

Error Bad(const std::string& message) { return Error(Code::kInvalidArgument, message); }

std::string ShapeOf(const Matrix& matrix) {
  return "[" + std::to_string(matrix.rows) + ", " + std::to_string(matrix.columns) + "]";
}

Status CheckShape(const char* name, const Matrix& matrix, std::int64_t rows, std::int64_t columns) {
  if (matrix.rows == rows && matrix.columns == columns) return {};
  return Bad("'" + std::string(name) + "' is " + ShapeOf(matrix) + ", but [" +
             std::to_string(rows) + ", " + std::to_string(columns) +
             "] goes with the other inputs");
}

Status CheckRows(const ScoreInput& input) {
  for (std::int64_t i = 0; i < input.t.rows; ++i) {
    const double t = input.t.values[static_cast<std::size_t>(i)];
    if (!(t > 0 && t <= 1)) {
      return Bad("t[" + std::to_string(i) + "] = " + std::to_string(t) + " is not in (0, 1]");
    }
    const auto row = input.logp.values.begin() + i * input.logp.columns;
    if (std::all_of(row, row + input.logp.columns, [](double p) { return std::isinf(p); })) {
      return Bad("logp[" + std::to_string(i) + "] has no possible code");
    }
  }
  return {};
}

Result<ScoreInput> ReadInput(const boost::json::object& object) {
  ScoreInput input;
  DD2_TRY_ASSIGN(input.codebook, ReadMatrix(object, "codebook", kNoNull));
  DD2_TRY_ASSIGN(input.logp, ReadMatrix(object, "logp", -std::numeric_limits<double>::infinity()));
  DD2_TRY_ASSIGN(input.t, ReadMatrix(object, "t", kNoNull));
  DD2_TRY_ASSIGN(input.x, ReadMatrix(object, "x", kNoNull));
  DD2_TRY_ASSIGN(input.u, ReadMatrix(object, "u", kNoNull));
  const std::int64_t rows = input.x.rows;
  DD2_TRY(CheckShape("x", input.x, rows, input.codebook.columns));
  DD2_TRY(CheckShape("u", input.u, rows, input.codebook.columns));
  DD2_TRY(CheckShape("t", input.t, rows, 1));
  DD2_TRY(CheckShape("logp", input.logp, rows, input.codebook.rows));
  DD2_TRY(CheckRows(input));
  return input;
}

template <class T>
std::vector<T> As(const Matrix& matrix) {
  std::vector<T> values;
  for (const double value : matrix.values) values.push_back(static_cast<T>(value));
  return values;
}

// The closed form in T; velocity and score follow from mu in double.
template <class T>
ScoreOutputs Solve(const ScoreInput& input) {
  const std::vector<T> codebook = As<T>(input.codebook), logp = As<T>(input.logp),
                       t = As<T>(input.t), x = As<T>(input.x), u = As<T>(input.u);
  std::vector<T> mu(x.size()), jtu(x.size());
  const ScoreProblem<T> problem{.rows = input.x.rows,
                                .codes = input.codebook.rows,
                                .channels = input.codebook.columns,
                                .codebook = codebook.data(),
                                .logp = logp.data(),
                                .logp_rows = input.logp.rows,
                                .t = t.data(),
                                .x = x.data()};
  PosteriorMeanAndVjp(problem, u.data(), mu.data(), jtu.data());
  const Matrix empty{.rows = input.x.rows, .columns = input.x.columns, .values = {}};
  ScoreOutputs outputs{empty, empty, empty, empty};
  outputs.mu.values.assign(mu.begin(), mu.end());
  outputs.jtu.values.assign(jtu.begin(), jtu.end());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double time = t[i / static_cast<std::size_t>(input.x.columns)];
    const double position = x[i];
    const double mean = mu[i];
    outputs.velocity.values.push_back((position - mean) / time);
    outputs.score.values.push_back(-(position - (1 - time) * mean) / (time * time));
  }
  return outputs;
}

}  // namespace

Result<ParityReport> RunScoreCase(const boost::json::object& object, bool in_double) {
  DD2_TRY_ASSIGN(const ScoreInput input, ReadInput(object));
  const ScoreOutputs exact = Solve<double>(input);
  const ScoreOutputs ours = in_double ? exact : Solve<float>(input);
  ParityReport report;
  const boost::json::value* nested = object.if_contains("expected");
  const boost::json::object& expected =
      nested != nullptr && nested->is_object() ? nested->as_object() : object;
  for (const auto& [name, member] : kOutputs) {
    report.outputs[name] = WriteMatrix(ours.*member);
    if (!expected.contains(name)) continue;
    DD2_TRY_ASSIGN(const Matrix wanted, ReadMatrix(expected, name, kNoNull));
    DD2_TRY(CheckShape(name, wanted, input.x.rows, input.x.columns));
    report.errors.push_back(Compare(name, (ours.*member).values, wanted.values));
  }
  report.against = "the outputs in the file";
  if (!report.errors.empty()) return report;
  report.against = "the fp64 path";
  for (const auto& [name, member] : kOutputs) {
    report.errors.push_back(Compare(name, (ours.*member).values, (exact.*member).values));
  }
  return report;
}

}  // namespace dd2
