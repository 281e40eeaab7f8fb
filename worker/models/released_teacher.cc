#include "worker/models/released_teacher.h"

#include <algorithm>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "storage/teacher_catalog.h"
#include "worker/models/llamagen_backbone.h"
#include "worker/models/llamagen_tokenizer.h"
#include "worker/models/teacher.h"
#include "worker/models/var_tokenizer.h"
#include "worker/models/var_transformer.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;

// Weights as the import wrote them, bit for bit: `prefix` of our names is not in the file.
Result<ParamBuffer> LoadChecked(const fs::path& file, const ParamLayout& layout,
                                const std::string& prefix, const TeacherNetwork& network) {
  DD2_TRY_ASSIGN(ParamBuffer params, LoadParams(file, layout, prefix));
  Hasher128 hasher;
  const at::Tensor host = params.HostFlat();
  for (const TensorShape& tensor : LayoutOf(network.sizes)) {
    hasher.UpdateField(tensor.name);
    hasher.UpdateInt(tensor.shape.size());
    for (const std::int64_t size : tensor.shape) {
      hasher.UpdateInt(static_cast<std::uint64_t>(size));
    }
    if (!layout.Contains(prefix + tensor.name)) continue;
    const ParamSpec& spec = layout.Find(prefix + tensor.name);
    const float* values = host.const_data_ptr<float>() + spec.offset;
    hasher.Update(std::as_bytes(std::span(values, static_cast<std::size_t>(spec.numel))));
  }
  if (hasher.Finish() == network.digest) return params;
  return Error(Code::kCorruption, file.string() +
                                      " does not hold the weights that teacher.json "
                                      "names: import the teacher again");
}

// `sides` of the transformer beside it; empty: as released.
Result<VarTokenizerSpec> VarTokenizerSpecOf(const TeacherSizes& sizes,
                                            const std::vector<std::int64_t>& sides) {
  VarTokenizerSpec spec;
  spec.width = sizes.channels;
  spec.multipliers = sizes.multipliers;
  spec.channels = sizes.code_channels;
  spec.codes = sizes.vocabulary;
  const bool released = sides.empty() || sides == spec.scales.sides;
  if (!released)
    spec.scales = VarScales::WithPhis(sides, std::max<std::int64_t>(sizes.residual_convs, 1));
  if (spec.scales.fits() && spec.scales.phis() == sizes.residual_convs) return spec;
  return Error(Code::kInvalidArgument, "a tokenizer with " + std::to_string(sizes.residual_convs) +
                                           " residual convolutions for " +
                                           std::to_string(spec.scales.count()) + " scales");
}

class VarCodebook : public Tokenizer {
 public:
  VarCodebook(const VarTokenizerSpec& spec, const ParamBuffer& params)
      : Tokenizer({.codes = spec.codes, .channels = spec.channels, .scales = spec.scales}, params),
        tokenizer_(spec, params),
        side_(spec.scales.sides.back() << (spec.multipliers.size() - 1)) {
    codebook_ = tokenizer_.quantizer().codebook();
    path_ = std::make_shared<const CodePath>(tokenizer_.quantizer(),
                                             at::zeros({spec.channels}, codebook_.options()),
                                             at::ones({spec.channels}, codebook_.options()));
  }

  at::Tensor Encode(const at::Tensor& images) const override {
    const at::NoGradGuard no_grad;
    return tokenizer_.Encode(images);
  }
  at::Tensor Decode(const at::Tensor& codes) const override {
    const at::NoGradGuard no_grad;
    return tokenizer_.Decode(path_->Features(codes));
  }
  bool travels() const override { return false; }
  std::int64_t image_side() const override { return side_; }

 private:
  VarTokenizer tokenizer_;
  std::int64_t side_;
};

