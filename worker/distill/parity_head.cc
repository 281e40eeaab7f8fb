#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <regex>
#include <string>
#include <utility>

#include "worker/distill/parity.h"
#include "worker/models/networks.h"

namespace dd2 {
namespace {

Error Bad(const std::string& message) { return Error(Code::kInvalidArgument, message); }

struct RuledParam {
  std::string name;
  std::vector<std::int64_t> shape;
  std::string rule;
};

// params: [[name, [shape], rule], ...]
Result<std::vector<RuledParam>> ReadParams(const boost::json::object& object) {
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

std::optional<RuledParam> FindParam(const std::vector<RuledParam>& params, std::string_view name,
                                    std::size_t dimensions) {
  const auto found = std::ranges::find(params, name, &RuledParam::name);
  if (found == params.end() || found->shape.size() != dimensions) return std::nullopt;
  return *found;
}

// The sizes of the head, read off the shapes.
Result<HeadSpec> ReadSpec(const std::vector<RuledParam>& params) {
  const auto time = FindParam(params, "time_embed.mlp.0.weight", 2);
  const auto condition = FindParam(params, "cond_embed.weight", 2);
  const auto input = FindParam(params, "input_proj.weight", 2);
  if (!time || !condition || !input) {
    return Bad("params are not those of a MAR head (time_embed, cond_embed, input_proj, ...)");
  }
  HeadSpec spec;
  spec.time_features = time->shape[1];
  spec.condition = condition->shape[1];
  spec.width = input->shape[0];
  spec.channels = input->shape[1];
  spec.depth = 0;
  while (FindParam(params, "res_blocks." + std::to_string(spec.depth) + ".in_ln.weight", 1)) {
    ++spec.depth;
  }
  if (spec.time_features % 2 != 0)
    return Bad("time_embed.mlp.0.weight takes an odd number of sinusoids");
  return spec;
}

// Fills the parameters by rule: element k of parameter j from sin(0.7 k + 1.3 j + 0.5).
Result<ParamBuffer> MakeParams(const HeadSpec& spec, const std::vector<RuledParam>& params) {
  ParamLayout layout;
  MlpHead::Declare(spec, "", layout);
  if (layout.specs().size() != params.size()) {
    return Bad("the file lists " + std::to_string(params.size()) + " parameters, this head has " +
               std::to_string(layout.specs().size()));
  }
  ParamBuffer buffer(layout, /*requires_grad=*/false);
  for (std::size_t j = 0; j < params.size(); ++j) {
    const RuledParam& param = params[j];
    const auto declared = std::ranges::find(layout.specs(), param.name, &ParamSpec::name);
    if (declared == layout.specs().end() || declared->shape != param.shape) {
      return Bad("parameter '" + param.name + "' is unknown or has another shape in our head");
    }
    const std::optional<Rule> rule = ParseRule(param);
    if (!rule) return Bad("parameter '" + param.name + "' has an unknown rule: " + param.rule);
    float* values = buffer.flat().data_ptr<float>() + declared->offset;
    for (std::int64_t k = 0; k < declared->numel; ++k) {
      const auto s = static_cast<float>(
          std::sin(0.7 * static_cast<double>(k) + 1.3 * static_cast<double>(j) + 0.5));
      values[k] = rule->base + rule->factor * s;
    }
  }
  return buffer;
}

// "NAME=sin(Ak+B) [R,C]" somewhere in the note.
Result<at::Tensor> ReadSine(const std::string& note, const std::string& name) {
  const std::regex pattern("\\b" + name +
                           R"(=sin\(([0-9.]+)k\+([0-9.]+)\) *\[([0-9]+), *([0-9]+)\])");
  std::smatch match;
  if (!std::regex_search(note, match, pattern)) {
    return Bad("the note does not say " + name + "=sin(..k+..) [rows,columns]: " + note);
  }
  const double slope = std::stod(match[1].str());
  const double shift = std::stod(match[2].str());
  at::Tensor tensor = at::empty({std::stol(match[3].str()), std::stol(match[4].str())}, at::kFloat);
  for (std::int64_t k = 0; k < tensor.numel(); ++k) {
    tensor.data_ptr<float>()[k] =
        static_cast<float>(std::sin(slope * static_cast<double>(k) + shift));
  }
  return tensor;
}

// "t=[0,1,...]" in the note -> [rows, 1].
Result<at::Tensor> ReadTimes(const std::string& note) {
  std::smatch match;
  if (!std::regex_search(note, match, std::regex(R"(\bt=\[([0-9., ]+)\])"))) {
    return Bad("the note does not say t=[...]: " + note);
  }
  const std::string list = match[1].str();
  const std::regex number("[0-9.]+");
  std::vector<float> times;
  for (std::sregex_iterator i(list.begin(), list.end(), number), end; i != end; ++i) {
    times.push_back(std::strtof(i->str().c_str(), nullptr));
  }
  return at::tensor(times).unsqueeze(1);
}

Matrix ToMatrix(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.to(at::kDouble).contiguous();
  const double* data = flat.const_data_ptr<double>();
  return {.rows = flat.size(0),
          .columns = flat.size(1),
          .values = std::vector<double>(data, data + flat.numel())};
}

Result<double> ReadNumber(const boost::json::object& object, const char* key) {
  const boost::json::value* found = object.if_contains(key);
  if (found == nullptr || !found->is_number())
    return Bad("'" + std::string(key) + "' is no number");
  return found->to_number<double>();
}

// One output against its record: strided values, then the sums over all of it.
Status CompareRecord(const boost::json::object& object, const std::string& name, const Matrix& ours,
                     ParityReport& report) {
  const boost::json::value* found = object.if_contains(name);
  if (found == nullptr || !found->is_object()) return Bad("'" + name + "' is missing");
  const boost::json::object& record = found->as_object();
  constexpr double kNoNull = std::numeric_limits<double>::quiet_NaN();
  DD2_TRY_ASSIGN(const Matrix shape, ReadMatrix(record, "shape", kNoNull));
  if (shape.values !=
      std::vector<double>{static_cast<double>(ours.rows), static_cast<double>(ours.columns)}) {
    return Bad("'" + name + "' has another shape than ours, [" + std::to_string(ours.rows) + ", " +
               std::to_string(ours.columns) + "]");
  }
  DD2_TRY_ASSIGN(const Matrix strided, ReadMatrix(record, "strided", kNoNull));
  const boost::json::value* stride = record.if_contains("stride");
  if (stride == nullptr || !stride->is_int64() || stride->as_int64() < 1) {
    return Bad("'" + name + "' has no stride");
  }
  const auto step = static_cast<std::size_t>(stride->as_int64());
  std::vector<double> picked;
  for (std::size_t i = 0; i < ours.values.size() && picked.size() < strided.values.size();
       i += step) {
    picked.push_back(ours.values[i]);
  }
  if (picked.size() != strided.values.size()) return Bad("'" + name + "' has too many values");
  report.errors.push_back(Compare(name, picked, strided.values));
  double sum = 0, abs_sum = 0, squares = 0;
  for (const double value : ours.values) {
    sum += value;
    abs_sum += std::abs(value);
    squares += value * value;
  }
  // Sums of many signs: their error is measured against the sum of magnitudes.
  DD2_TRY_ASSIGN(const double expected_sum, ReadNumber(record, "sum"));
  DD2_TRY_ASSIGN(const double expected_abs, ReadNumber(record, "abs_sum"));
  DD2_TRY_ASSIGN(const double expected_l2, ReadNumber(record, "l2"));
  report.errors.push_back(Compare(name + " sums", {sum, abs_sum, std::sqrt(squares)},
                                  {expected_sum, expected_abs, expected_l2}));
  report.outputs[name] = WriteMatrix(ours);
  return {};
}

}  // namespace

Result<ParityReport> RunHeadCase(const boost::json::object& object) {
  DD2_TRY_ASSIGN(const std::vector<RuledParam> params, ReadParams(object));
  DD2_TRY_ASSIGN(const HeadSpec spec, ReadSpec(params));
  DD2_TRY_ASSIGN(const ParamBuffer buffer, MakeParams(spec, params));
  const boost::json::value* note_value = object.if_contains("note");
  if (note_value == nullptr || !note_value->is_string()) return Bad("'note' is missing");
  const std::string note(note_value->as_string());
  DD2_TRY_ASSIGN(const at::Tensor x, ReadSine(note, "x"));
  DD2_TRY_ASSIGN(const at::Tensor condition, ReadSine(note, "c"));
  DD2_TRY_ASSIGN(const at::Tensor t, ReadTimes(note));
  if (x.size(1) != spec.channels || condition.size(1) != spec.condition || x.size(0) != t.size(0) ||
      condition.size(0) != t.size(0)) {
    return Bad("the inputs in the note do not fit the parameters: " + note);
  }
  const MlpHead head(spec, buffer, "");
  ParityReport report;
  report.against = "the outputs in the file";
  DD2_TRY(CompareRecord(object, "time_sinusoid", ToMatrix(head.Sinusoids(t)), report));
  DD2_TRY(CompareRecord(object, "out", ToMatrix(head.Forward(x, t, condition)), report));
  return report;
}

}  // namespace dd2
