#include "worker/models/llamagen_gpt.h"

#include <cmath>
#include <optional>

#include "common/check.h"

namespace dd2 {
namespace {

constexpr double kNormEpsilon = 1e-5;
constexpr double kRotaryBase = 10000;

// Root-mean-square norm, in fp32 as everything here.
at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight) {
  return x * at::rsqrt(x.square().mean(-1, /*keepdim=*/true) + kNormEpsilon) * weight;
}

at::Tensor Mix(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool causal) {
  return at::scaled_dot_product_attention(q, k, v, std::nullopt, /*dropout_p=*/0.0, causal);
}

}  // namespace

void LlamaGenGpt::DeclareBackbone(const LlamaGenSpec& spec, const std::string& prefix,
                                  ParamLayout& layout) {
  const std::int64_t d = spec.width;
  DD2_CHECK(d % spec.heads == 0 && d / spec.heads % 4 == 0);
  layout.Add(prefix + "cls_embedding.embedding_table.weight", {spec.classes + 1, d});
  for (std::int64_t i = 0; i < spec.layers; ++i) {
    const std::string layer = prefix + "layers." + std::to_string(i) + ".";
    layout.Add(layer + "attention.wqkv.weight", {3 * d, d});
    layout.Add(layer + "attention.wo.weight", {d, d});
    layout.Add(layer + "feed_forward.w1.weight", {spec.ffn_hidden, d});
    layout.Add(layer + "feed_forward.w3.weight", {spec.ffn_hidden, d});
    layout.Add(layer + "feed_forward.w2.weight", {d, spec.ffn_hidden});
    layout.Add(layer + "attention_norm.weight", {d});
    layout.Add(layer + "ffn_norm.weight", {d});
  }
  layout.Add(prefix + "norm.weight", {d});
}

void LlamaGenGpt::DeclareEmbedding(const LlamaGenSpec& spec, const std::string& prefix,
                                   ParamLayout& layout) {
  layout.Add(prefix + "tok_embeddings.weight", {spec.vocabulary, spec.width});
}

void LlamaGenGpt::DeclareHead(const LlamaGenSpec& spec, const std::string& prefix,
                              ParamLayout& layout) {
  layout.Add(prefix + "output.weight", {spec.vocabulary, spec.width});
}

LlamaGenGpt::LlamaGenGpt(const LlamaGenSpec& spec, const ParamBuffer& params,
                         const std::string& prefix)
    : spec_(spec),
      classes_(params[prefix + "cls_embedding.embedding_table.weight"]),
      norm_(params[prefix + "norm.weight"]),
      rotary_(RotaryTable(spec).to(classes_.device())) {
  for (std::int64_t i = 0; i < spec.layers; ++i) {
    const std::string b = prefix + "layers." + std::to_string(i) + ".";
    blocks_.push_back({params[b + "attention_norm.weight"], params[b + "attention.wqkv.weight"],
                       params[b + "attention.wo.weight"], params[b + "ffn_norm.weight"],
                       params[b + "feed_forward.w1.weight"], params[b + "feed_forward.w2.weight"],
                       params[b + "feed_forward.w3.weight"]});
  }
  const std::string table = prefix + "tok_embeddings.weight", output = prefix + "output.weight";
  if (params.layout().Contains(table)) embedding_ = params[table];
  if (params.layout().Contains(output)) head_weight_ = params[output];
}

at::Tensor LlamaGenGpt::RotaryTable(const LlamaGenSpec& spec) {
  const std::int64_t pairs = spec.width / spec.heads / 2, half = pairs / 2;
  at::Tensor table = at::zeros({1 + spec.tokens(), pairs}, at::kComplexFloat);
  auto* row = table.mutable_data_ptr<c10::complex<float>>() + pairs;
  for (std::int64_t cell = 0; cell < spec.tokens(); ++cell, row += pairs) {
    for (std::int64_t j = 0; j < half; ++j) {
      const double exponent = -static_cast<double>(j) / static_cast<double>(half);
      const double frequency = std::pow(kRotaryBase, exponent);
      const auto by = [frequency](std::int64_t steps) {
        const double angle = static_cast<double>(steps) * frequency;
        return c10::complex<float>(static_cast<float>(std::cos(angle)),
                                   static_cast<float>(std::sin(angle)));
      };
      row[j] = by(cell / spec.grid);
      row[half + j] = by(cell % spec.grid);
    }
  }
  return table;
}

