#include "worker/engine/export.h"

#include <map>
#include <span>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "common/config.h"
#include "common/file.h"
#include "common/json.h"
#include "common/version.h"
#include "proto/control.pb.h"
#include "storage/checkpoint_store.h"
#include "storage/safetensors.h"
#include "worker/models/released_teacher.h"

namespace dd2 {
namespace {

namespace json = boost::json;

constexpr const char* kWeightsFile = "generator.safetensors";
constexpr const char* kConfigFile = "generator.json";
constexpr const char* kFormat = "dd2-generator";
constexpr const char* kTokenizerPrefix = "tokenizer.";
constexpr std::int64_t kVersion = 1;
constexpr std::int64_t kMostExtent = 1 << 20;  // of any size in the JSON: refuses nonsense early

// `host`: the values of `layout`, which the tensors point to.
void AddTensors(const ParamLayout& layout, const at::Tensor& host, const std::string& prefix,
                std::vector<TensorToWrite>& tensors) {
  for (const ParamSpec& spec : layout.specs()) {
    const float* values = host.const_data_ptr<float>() + spec.offset;
    tensors.push_back({.name = prefix + spec.name,
                       .shape = spec.shape,
                       .data = {values, static_cast<std::size_t>(spec.numel)}});
  }
}

// Every parameter of `layout` from the tensors named prefix + name.
Result<ParamBuffer> ReadTensors(const SafetensorsFile& file, const std::string& prefix,
                                const ParamLayout& layout) {
  ParamBuffer params(layout, /*requires_grad=*/false);
  const at::Tensor host = params.HostFlat();
  for (const ParamSpec& spec : layout.specs()) {
    DD2_TRY_ASSIGN(const std::vector<float> values, file.ReadF32(prefix + spec.name, spec.shape));
    std::copy(values.begin(), values.end(), host.data_ptr<float>() + spec.offset);
  }
  params.SetFlat(host);
  return params;
}

json::object NetworkJson(const NetworkSpec& spec) {
  const BackboneSpec& b = spec.backbone;
  const HeadSpec& h = spec.head;
  json::object backbone{{"kind", BackboneKindName(b.kind)},
                        {"channels", b.channels},
                        {"width", b.width},
                        {"layers", b.layers},
                        {"heads", b.heads},
                        {"tokens", b.tokens},
                        {"classes", b.classes}};
  if (!b.sides.empty()) backbone["sides"] = json::value_from(b.sides);
  if (b.kind == BackboneKind::kLlamaGen) backbone["ffn_hidden"] = b.ffn_hidden;
  return {{"backbone", std::move(backbone)},
          {"head",
           {{"channels", h.channels},
            {"condition", h.condition},
            {"width", h.width},
            {"depth", h.depth},
            {"time_features", h.time_features}}}};
}

json::object TokenizerJson(const Tokenizer& tokenizer) {
  const TokenizerSpec& spec = tokenizer.spec();
  json::object out{{"codes", spec.codes}, {"channels", spec.channels}};
  if (!tokenizer.travels()) out["of_teacher"] = TokenizerDigest(tokenizer).Hex();
  if (spec.scales.sides.empty()) {
    out["raster_side"] = spec.raster_side;
    return out;
  }
  out["sides"] = json::value_from(spec.scales.sides);
  out["phi_of_scale"] = json::value_from(spec.scales.phi_of_scale);
  return out;
}

// Reads typed members of the JSON file by pointer ("/network/head/width") and remembers the first
// problem, so that the caller reads everything and asks once.
class Fields {
 public:
  explicit Fields(const json::value& root) : root_(root) {}

