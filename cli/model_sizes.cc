#include "cli/model_sizes.h"

#include <algorithm>
#include <charconv>
#include <numeric>
#include <system_error>

#include "storage/safetensors.h"
#include "storage/teacher_folder.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kReleasedClasses = 1000;
constexpr std::int64_t kVarCodes = 4096;
constexpr std::int64_t kLlamaGenCodes = 16384;
constexpr std::int64_t kLlamaGenChannels = 8;
constexpr std::int64_t kLlamaGenTokens = 256;  // 256 px
constexpr std::int64_t kVarTokenizerBytes = 108'948'355 * 4;
constexpr std::int64_t kLlamaGenTokenizerBytes = 71'883'403 * 4;
constexpr std::int64_t kMaxExtent = 1 << 24;
constexpr const char* kTrainedFile = "teacher.safetensors";
const std::vector<std::int64_t> kVarSides = {1, 2, 3, 4, 5, 6, 8, 10, 13, 16};

struct VarName {
  const char* name;
  std::int64_t depth;
};
constexpr VarName kVars[] = {{"var-d16", 16}, {"var-d20", 20}, {"var-d24", 24}, {"var-d30", 30}};

struct LlamaGenName {
  const char* name;
  std::int64_t layers, heads, width, ffn_hidden;
};
constexpr LlamaGenName kLlamaGens[] = {{"llamagen-b", 12, 12, 768, 2048},
                                       {"llamagen-l", 24, 16, 1024, 2816},
                                       {"llamagen-xl", 36, 20, 1280, 3584},
                                       {"llamagen-xxl", 48, 24, 1536, 4096},
                                       {"llamagen-3b", 24, 32, 3200, 8704}};

std::int64_t TokensOf(const std::vector<std::int64_t>& sides) {
  return std::accumulate(sides.begin(), sides.end(), std::int64_t{0},
                         [](std::int64_t sum, std::int64_t side) { return sum + side * side; });
}

std::int64_t FileBytes(const fs::path& file) {
  std::error_code error;
  const auto bytes = fs::file_size(file, error);
  return error ? 0 : static_cast<std::int64_t>(bytes);
}

// Numbers of a file's metadata; the first one that is missing or no size is remembered.
class Extents {
 public:
  Extents(const fs::path& path, const SafetensorsFile& file) : path_(path), file_(file) {}

  std::int64_t Named(const std::string& key) { return Number(Text(key), key); }
  // "1,2,3"; empty when it is not there.
  std::vector<std::int64_t> List(const std::string& key) {
    std::vector<std::int64_t> values;
    const std::string text = Text(key);
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = std::min(text.find(',', begin), text.size());
      values.push_back(Number(text.substr(begin, end - begin), key));
      begin = end + 1;
    }
    return values;
  }
  Status status() const {
    if (missing_.empty()) return {};
    return Error(Code::kInvalidArgument, path_.string() + ": no usable metadata '" + missing_ +
                                             "', so it is no teacher of dd2: train it again");
  }

 private:
  std::string Text(const std::string& key) const {
    const auto found = file_.metadata().find(key);
    return found == file_.metadata().end() ? "" : found->second;
  }
  std::int64_t Number(const std::string& text, const std::string& key) {
    std::int64_t value = 0;
    const char* const end = text.data() + text.size();
    const auto [stop, problem] = std::from_chars(text.data(), end, value);
    if (problem == std::errc() && stop == end && value >= 1 && value <= kMaxExtent) return value;
    if (missing_.empty()) missing_ = key;
    return 1;
  }
  const fs::path& path_;
  const SafetensorsFile& file_;
  std::string missing_;
};

ModelSizes OfTrained(Extents& in) {
  ModelSizes model;
  model.channels = in.Named("channels");
  model.width = in.Named("width");
  model.layers = in.Named("layers");
  model.heads = in.Named("heads");
  model.tokens = in.Named("tokens");
  model.classes = in.Named("classes");
  model.codes = in.Named("codes");
  model.ffn_hidden = 4 * model.width;
  model.sides = in.List("sides");
  if (!model.sides.empty()) model.kind = ModelKind::kVar;
  return model;
}

Result<ModelSizes> ReadTrained(const fs::path& path) {
  DD2_TRY_ASSIGN(const SafetensorsFile file, SafetensorsFile::Open(path));
  Extents in(path, file);
  ModelSizes model = OfTrained(in);
  DD2_TRY(in.status());
  if (!model.sides.empty() && TokensOf(model.sides) != model.tokens) {
    return Error(Code::kInvalidArgument, path.string() + ": its scales do not have as many tokens");
  }
  const fs::path folder = path.parent_path();
  model.tokenizer_bytes =
      FileBytes(folder / "tokenizer.safetensors") + FileBytes(folder / "classifier.safetensors");
  model.measured = true;
  return model;
}

