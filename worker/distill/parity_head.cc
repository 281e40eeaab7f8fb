#include <regex>
#include <string>
#include <vector>

#include "worker/distill/parity.h"
#include "worker/distill/parity_golden.h"
#include "worker/models/networks.h"

namespace dd2 {
namespace {

Error Bad(const std::string& message) { return Error(Code::kInvalidArgument, message); }

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

}  // namespace

Result<ParityReport> RunHeadCase(const boost::json::object& object) {
  DD2_TRY_ASSIGN(const std::vector<RuledParam> params, ReadRuledParams(object));
  DD2_TRY_ASSIGN(const HeadSpec spec, ReadSpec(params));
  ParamLayout layout;
  MlpHead::Declare(spec, "", layout);
  DD2_TRY_ASSIGN(const ParamBuffer buffer, MakeParams(layout, params));
  DD2_TRY_ASSIGN(const std::string note, ReadNote(object));
  DD2_TRY_ASSIGN(const at::Tensor x, ReadSine(note, "x"));
  DD2_TRY_ASSIGN(const at::Tensor condition, ReadSine(note, "c"));
  DD2_TRY_ASSIGN(const at::Tensor t, ReadTimes(note));
  if (x.dim() != 2 || condition.dim() != 2 || x.size(1) != spec.channels ||
      condition.size(1) != spec.condition || x.size(0) != t.size(0) ||
      condition.size(0) != t.size(0)) {
    return Bad("the inputs in the note do not fit the parameters: " + note);
  }
  const MlpHead head(spec, buffer, "");
  ParityReport report;
  report.against = "the outputs in the file";
  DD2_TRY(CompareRecord(object, "time_sinusoid", head.Sinusoids(t), report));
  DD2_TRY(CompareRecord(object, "out", head.Forward(x, t, condition), report));
  return report;
}

}  // namespace dd2