  std::int64_t Extent(const std::string& pointer) {
    const json::value* value = Find(pointer);
    std::error_code failure;
    const auto number =
        value == nullptr ? std::int64_t{0} : value->to_number<std::int64_t>(failure);
    if (value != nullptr && !failure && number >= 1 && number <= kMostExtent) return number;
    return Complain(pointer + " must be a whole number from 1 to " + std::to_string(kMostExtent)),
           1;
  }
  std::int64_t ExtentOr(const std::string& pointer, std::int64_t otherwise) {
    return Find(pointer) == nullptr ? otherwise : Extent(pointer);
  }
  // Whole numbers from `least`; none where there is no such member.
  std::vector<std::int64_t> List(const std::string& pointer, std::int64_t least) {
    std::vector<std::int64_t> list;
    const json::value* value = Find(pointer);
    if (value == nullptr) return list;
    const json::array* array = value->if_array();
    for (const json::value& item : array == nullptr ? json::array() : *array) {
      if (item.is_int64() && item.get_int64() >= least && item.get_int64() <= kMostExtent) {
        list.push_back(item.get_int64());
      }
    }
    if (array == nullptr || list.size() != array->size()) {
      Complain(pointer + " must be a list of whole numbers from " + std::to_string(least));
    }
    return list;
  }
  double Number(const std::string& pointer) {
    const json::value* value = Find(pointer);
    if (value != nullptr && value->is_number()) return value->to_number<double>();
    return Complain(pointer + " must be a number"), 0;
  }
  std::string Text(const std::string& pointer) {
    const json::value* value = Find(pointer);
    if (value != nullptr && value->is_string()) return std::string(value->get_string());
    return Complain(pointer + " must be a text"), std::string();
  }
  // Where there is such a member (the first exports lack some).
  void Expect(const std::string& pointer, const std::string& text) {
    if (Find(pointer) == nullptr || Text(pointer) == text) return;
    Complain(pointer + " is not '" + text + "', as the sizes beside it say");
  }
  const std::string& problem() const { return problem_; }