class LlamaGenCodebook : public Tokenizer {
 public:
  // `grid`: tokens per side.
  LlamaGenCodebook(const LlamaGenTokenizerSpec& spec, std::int64_t grid, const ParamBuffer& params)
      : Tokenizer(
            {.codes = spec.codes, .channels = spec.channels, .scales = {}, .raster_side = grid},
            params),
        tokenizer_(spec, params),
        side_(grid << (spec.multipliers.size() - 1)) {
    codebook_ = tokenizer_.codebook();
  }

  at::Tensor Encode(const at::Tensor& images) const override {
    const at::NoGradGuard no_grad;
    return tokenizer_.Encode(images);
  }
  at::Tensor Decode(const at::Tensor& codes) const override {
    const at::NoGradGuard no_grad;
    return tokenizer_.Decode(codes);
  }
  bool travels() const override { return false; }
  std::int64_t image_side() const override { return side_; }

 private:
  LlamaGenTokenizer tokenizer_;
  std::int64_t side_;
};

class VarScores : public ReleasedTransformer {
 public:
  VarScores(const VarSpec& spec, const ParamBuffer& params, std::unique_ptr<Tokenizer> tokenizer)
      : transformer_(spec, params, ""), tokenizer_(std::move(tokenizer)) {}

  Logits Score(const at::Tensor& tokens, const at::Tensor& labels, double cfg) const override {
    const at::Tensor rows = tokenizer_->path()->Rows(CodesOf(tokenizer_->codebook(), tokens));
    const at::Tensor null = at::full_like(labels, classes());
    const auto head_input = [&](const at::Tensor& of) {
      return transformer_.HeadInput(transformer_.Hidden(rows, of), of);
    };
    const at::Tensor c = transformer_.Logits(head_input(labels));
    const at::Tensor u = transformer_.Logits(head_input(null));
    const at::Tensor ramp = GuidanceRamp(transformer_.spec(), cfg).unsqueeze(-1);
    return {c, u, u + ramp * (c - u)};
  }
  std::int64_t tokens() const override { return transformer_.spec().tokens(); }
  std::int64_t vocabulary() const override { return transformer_.spec().vocabulary; }
  std::int64_t classes() const override { return transformer_.spec().classes; }
  double usual_cfg() const override { return 1.5; }  // README of VAR

 private:
  VarTransformer transformer_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

class LlamaGenScores : public ReleasedTransformer {
 public:
  explicit LlamaGenScores(LlamaGenNetwork network)
      : transformer_(network.spec, network.params, ""), table_(std::move(network.table)) {}

  Logits Score(const at::Tensor& tokens, const at::Tensor& labels, double cfg) const override {
    const at::Tensor past = at::embedding(table_, tokens.narrow(1, 0, tokens.size(1) - 1));
    const at::Tensor null = at::full_like(labels, classes());
    const at::Tensor c = transformer_.Logits(transformer_.Hidden(past, labels));
    const at::Tensor u = transformer_.Logits(transformer_.Hidden(past, null));
    return {c, u, u + cfg * (c - u)};
  }
  std::int64_t tokens() const override { return transformer_.spec().tokens(); }
  std::int64_t vocabulary() const override { return transformer_.spec().vocabulary; }
  std::int64_t classes() const override { return transformer_.spec().classes; }
  double usual_cfg() const override { return 2.0; }  // models.md 2.3

