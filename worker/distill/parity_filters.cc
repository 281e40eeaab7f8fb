#include <regex>
#include <string>

#include "worker/distill/parity.h"
#include "worker/distill/parity_golden.h"
#include "worker/models/filters.h"

namespace dd2 {
namespace {

Error Bad(const std::string& message) { return Error(Code::kInvalidArgument, message); }

Result<TopP> ReadConvention(const boost::json::object& object) {
  const boost::json::value* found = object.if_contains("convention");
  if (found != nullptr && *found == "VAR") return TopP::kVar;
  if (found != nullptr && *found == "LlamaGen") return TopP::kLlamaGen;
  return Bad("'convention' is neither \"VAR\" nor \"LlamaGen\"");
}

// "topk10_topp0.9"
Result<TeacherConfig> ParseFilter(const std::string& name) {
  static const std::regex kName(R"(topk([0-9]+)_topp([0-9.]+))");
  std::smatch match;
  if (!std::regex_match(name, match, kName)) return Bad("'" + name + "' is not topkK_toppP");
  TeacherConfig config;
  config.top_k = std::stoi(match[1].str());
  config.top_p = std::stod(match[2].str());
  if (config.top_p == 0) config.top_p = 1;
  return config;
}

// Lists of kept codes, one per row -> [rows, codes] of 0 and 1.
Result<at::Tensor> ReadKept(const boost::json::value& value, const at::Tensor& logits) {
  at::Tensor kept = at::zeros(logits.sizes(), at::kLong);
  if (!value.is_array() || static_cast<std::int64_t>(value.as_array().size()) != logits.size(0)) {
    return Bad("'kept' has no list of " + std::to_string(logits.size(0)) + " rows");
  }
  std::int64_t* row = kept.mutable_data_ptr<std::int64_t>();
  for (const boost::json::value& codes : value.as_array()) {
    if (!codes.is_array()) return Bad("'kept' holds a row that is no list");
    for (const boost::json::value& code : codes.as_array()) {
      const std::int64_t* index = code.if_int64();
      if (index == nullptr || *index < 0 || *index >= logits.size(1)) {
        return Bad("'kept' holds " + boost::json::serialize(code) + ", which is no code");
      }
      row[*index] = 1;
    }
    row += logits.size(1);
  }
  return kept;
}

}  // namespace

Result<ParityReport> RunFilterCase(const boost::json::object& object) {
  DD2_TRY_ASSIGN(const TopP top_p, ReadConvention(object));
  DD2_TRY_ASSIGN(const std::string note, ReadNote(object));
  DD2_TRY_ASSIGN(const at::Tensor shaped, ReadSine(note, "logits"));
  const at::Tensor logits = shaped.flatten(0, -2);
  const boost::json::value* cases = object.if_contains("kept");
  if (cases == nullptr || !cases->is_object()) return Bad("'kept' is no object");
  ParityReport report;
  report.against = "the kept codes in the file (errors: codes that differ)";
  for (const auto& [key, value] : cases->as_object()) {
    DD2_TRY_ASSIGN(const TeacherConfig config, ParseFilter(key));
    DD2_TRY_ASSIGN(const at::Tensor wanted, ReadKept(value, logits));
    const at::Tensor kept = FilterLogits(logits, config, top_p).isfinite().to(at::kLong);
    const double different = (kept != wanted).sum().item<double>();
    report.errors.push_back({.output = key, .absolute = different, .relative = different});
    report.outputs[key] = WriteMatrix(ToMatrix(kept));
  }
  return report;
}

}  // namespace dd2
