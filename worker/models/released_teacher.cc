#include "worker/models/released_teacher.h"

#include <algorithm>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "worker/models/llamagen_gpt.h"
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
  for (const TensorShape& tensor : LayoutOf(network.sizes)) {
    hasher.UpdateField(tensor.name);
    hasher.UpdateInt(tensor.shape.size());
    for (const std::int64_t size : tensor.shape) {
      hasher.UpdateInt(static_cast<std::uint64_t>(size));
    }
    if (!layout.Contains(prefix + tensor.name)) continue;
    const ParamSpec& spec = layout.Find(prefix + tensor.name);
    const float* values = params.flat().const_data_ptr<float>() + spec.offset;
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

class VarCodes : public ReleasedTokenizer {
 public:
  VarCodes(const VarTokenizerSpec& spec, const ParamBuffer& params)
      : spec_(spec), tokenizer_(spec, params) {}

  at::Tensor Encode(const at::Tensor& images) const override { return tokenizer_.Encode(images); }
  Decoded Decode(const at::Tensor& tokens) const override {
    const at::Tensor f_hat = tokenizer_.FHat(tokens);
    return {f_hat, tokenizer_.Decode(f_hat)};
  }
  const char* latent_name() const override { return "f_hat"; }
  std::int64_t tokens() const override { return spec_.scales.tokens(); }
  std::int64_t codes() const override { return spec_.codes; }
  std::int64_t image_side() const override {
    return spec_.scales.sides.back() << (spec_.multipliers.size() - 1);
  }
  const VarQuantizer& quantizer() const { return tokenizer_.quantizer(); }

 private:
  VarTokenizerSpec spec_;
  VarTokenizer tokenizer_;
};

class LlamaGenCodes : public ReleasedTokenizer {
 public:
  LlamaGenCodes(const LlamaGenTokenizerSpec& spec, std::int64_t grid, const ParamBuffer& params)
      : spec_(spec), grid_(grid), tokenizer_(spec, params) {}

  at::Tensor Encode(const at::Tensor& images) const override { return tokenizer_.Encode(images); }
  Decoded Decode(const at::Tensor& tokens) const override {
    const at::Tensor codes = tokenizer_.codebook()
                                 .index_select(0, tokens.flatten())
                                 .view({tokens.size(0), tokens.size(1), spec_.channels});
    const at::Tensor map = codes.view({tokens.size(0), grid_, grid_, spec_.channels});
    return {map.permute({0, 3, 1, 2}).contiguous(), tokenizer_.Decode(codes)};
  }
  const char* latent_name() const override { return "z_q"; }
  std::int64_t tokens() const override { return grid_ * grid_; }
  std::int64_t codes() const override { return spec_.codes; }
  std::int64_t image_side() const override { return grid_ << (spec_.multipliers.size() - 1); }

 private:
  LlamaGenTokenizerSpec spec_;
  std::int64_t grid_;
  LlamaGenTokenizer tokenizer_;
};

class VarScores : public ReleasedTransformer {
 public:
  VarScores(const VarSpec& spec, const ParamBuffer& params, std::unique_ptr<VarCodes> codes)
      : transformer_(spec, params, ""), codes_(std::move(codes)) {}

  Logits Score(const at::Tensor& tokens, const at::Tensor& labels, double cfg) const override {
    const VarQuantizer& quantizer = codes_->quantizer();
    const at::Tensor rows = quantizer.TransformerInput(quantizer.Codes(tokens));
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
  std::unique_ptr<VarCodes> codes_;
};

class LlamaGenScores : public ReleasedTransformer {
 public:
  LlamaGenScores(const LlamaGenSpec& spec, const ParamBuffer& params)
      : transformer_(spec, params, "") {}

  Logits Score(const at::Tensor& tokens, const at::Tensor& labels, double cfg) const override {
    const at::Tensor past = transformer_.Embed(tokens.narrow(1, 0, tokens.size(1) - 1));
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

Result<std::unique_ptr<VarCodes>> LoadVarCodes(const fs::path& folder,
                                               const TeacherDescription& teacher) {
  if (!teacher.tokenizer) return Lacks(folder, "tokenizer");
  DD2_TRY_ASSIGN(const VarTokenizerSpec spec,
                 VarTokenizerSpecOf(teacher.tokenizer->sizes, SidesOf(teacher)));
  DD2_TRY_ASSIGN(
      const ParamBuffer params,
      LoadChecked(folder / kTokenizerFile, VarTokenizer::Layout(spec), "", *teacher.tokenizer));
  return std::make_unique<VarCodes>(spec, params);
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

// VAR's tokenizer as distillation sees it: its codes are what they are (method 1.2: noise of unit
// variance in their space, no rescaling).
class VarCodebook : public Tokenizer {
 public:
  VarCodebook(const VarTokenizerSpec& spec, const ParamBuffer& params)
      : Tokenizer({.codes = spec.codes, .channels = spec.channels, .scales = spec.scales}, params),
        tokenizer_(spec, params) {
    codebook_ = tokenizer_.quantizer().codebook();
    path_ = std::make_shared<const CodePath>(tokenizer_.quantizer(),
                                             at::zeros({spec.channels}, at::kFloat),
                                             at::ones({spec.channels}, at::kFloat));
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
  std::int64_t image_channels() const override { return 3; }

 private:
  VarTokenizer tokenizer_;
};

// A VAR with what distillation asks of it.
Result<TeacherDescription> ReadVar(const fs::path& folder) {
  DD2_TRY_ASSIGN(TeacherDescription teacher, ReadTeacherDescription(RealFileSystem(), folder));
  if (!teacher.is_var()) {
    return Error(Code::kInvalidArgument,
                 folder.string() +
                     " holds a LlamaGen teacher: its input has to be made continuous "
                     "before it can be distilled, which this version does not do");
  }
  if (!teacher.transformer) return Lacks(folder, "transformer");
  if (!teacher.tokenizer) return Lacks(folder, "tokenizer");
  if (!teacher.transformer->sizes.scaled_attention) {
    return Error(Code::kInvalidArgument,
                 folder.string() +
                     " holds a VAR without normalised attention, which this "
                     "version does not distil");
  }
  return teacher;
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> LoadReleasedCodes(const fs::path& folder) {
  DD2_TRY_ASSIGN(const TeacherDescription teacher, ReadVar(folder));
  DD2_TRY_ASSIGN(const VarTokenizerSpec spec,
                 VarTokenizerSpecOf(teacher.tokenizer->sizes, SidesOf(teacher)));
  DD2_TRY_ASSIGN(
      const ParamBuffer params,
      LoadChecked(folder / kTokenizerFile, VarTokenizer::Layout(spec), "", *teacher.tokenizer));
  return std::make_unique<VarCodebook>(spec, params);
}

Result<std::unique_ptr<Teacher>> LoadReleasedTeacher(const fs::path& folder,
                                                     std::shared_ptr<const CodePath> path) {
  DD2_TRY_ASSIGN(const TeacherDescription teacher, ReadVar(folder));
  const VarSpec var = VarSpecOf(teacher.transformer->sizes);
  BackboneSpec spec{.channels = var.channels,
                    .width = var.width,
                    .layers = var.depth,
                    .heads = var.heads,
                    .tokens = var.tokens(),
                    .classes = var.classes,
                    .kind = BackboneKind::kVar,
                    .sides = var.sides,
                    .path = std::move(path)};
  if (spec.path->quantizer().scales().sides != spec.sides) {
    return Error(Code::kInvalidArgument,
                 folder.string() + ": transformer and tokenizer have different scales");
  }
  DD2_TRY_ASSIGN(const ParamBuffer params,
                 LoadChecked(folder / kTransformerFile, Teacher::Layout(spec, var.vocabulary),
                             "backbone.", *teacher.transformer));
  return std::make_unique<Teacher>(spec, var.vocabulary, params);
}

Result<std::unique_ptr<ReleasedTransformer>> LoadReleasedTransformer(const fs::path& folder) {
  DD2_TRY_ASSIGN(const TeacherDescription teacher,
                 ReadTeacherDescription(RealFileSystem(), folder));
  if (!teacher.transformer) return Lacks(folder, "transformer");
  const TeacherSizes& sizes = teacher.transformer->sizes;
  const fs::path file = folder / kTransformerFile;
  ParamLayout layout;
  if (teacher.is_var()) {
    const VarSpec spec = VarSpecOf(sizes);
    VarTransformer::DeclareBackbone(spec, "", layout);
    VarTransformer::DeclareHead(spec, "", layout);
    DD2_TRY_ASSIGN(std::unique_ptr<VarCodes> codes, LoadVarCodes(folder, teacher));
    DD2_TRY_ASSIGN(const ParamBuffer params, LoadChecked(file, layout, "", *teacher.transformer));
    return std::make_unique<VarScores>(spec, params, std::move(codes));
  }
  const LlamaGenSpec spec = LlamaGenSpecOf(sizes);
  LlamaGenGpt::DeclareEmbedding(spec, "", layout);
  LlamaGenGpt::DeclareBackbone(spec, "", layout);
  LlamaGenGpt::DeclareHead(spec, "", layout);
  DD2_TRY_ASSIGN(const ParamBuffer params, LoadChecked(file, layout, "", *teacher.transformer));
  return std::make_unique<LlamaGenScores>(spec, params);
}

Result<std::unique_ptr<ReleasedTokenizer>> LoadReleasedTokenizer(const fs::path& folder) {
  DD2_TRY_ASSIGN(const TeacherDescription teacher,
                 ReadTeacherDescription(RealFileSystem(), folder));
  if (teacher.is_var()) {
    DD2_TRY_ASSIGN(std::unique_ptr<VarCodes> codes, LoadVarCodes(folder, teacher));
    return codes;
  }
  if (!teacher.tokenizer) return Lacks(folder, "tokenizer");
  const TeacherSizes& sizes = teacher.tokenizer->sizes;
  LlamaGenTokenizerSpec spec;
  spec.width = sizes.channels;
  spec.multipliers = sizes.multipliers;
  spec.latent = sizes.latent_channels;
  spec.channels = sizes.code_channels;
  spec.codes = sizes.vocabulary;
  DD2_TRY_ASSIGN(const ParamBuffer params,
                 LoadChecked(folder / kTokenizerFile, LlamaGenTokenizer::Layout(spec), "",
                             *teacher.tokenizer));
  // Without a transformer that of 256 pixels.
  const std::int64_t grid =
      teacher.transformer ? teacher.transformer->sizes.grid : 256 >> (spec.multipliers.size() - 1);
  return std::make_unique<LlamaGenCodes>(spec, grid, params);
}

}  // namespace dd2
