#include "storage/teacher_catalog.h"

#include <algorithm>
#include <charconv>
#include <functional>
#include <map>
#include <numeric>
#include <utility>

namespace dd2 {
namespace {

// No size of a network is larger, so that products of a few of them fit 64 bits.
constexpr std::int64_t kSizeMax = std::int64_t{1} << 20;
constexpr std::int64_t kBlocksMax = 1000;
// Names that other networks have too (norm.weight) do not make one of ours.
constexpr std::size_t kNamesMin = 8;

constexpr TeacherPart kParts[] = {TeacherPart::kVarTransformer, TeacherPart::kVarTokenizer,
                                  TeacherPart::kLlamaGenTransformer,
                                  TeacherPart::kLlamaGenTokenizer};

// Released resolutions of VAR, for files without lvl_1L.
struct KnownScales {
  std::int64_t pixels;
  std::vector<std::int64_t> sides;
};
const std::vector<KnownScales>& ReleasedScales() {
  static const std::vector<KnownScales> known = {{256, {1, 2, 3, 4, 5, 6, 8, 10, 13, 16}},
                                                 {512, {1, 2, 3, 4, 6, 9, 13, 18, 24, 32}}};
  return known;
}

// LlamaGen's configurations (autoregressive/models/gpt.py): the number of heads leaves no trace in
// the shapes.
struct KnownGpt {
  std::string_view name;
  std::int64_t depth;
  std::int64_t width;
  std::int64_t heads;
};
constexpr KnownGpt kKnownGpts[] = {{"GPT-B", 12, 768, 12},
                                   {"GPT-L", 24, 1024, 16},
                                   {"GPT-XL", 36, 1280, 20},
                                   {"GPT-XXL", 48, 1536, 24},
                                   {"GPT-3B", 24, 3200, 32}};

const KnownGpt* FindGpt(const TeacherSizes& sizes) {
  const auto* found =
      std::find_if(std::begin(kKnownGpts), std::end(kKnownGpts), [&sizes](const KnownGpt& known) {
        return known.depth == sizes.depth && known.width == sizes.width;
      });
  return found == std::end(kKnownGpts) ? nullptr : found;
}

// Of a shape whose product was checked to fit, unless it has a size 0.
std::int64_t CountOf(std::span<const std::int64_t> shape) {
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

using ByName = std::map<std::string_view, const StoredTensor*>;

struct Axis {
  std::string_view name;
  std::size_t index;
};

// The size of the first of `axes` that the file has: several, because one may be what is missing.
std::int64_t SizeOf(const ByName& tensors, std::initializer_list<Axis> axes) {
  for (const Axis& axis : axes) {
    const auto found = tensors.find(axis.name);
    if (found == tensors.end() || found->second->shape.size() <= axis.index) continue;
    const std::int64_t size = found->second->shape[axis.index];
    if (size >= 1 && size <= kSizeMax) return size;
  }
  return 0;
}

// One more than the largest N of the names "<prefix>N.".
std::int64_t CountBlocks(const ByName& tensors, std::string_view prefix) {
  std::int64_t count = 0;
  for (auto at = tensors.lower_bound(prefix); at != tensors.end() && at->first.starts_with(prefix);
       ++at) {
    const std::string_view rest = at->first.substr(prefix.size());
    std::int64_t number = 0;
    const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), number);
    const bool whole = error == std::errc() && end != rest.data() + rest.size() && *end == '.';
    if (whole && number >= 0 && number < kBlocksMax) count = std::max(count, number + 1);
  }
  return count;
}

// Sides of the scales whose tokens `levels` numbers: 0, 1 1 1 1, 2 2 2 ...; empty when it does not.
std::vector<std::int64_t> SidesOf(std::span<const float> levels) {
  std::vector<std::int64_t> sides;
  for (std::size_t at = 0; at < levels.size();) {
    std::size_t end = at;
    while (end < levels.size() && levels[end] == static_cast<float>(sides.size())) ++end;
    std::int64_t side = 0;
    while (static_cast<std::size_t>(side * side) < end - at) ++side;
    if (end == at || static_cast<std::size_t>(side * side) != end - at) return {};
    sides.push_back(side);
    at = end;
  }
  return sides;
}

std::int64_t TokensOf(std::span<const std::int64_t> sides) {
  return std::accumulate(sides.begin(), sides.end(), std::int64_t{0},
                         [](std::int64_t sum, std::int64_t side) { return sum + side * side; });
}

void FillScales(std::span<const float> levels, TeacherSizes& sizes) {
  const auto fits = [&sizes](const std::vector<std::int64_t>& sides) {
    return static_cast<std::int64_t>(sides.size()) == sizes.scales &&
           TokensOf(sides) == sizes.positions;
  };
  if (auto sides = SidesOf(levels); fits(sides)) {
    sizes.patch_numbers = std::move(sides);
    return;
  }
  if (!levels.empty()) return;  // it contradicts the other tensors
  for (const KnownScales& known : ReleasedScales()) {
    if (fits(known.sides)) sizes.patch_numbers = known.sides;
  }
}

void ReadVarTransformer(const ByName& t, std::span<const float> levels, TeacherSizes& s) {
  s.width = SizeOf(t, {{"pos_start", 2}, {"word_embed.weight", 0}, {"head.weight", 1}});
  s.code_channels = SizeOf(t, {{"word_embed.weight", 1}});
  s.classes = SizeOf(t, {{"class_emb.weight", 0}}) - 1;
  s.positions = SizeOf(t, {{"pos_1LC", 1}, {kVarLevels, 1}, {"attn_bias_for_masking", 2}});
  s.scales = SizeOf(t, {{"lvl_embed.weight", 0}});
  s.vocabulary = SizeOf(t, {{"head.weight", 0}, {"head.bias", 0}});
  s.depth = CountBlocks(t, "blocks.");
  s.heads = SizeOf(t, {{"blocks.0.attn.scale_mul_1H11", 1}, {"blocks.1.attn.scale_mul_1H11", 1}});
  s.scaled_attention = s.heads > 0;
  if (!s.scaled_attention) s.heads = s.width / 64;
  s.ffn_hidden = SizeOf(t, {{"blocks.0.ffn.fc1.weight", 0}, {"blocks.1.ffn.fc1.weight", 0}});
  FillScales(levels, s);
}

void ReadLlamaGenTransformer(const ByName& t, TeacherSizes& s) {
  s.width = SizeOf(t, {{"tok_embeddings.weight", 1}, {"norm.weight", 0}, {"output.weight", 1}});
  s.vocabulary = SizeOf(t, {{"tok_embeddings.weight", 0}, {"output.weight", 0}});
  s.classes = SizeOf(t, {{"cls_embedding.embedding_table.weight", 0}}) - 1;
  if (!t.contains("tok_embeddings.weight")) s.code_channels = SizeOf(t, {{"input.0.weight", 1}});
  s.depth = CountBlocks(t, "layers.");
  s.ffn_hidden = SizeOf(t, {{"layers.0.feed_forward.w1.weight", 0},
                            {"layers.0.feed_forward.w3.weight", 0},
                            {"layers.1.feed_forward.w1.weight", 0}});
  // Old files have the table of rotations: a row for the class and each token, of D/2 pairs.
  const std::int64_t rows = SizeOf(t, {{"freqs_cis", 0}}) - 1;
  while (s.grid * s.grid < rows) ++s.grid;
  if (s.grid * s.grid != rows) s.grid = 0;
  const std::int64_t pairs = SizeOf(t, {{"freqs_cis", 1}});
  if (const KnownGpt* known = FindGpt(s)) {
    s.heads = known->heads;
  } else if (pairs > 0 && s.width % (2 * pairs) == 0) {
    s.heads = s.width / (2 * pairs);
  }
}

void ReadTokenizer(const ByName& t, TeacherSizes& s) {
  const bool is_var = s.part == TeacherPart::kVarTokenizer;
  const std::string levels = is_var ? "encoder.down." : "encoder.conv_blocks.";
  s.channels = SizeOf(t, {{"encoder.conv_in.weight", 0}, {"encoder.conv_in.bias", 0}});
  for (std::int64_t i = 0; i < std::min<std::int64_t>(CountBlocks(t, levels), 16); ++i) {
    const std::string block = levels + std::to_string(i) + (is_var ? ".block.0" : ".res.0");
    const std::int64_t width =
        SizeOf(t, {{block + ".conv1.bias", 0}, {block + ".norm2.weight", 0}});
    s.multipliers.push_back(s.channels == 0 ? 0 : width / s.channels);
  }
  s.latent_channels = SizeOf(t, {{"encoder.conv_out.weight", 0}, {"decoder.conv_in.weight", 1}});
  s.vocabulary = SizeOf(t, {{"quantize.embedding.weight", 0}});
  s.code_channels = SizeOf(t, {{"quantize.embedding.weight", 1}, {"quant_conv.weight", 0}});
  if (is_var) s.residual_convs = CountBlocks(t, "quantize.quant_resi.qresi_ls.");
}

TeacherSizes ReadSizes(TeacherPart part, const ByName& tensors, std::span<const float> levels) {
  TeacherSizes sizes;
  sizes.part = part;
  switch (part) {
    case TeacherPart::kVarTransformer: ReadVarTransformer(tensors, levels, sizes); break;
    case TeacherPart::kLlamaGenTransformer: ReadLlamaGenTransformer(tensors, sizes); break;
    case TeacherPart::kVarTokenizer:
    case TeacherPart::kLlamaGenTokenizer: ReadTokenizer(tensors, sizes); break;
  }
  return sizes;
}

std::string NameOf(const TeacherSizes& s) {
  const auto text = [](std::int64_t number) { return std::to_string(number); };
  switch (s.part) {
    case TeacherPart::kVarTransformer: {
      std::string name = "VAR-d" + text(s.depth);
      if (s.width != 64 * s.depth) name += " of width " + text(s.width);
      for (const KnownScales& known : ReleasedScales()) {
        if (known.sides == s.patch_numbers) name += " (" + text(known.pixels) + " px)";
      }
      return name;
    }
    case TeacherPart::kVarTokenizer:
      return "VAR tokenizer ch" + text(s.channels) + " v" + text(s.vocabulary) + " z" +
             text(s.latent_channels);
    case TeacherPart::kLlamaGenTransformer: {
      const KnownGpt* known = FindGpt(s);
      const std::string name = known != nullptr
                                   ? std::string(known->name)
                                   : "GPT of " + text(s.depth) + " layers, width " + text(s.width);
      return (s.code_channels > 0 ? "adapted LlamaGen " : "LlamaGen ") + name;
    }
    case TeacherPart::kLlamaGenTokenizer:
      // Every resolution but the first halves the image.
      return "LlamaGen VQ-" +
             text(std::int64_t{1} << (std::max<std::size_t>(s.multipliers.size(), 1) - 1)) +
             (s.channels == 128 ? "" : " ch" + text(s.channels));
  }
  return {};
}

bool IsFloating(Dtype dtype) {
  return dtype == Dtype::kF32 || dtype == Dtype::kF16 || dtype == Dtype::kBf16 ||
         dtype == Dtype::kF64;
}

// `named`: how many of the layout's names the file has, whatever their shapes.
TeacherMatch Compare(TeacherPart part, const ByName& tensors, std::span<const float> levels,
                     std::size_t& named) {
  TeacherMatch match;
  match.sizes = ReadSizes(part, tensors, levels);
  match.layout = LayoutOf(match.sizes);
  match.name = NameOf(match.sizes);
  ByName rest = tensors;
  for (const TensorShape& expected : match.layout) {
    const auto found = rest.find(expected.name);
    if (found == rest.end()) {
      match.missing.push_back(expected.name);
      continue;
    }
    const StoredTensor& stored = *found->second;
    rest.erase(found);
    ++named;
    if (stored.shape != expected.shape || CountOf(stored.shape) == 0) {
      match.wrong.push_back(expected.name + ": " + ShapeText(stored.shape) + ", expected " +
                            ShapeText(expected.shape));
    } else if (!IsFloating(stored.dtype)) {
      match.wrong.push_back(expected.name + ": of type " + std::string(DtypeText(stored.dtype)));
    } else {
      match.parameters += CountOf(stored.shape);
    }
  }
  for (const auto& [name, tensor] : rest) {
    (IsTeacherBuffer(name) ? match.ignored : match.extra).emplace_back(name);
  }
  return match;
}

}  // namespace

