#include "worker/distill/parity_golden.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <regex>
#include <utility>

namespace dd2 {
namespace {

constexpr double kNoNull = std::numeric_limits<double>::quiet_NaN();

Error Bad(const std::string& message) { return Error(Code::kInvalidArgument, message); }

// s -> value, in fp32: "s/sqrt(fan_in)", "0.1s", "1+0.1s", "s".
struct Rule {
  float base = 0;
  float factor = 1;
};
std::optional<Rule> ParseRule(const RuledParam& param) {
  const auto numel =
      std::accumulate(param.shape.begin(), param.shape.end(), 1.0,
                      [](double a, std::int64_t b) { return a * static_cast<double>(b); });
  if (param.rule == "s/sqrt(fan_in)") {
    const double fan_in = numel / static_cast<double>(param.shape[0]);
    return Rule{.base = 0, .factor = static_cast<float>(1 / std::sqrt(fan_in))};
  }
  static const std::regex kLinear(R"((?:([0-9.]+)\+)?([0-9.]*)s)");
  std::smatch match;
  if (!std::regex_match(param.rule, match, kLinear)) return std::nullopt;
  Rule rule;
  if (match[1].matched) rule.base = std::strtof(match[1].str().c_str(), nullptr);
  if (match[2].length() > 0) rule.factor = std::strtof(match[2].str().c_str(), nullptr);
  return rule;
}

// "2,3,64" -> {2, 3, 64}.
std::vector<std::int64_t> ParseShape(const std::string& list) {
  static const std::regex kNumber("[0-9]+");
  std::vector<std::int64_t> shape;
  for (std::sregex_iterator i(list.begin(), list.end(), kNumber), end; i != end; ++i) {
    shape.push_back(std::stol(i->str()));
  }
  return shape;
}

// Every number of nested lists, in order.
Status Flatten(const boost::json::value& value, std::vector<double>& numbers) {
  if (value.is_number()) {
    numbers.push_back(value.to_number<double>());
    return {};
  }
  if (!value.is_array()) return Bad("lists of numbers hold " + boost::json::serialize(value));
  for (const boost::json::value& inner : value.as_array()) DD2_TRY(Flatten(inner, numbers));
  return {};
}

}  // namespace

Result<std::vector<RuledParam>> ReadRuledParams(const boost::json::object& object) {
  const boost::json::value* list = object.if_contains("params");
  if (list == nullptr || !list->is_array()) return Bad("'params' is not a list");
  std::vector<RuledParam> params;
  for (const boost::json::value& entry : list->as_array()) {
    const std::string text = boost::json::serialize(entry).substr(0, 80);
    const boost::json::array* row = entry.if_array();
    if (row == nullptr || row->size() != 3 || !(*row)[0].is_string() || !(*row)[1].is_array() ||
        !(*row)[2].is_string()) {
      return Bad("params holds " + text + "; [name, [shape], rule] is wanted");
    }
    RuledParam& param = params.emplace_back();
    param.name = std::string((*row)[0].as_string());
    param.rule = std::string((*row)[2].as_string());
    for (const boost::json::value& size : (*row)[1].as_array()) {
      const std::int64_t* number = size.if_int64();
      if (number == nullptr || *number < 1) return Bad("params holds a bad shape: " + text);
      param.shape.push_back(*number);
    }
    if (param.shape.empty()) return Bad("params holds an empty shape: " + text);
  }
  return params;
}

std::optional<RuledParam> FindParam(const std::vector<RuledParam>& params, std::string_view name,
                                    std::size_t dimensions) {
  const auto found = std::ranges::find(params, name, &RuledParam::name);
  if (found == params.end() || found->shape.size() != dimensions) return std::nullopt;
  return *found;
}

Result<ParamBuffer> MakeParams(const ParamLayout& layout, const std::vector<RuledParam>& params,
                               std::int64_t first) {
  if (layout.specs().size() != params.size()) {
    return Bad("the file lists " + std::to_string(params.size()) +
               " parameters, a network of these sizes has " +
               std::to_string(layout.specs().size()));
  }
  ParamBuffer buffer(layout, /*requires_grad=*/false);
  for (std::size_t j = 0; j < params.size(); ++j) {
    const RuledParam& param = params[j];
    const auto declared = std::ranges::find(layout.specs(), param.name, &ParamSpec::name);
    if (declared == layout.specs().end() || declared->shape != param.shape) {
      return Bad("parameter '" + param.name + "' is unknown or has another shape in our network");
    }
    const std::optional<Rule> rule = ParseRule(param);
    if (!rule) return Bad("parameter '" + param.name + "' has an unknown rule: " + param.rule);
    float* values = buffer.flat().data_ptr<float>() + declared->offset;
    const double number = static_cast<double>(first) + static_cast<double>(j);
    for (std::int64_t k = 0; k < declared->numel; ++k) {
      const auto s =
          static_cast<float>(std::sin(0.7 * static_cast<double>(k) + 1.3 * number + 0.5));
      values[k] = rule->base + rule->factor * s;
    }
  }
  return buffer;
}

Result<double> ReadNumber(const boost::json::object& object, const char* key) {
  const boost::json::value* found = object.if_contains(key);
  if (found == nullptr || !found->is_number())
    return Bad("'" + std::string(key) + "' is no number");
  return found->to_number<double>();
}

Result<std::string> ReadNote(const boost::json::object& object) {
  const boost::json::value* note = object.if_contains("note");
  if (note == nullptr || !note->is_string()) return Bad("'note' is missing");
  return std::string(note->as_string());
}

Result<at::Tensor> ReadSine(const std::string& note, const std::string& name) {
  const std::regex pattern("\\b" + name +
                           R"( *=? *(?:([0-9.]+)\*)?sin\(([0-9.]+)k\+([0-9.]+)\))"
                           R"((?:, shape)? *\[([0-9]+(?:, *[0-9]+)*)\])");
  std::smatch match;
  if (!std::regex_search(note, match, pattern)) {
    return Bad("the note does not say " + name + "=sin(..k+..) [shape]: " + note);
  }
  const double factor = match[1].matched ? std::stod(match[1].str()) : 1.0;
  const double slope = std::stod(match[2].str());
  const double shift = std::stod(match[3].str());
  at::Tensor tensor = at::empty(ParseShape(match[4].str()), at::kFloat);
  for (std::int64_t k = 0; k < tensor.numel(); ++k) {
    tensor.data_ptr<float>()[k] =
        static_cast<float>(factor * std::sin(slope * static_cast<double>(k) + shift));
  }
  return tensor;
}

Matrix ToMatrix(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.to(at::kDouble).contiguous();
  const double* data = flat.const_data_ptr<double>();
  return {.rows = flat.numel() / flat.size(-1),
          .columns = flat.size(-1),
          .values = std::vector<double>(data, data + flat.numel())};
}

Status CompareRecord(const boost::json::value& value, const std::string& name,
                     const at::Tensor& ours, ParityReport& report) {
  if (!value.is_object()) return Bad("'" + name + "' is no record");
  const boost::json::object& record = value.as_object();
  DD2_TRY_ASSIGN(const Matrix shape, ReadMatrix(record, "shape", kNoNull));
  if (shape.values != std::vector<double>(ours.sizes().begin(), ours.sizes().end())) {
    return Bad("'" + name + "' has another shape than ours, " + c10::str(ours.sizes()));
  }
  DD2_TRY_ASSIGN(const Matrix strided, ReadMatrix(record, "strided", kNoNull));
  const boost::json::value* stride = record.if_contains("stride");
  if (stride == nullptr || !stride->is_int64() || stride->as_int64() < 1) {
    return Bad("'" + name + "' has no stride");
  }
  const Matrix matrix = ToMatrix(ours);
  const auto step = static_cast<std::size_t>(stride->as_int64());
  std::vector<double> picked;
  for (std::size_t i = 0; i < matrix.values.size() && picked.size() < strided.values.size();
       i += step) {
    picked.push_back(matrix.values[i]);
  }
  if (picked.size() != strided.values.size()) return Bad("'" + name + "' has too many values");
  report.errors.push_back(Compare(name, picked, strided.values));
  double sum = 0, abs_sum = 0, squares = 0;
  for (const double element : matrix.values) {
    sum += element;
    abs_sum += std::abs(element);
    squares += element * element;
  }
  // Sums of many signs: their error is measured against the sum of magnitudes.
  DD2_TRY_ASSIGN(const double expected_sum, ReadNumber(record, "sum"));
  DD2_TRY_ASSIGN(const double expected_abs, ReadNumber(record, "abs_sum"));
  DD2_TRY_ASSIGN(const double expected_l2, ReadNumber(record, "l2"));
  report.errors.push_back(Compare(name + " sums", {sum, abs_sum, std::sqrt(squares)},
                                  {expected_sum, expected_abs, expected_l2}));
  report.outputs[name] = WriteMatrix(matrix);
  return {};
}

Status CompareRecord(const boost::json::object& object, const std::string& name,
                     const at::Tensor& ours, ParityReport& report) {
  const boost::json::value* record = object.if_contains(name);
  if (record == nullptr) return Bad("'" + name + "' is missing");
  return CompareRecord(*record, name, ours, report);
}

Status CompareIds(const boost::json::value& value, const std::string& name, const at::Tensor& ours,
                  ParityReport& report) {
  std::vector<double> expected;
  DD2_TRY(Flatten(value, expected));
  const Matrix matrix = ToMatrix(ours);
  if (expected.size() != matrix.values.size()) {
    return Bad("'" + name + "' holds " + std::to_string(expected.size()) + " numbers, ours " +
               std::to_string(matrix.values.size()));
  }
  double different = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (matrix.values[i] != expected[i]) ++different;
  }
  report.errors.push_back({.output = name, .absolute = different, .relative = different});
  report.outputs[name] = WriteMatrix(matrix);
  return {};
}

}  // namespace dd2