 private:
  LlamaGenGpt transformer_;
  at::Tensor table_;
};

std::vector<std::int64_t> SidesOf(const TeacherDescription& teacher) {
  return teacher.transformer ? teacher.transformer->sizes.patch_numbers
                             : std::vector<std::int64_t>();
}

Error Lacks(const fs::path& folder, const char* network) {
  return Error(Code::kNotFound, folder.string() + " has no " + network +
                                    ": import it together with the other file (dd2 teacher import "
                                    "FILE FILE --out DIR)");
}

VarSpec VarSpecOf(const TeacherSizes& sizes) {
  VarSpec spec;
  spec.depth = sizes.depth;
  spec.width = sizes.width;
  spec.heads = sizes.heads;
  spec.channels = sizes.code_channels;
  spec.classes = sizes.classes;
  spec.vocabulary = sizes.vocabulary;
  spec.sides = sizes.patch_numbers;
  spec.attn_l2_norm = sizes.scaled_attention;
  return spec;
}

LlamaGenSpec LlamaGenSpecOf(const TeacherSizes& sizes) {
  LlamaGenSpec spec;
  spec.layers = sizes.depth;
  spec.heads = sizes.heads;
  spec.width = sizes.width;
  spec.ffn_hidden = sizes.ffn_hidden;
  spec.classes = sizes.classes;
  spec.vocabulary = sizes.vocabulary;
  spec.grid = sizes.grid;
  return spec;
}

// The transformer as the backbone of a teacher; what cannot be distilled is an error.
Result<BackboneSpec> BackboneOf(const fs::path& folder, const TeacherSizes& sizes) {
  const bool is_var = IsVar(sizes.part);
  if (!is_var && sizes.code_channels == 0) {
    return Error(Code::kInvalidArgument,
                 folder.string() +
                     " holds a LlamaGen that takes codes through a table: make its input "
                     "continuous first (dd2 teacher adapt " +
                     folder.string() + " --tokens FILE --out DIR)");
  }
  if (is_var && !sizes.scaled_attention) {
    return Error(Code::kInvalidArgument,
                 folder.string() +
                     " holds a VAR without normalised attention, which this "
                     "version does not distil");
  }
  BackboneSpec spec{.channels = sizes.code_channels,
                    .width = sizes.width,
                    .layers = sizes.depth,
                    .heads = sizes.heads,
                    .tokens = is_var ? VarSpecOf(sizes).tokens() : sizes.grid * sizes.grid,
                    .classes = sizes.classes,
                    .kind = is_var ? BackboneKind::kVar : BackboneKind::kLlamaGen};
  if (is_var) {
    spec.sides = sizes.patch_numbers;
  } else {
    spec.ffn_hidden = sizes.ffn_hidden;
  }
  return spec;
}

}  // namespace

Result<std::unique_ptr<Teacher>> LoadReleasedTeacher(const fs::path& folder,
                                                     std::shared_ptr<const CodePath> path,
                                                     bool bf16) {
  DD2_TRY_ASSIGN(const TeacherDescription teacher,
                 ReadTeacherDescription(RealFileSystem(), folder));
  if (!teacher.transformer) return Lacks(folder, "transformer");
  const TeacherSizes& sizes = teacher.transformer->sizes;
  DD2_TRY_ASSIGN(BackboneSpec spec, BackboneOf(folder, sizes));
  spec.path = std::move(path);
  spec.mode.bf16 = bf16;
  if (teacher.is_var() &&
      (spec.path == nullptr || spec.path->quantizer().scales().sides != spec.sides)) {
    return Error(Code::kInvalidArgument,
                 folder.string() + ": transformer and tokenizer have different scales");
  }
  DD2_TRY_ASSIGN(const ParamBuffer params,
                 LoadChecked(folder / kTransformerFile, Teacher::Layout(spec, sizes.vocabulary),
                             "backbone.", *teacher.transformer));
  return std::make_unique<Teacher>(spec, sizes.vocabulary, params);
}