at::Tensor LlamaGenGpt::Rotate(const at::Tensor& x, const at::Tensor& rows) {
  // Complex numbers of bf16 do not exist.
  const at::Tensor pairs = at::view_as_complex(x.to(at::kFloat).unflatten(-1, {x.size(-1) / 2, 2}));
  return at::view_as_real(pairs * rows.unsqueeze(1)).flatten(-2);
}

at::Tensor LlamaGenGpt::Forward(std::int64_t heads, const Block& block, const at::Tensor& x,
                                const at::Tensor& rotary, const Attend& attend) {
  const std::int64_t d = x.size(2);
  const std::vector<at::Tensor> parts = at::linear(RmsNorm(x, block.attention_norm), block.wqkv)
                                            .view({x.size(0), x.size(1), 3, heads, d / heads})
                                            .unbind(2);
  const Qkv qkv{Rotate(parts[0], rotary).transpose(1, 2), Rotate(parts[1], rotary).transpose(1, 2),
                parts[2].transpose(1, 2)};
  const at::Tensor mixed = attend(qkv).transpose(1, 2).reshape(x.sizes());
  const at::Tensor h = x + at::linear(mixed, block.wo);
  const at::Tensor normed = RmsNorm(h, block.ffn_norm);
  const at::Tensor inner = at::silu(at::linear(normed, block.w1)) * at::linear(normed, block.w3);
  return h + at::linear(inner, block.w2);
}

at::Tensor LlamaGenGpt::Embed(const at::Tensor& ids) const {
  DD2_CHECK(embedding_.defined());
  return at::embedding(embedding_, ids);
}

at::Tensor LlamaGenGpt::Hidden(const at::Tensor& embedded, const at::Tensor& labels,
                               PassMode mode) const {
  DD2_CHECK(embedded.dim() == 3 && embedded.size(0) == labels.size(0) &&
            embedded.size(1) < spec_.tokens() && embedded.size(2) == spec_.width);
  at::Tensor x = at::cat({at::embedding(classes_, labels).unsqueeze(1), embedded}, 1);
  const at::Tensor rotary = rotary_.narrow(0, 0, x.size(1));
  for (const Block& block : blocks_) {
    const BlockFunction forward = [heads = spec_.heads, block,
                                   rotary](const std::vector<at::Tensor>& inputs) {
      return Forward(heads, block, inputs[0], rotary,
                     [](const Qkv& qkv) { return Mix(qkv.q, qkv.k, qkv.v, /*causal=*/true); });
    };
    x = RunBlock(forward, {x}, mode);
  }
  return RmsNorm(x, norm_);
}

at::Tensor LlamaGenGpt::Logits(const at::Tensor& hidden) const {
  DD2_CHECK(head_weight_.defined());
  return at::linear(hidden, head_weight_);
}

at::Tensor LlamaGenGpt::Step(const at::Tensor& previous, std::int64_t position,
                             const at::Tensor& labels, KvCache& cache) const {
  const at::NoGradGuard no_grad;
  DD2_CHECK(position >= 0 && position < spec_.tokens());
  if (position == 0) {
    cache.Reset(spec_.layers,
                {labels.size(0), spec_.heads, spec_.tokens(), spec_.width / spec_.heads},
                classes_.options());
  }
  at::Tensor x = (position == 0 ? at::embedding(classes_, labels) : previous).unsqueeze(1);
  const at::Tensor rotary = rotary_.narrow(0, position, 1);
  for (std::int64_t i = 0; i < spec_.layers; ++i) {
    const Block& block = blocks_[static_cast<std::size_t>(i)];
    x = Forward(spec_.heads, block, x, rotary, [&](const Qkv& qkv) {
      const auto [keys, values] = cache.Append(i, position, qkv.k, qkv.v);
      return Mix(qkv.q, keys, values, /*causal=*/false);
    });
  }
  return RmsNorm(x, norm_).squeeze(1);
}

}  // namespace dd2