 private:
  const json::value* Find(const std::string& pointer) const {
    std::error_code failure;
    return root_.find_pointer(pointer, failure);
  }
  void Complain(std::string problem) {
    if (problem_.empty()) problem_ = std::move(problem);
  }
  const json::value& root_;
  std::string problem_;
};

NetworkSpec ReadSpec(Fields& fields) {
  NetworkSpec spec;
  const std::string backbone = "/network/backbone/";
  spec.backbone = {.channels = fields.Extent(backbone + "channels"),
                   .width = fields.Extent(backbone + "width"),
                   .layers = fields.Extent(backbone + "layers"),
                   .heads = fields.Extent(backbone + "heads"),
                   .tokens = fields.Extent(backbone + "tokens"),
                   .classes = fields.Extent(backbone + "classes")};
  spec.backbone.sides = fields.List(backbone + "sides", 1);
  spec.backbone.ffn_hidden = fields.ExtentOr(backbone + "ffn_hidden", 0);
  if (!spec.backbone.sides.empty()) {
    spec.backbone.kind = BackboneKind::kVar;
  } else if (spec.backbone.ffn_hidden > 0) {
    spec.backbone.kind = BackboneKind::kLlamaGen;
  }
  const std::string head = "/network/head/";
  spec.head = {.channels = fields.Extent(head + "channels"),
               .condition = fields.Extent(head + "condition"),
               .width = fields.Extent(head + "width"),
               .depth = fields.Extent(head + "depth"),
               .time_features = fields.Extent(head + "time_features")};
  fields.Expect(backbone + "kind", BackboneKindName(spec.backbone.kind));
  return spec;
}

TokenizerSpec ReadTokenizerSpec(Fields& fields) {
  TokenizerSpec spec;
  spec.codes = fields.Extent("/tokenizer/codes");
  spec.channels = fields.Extent("/tokenizer/channels");
  spec.scales = {.sides = fields.List("/tokenizer/sides", 1),
                 .phi_of_scale = fields.List("/tokenizer/phi_of_scale", 0)};
  spec.raster_side = fields.ExtentOr("/tokenizer/raster_side", SmallTokenizer::kSide);
  return spec;
}

json::object ConfigJson(const NetworkSpec& spec, const RunConfig& config,
                        const TeacherBundle& teacher, const WrittenFile& weights,
                        const std::string& result_json) {
  std::error_code failure;
  const std::filesystem::path path = std::filesystem::absolute(config.teacher.path, failure);
  json::object out{
      {"format", kFormat},
      {"version", kVersion},
      {"name", config.name},
      {"seed", config.seed},
      {"code_version", CodeVersion()},
      {"weights",
       {{"file", kWeightsFile}, {"bytes", weights.size_bytes}, {"xxh3_128", weights.hash.Hex()}}},
      {"network", NetworkJson(spec)},
      {"tokenizer", TokenizerJson(*teacher.tokenizer)},
      {"teacher",
       {{"path", failure ? config.teacher.path : path.lexically_normal().string()},
        {"digest", teacher.teacher_digest.Hex()},
        {"cfg_scale", config.teacher.cfg_scale},
        {"top_k", config.teacher.top_k},
        {"top_p", config.teacher.top_p},
        {"temperature", config.teacher.temperature}}},
      {"dataset", config.dataset.path}};
  json::value result = json::parse(result_json, failure);
  if (!failure && result.is_object()) out["result"] = std::move(result);
  return out;
}

// generator.json of an export that is named by its folder or by one of its files.
Result<std::filesystem::path> ConfigPath(const std::filesystem::path& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    if (std::filesystem::exists(path / kConfigFile, ignored)) return path / kConfigFile;
    return Error(Code::kNotFound, path.string() + " holds no " + kConfigFile +
                                      ": not an exported model. `dd2 export RUN --out DIR` makes "
                                      "one of a run");
  }
  if (!std::filesystem::exists(path, ignored)) {
    return Error(Code::kNotFound, "there is no file or folder " + path.string());
  }
  std::filesystem::path config = path;
  if (path.extension() != ".json") config.replace_extension(".json");
  if (std::filesystem::exists(config, ignored)) return config;
  return Error(Code::kNotFound, "beside " + path.string() + " there is no " +
                                    config.filename().string() +
                                    ", which says what network the weights belong to");
}

// The tokenizer of an imported teacher; `digest` as the export has it.
Result<std::unique_ptr<Tokenizer>> LoadTokenizerOf(const std::filesystem::path& folder,
                                                   const json::value& digest) {
  auto tokenizer = LoadReleasedTokenizer(folder);
  if (!tokenizer) {
    return tokenizer.error().Wrap(
        "the tokenizer of this model is its teacher's (say where that is now with --teacher DIR)");
  }
  if (digest.is_string() && digest.get_string() == TokenizerDigest(**tokenizer).Hex()) {
    return tokenizer;
  }
  return Error(Code::kFailedPrecondition,
               "the teacher in " + folder.string() +
                   " has another tokenizer than this model was trained with: name the right one "
                   "with --teacher DIR");
}

Status CheckSpec(const NetworkSpec& spec, const TokenizerSpec& tokenizer, bool of_teacher,
                 const std::string& file) {
  const BackboneSpec& backbone = spec.backbone;
  const std::int64_t side =
      tokenizer.scales.sides.empty() ? tokenizer.raster_side : tokenizer.scales.sides.back();
  if ((side != SmallTokenizer::kSide && !of_teacher) || !tokenizer.scales.fits() ||
      tokenizer.channels != backbone.channels || tokenizer.tokens() != backbone.tokens ||
      tokenizer.scales.sides != backbone.sides) {
    return Error(Code::kInvalidArgument, file + ": tokenizer and network do not fit together");
  }
  // LlamaGen turns pairs of channels by row and by column.
  const std::int64_t unit = backbone.kind == BackboneKind::kLlamaGen ? 4 : 1;
  if (backbone.width % (unit * backbone.heads) == 0 && spec.head.condition == backbone.width &&
      spec.head.channels == backbone.channels && spec.head.time_features % 2 == 0) {
    return {};
  }
  return Error(Code::kInvalidArgument,
               file + ": the sizes of backbone and head do not fit together");
}

}  // namespace