Result<LlamaGenNetwork> LoadLlamaGen(const fs::path& folder) {
  DD2_TRY_ASSIGN(const TeacherDescription teacher,
                 ReadTeacherDescription(RealFileSystem(), folder));
  if (teacher.is_var()) {
    return Error(Code::kInvalidArgument, folder.string() + " holds a VAR, not a LlamaGen");
  }
  if (!teacher.transformer) return Lacks(folder, "transformer");
  const TeacherSizes& sizes = teacher.transformer->sizes;
  const bool adapted = sizes.code_channels > 0;
  LlamaGenNetwork network;
  network.spec = LlamaGenSpecOf(sizes);
  ParamLayout layout;
  LlamaGenGpt::DeclareBackbone(network.spec, "", layout);
  LlamaGenGpt::DeclareHead(network.spec, "", layout);
  if (adapted) {
    CodeMlp::Declare(sizes.code_channels, sizes.width, "input.", layout);
  } else {
    LlamaGenGpt::DeclareEmbedding(network.spec, "", layout);
  }
  DD2_TRY_ASSIGN(network.params,
                 LoadChecked(folder / kTransformerFile, layout, "", *teacher.transformer));
  if (adapted) {
    DD2_TRY_ASSIGN(const std::unique_ptr<Tokenizer> tokenizer, LoadReleasedTokenizer(folder));
    if (tokenizer->spec().channels != sizes.code_channels ||
        tokenizer->spec().codes != sizes.vocabulary) {
      return Error(Code::kInvalidArgument,
                   folder.string() + ": transformer and tokenizer have different codes");
    }
    network.table = CodeMlp(network.params, "input.").Forward(tokenizer->codebook());
  } else {
    network.table = network.params["tok_embeddings.weight"];
  }
  return network;
}

Result<std::unique_ptr<ReleasedTransformer>> LoadReleasedTransformer(const fs::path& folder) {
  DD2_TRY_ASSIGN(const TeacherDescription teacher,
                 ReadTeacherDescription(RealFileSystem(), folder));
  if (!teacher.is_var()) {
    DD2_TRY_ASSIGN(LlamaGenNetwork network, LoadLlamaGen(folder));
    return std::make_unique<LlamaGenScores>(std::move(network));
  }
  if (!teacher.transformer) return Lacks(folder, "transformer");
  const VarSpec spec = VarSpecOf(teacher.transformer->sizes);
  ParamLayout layout;
  VarTransformer::DeclareBackbone(spec, "", layout);
  VarTransformer::DeclareHead(spec, "", layout);
  DD2_TRY_ASSIGN(std::unique_ptr<Tokenizer> tokenizer, LoadReleasedTokenizer(folder));
  DD2_TRY_ASSIGN(const ParamBuffer params,
                 LoadChecked(folder / kTransformerFile, layout, "", *teacher.transformer));
  return std::make_unique<VarScores>(spec, params, std::move(tokenizer));
}

Result<std::unique_ptr<Tokenizer>> LoadReleasedTokenizer(const fs::path& folder) {
  DD2_TRY_ASSIGN(const TeacherDescription teacher,
                 ReadTeacherDescription(RealFileSystem(), folder));
  if (!teacher.tokenizer) return Lacks(folder, "tokenizer");
  const TeacherSizes& sizes = teacher.tokenizer->sizes;
  const fs::path file = folder / kTokenizerFile;
  if (teacher.is_var()) {
    DD2_TRY_ASSIGN(const VarTokenizerSpec spec, VarTokenizerSpecOf(sizes, SidesOf(teacher)));
    DD2_TRY_ASSIGN(const ParamBuffer params,
                   LoadChecked(file, VarTokenizer::Layout(spec), "", *teacher.tokenizer));
    return std::make_unique<VarCodebook>(spec, params);
  }
  LlamaGenTokenizerSpec spec;
  spec.width = sizes.channels;
  spec.multipliers = sizes.multipliers;
  spec.latent = sizes.latent_channels;
  spec.channels = sizes.code_channels;
  spec.codes = sizes.vocabulary;
  DD2_TRY_ASSIGN(const ParamBuffer params,
                 LoadChecked(file, LlamaGenTokenizer::Layout(spec), "", *teacher.tokenizer));
  // Without a transformer that of 256 pixels.
  const std::int64_t grid =
      teacher.transformer ? teacher.transformer->sizes.grid : 256 >> (spec.multipliers.size() - 1);
  return std::make_unique<LlamaGenCodebook>(spec, grid, params);
}

}  // namespace dd2
