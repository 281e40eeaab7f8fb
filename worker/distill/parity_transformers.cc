#include <cmath>
#include <limits>
#include <regex>
#include <string>
#include <utility>
#include <vector>

#include "worker/distill/parity.h"
#include "worker/distill/parity_golden.h"
#include "worker/models/llamagen_gpt.h"
#include "worker/models/var_quantizer.h"
#include "worker/models/var_transformer.h"

namespace dd2 {
namespace {

constexpr double kNoNull = std::numeric_limits<double>::quiet_NaN();

Error Bad(const std::string& message) { return Error(Code::kInvalidArgument, message); }

// What the note says of the inputs: token k of scale s in sequence b is (Ab+Bk+Cs)%V.
struct Prompt {
  std::int64_t of_sequence = 0, of_token = 0, of_scale = 0, codes = 1;
  at::Tensor labels, null;  // [B]
};

Result<Prompt> ReadPrompt(const std::string& note) {
  static const std::regex kIds(R"(\(([0-9]+)b\+([0-9]+)k(?:\+([0-9]+)s)?\)%([0-9]+))");
  static const std::regex kLabels(R"(labels ([0-9]+),([0-9]+); null=([0-9]+))");
  std::smatch ids, labels;
  if (!std::regex_search(note, ids, kIds) || !std::regex_search(note, labels, kLabels)) {
    return Bad("the note does not say (..b+..k)%.. and labels .,.; null=..: " + note);
  }
  Prompt prompt;
  prompt.of_sequence = std::stol(ids[1].str());
  prompt.of_token = std::stol(ids[2].str());
  if (ids[3].matched) prompt.of_scale = std::stol(ids[3].str());
  prompt.codes = std::stol(ids[4].str());
  prompt.labels = at::tensor({std::stol(labels[1].str()), std::stol(labels[2].str())}, at::kLong);
  prompt.null = at::full_like(prompt.labels, std::stol(labels[3].str()));
  return prompt;
}

// Ids [B, count] of one scale.
at::Tensor IdsOf(const Prompt& prompt, std::int64_t count, std::int64_t scale) {
  const at::Tensor sequence = at::arange(prompt.labels.numel(), at::kLong).unsqueeze(1);
  const at::Tensor token = at::arange(count, at::kLong);
  return (prompt.of_sequence * sequence + prompt.of_token * token + prompt.of_scale * scale)
      .remainder(prompt.codes);
}

// Layers "BEFORE0AFTER", "BEFORE1AFTER", ...
std::int64_t CountLayers(const std::vector<RuledParam>& params, const std::string& before,
                         const std::string& after) {
  std::int64_t count = 0;
  while (FindParam(params, before + std::to_string(count) + after, 2)) ++count;
  return count;
}

Status CompareArgmax(const boost::json::object& object, const at::Tensor& logits,
                     ParityReport& report) {
  const boost::json::value* found = object.if_contains("argmax");
  if (found == nullptr) return Bad("'argmax' is missing");
  return CompareIds(*found, "argmax", logits.argmax(-1), report);
}

// Values of one network against values of another way through it.
void CompareTensors(const std::string& name, const at::Tensor& ours, const at::Tensor& expected,
                    ParityReport& report) {
  report.errors.push_back(Compare(name, ToMatrix(ours).values, ToMatrix(expected).values));
}

Result<VarSpec> ReadVarSpec(const boost::json::object& object,
                            const std::vector<RuledParam>& params) {
  const auto start = FindParam(params, "pos_start", 3);
  const auto word = FindParam(params, "word_embed.weight", 2);
  const auto classes = FindParam(params, "class_emb.weight", 2);
  const auto heads = FindParam(params, "blocks.0.attn.scale_mul_1H11", 4);
  const auto head = FindParam(params, "head.weight", 2);
  if (!start || !word || !classes || !heads || !head) {
    return Bad("params are not those of a VAR transformer (pos_start, word_embed, ...)");
  }
  DD2_TRY_ASSIGN(const Matrix sides, ReadMatrix(object, "sides", kNoNull));
  VarSpec spec{.depth = CountLayers(params, "blocks.", ".attn.proj.weight"),
               .width = start->shape[2],
               .heads = heads->shape[1],
               .channels = word->shape[1],
               .classes = classes->shape[0] - 1,
               .vocabulary = head->shape[0],
               .sides = {}};
  for (const double side : sides.values) spec.sides.push_back(std::lround(side));
  return spec;
}

// The rows that VAR's quantiser makes of the prompt's ids.
Result<at::Tensor> MakeRows(const boost::json::object& object, const VarSpec& spec,
                            const Prompt& prompt) {
  const boost::json::value* found = object.if_contains("quantizer");
  if (found == nullptr || !found->is_object()) return Bad("'quantizer' is missing");
  const boost::json::object& part = found->as_object();
  DD2_TRY_ASSIGN(const std::vector<RuledParam> params, ReadRuledParams(part));
  DD2_TRY_ASSIGN(const double first, ReadNumber(part, "first"));
  DD2_TRY_ASSIGN(const double factor, ReadNumber(part, "codebook_factor"));
  std::int64_t phis = 0;
  while (FindParam(params, "quantize.quant_resi.qresi_ls." + std::to_string(phis) + ".weight", 4)) {
    ++phis;
  }
  if (spec.scales() < 2 || phis == 0) return Bad("fewer than two scales, or no phi");
  const VarScales scales = VarScales::WithPhis(spec.sides, phis);
  ParamLayout layout;
  VarQuantizer::Declare(scales, prompt.codes, spec.channels, "quantize.", layout);
  DD2_TRY_ASSIGN(const ParamBuffer buffer, MakeParams(layout, params, std::lround(first)));
  at::Tensor(buffer["quantize.embedding.weight"]).mul_(factor);
  std::vector<at::Tensor> ids;
  for (std::int64_t scale = 0; scale < spec.scales(); ++scale) {
    ids.push_back(IdsOf(prompt, spec.ScaleTokens(scale), scale));
  }
  const VarQuantizer quantizer(scales, buffer, "quantize.");
  return quantizer.TransformerInput(quantizer.Codes(at::cat(ids, 1)));
}

at::Tensor CachedLogits(const VarTransformer& network, const at::Tensor& rows,
                        const at::Tensor& labels) {
  const VarSpec& spec = network.spec();
  KvCache cache;
  std::vector<at::Tensor> parts;
  for (std::int64_t scale = 0; scale < spec.scales(); ++scale) {
    const std::int64_t first = spec.TokensBefore(scale) - spec.ScaleTokens(0);
    const at::Tensor hidden = network.Step(
        scale, scale == 0 ? at::Tensor() : rows.narrow(1, first, spec.ScaleTokens(scale)), labels,
        cache);
    parts.push_back(network.Logits(network.HeadInput(hidden, labels)));
  }
  return at::cat(parts, 1);
}

Result<LlamaGenSpec> ReadLlamaGenSpec(const boost::json::object& object,
                                      const std::vector<RuledParam>& params) {
  const auto classes = FindParam(params, "cls_embedding.embedding_table.weight", 2);
  const auto table = FindParam(params, "tok_embeddings.weight", 2);
  const auto up = FindParam(params, "layers.0.feed_forward.w1.weight", 2);
  const boost::json::value* rotated = object.if_contains("rope_applied_to_ones");
  if (!classes || !table || !up || rotated == nullptr || !rotated->is_object()) {
    return Bad("not a LlamaGen GPT (cls_embedding, tok_embeddings, ..., rope_applied_to_ones)");
  }
  // [1, 1 + n, 1, d / heads]
  DD2_TRY_ASSIGN(const Matrix shape, ReadMatrix(rotated->as_object(), "shape", kNoNull));
  if (shape.values.size() != 4) return Bad("'rope_applied_to_ones' is not [1, 1 + n, 1, width]");
  LlamaGenSpec spec{.layers = CountLayers(params, "layers.", ".attention.wo.weight"),
                    .heads = std::lround(static_cast<double>(table->shape[1]) / shape.values[3]),
                    .width = table->shape[1],
                    .ffn_hidden = up->shape[0],
                    .classes = classes->shape[0] - 1,
                    .vocabulary = table->shape[0],
                    .grid = std::lround(std::sqrt(shape.values[1] - 1))};
  return spec;
}

Status CompareRotary(const boost::json::object& object, const LlamaGenSpec& spec,
                     ParityReport& report) {
  const std::int64_t rows = 1 + spec.tokens(), head_width = spec.width / spec.heads;
  const at::Tensor rotated =
      LlamaGenGpt::Rotate(at::ones({1, rows, 1, head_width}), LlamaGenGpt::RotaryTable(spec));
  DD2_TRY(CompareRecord(object, "rope_applied_to_ones", rotated, report));
  DD2_TRY_ASSIGN(const Matrix values,
                 ReadMatrix(object.at("rope_applied_to_ones").as_object(), "values", kNoNull));
  DD2_TRY_ASSIGN(const double row0, ReadNumber(object, "rope_row0_abs_sum"));
  const std::vector<double> ours = ToMatrix(rotated).values;
  if (ours.size() != values.values.size()) return Bad("'values' are not all of the rotated ones");
  report.errors.push_back(Compare("rope values", ours, values.values));
  report.errors.push_back(
      Compare("rope_row0_abs_sum", {rotated.select(1, 0).abs().sum().item<double>()}, {row0}));
  return {};
}

at::Tensor CachedLogits(const LlamaGenGpt& network, const at::Tensor& ids,
                        const at::Tensor& labels) {
  KvCache cache;
  std::vector<at::Tensor> parts;
  for (std::int64_t i = 0; i < ids.size(1); ++i) {
    const at::Tensor previous = i == 0 ? at::Tensor() : network.Embed(ids.select(1, i - 1));
    parts.push_back(network.Logits(network.Step(previous, i, labels, cache)));
  }
  return at::stack(parts, 1);
}

}  // namespace

Result<ParityReport> RunVarTransformerCase(const boost::json::object& object) {
  DD2_TRY_ASSIGN(const std::vector<RuledParam> params, ReadRuledParams(object));
  DD2_TRY_ASSIGN(const VarSpec spec, ReadVarSpec(object, params));
  ParamLayout layout;
  VarTransformer::DeclareBackbone(spec, "", layout);
  VarTransformer::DeclareHead(spec, "", layout);
  DD2_TRY_ASSIGN(const ParamBuffer buffer, MakeParams(layout, params));
  DD2_TRY_ASSIGN(const std::string note, ReadNote(object));
  DD2_TRY_ASSIGN(const Prompt prompt, ReadPrompt(note));
  DD2_TRY_ASSIGN(const at::Tensor rows, MakeRows(object, spec, prompt));

  const VarTransformer network(spec, buffer, "");
  const auto forced = [&](const at::Tensor& labels) {
    return network.Logits(network.HeadInput(network.Hidden(rows, labels), labels));
  };
  const at::Tensor logits = forced(prompt.labels), null = forced(prompt.null);
  const at::Tensor guided = null + GuidanceRamp(spec, 1.5).unsqueeze(1) * (logits - null);
  ParityReport report;
  report.against = "the outputs in the file";
  DD2_TRY(CompareRecord(object, "input_rows", rows, report));
  DD2_TRY(CompareRecord(object, "logits", logits, report));
  DD2_TRY(CompareRecord(object, "null_logits", null, report));
  DD2_TRY(CompareRecord(object, "cfg1p5_logits", guided, report));
  DD2_TRY(CompareArgmax(object, logits, report));
  CompareTensors("cached against forced", CachedLogits(network, rows, prompt.labels), logits,
                 report);
  return report;
}

Result<ParityReport> RunLlamaGenGptCase(const boost::json::object& object) {
  DD2_TRY_ASSIGN(const std::vector<RuledParam> params, ReadRuledParams(object));
  DD2_TRY_ASSIGN(const LlamaGenSpec spec, ReadLlamaGenSpec(object, params));
  ParamLayout layout;
  LlamaGenGpt::DeclareBackbone(spec, "", layout);
  LlamaGenGpt::DeclareEmbedding(spec, "", layout);
  LlamaGenGpt::DeclareHead(spec, "", layout);
  DD2_TRY_ASSIGN(const ParamBuffer buffer, MakeParams(layout, params));
  DD2_TRY_ASSIGN(const std::string note, ReadNote(object));
  DD2_TRY_ASSIGN(const Prompt prompt, ReadPrompt(note));
  DD2_TRY_ASSIGN(const double cross_entropy, ReadNumber(object, "ce_loss"));

  const LlamaGenGpt network(spec, buffer, "");
  const at::Tensor ids = IdsOf(prompt, spec.tokens(), 0);
  const at::Tensor embedded = network.Embed(ids.narrow(1, 0, spec.tokens() - 1));
  const at::Tensor logits = network.Logits(network.Hidden(embedded, prompt.labels));
  const at::Tensor null_logits = network.Logits(network.Hidden(embedded, prompt.null));
  const at::Tensor loss = at::cross_entropy_loss(logits.flatten(0, 1), ids.flatten());
  ParityReport report;
  report.against = "the outputs in the file";
  DD2_TRY(CompareRotary(object, spec, report));
  DD2_TRY(CompareRecord(object, "logits", logits, report));
  DD2_TRY(CompareRecord(object, "null_logits", null_logits, report));
  DD2_TRY(CompareArgmax(object, logits, report));
  report.errors.push_back(Compare("ce_loss", {loss.item<double>()}, {cross_entropy}));
  CompareTensors("cached against forced", CachedLogits(network, ids, prompt.labels), logits,
                 report);
  return report;
}

}  // namespace dd2