Status WriteExport(const std::filesystem::path& folder, const NetworkSpec& spec,
                   const ParamBuffer& params, const RunConfig& config, const TeacherBundle& teacher,
                   const std::string& result_json) {
  FileSystem& files = RealFileSystem();
  DD2_TRY(files.MakeDirectories(folder));
  std::vector<TensorToWrite> tensors;
  const at::Tensor network = params.HostFlat();
  at::Tensor tokenizer;  // as long as `tensors`, which point to it
  AddTensors(params.layout(), network, "", tensors);
  if (teacher.tokenizer->travels()) {
    tokenizer = teacher.tokenizer->params().HostFlat();
    AddTensors(teacher.tokenizer->params().layout(), tokenizer, kTokenizerPrefix, tensors);
  }
  const std::filesystem::path temporary = folder / (std::string(kWeightsFile) + ".tmp");
  const std::map<std::string, std::string> metadata{{"dd2.kind", "generator"}, {"format", "pt"}};
  const Result<WrittenFile> written = WriteSafetensors(files, temporary, tensors, metadata);
  if (!written) {
    static_cast<void>(files.Remove(temporary));  // nothing half-written stays
    return written.error().Wrap("cannot export to " + folder.string());
  }
  DD2_TRY(files.Rename(temporary, folder / kWeightsFile));
  const json::object out = ConfigJson(spec, config, teacher, *written, result_json);
  return WriteFileAtomically(files, folder / kConfigFile, json::serialize(out) + "\n");
}

Result<ExportedModel> LoadExport(const std::filesystem::path& path,
                                 const std::string& teacher_folder) {
  DD2_TRY_ASSIGN(const std::filesystem::path config_path, ConfigPath(path));
  const std::string file = config_path.string();
  DD2_TRY_ASSIGN(const std::string text, RealFileSystem().Read(config_path));
  std::error_code failure;
  const json::value root = json::parse(text, failure);
  if (failure || !root.is_object()) {
    return Error(Code::kCorruption, file + " is not JSON: it is damaged, or another kind of file");
  }
  Fields fields(root);
  if (fields.Text("/format") != kFormat || fields.Extent("/version") != kVersion) {
    return Error(Code::kInvalidArgument, file +
                                             " does not describe a model that this version of dd2 "
                                             "exported (format " +
                                             kFormat + ", version 1)");
  }
  NetworkSpec spec = ReadSpec(fields);
  const TokenizerSpec tokenizer_spec = ReadTokenizerSpec(fields);
  const json::value* const elsewhere = root.find_pointer("/tokenizer/of_teacher", failure);
  const bool of_teacher = elsewhere != nullptr;
  const std::string hash = fields.Text("/weights/xxh3_128");
  ExportedModel model;
  model.folder = config_path.has_parent_path() ? config_path.parent_path() : ".";
  model.name = fields.Text("/name");
  model.seed = static_cast<std::uint64_t>(fields.Number("/seed"));
  model.teacher.path = fields.Text("/teacher/path");
  model.teacher.cfg_scale = fields.Number("/teacher/cfg_scale");
  model.teacher.top_k = static_cast<int>(fields.Number("/teacher/top_k"));
  model.teacher.top_p = fields.Number("/teacher/top_p");
  model.teacher.temperature = fields.Number("/teacher/temperature");
  model.teacher_digest = fields.Text("/teacher/digest");
  model.dataset = fields.Text("/dataset");
  const std::string weights_name = fields.Text("/weights/file");
  if (!fields.problem().empty())
    return Error(Code::kInvalidArgument, file + ": " + fields.problem());
  DD2_TRY(CheckSpec(spec, tokenizer_spec, of_teacher, file));
  const std::filesystem::path weights_path =
      model.folder / std::filesystem::path(weights_name).filename();
  DD2_TRY_ASSIGN(const SafetensorsFile weights, SafetensorsFile::Open(weights_path));
  DD2_TRY_ASSIGN(const Digest128 actual, weights.FileHash());
  if (actual.Hex() != hash) {
    return Error(Code::kCorruption, weights_path.string() + " is not the file that " + file +
                                        " was written with (hash " + actual.Hex() + ", expected " +
                                        hash + "): export the model again");
  }
  if (of_teacher) {
    if (!teacher_folder.empty()) model.teacher.path = teacher_folder;
    DD2_TRY_ASSIGN(model.tokenizer, LoadTokenizerOf(model.teacher.path, *elsewhere));
  } else {
    const Result<ParamBuffer> tokenizer =
        ReadTensors(weights, kTokenizerPrefix, SmallTokenizer::Layout(tokenizer_spec));
    if (!tokenizer) return tokenizer.error().Wrap(weights_path.string());
    model.tokenizer = std::make_unique<SmallTokenizer>(tokenizer_spec, *tokenizer);
  }
  if (model.tokenizer->spec().scales.sides != tokenizer_spec.scales.sides ||
      model.tokenizer->spec().tokens() != tokenizer_spec.tokens() ||
      model.tokenizer->spec().channels != tokenizer_spec.channels) {
    return Error(Code::kInvalidArgument, file + ": tokenizer and network do not fit together");
  }
  spec.backbone.path = model.tokenizer->path();
  const Result<ParamBuffer> params = ReadTensors(weights, "", Network::Layout(spec));
  if (!params) return params.error().Wrap(weights_path.string());
  model.network = std::make_unique<Network>(spec, *params);
  return model;
}