Result<ModelSizes> ReadImported(const fs::path& folder) {
  DD2_TRY_ASSIGN(const TeacherDescription teacher,
                 ReadTeacherDescription(RealFileSystem(), folder));
  if (!teacher.transformer) {
    return Error(Code::kInvalidArgument,
                 folder.string() + " holds a tokenizer alone: import the transformer into it too");
  }
  const TeacherSizes& sizes = teacher.transformer->sizes;
  ModelSizes model;
  model.kind = teacher.is_var() ? ModelKind::kVar : ModelKind::kLlamaGen;
  model.layers = sizes.depth;
  model.width = sizes.width;
  model.heads = sizes.heads;
  model.channels = teacher.is_var()    ? sizes.code_channels
                   : teacher.tokenizer ? teacher.tokenizer->sizes.code_channels
                                       : kLlamaGenChannels;
  model.adapted = !teacher.is_var() && sizes.code_channels > 0;
  model.codes = sizes.vocabulary;
  model.classes = sizes.classes;
  model.ffn_hidden = sizes.ffn_hidden;
  model.sides = sizes.patch_numbers;
  model.tokens = teacher.is_var() ? TokensOf(model.sides) : sizes.grid * sizes.grid;
  model.tokenizer_bytes = FileBytes(folder / kTokenizerFile);
  return model;
}

void Add(TensorSizes& to, std::initializer_list<std::int64_t> more) {
  to.insert(to.end(), more.begin(), more.end());
}

TensorSizes RasterBackbone(const ModelSizes& m) {
  const std::int64_t d = m.width;
  TensorSizes out = {m.channels * d, d, d * d, d, m.tokens * d, (m.classes + 1) * d, d};
  for (std::int64_t i = 0; i < m.layers; ++i) {
    Add(out, {d, d, 3 * d * d, 3 * d, d * d, d, d, d, 4 * d * d, 4 * d, 4 * d * d, d});
  }
  Add(out, {d, d});
  return out;
}

TensorSizes VarBackbone(const ModelSizes& m) {
  const std::int64_t d = m.width;
  const auto scales = static_cast<std::int64_t>(m.sides.size());
  TensorSizes out = {d, m.tokens * d, m.channels * d, d, (m.classes + 1) * d, scales * d};
  for (std::int64_t i = 0; i < m.layers; ++i) {
    Add(out,
        {m.heads, d, d, 3 * d * d, d * d, d, 4 * d * d, 4 * d, 4 * d * d, d, 6 * d * d, 6 * d});
  }
  return out;
}

TensorSizes LlamaGenBackbone(const ModelSizes& m) {
  const std::int64_t d = m.width, inner = m.width * m.ffn_hidden;
  TensorSizes out = {(m.classes + 1) * d};
  for (std::int64_t i = 0; i < m.layers; ++i) {
    Add(out, {3 * d * d, d * d, inner, inner, inner, d, d});
  }
  out.push_back(d);
  return out;
}

// Pairs of tokens (query, key) that attention looks at.
double AttendedPairs(const ModelSizes& m) {
  const auto n = static_cast<double>(m.tokens);
  if (m.sides.empty()) return n * (n + 1) / 2;
  double pairs = 0, end = 0;
  for (const std::int64_t side : m.sides) {
    const auto area = static_cast<double>(side * side);
    end += area;
    pairs += area * end;
  }
  return pairs;
}

}  // namespace

const char* ModelKindName(ModelKind kind) {
  switch (kind) {
    case ModelKind::kRaster: return "raster";
    case ModelKind::kVar: return "var";
    case ModelKind::kLlamaGen: return "llamagen";
  }
  return "";
}

std::vector<std::string> BuiltInModels() {
  std::vector<std::string> names;
  for (const VarName& one : kVars) names.emplace_back(one.name);
  for (const LlamaGenName& one : kLlamaGens) names.emplace_back(one.name);
  return names;
}

std::optional<ModelSizes> BuiltInModel(std::string_view name) {
  ModelSizes model;
  model.name = name;
  model.classes = kReleasedClasses;
  for (const VarName& one : kVars) {
    if (name != one.name) continue;
    model.kind = ModelKind::kVar;
    model.sides = kVarSides;
    model.layers = model.heads = one.depth;
    model.width = 64 * one.depth;
    model.tokens = TokensOf(model.sides);
    model.channels = 32;
    model.codes = kVarCodes;
    model.ffn_hidden = 4 * model.width;
    model.tokenizer_bytes = kVarTokenizerBytes;
    return model;
  }
  for (const LlamaGenName& one : kLlamaGens) {
    if (name != one.name) continue;
    model.kind = ModelKind::kLlamaGen;
    model.layers = one.layers;
    model.heads = one.heads;
    model.width = one.width;
    model.ffn_hidden = one.ffn_hidden;
    model.tokens = kLlamaGenTokens;
    model.channels = kLlamaGenChannels;
    model.codes = kLlamaGenCodes;
    model.tokenizer_bytes = kLlamaGenTokenizerBytes;
    return model;
  }
  return std::nullopt;
}

