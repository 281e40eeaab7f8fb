#include "storage/teacher_layouts.h"

#include <string_view>
#include <utility>

namespace dd2 {
namespace {

using std::to_string;

constexpr int kEncoderBlocks = 2;  // residual blocks at each resolution
constexpr int kDecoderBlocks = kEncoderBlocks + 1;

class Layout {
 public:
  void Add(std::string name, std::vector<std::int64_t> shape) {
    tensors_.push_back({std::move(name), std::move(shape)});
  }
  void Linear(const std::string& name, std::int64_t out, std::int64_t in) {
    Add(name + ".weight", {out, in});
    Add(name + ".bias", {out});
  }
  void Conv(const std::string& name, std::int64_t out, std::int64_t in, std::int64_t side) {
    Add(name + ".weight", {out, in, side, side});
    Add(name + ".bias", {out});
  }
  void Norm(const std::string& name, std::int64_t channels) {
    Add(name + ".weight", {channels});
    Add(name + ".bias", {channels});
  }
  void Residual(const std::string& name, std::int64_t in, std::int64_t out) {
    Norm(name + ".norm1", in);
    Conv(name + ".conv1", out, in, 3);
    Norm(name + ".norm2", out);
    Conv(name + ".conv2", out, out, 3);
    if (in != out) Conv(name + ".nin_shortcut", out, in, 1);
  }
  std::vector<TensorShape> Take() { return std::move(tensors_); }

 private:
  std::vector<TensorShape> tensors_;
};

std::vector<TensorShape> VarTransformer(const TeacherSizes& s) {
  Layout layout;
  const std::int64_t width = s.width;
  layout.Add("pos_start", {1, 1, width});
  layout.Add("pos_1LC", {1, s.positions, width});
  layout.Linear("word_embed", width, s.code_channels);
  layout.Add("class_emb.weight", {s.classes + 1, width});
  layout.Add("lvl_embed.weight", {s.scales, width});
  for (std::int64_t i = 0; i < s.depth; ++i) {
    const std::string block = "blocks." + to_string(i);
    if (s.scaled_attention) layout.Add(block + ".attn.scale_mul_1H11", {1, s.heads, 1, 1});
    layout.Add(block + ".attn.q_bias", {width});
    layout.Add(block + ".attn.v_bias", {width});
    layout.Add(block + ".attn.mat_qkv.weight", {3 * width, width});
    layout.Linear(block + ".attn.proj", width, width);
    layout.Linear(block + ".ffn.fc1", s.ffn_hidden, width);
    layout.Linear(block + ".ffn.fc2", width, s.ffn_hidden);
    layout.Linear(block + ".ada_lin.1", 6 * width, width);
  }
  layout.Linear("head_nm.ada_lin.1", 2 * width, width);
  layout.Linear("head", s.vocabulary, width);
  return layout.Take();
}

std::vector<TensorShape> LlamaGenTransformer(const TeacherSizes& s) {
  Layout layout;
  const std::int64_t width = s.width;
  layout.Add("cls_embedding.embedding_table.weight", {s.classes + 1, width});
  if (s.code_channels == 0) {
    layout.Add("tok_embeddings.weight", {s.vocabulary, width});
  } else {
    layout.Linear("input.0", width, s.code_channels);
    layout.Linear("input.2", width, width);
  }
  for (std::int64_t i = 0; i < s.depth; ++i) {
    const std::string block = "layers." + to_string(i);
    layout.Add(block + ".attention.wqkv.weight", {3 * width, width});
    layout.Add(block + ".attention.wo.weight", {width, width});
    layout.Add(block + ".feed_forward.w1.weight", {s.ffn_hidden, width});
    layout.Add(block + ".feed_forward.w3.weight", {s.ffn_hidden, width});
    layout.Add(block + ".feed_forward.w2.weight", {width, s.ffn_hidden});
    layout.Add(block + ".attention_norm.weight", {width});
    layout.Add(block + ".ffn_norm.weight", {width});
  }
  layout.Add("norm.weight", {width});
  layout.Add("output.weight", {s.vocabulary, width});
  return layout.Take();
}

// Encoder and decoder of both tokenizers: the same convolutions under other names.
class TokenizerLayout {
 public:
  explicit TokenizerLayout(const TeacherSizes& sizes)
      : s_(sizes), is_var_(sizes.part == TeacherPart::kVarTokenizer) {}