Result<std::string> ExportCheckpoint(const std::filesystem::path& run, std::string checkpoint,
                                     const std::filesystem::path& folder) {
  FileSystem& files = RealFileSystem();
  DD2_TRY_ASSIGN(const RunConfig config, LoadRunConfig(run / "config.yaml"));
  const std::filesystem::path checkpoints = run / "checkpoints";
  if (checkpoint.empty()) {
    DD2_TRY_ASSIGN(const std::vector<std::string> ids, ListCheckpoints(files, checkpoints));
    if (ids.empty()) {
      return Error(Code::kNotFound, run.string() + " has no committed checkpoint yet");
    }
    checkpoint = ids.back();
  }
  DD2_TRY_ASSIGN(const CheckpointReader reader,
                 CheckpointReader::Open(files, checkpoints, checkpoint));
  DD2_TRY_ASSIGN(const TeacherBundle teacher, LoadTeacherBundle(config.teacher.path));
  if (reader.manifest().header().counters().generator_updates() == 0) {
    return Error(
        Code::kFailedPrecondition,
        "checkpoint " + checkpoint +
            " is older than the first generator update: there is no generator to export yet");
  }
  const std::string& digest = reader.manifest().header().teacher_digest();
  if (digest != teacher.teacher_digest.Hex()) {
    return Error(Code::kFailedPrecondition,
                 "the teacher in " + config.teacher.path + " (digest " +
                     teacher.teacher_digest.Hex() + ") is not the one of checkpoint " + checkpoint +
                     " (" + digest + "): the generator would be decoded wrongly");
  }
  const NetworkSpec spec = SpecFor(config.model, *teacher.teacher);
  const ParamBuffer params(Network::Layout(spec), /*requires_grad=*/false);
  const at::Tensor host = params.HostFlat();
  for (const ParamSpec& parameter : params.layout().specs()) {
    float* target = host.data_ptr<float>() + parameter.offset;
    const Status read = reader.Read("generator.ema/" + parameter.name, 0,
                                    {target, static_cast<std::size_t>(parameter.numel)});
    if (!read) return read.error().Wrap("checkpoint " + checkpoint + " of " + run.string());
  }
  params.SetFlat(host);
  const Result<std::string> result = files.Read(run / "result.json");
  DD2_TRY(WriteExport(folder, spec, params, config, teacher, result ? *result : std::string()));
  return checkpoint;
}

}  // namespace dd2