Result<ModelSizes> ReadModelSizes(const fs::path& folder) {
  std::error_code error;
  Result<ModelSizes> model =
      Error(Code::kNotFound, folder.string() +
                                 " holds no teacher: train or import one, or name one of the "
                                 "released ones with --teacher");
  if (fs::exists(folder / kTeacherFile, error)) {
    model = ReadImported(folder);
  } else if (fs::exists(folder / kTrainedFile, error)) {
    model = ReadTrained(folder / kTrainedFile);
  }
  if (model) model->name = (folder / "").parent_path().filename().string();
  return model;
}

Result<ModelSizes> FindModel(const std::string& name_or_folder) {
  if (auto model = BuiltInModel(name_or_folder)) return *std::move(model);
  std::error_code error;
  if (fs::is_directory(name_or_folder, error)) return ReadModelSizes(name_or_folder);
  std::string known;
  for (const std::string& name : BuiltInModels()) known += (known.empty() ? "" : ", ") + name;
  return Error(Code::kNotFound, "'" + name_or_folder + "' is neither a folder nor one of " + known);
}

TensorSizes TeacherTensors(const ModelSizes& m) {
  TensorSizes out;
  switch (m.kind) {
    case ModelKind::kRaster:
      out = RasterBackbone(m);
      Add(out, {m.codes * m.width, m.codes});
      break;
    case ModelKind::kVar:
      out = VarBackbone(m);
      Add(out, {2 * m.width * m.width, 2 * m.width, m.codes * m.width, m.codes});
      break;
    case ModelKind::kLlamaGen:
      out = m.adapted ? NetworkBackboneTensors(m) : LlamaGenBackbone(m);
      if (!m.adapted) out.push_back(m.codes * m.width);
      out.push_back(m.codes * m.width);
      break;
  }
  return out;
}

TensorSizes NetworkBackboneTensors(const ModelSizes& m) {
  if (m.kind == ModelKind::kRaster) return RasterBackbone(m);
  if (m.kind == ModelKind::kVar) return VarBackbone(m);
  TensorSizes out = LlamaGenBackbone(m);
  Add(out, {m.channels * m.width, m.width, m.width * m.width, m.width});
  return out;
}

TensorSizes HeadTensors(const ModelSizes& m, const ModelConfig& head) {
  const std::int64_t w = head.head_width, c = m.channels;
  TensorSizes out = {head.time_features * w, w, w * w, w, m.width * w, w, c * w, w};
  for (int i = 0; i < head.head_depth; ++i) Add(out, {w, w, w * w, w, w * w, w, 3 * w * w, 3 * w});
  Add(out, {w * c, c, 2 * w * w, 2 * w});
  return out;
}

std::int64_t Sum(const TensorSizes& tensors) {
  return std::accumulate(tensors.begin(), tensors.end(), std::int64_t{0});
}

std::int64_t FlatElements(const TensorSizes& tensors) {
  constexpr std::int64_t kAligned = 16;
  const auto round_up = [](std::int64_t value, std::int64_t unit) {
    return (value + unit - 1) / unit * unit;
  };
  std::int64_t end = 0;
  for (const std::int64_t size : tensors) end += round_up(size, kAligned);
  return round_up(end, kFlatChunk);
}

ModelCost CostOf(const ModelSizes& m, const ModelConfig& head) {
  const auto d = static_cast<double>(m.width), n = static_cast<double>(m.tokens);
  const auto c = static_cast<double>(m.channels), codes = static_cast<double>(m.codes);
  const auto inner = static_cast<double>(m.ffn_hidden), layers = static_cast<double>(m.layers);
  const auto w = static_cast<double>(head.head_width), depth = static_cast<double>(head.head_depth);
  const auto features = static_cast<double>(head.time_features);
  ModelCost cost;
  const double mlp = (m.kind == ModelKind::kLlamaGen ? 3 : 2) * d * inner;
  cost.backbone = layers * (2 * n * (4 * d * d + mlp) + 4 * d * AttendedPairs(m));
  // One condition a sequence (AdaLN), or an MLP on the codes.
  cost.backbone +=
      m.kind == ModelKind::kVar ? 2 * (layers * 6 * d * d + n * c * d) : 2 * n * (c * d + d * d);
  cost.vocabulary = 2 * n * codes * d + (m.kind == ModelKind::kVar ? 4 * d * d : 0);
  cost.head_token = 2 * n * d * w;
  cost.head_draw = 2 * n * (features * w + w * w + 2 * c * w + depth * 5 * w * w + 2 * w * w);
  return cost;
}

std::int64_t SamplingPasses(const ModelSizes& m) {
  return m.sides.empty() ? m.tokens : static_cast<std::int64_t>(m.sides.size());
}

}  // namespace dd2
