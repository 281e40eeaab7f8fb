#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "worker/models/backbone.h"
#include "worker/models/param_buffer.h"
#include "worker/models/recompute.h"
#include "worker/torch.h"

namespace dd2 {

// Sizes of LlamaGen's class-conditional GPT (models.md 2.2); as they stand, those of GPT-B at 256
// pixels.
struct LlamaGenSpec {
  std::int64_t layers = 12;
  std::int64_t heads = 12;
  std::int64_t width = 768;  // d; d / heads is a multiple of 4
  std::int64_t ffn_hidden = 2048;
  std::int64_t classes = 1000;      // label `classes` is the null class
  std::int64_t vocabulary = 16384;  // V
  std::int64_t grid = 16;           // n = grid^2 tokens in raster order

  std::int64_t tokens() const { return grid * grid; }  // n
};

// LlamaGen's raster-order Llama blocks behind one class token. Library operators with ordinary
// autograd: a frozen teacher, or the trainable backbone of generator and guidance network. Nothing
// is dropped. B sequences below.
//
// Parameters carry the names of the released files (tensors/llamagen_GPT-B.tsv).
class LlamaGenGpt {
 public:
  // Everything up to Hidden with the final norm; the table of Embed; the output layer. DD2's
  // teacher on continuous codes has no table, its networks neither table nor output layer.
  static void DeclareBackbone(const LlamaGenSpec& spec, const std::string& prefix,
                              ParamLayout& layout);
  static void DeclareEmbedding(const LlamaGenSpec& spec, const std::string& prefix,
                               ParamLayout& layout);
  static void DeclareHead(const LlamaGenSpec& spec, const std::string& prefix, ParamLayout& layout);
  // Takes the tensors named prefix + "..." of `params` (shared storage); table and output layer if
  // they are there.
  LlamaGenGpt(const LlamaGenSpec& spec, const ParamBuffer& params, const std::string& prefix);

  at::Tensor Embed(const at::Tensor& ids) const;  // [...] int64 -> [..., d]
  // embedded [B, l, d]: the first l < n tokens, from Embed or continuous codes; labels [B] ->
  // [B, l + 1, d], what enters the output layer for tokens 0..l. That of token i depends on the
  // class and the tokens before i.
  at::Tensor Hidden(const at::Tensor& embedded, const at::Tensor& labels, PassMode mode = {}) const;
  at::Tensor Logits(const at::Tensor& hidden) const;  // [..., d] -> [..., V]

  // One token of sampling, without autograd: previous [B, d], the embedding of token position - 1
  // (ignored at position 0, which empties the cache) -> Hidden of `position`, [B, d].
  at::Tensor Step(const at::Tensor& previous, std::int64_t position, const at::Tensor& labels,
                  KvCache& cache) const;
  const LlamaGenSpec& spec() const { return spec_; }

  // cos + i sin of the 2-D rotary embedding, complex [1 + n, d / heads / 2]. Row 0, the class
  // token's, is zero: its query and key vanish. Row 1 + i is cell (i div grid, i mod grid): the
  // first half of the pairs turns by its row, the second by its column.
  static at::Tensor RotaryTable(const LlamaGenSpec& spec);
  // Multiplies pairs of neighbouring channels, (2 j, 2 j + 1) of the last dimension, as complex
  // numbers by `rows` of the table: x [..., l, heads, d / heads], rows [l, d / heads / 2].
  static at::Tensor Rotate(const at::Tensor& x, const at::Tensor& rows);

 private:
  struct Block {
    at::Tensor attention_norm, wqkv, wo, ffn_norm, w1, w2, w3;
  };
  struct Qkv {
    at::Tensor q, k, v;  // [B, heads, l, d / heads]
  };
  // -> the mixed values, [B, heads, l, d / heads].
  using Attend = std::function<at::Tensor(const Qkv&)>;
  // rotary: rows of the table for the tokens of x [B, l, d].
  static at::Tensor Forward(std::int64_t heads, const Block& block, const at::Tensor& x,
                            const at::Tensor& rotary, const Attend& attend);

  LlamaGenSpec spec_;
  at::Tensor classes_, embedding_, norm_, head_weight_;  // the second and last may be undefined
  std::vector<Block> blocks_;
  at::Tensor rotary_;
};

}  // namespace dd2
