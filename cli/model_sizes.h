#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"
#include "common/run_config.h"

namespace dd2 {

// How large the networks of a run are, and what a pass of them costs: for plans, without LibTorch
// and without their weights.

// Whose transformer it is: our raster one, VAR's scale by scale, LlamaGen's raster GPT.
enum class ModelKind : std::uint8_t { kRaster, kVar, kLlamaGen };
const char* ModelKindName(ModelKind kind);

// A teacher. n tokens of C channels in a sequence, V codes, d the width.
struct ModelSizes {
  std::string name;
  ModelKind kind = ModelKind::kRaster;
  std::int64_t layers = 0;
  std::int64_t width = 0;  // d
  std::int64_t heads = 0;
  std::int64_t tokens = 0;           // n
  std::int64_t channels = 0;         // C
  std::int64_t codes = 0;            // V
  std::int64_t classes = 0;          // without the null class
  std::int64_t ffn_hidden = 0;       // inner width of the MLPs
  std::vector<std::int64_t> sides;   // of VAR's scales; empty: raster order
  std::int64_t tokenizer_bytes = 0;  // with the evaluation network, where there is one
  bool measured = false;             // there is one: runs evaluate what they make
  bool adapted = false;              // LlamaGen: an MLP stands for its table (method 4.3)
};

// Of the released files, in the order of their sizes (models.md 1.6, 2.2).
std::vector<std::string> BuiltInModels();
// Nothing when there is none of that name.
std::optional<ModelSizes> BuiltInModel(std::string_view name);
// The teacher in `folder`: by the header of teacher.safetensors, as dd2 trains it, or by what an
// import's teacher.json says. kNotFound: neither; kInvalidArgument, kCorruption: something else.
Result<ModelSizes> ReadModelSizes(const std::filesystem::path& folder);
// A name, or else a folder.
Result<ModelSizes> FindModel(const std::string& name_or_folder);

// Elements of each parameter, in the order of the flat buffer.
using TensorSizes = std::vector<std::int64_t>;
// The teacher as its file has it.
TensorSizes TeacherTensors(const ModelSizes& model);
// Generator and guidance network are equal: the teacher's backbone without what belongs to the
// vocabulary, and the MLP head. LlamaGen's table becomes an MLP on codes (method 4.3).
TensorSizes NetworkBackboneTensors(const ModelSizes& model);
TensorSizes HeadTensors(const ModelSizes& model, const ModelConfig& head);
std::int64_t Sum(const TensorSizes& tensors);
// Elements of the flat buffer that holds them: each begins at a multiple of 64 bytes, the whole is
// one of chunks (worker/models/param_buffer.h).
std::int64_t FlatElements(const TensorSizes& tensors);
inline constexpr std::int64_t kFlatChunk = 4096;

// Floating point operations (2 per multiply and add) of a forward pass of one sequence.
struct ModelCost {
  double backbone = 0;    // teacher-forced, without the output layer
  double vocabulary = 0;  // the output layer of all tokens
  double head_draw = 0;   // of the MLP head for one draw of all tokens, given the condition's part
  double head_token = 0;  // the condition's part, once for all draws
};
ModelCost CostOf(const ModelSizes& model, const ModelConfig& head);

// Passes that draw one sequence with kept keys and values: tokens, or scales.
std::int64_t SamplingPasses(const ModelSizes& model);

}  // namespace dd2
