#include <algorithm>
#include <cmath>
#include <utility>

#include "worker/distill/parity.h"

namespace dd2 {
namespace {

Error Bad(std::string_view key, const std::string& what) {
  return Error(Code::kInvalidArgument, "'" + std::string(key) + "' " + what);
}

Status AppendRow(const boost::json::array& row, std::string_view key, double null_value,
                 Matrix& matrix) {
  for (const boost::json::value& value : row) {
    if (value.is_null() && !std::isnan(null_value)) {
      matrix.values.push_back(null_value);
    } else if (value.is_number()) {
      matrix.values.push_back(value.to_number<double>());
    } else {
      return Bad(key, "holds " + boost::json::serialize(value).substr(0, 40) + " in row " +
                          std::to_string(matrix.rows) + "; numbers are wanted");
    }
  }
  return {};
}

}  // namespace

Result<Matrix> ReadMatrix(const boost::json::object& object, std::string_view key,
                          double null_value) {
  const boost::json::value* found = object.if_contains(key);
  if (found == nullptr) return Bad(key, "is missing");
  if (!found->is_array() || found->as_array().empty()) return Bad(key, "is not a list of rows");
  const boost::json::array& rows = found->as_array();
  Matrix matrix;
  if (!rows[0].is_array()) {
    DD2_TRY(AppendRow(rows, key, null_value, matrix));
    matrix.rows = static_cast<std::int64_t>(rows.size());
    matrix.columns = 1;
    return matrix;
  }
  matrix.columns = static_cast<std::int64_t>(rows[0].as_array().size());
  for (const boost::json::value& row : rows) {
    if (!row.is_array() || static_cast<std::int64_t>(row.as_array().size()) != matrix.columns) {
      return Bad(key, "is ragged: row " + std::to_string(matrix.rows) + " is not a list of " +
                          std::to_string(matrix.columns) + " numbers like row 0");
    }
    DD2_TRY(AppendRow(row.as_array(), key, null_value, matrix));
    ++matrix.rows;
  }
  if (matrix.columns == 0) return Bad(key, "has empty rows");
  return matrix;
}

boost::json::array WriteMatrix(const Matrix& matrix) {
  boost::json::array rows;
  for (std::int64_t i = 0; i < matrix.rows; ++i) {
    boost::json::array row;
    for (std::int64_t k = 0; k < matrix.columns; ++k) {
      row.emplace_back(matrix.values[static_cast<std::size_t>(i * matrix.columns + k)]);
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

ParityError Compare(std::string output, const std::vector<double>& ours,
                    const std::vector<double>& expected) {
  ParityError error{.output = std::move(output)};
  double largest = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double difference = std::abs(ours[i] - expected[i]);
    // Not std::max, which would lose a NaN.
    if (!(difference <= error.absolute)) error.absolute = difference;
    largest = std::max(largest, std::abs(expected[i]));
  }
  error.relative = largest > 0 ? error.absolute / largest : error.absolute;
  return error;
}

}  // namespace dd2