  std::vector<TensorShape> Run() {
    Encoder();
    Decoder();
    for (std::int64_t i = 0; i < s_.residual_convs; ++i) {
      layout_.Conv("quantize.quant_resi.qresi_ls." + to_string(i), s_.code_channels,
                   s_.code_channels, 3);
    }
    layout_.Add("quantize.embedding.weight", {s_.vocabulary, s_.code_channels});
    const int side = is_var_ ? 3 : 1;
    layout_.Conv("quant_conv", s_.code_channels, s_.latent_channels, side);
    layout_.Conv("post_quant_conv", s_.latent_channels, s_.code_channels, side);
    return layout_.Take();
  }

 private:
  std::size_t levels() const { return s_.multipliers.size(); }
  std::int64_t ChannelsOf(std::size_t level) const { return s_.channels * s_.multipliers[level]; }
  std::int64_t deepest() const { return levels() == 0 ? 0 : ChannelsOf(levels() - 1); }

  void Attention(const std::string& name, std::int64_t channels) {
    layout_.Norm(name + ".norm", channels);
    if (is_var_) {
      layout_.Conv(name + ".qkv", 3 * channels, channels, 1);
    } else {
      for (const char* one : {".q", ".k", ".v"}) layout_.Conv(name + one, channels, channels, 1);
    }
    layout_.Conv(name + ".proj_out", channels, channels, 1);
  }

  void Middle(const std::string& side) {
    layout_.Residual(side + (is_var_ ? ".mid.block_1" : ".mid.0"), deepest(), deepest());
    Attention(side + (is_var_ ? ".mid.attn_1" : ".mid.1"), deepest());
    layout_.Residual(side + (is_var_ ? ".mid.block_2" : ".mid.2"), deepest(), deepest());
  }

  // Blocks of one resolution; only the lowest one has attention.
  void Level(const std::string& name, std::size_t level, std::int64_t in, int blocks) {
    for (int i = 0; i < blocks; ++i) {
      layout_.Residual(name + (is_var_ ? ".block." : ".res.") + to_string(i),
                       i == 0 ? in : ChannelsOf(level), ChannelsOf(level));
    }
    if (level + 1 != levels()) return;
    for (int i = 0; i < blocks; ++i) Attention(name + ".attn." + to_string(i), ChannelsOf(level));
  }

  void Encoder() {
    layout_.Conv("encoder.conv_in", s_.channels, 3, 3);
    for (std::size_t level = 0; level < levels(); ++level) {
      const std::string name =
          (is_var_ ? "encoder.down." : "encoder.conv_blocks.") + to_string(level);
      Level(name, level, level == 0 ? s_.channels : ChannelsOf(level - 1), kEncoderBlocks);
      if (level + 1 == levels()) continue;
      layout_.Conv(name + ".downsample.conv", ChannelsOf(level), ChannelsOf(level), 3);
    }
    Middle("encoder");
    layout_.Norm("encoder.norm_out", deepest());
    layout_.Conv("encoder.conv_out", s_.latent_channels, deepest(), 3);
  }

  // It runs from the lowest resolution to the highest. LlamaGen counts its blocks that way, VAR
  // the other way round; both list them as they count.
  void Decoder() {
    layout_.Conv("decoder.conv_in", deepest(), s_.latent_channels, 3);
    Middle("decoder");
    for (std::size_t i = 0; i < levels(); ++i) {
      const std::size_t level = is_var_ ? i : levels() - 1 - i;
      const std::string name = (is_var_ ? "decoder.up." : "decoder.conv_blocks.") + to_string(i);
      Level(name, level, level + 1 == levels() ? deepest() : ChannelsOf(level + 1), kDecoderBlocks);
      if (level == 0) continue;
      layout_.Conv(name + ".upsample.conv", ChannelsOf(level), ChannelsOf(level), 3);
    }
    layout_.Norm("decoder.norm_out", levels() == 0 ? 0 : ChannelsOf(0));
    layout_.Conv("decoder.conv_out", 3, levels() == 0 ? 0 : ChannelsOf(0), 3);
  }

  const TeacherSizes& s_;
  const bool is_var_;
  Layout layout_;
};

}  // namespace

std::vector<TensorShape> LayoutOf(const TeacherSizes& sizes) {
  switch (sizes.part) {
    case TeacherPart::kVarTransformer: return VarTransformer(sizes);
    case TeacherPart::kLlamaGenTransformer: return LlamaGenTransformer(sizes);
    case TeacherPart::kVarTokenizer:
    case TeacherPart::kLlamaGenTokenizer: return TokenizerLayout(sizes).Run();
  }
  return {};
}

}  // namespace dd2
