#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "worker/distill/parity.h"
#include "worker/models/param_buffer.h"
#include "worker/torch.h"

namespace dd2 {

// Parts of the golden files that hold no weights but the rule that makes them (models.md 8.4):
// {rule, note, params: [[name, shape, rule], ...], one record per output}. Errors are
// kInvalidArgument and say what is wrong with the file.

struct RuledParam {
  std::string name;
  std::vector<std::int64_t> shape;
  std::string rule;  // of s: "s/sqrt(fan_in)", "0.1s", "1+0.1s"
};
Result<std::vector<RuledParam>> ReadRuledParams(const boost::json::object& object);
// The entry of that name and number of dimensions, if there is one.
std::optional<RuledParam> FindParam(const std::vector<RuledParam>& params, std::string_view name,
                                    std::size_t dimensions);
// Parameters of `layout`, which must be those of the file, filled by rule: element k of the file's
// parameter first + j from s = sin(0.7 k + 1.3 (first + j) + 0.5).
Result<ParamBuffer> MakeParams(const ParamLayout& layout, const std::vector<RuledParam>& params,
                               std::int64_t first = 0);

Result<double> ReadNumber(const boost::json::object& object, const char* key);
Result<std::string> ReadNote(const boost::json::object& object);
// The input that the note describes as "NAME = A*sin(Bk+C) [shape]"; A, "=" and a ", shape" before
// the bracket may be missing.
Result<at::Tensor> ReadSine(const std::string& note, const std::string& name);

Matrix ToMatrix(const at::Tensor& tensor);  // rows of the last dimension
// One output against its record {shape, stride, strided, sum, abs_sum, l2}: strided values, then
// the sums over all of it. Adds two errors and the output, as rows of its last dimension.
Status CompareRecord(const boost::json::value& record, const std::string& name,
                     const at::Tensor& ours, ParityReport& report);
// The same for object[name].
Status CompareRecord(const boost::json::object& object, const std::string& name,
                     const at::Tensor& ours, ParityReport& report);
// Whole numbers must be equal, whatever the nesting of `value`: both errors are the number of those
// that are not.
Status CompareIds(const boost::json::value& value, const std::string& name, const at::Tensor& ours,
                  ParityReport& report);

}  // namespace dd2
