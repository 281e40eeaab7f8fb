#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dd2 {

// The tensors of the teachers that we read, from their sizes: what a state_dict() of VAR
// (github.com/FoundationVision/VAR, models/) and LlamaGen (github.com/FoundationVision/LlamaGen,
// tokenizer/ and autoregressive/models/) holds, in its order, without the buffers.

enum class TeacherPart : std::uint8_t {
  kVarTransformer,
  kVarTokenizer,
  kLlamaGenTransformer,
  kLlamaGenTokenizer,
};

// What tells one network of a family from another. Those that a part does not have are 0.
struct TeacherSizes {
  TeacherPart part = TeacherPart::kVarTransformer;
  std::int64_t vocabulary = 0;  // codes, V
  // Of a code. A LlamaGen transformer as released has 0: it sees numbers, through a table. Adapted
  // (`dd2 teacher adapt`) it sees codes, through an MLP.
  std::int64_t code_channels = 0;

  // Transformers.
  std::int64_t depth = 0;  // blocks
  std::int64_t width = 0;  // C
  std::int64_t heads = 0;  // 0: the tensors do not say
  std::int64_t ffn_hidden = 0;
  std::int64_t classes = 0;       // without the one that stands for no class
  std::int64_t positions = 0;     // VAR: L, tokens of all scales
  std::int64_t scales = 0;        // VAR: K
  bool scaled_attention = false;  // VAR: queries and keys of norm 1, a learned scale for each head
  std::vector<std::int64_t> patch_numbers;  // VAR: side of each scale; empty: cannot be told
  std::int64_t grid = 0;  // LlamaGen: side of the token grid; 0: the tensors do not say

  // Tokenizers (the VQGAN family).
  std::int64_t channels = 0;              // at full resolution
  std::vector<std::int64_t> multipliers;  // channels of each resolution, highest first, over that
  std::int64_t latent_channels = 0;       // z, between encoder and quantiser
  std::int64_t residual_convs = 0;        // VAR: phi
};

struct TensorShape {
  std::string name;
  std::vector<std::int64_t> shape;
  bool operator==(const TensorShape&) const = default;
};

// In the order of the state_dict(). Of sizes that are not positive and at most 2^20 the result is
// meaningless, but computed.
std::vector<TensorShape> LayoutOf(const TeacherSizes& sizes);

}  // namespace dd2