std::optional<TeacherMatch> MatchTeacher(std::span<const StoredTensor> tensors,
                                         std::span<const float> levels) {
  ByName by_name;
  for (const StoredTensor& tensor : tensors) by_name.emplace(tensor.name, &tensor);
  std::optional<TeacherMatch> best;
  std::size_t best_fits = 0;
  for (const TeacherPart part : kParts) {
    std::size_t named = 0;
    TeacherMatch match = Compare(part, by_name, levels, named);
    const std::size_t fits = named - match.wrong.size();
    if (named < kNamesMin || 4 * named < match.layout.size() || (best && fits <= best_fits))
      continue;
    best_fits = fits;
    best = std::move(match);
  }
  return best;
}

bool IsTransformer(TeacherPart part) {
  return part == TeacherPart::kVarTransformer || part == TeacherPart::kLlamaGenTransformer;
}

bool IsVar(TeacherPart part) {
  return part == TeacherPart::kVarTransformer || part == TeacherPart::kVarTokenizer;
}

bool IsTeacherBuffer(std::string_view name) {
  return name == kVarLevels || name == "attn_bias_for_masking" || name == "freqs_cis" ||
         name == "quantize.ema_vocab_hit_SV" || name == "quantize.codebook_used" ||
         name.ends_with(".attn.zero_k_bias");
}

std::string_view DtypeText(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF32: return "F32";
    case Dtype::kF16: return "F16";
    case Dtype::kBf16: return "BF16";
    case Dtype::kF64: return "F64";
    case Dtype::kI64: return "I64";
    case Dtype::kI32: return "I32";
    case Dtype::kU8: return "U8";
  }
  return "?";
}

std::string ShapeText(std::span<const std::int64_t> shape) {
  if (shape.empty()) return "scalar";
  std::string text;
  for (const std::int64_t size : shape) {
    text += (text.empty() ? "" : "x") + std::to_string(size);
  }
  return text;
}

}  // namespace dd2
