#include <cmath>
#include <regex>
#include <string>
#include <utility>
#include <vector>

#include "worker/distill/parity.h"
#include "worker/distill/parity_golden.h"
#include "worker/models/llamagen_tokenizer.h"
#include "worker/models/var_tokenizer.h"

namespace dd2 {
namespace {

Error Bad(const std::string& message) { return Error(Code::kInvalidArgument, message); }

Result<const boost::json::array*> ReadList(const boost::json::object& object, const char* key) {
  const boost::json::value* found = object.if_contains(key);
  if (found == nullptr || !found->is_array() || found->as_array().empty()) {
    return Bad("'" + std::string(key) + "' is not a list");
  }
  return &found->as_array();
}

// The scales, read off the lists of indices (one per scale, of one list per image) and the number
// of phi.
Result<VarScales> ReadScales(const boost::json::object& object,
                             const std::vector<RuledParam>& params, const std::string& prefix) {
  DD2_TRY_ASSIGN(const boost::json::array* indices, ReadList(object, "indices"));
  std::vector<std::int64_t> sides;
  for (const boost::json::value& scale : *indices) {
    if (!scale.is_array() || scale.as_array().empty() || !scale.as_array()[0].is_array()) {
      return Bad("'indices' is not one list per scale and image");
    }
    const std::size_t tokens = scale.as_array()[0].as_array().size();
    sides.push_back(std::lround(std::sqrt(tokens)));
    if (static_cast<std::size_t>(sides.back() * sides.back()) != tokens ||
        (sides.size() > 1 && sides.back() <= sides[sides.size() - 2])) {
      return Bad("'indices' are not those of growing squares");
    }
  }
  std::int64_t phis = 0;
  while (FindParam(params, prefix + "quant_resi.qresi_ls." + std::to_string(phis) + ".weight", 4)) {
    ++phis;
  }
  if (sides.size() < 2 || phis == 0) return Bad("fewer than two scales, or no phi");
  return VarScales::WithPhis(std::move(sides), phis);
}

// "embedding.weight is multiplied by 3" or "embedding*3": what the rule leaves out.
Status ScaleCodebook(const std::string& note, const at::Tensor& codebook) {
  std::smatch match;
  static const std::regex kFactor(R"(embedding(?:\.weight is multiplied by |\*)([0-9.]+))");
  if (!std::regex_search(note, match, kFactor)) {
    return Bad("the note does not say what the codebook is multiplied by: " + note);
  }
  const at::NoGradGuard no_grad;
  at::Tensor(codebook).mul_(std::stod(match[1].str()));
  return {};
}

// indices: one list per scale -> compared scale by scale with ids [B, L].
Status CompareScaleIds(const boost::json::object& object, const VarScales& scales,
                       const at::Tensor& ids, ParityReport& report) {
  DD2_TRY_ASSIGN(const boost::json::array* indices, ReadList(object, "indices"));
  for (std::int64_t k = 0; k < scales.count(); ++k) {
    DD2_TRY(CompareIds((*indices)[static_cast<std::size_t>(k)],
                       "indices[" + std::to_string(k) + "]",
                       ids.narrow(1, scales.First(k), scales.Area(k)), report));
  }
  return {};
}

// Width and multipliers of the convolutions, read off the encoder: level L has the weights before +
// L + after.
struct Widths {
  std::int64_t width = 0;
  std::vector<std::int64_t> multipliers;
};
Result<Widths> ReadWidths(const std::vector<RuledParam>& params, const std::string& before,
                          const std::string& after) {
  const auto first = FindParam(params, "encoder.conv_in.weight", 4);
  if (!first) return Bad("params are not those of this tokenizer: no encoder.conv_in.weight");
  Widths widths{.width = first->shape[0], .multipliers = {}};
  while (true) {
    const auto conv =
        FindParam(params, before + std::to_string(widths.multipliers.size()) + after, 4);
    if (!conv) break;
    widths.multipliers.push_back(conv->shape[0] / widths.width);
  }
  if (widths.multipliers.empty()) return Bad("params are not those of this tokenizer: no levels");
  return widths;
}

// Codes and channels of the codebook.
Result<std::pair<std::int64_t, std::int64_t>> ReadCodebook(const std::vector<RuledParam>& params,
                                                           const std::string& name) {
  const auto codebook = FindParam(params, name, 2);
  if (!codebook) return Bad("params hold no " + name);
  return std::pair(codebook->shape[0], codebook->shape[1]);
}

}  // namespace

Result<ParityReport> RunVarQuantizerCase(const boost::json::object& object) {
  DD2_TRY_ASSIGN(const std::vector<RuledParam> params, ReadRuledParams(object));
  DD2_TRY_ASSIGN(const VarScales scales, ReadScales(object, params, ""));
  DD2_TRY_ASSIGN(const auto codebook, ReadCodebook(params, "embedding.weight"));
  ParamLayout layout;
  VarQuantizer::Declare(scales, codebook.first, codebook.second, "", layout);
  DD2_TRY_ASSIGN(const ParamBuffer buffer, MakeParams(layout, params));
  DD2_TRY_ASSIGN(const std::string note, ReadNote(object));
  DD2_TRY(ScaleCodebook(note, buffer["embedding.weight"]));
  DD2_TRY_ASSIGN(const at::Tensor features, ReadSine(note, "f"));
  DD2_TRY_ASSIGN(const boost::json::array* phi_table, ReadList(object, "phi_table"));
  DD2_TRY_ASSIGN(const boost::json::array* records, ReadList(object, "fhat_after_scale"));
  if (records->size() != scales.sides.size()) return Bad("'fhat_after_scale' misses scales");

  const VarQuantizer quantizer(scales, buffer, "");
  const at::Tensor ids = quantizer.Encode(features);
  const at::Tensor codes = quantizer.Codes(ids);
  ParityReport report;
  report.against = "the outputs in the file";
  DD2_TRY(CompareIds(*phi_table, "phi_table", at::tensor(scales.phi_of_scale), report));
  DD2_TRY(CompareScaleIds(object, scales, ids, report));
  at::Tensor f_hat;
  for (std::int64_t k = 0; k < scales.count(); ++k) {
    quantizer.Step(codes.narrow(1, scales.First(k), scales.Area(k)), k, f_hat);
    DD2_TRY(CompareRecord((*records)[static_cast<std::size_t>(k)],
                          "fhat_after_scale[" + std::to_string(k) + "]", f_hat, report));
  }
  DD2_TRY(CompareRecord(object, "transformer_input", quantizer.TransformerInput(codes), report));
  return report;
}

Result<ParityReport> RunVarTokenizerCase(const boost::json::object& object) {
  DD2_TRY_ASSIGN(const std::vector<RuledParam> params, ReadRuledParams(object));
  DD2_TRY_ASSIGN(const VarScales scales, ReadScales(object, params, "quantize."));
  DD2_TRY_ASSIGN(const Widths widths, ReadWidths(params, "encoder.down.", ".block.1.conv2.weight"));
  DD2_TRY_ASSIGN(const auto codebook, ReadCodebook(params, "quantize.embedding.weight"));
  const VarTokenizerSpec spec{.width = widths.width,
                              .multipliers = widths.multipliers,
                              .channels = codebook.second,
                              .codes = codebook.first,
                              .scales = scales};
  DD2_TRY_ASSIGN(const ParamBuffer buffer, MakeParams(VarTokenizer::Layout(spec), params));
  DD2_TRY_ASSIGN(const std::string note, ReadNote(object));
  DD2_TRY(ScaleCodebook(note, buffer["quantize.embedding.weight"]));
  DD2_TRY_ASSIGN(const at::Tensor images, ReadSine(note, "image"));

  const VarTokenizer tokenizer(spec, buffer);
  const at::Tensor ids = tokenizer.Encode(images);
  const at::Tensor f_hat = tokenizer.FHat(ids);
  ParityReport report;
  report.against = "the outputs in the file";
  DD2_TRY(CompareRecord(object, "encoder_out", tokenizer.network().Encode(images), report));
  DD2_TRY(CompareRecord(object, "quant_conv_out", tokenizer.Features(images), report));
  DD2_TRY(CompareScaleIds(object, scales, ids, report));
  DD2_TRY(
      CompareRecord(object, "decoder_out_before_clamp", tokenizer.DecodeUnclamped(f_hat), report));
  DD2_TRY(CompareRecord(object, "decoded_clamped", tokenizer.Decode(f_hat), report));
  return report;
}

Result<ParityReport> RunLlamaGenTokenizerCase(const boost::json::object& object) {
  DD2_TRY_ASSIGN(const std::vector<RuledParam> params, ReadRuledParams(object));
  DD2_TRY_ASSIGN(const Widths widths,
                 ReadWidths(params, "encoder.conv_blocks.", ".res.1.conv2.weight"));
  DD2_TRY_ASSIGN(const auto codebook, ReadCodebook(params, "quantize.embedding.weight"));
  const auto latent = FindParam(params, "encoder.conv_out.weight", 4);
  if (!latent) return Bad("params hold no encoder.conv_out.weight");
  const LlamaGenTokenizerSpec spec{.width = widths.width,
                                   .multipliers = widths.multipliers,
                                   .latent = latent->shape[0],
                                   .channels = codebook.second,
                                   .codes = codebook.first};
  DD2_TRY_ASSIGN(const ParamBuffer buffer, MakeParams(LlamaGenTokenizer::Layout(spec), params));
  DD2_TRY_ASSIGN(const std::string note, ReadNote(object));
  DD2_TRY_ASSIGN(const at::Tensor images, ReadSine(note, "image"));
  DD2_TRY_ASSIGN(const boost::json::array* indices, ReadList(object, "indices"));

  const LlamaGenTokenizer tokenizer(spec, buffer);
  const at::Tensor features = tokenizer.Features(images);
  const at::Tensor ids = tokenizer.Encode(images);
  const at::Tensor codes = tokenizer.codebook().index({ids});
  ParityReport report;
  report.against = "the outputs in the file";
  DD2_TRY(CompareRecord(object, "encoder_out", tokenizer.network().Encode(images), report));
  DD2_TRY(CompareRecord(object, "quant_conv_out", features, report));
  DD2_TRY(CompareIds(*indices, "indices", ids, report));
  DD2_TRY(CompareRecord(object, "quantised", RowsToMap(codes, features.size(2), features.size(3)),
                        report));
  DD2_TRY(CompareRecord(object, "decoded", tokenizer.DecodeIds(ids), report));
  return report;
}

}  // namespace dd2
