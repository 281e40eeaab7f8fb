// Reading and writing the files of a teacher's folder (teacher.h).

#include <array>
#include <charconv>
#include <map>
#include <optional>
#include <string_view>

#include "common/check.h"
#include "common/file.h"
#include "storage/safetensors.h"
#include "storage/teacher_folder.h"
#include "worker/models/released_teacher.h"
#include "worker/models/teacher.h"

namespace dd2 {
namespace {

constexpr const char* kKindKey = "dd2.kind";
constexpr const char* kSidesKey = "sides";  // of the scales; not there in raster order
constexpr const char* kPhisKey = "phi_of_scale";
constexpr std::size_t kMostScales = 64;
constexpr std::int64_t kMaxExtent = 1 << 16;  // far above any spec; keeps products inside int64

std::string Quoted(const std::filesystem::path& file) { return "'" + file.string() + "'"; }

std::string ShapeText(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

std::string ListText(const std::vector<std::int64_t>& list) {
  std::string text;
  for (const std::int64_t value : list) text += (text.empty() ? "" : ",") + std::to_string(value);
  return text;
}

// Shapes of a file come from its metadata: a small table of named integers.
class Metadata {
 public:
  Metadata(const std::filesystem::path& file, const std::map<std::string, std::string>& values)
      : file_(file), values_(values) {}

  Status CheckKind(std::string_view kind) const {
    const auto found = values_.find(kKindKey);
    if (found == values_.end()) {
      return Error(Code::kInvalidArgument,
                   Quoted(file_) + " was not written by dd2: its metadata has no " + kKindKey +
                       " (expected '" + std::string(kind) + "')");
    }
    if (found->second == kind) return {};
    return Error(Code::kInvalidArgument, Quoted(file_) + " holds a '" + found->second +
                                             "', expected a '" + std::string(kind) + "'");
  }

  Result<std::int64_t> Extent(const std::string& key) const {
    const auto found = values_.find(key);
    if (found == values_.end()) {
      return Error(Code::kInvalidArgument, Quoted(file_) + ": metadata has no '" + key + "'");
    }
    return Number(key, found->second, 1);
  }

  // "1,2,4": empty when it is not there.
  Result<std::vector<std::int64_t>> List(const std::string& key, std::int64_t least) const {
    std::vector<std::int64_t> list;
    const auto found = values_.find(key);
    if (found == values_.end()) return list;
    const std::string& text = found->second;
    for (std::size_t begin = 0; begin <= text.size();) {
      if (list.size() == kMostScales) {
        return Error(Code::kInvalidArgument, Quoted(file_) + ": metadata '" + key +
                                                 "' lists more than " +
                                                 std::to_string(kMostScales) + " numbers");
      }
      const std::size_t end = std::min(text.find(',', begin), text.size());
      DD2_TRY_ASSIGN(const std::int64_t value, Number(key, text.substr(begin, end - begin), least));
      list.push_back(value);
      begin = end + 1;
    }
    return list;
  }

 private:
  Result<std::int64_t> Number(const std::string& key, const std::string& text,
                              std::int64_t least) const {
    std::int64_t value = 0;
    const char* end = text.data() + text.size();
    const auto [stop, problem] = std::from_chars(text.data(), end, value);
    if (problem == std::errc() && stop == end && value >= least && value <= kMaxExtent) {
      return value;
    }
    return Error(Code::kInvalidArgument, Quoted(file_) + ": metadata '" + key + "' is '" + text +
                                             "', expected a whole number from " +
                                             std::to_string(least) + " to " +
                                             std::to_string(kMaxExtent));
  }

  const std::filesystem::path& file_;
  const std::map<std::string, std::string>& values_;
};

Result<VarScales> ScalesOf(const std::filesystem::path& file, const Metadata& metadata) {
  VarScales scales;
  DD2_TRY_ASSIGN(scales.sides, metadata.List(kSidesKey, 1));
  DD2_TRY_ASSIGN(scales.phi_of_scale, metadata.List(kPhisKey, 0));
  if (scales.fits()) return scales;
  return Error(Code::kInvalidArgument, Quoted(file) + ": metadata '" + kSidesKey + "' and '" +
                                           kPhisKey + "' do not describe scales");
}

Result<ParamBuffer> ReadParams(const std::filesystem::path& path, const SafetensorsFile& file,
                               const ParamLayout& layout, const std::string& prefix = "") {
  // Shapes first: a wrong one must not make us allocate what it asks for.
  for (const ParamSpec& spec : layout.specs()) {
    const auto found = file.tensors().find(spec.name.substr(prefix.size()));
    if (found == file.tensors().end()) {
      return Error(Code::kInvalidArgument,
                   Quoted(path) + " has no tensor '" + spec.name +
                       "': it holds another kind of network, or another version of it");
    }
    if (found->second.shape != spec.shape) {
      return Error(Code::kInvalidArgument, Quoted(path) + ": tensor '" + spec.name +
                                               "' has shape " + ShapeText(found->second.shape) +
                                               ", expected " + ShapeText(spec.shape));
    }
  }
  ParamBuffer params(layout, /*requires_grad=*/false);
  const at::Tensor host = params.HostFlat();
  for (const ParamSpec& spec : layout.specs()) {
    auto values = file.ReadF32(spec.name.substr(prefix.size()), spec.shape);
    if (!values) return values.error().Wrap(Quoted(path));
    std::copy(values->begin(), values->end(), host.data_ptr<float>() + spec.offset);
  }
  params.SetFlat(host);
  return params;
}

// What the weights do not say: which convolution smooths which scale.
void HashScales(const TokenizerSpec& spec, Hasher128& hasher) {
  if (spec.scales.sides.empty()) return;
  hasher.UpdateField(ListText(spec.scales.sides));
  hasher.UpdateField(ListText(spec.scales.phi_of_scale));
}

void HashParams(const ParamBuffer& params, Hasher128& hasher) {
  const at::Tensor host = params.HostFlat();
  for (const ParamSpec& spec : params.layout().specs()) {
    hasher.UpdateField(spec.name);
    hasher.UpdateInt(spec.shape.size());
    for (const std::int64_t extent : spec.shape) {
      hasher.UpdateInt(static_cast<std::uint64_t>(extent));
    }
    const float* values = host.const_data_ptr<float>() + spec.offset;
    hasher.Update(std::as_bytes(std::span(values, static_cast<std::size_t>(spec.numel))));
  }
}

Status CheckFit(const std::filesystem::path& folder, const TeacherBundle& bundle) {
  const BackboneSpec& spec = bundle.teacher->backbone().spec();
  const TokenizerSpec& tokenizer = bundle.tokenizer->spec();
  if (bundle.teacher->codes() == tokenizer.codes && spec.channels == tokenizer.channels &&
      spec.tokens == tokenizer.tokens() && spec.sides == tokenizer.scales.sides) {
    return {};
  }
  return Error(
      Code::kInvalidArgument,
      "tokenizer and teacher in " + Quoted(folder) + " do not fit: " +
          std::to_string(tokenizer.tokens()) + " tokens of " + std::to_string(tokenizer.codes) +
          " codes of " + std::to_string(tokenizer.channels) + " channels against " +
          std::to_string(spec.tokens) + " tokens of " + std::to_string(bundle.teacher->codes()) +
          " codes of " + std::to_string(spec.channels) + " channels");
}

}  // namespace

Digest128 TokenizerDigest(const Tokenizer& tokenizer) {
  Hasher128 hasher;
  HashParams(tokenizer.params(), hasher);
  HashScales(tokenizer.spec(), hasher);
  return hasher.Finish();
}

Result<ParamBuffer> LoadParams(const std::filesystem::path& file, const ParamLayout& layout,
                               const std::string& prefix) {
  DD2_TRY_ASSIGN(const SafetensorsFile tensors, SafetensorsFile::Open(file));
  return ReadParams(file, tensors, layout, prefix);
}

Status SaveParams(const std::filesystem::path& file, const ParamBuffer& params,
                  const FileMetadata& metadata) {
  std::vector<TensorToWrite> tensors;
  const at::Tensor host = params.HostFlat();
  for (const ParamSpec& spec : params.layout().specs()) {
    const float* values = host.const_data_ptr<float>() + spec.offset;
    tensors.push_back({spec.name, spec.shape, {values, static_cast<std::size_t>(spec.numel)}});
  }
  FileSystem& files = RealFileSystem();
  std::filesystem::path temporary = file;
  temporary += ".tmp";
  const std::map<std::string, std::string> table(metadata.begin(), metadata.end());
  auto written = WriteSafetensors(files, temporary, tensors, table);
  if (!written) return written.error();
  DD2_TRY(files.Rename(temporary, file));
  return files.SyncDirectory(file.has_parent_path() ? file.parent_path() : ".");
}

Result<std::unique_ptr<SmallTokenizer>> LoadTokenizer(const std::filesystem::path& file) {
  DD2_TRY_ASSIGN(const SafetensorsFile tensors, SafetensorsFile::Open(file));
  const Metadata metadata(file, tensors.metadata());
  DD2_TRY(metadata.CheckKind("tokenizer"));
  TokenizerSpec spec;
  DD2_TRY_ASSIGN(spec.codes, metadata.Extent("codes"));
  DD2_TRY_ASSIGN(spec.channels, metadata.Extent("channels"));
  DD2_TRY_ASSIGN(spec.scales, ScalesOf(file, metadata));
  if (!spec.scales.sides.empty() && spec.scales.sides.back() != SmallTokenizer::kSide) {
    return Error(Code::kInvalidArgument,
                 Quoted(file) + ": the last of its scales (" + ListText(spec.scales.sides) +
                     ") is not the side of the latent, " + std::to_string(SmallTokenizer::kSide));
  }
  DD2_TRY_ASSIGN(const ParamBuffer params, ReadParams(file, tensors, SmallTokenizer::Layout(spec)));
  return std::make_unique<SmallTokenizer>(spec, params);
}

Status SaveTokenizer(const std::filesystem::path& file, const Tokenizer& tokenizer,
                     FileMetadata metadata) {
  metadata.emplace_back(kKindKey, "tokenizer");
  metadata.emplace_back("codes", std::to_string(tokenizer.spec().codes));
  metadata.emplace_back("channels", std::to_string(tokenizer.spec().channels));
  if (const VarScales& scales = tokenizer.spec().scales; !scales.sides.empty()) {
    metadata.emplace_back(kSidesKey, ListText(scales.sides));
    metadata.emplace_back(kPhisKey, ListText(scales.phi_of_scale));
  }
  return SaveParams(file, tokenizer.params(), metadata);
}

Result<std::unique_ptr<Teacher>> LoadTeacher(const std::filesystem::path& file,
                                             std::shared_ptr<const CodePath> path, bool bf16) {
  DD2_TRY_ASSIGN(const SafetensorsFile tensors, SafetensorsFile::Open(file));
  const Metadata metadata(file, tensors.metadata());
  DD2_TRY(metadata.CheckKind("teacher"));
  BackboneSpec spec;
  DD2_TRY_ASSIGN(spec.channels, metadata.Extent("channels"));
  DD2_TRY_ASSIGN(spec.width, metadata.Extent("width"));
  DD2_TRY_ASSIGN(spec.layers, metadata.Extent("layers"));
  DD2_TRY_ASSIGN(spec.heads, metadata.Extent("heads"));
  DD2_TRY_ASSIGN(spec.tokens, metadata.Extent("tokens"));
  DD2_TRY_ASSIGN(spec.classes, metadata.Extent("classes"));
  DD2_TRY_ASSIGN(const std::int64_t codes, metadata.Extent("codes"));
  DD2_TRY_ASSIGN(spec.sides, metadata.List(kSidesKey, 1));
  if (!spec.sides.empty()) {
    spec.kind = BackboneKind::kVar;
    spec.mode.bf16 = bf16;
    spec.path = std::move(path);
    std::int64_t tokens = 0;
    for (const std::int64_t side : spec.sides) tokens += side * side;
    if (tokens != spec.tokens) {
      return Error(Code::kInvalidArgument, Quoted(file) + ": metadata 'tokens' is " +
                                               std::to_string(spec.tokens) + ", its scales have " +
                                               std::to_string(tokens));
    }
    if (spec.path == nullptr || spec.path->quantizer().scales().sides != spec.sides) {
      return Error(Code::kInvalidArgument,
                   Quoted(file) + " draws scales (" + ListText(spec.sides) +
                       ") that the tokenizer beside it does not have: they belong to two teachers");
    }
  }
  if (spec.width % spec.heads != 0) {
    return Error(Code::kInvalidArgument, Quoted(file) + ": width " + std::to_string(spec.width) +
                                             " is no multiple of its " +
                                             std::to_string(spec.heads) + " heads");
  }
  DD2_TRY_ASSIGN(const ParamBuffer params, ReadParams(file, tensors, Teacher::Layout(spec, codes)));
  return std::make_unique<Teacher>(spec, codes, params);
}

Status SaveTeacher(const std::filesystem::path& file, const Teacher& teacher,
                   FileMetadata metadata) {
  const BackboneSpec& spec = teacher.backbone().spec();
  metadata.emplace_back(kKindKey, "teacher");
  const std::array<std::pair<const char*, std::int64_t>, 7> extents = {{
      {"channels", spec.channels},
      {"width", spec.width},
      {"layers", spec.layers},
      {"heads", spec.heads},
      {"tokens", spec.tokens},
      {"classes", spec.classes},
      {"codes", teacher.codes()},
  }};
  for (const auto& [key, value] : extents) metadata.emplace_back(key, std::to_string(value));
  if (!spec.sides.empty()) metadata.emplace_back(kSidesKey, ListText(spec.sides));
  return SaveParams(file, teacher.params(), metadata);
}

Result<std::unique_ptr<Classifier>> LoadClassifier(const std::filesystem::path& file) {
  DD2_TRY_ASSIGN(const SafetensorsFile tensors, SafetensorsFile::Open(file));
  DD2_TRY(Metadata(file, tensors.metadata()).CheckKind("classifier"));
  DD2_TRY_ASSIGN(const ParamBuffer params, ReadParams(file, tensors, Classifier::Layout()));
  return std::make_unique<Classifier>(params);
}

Status SaveClassifier(const std::filesystem::path& file, const Classifier& classifier,
                      FileMetadata metadata) {
  metadata.emplace_back(kKindKey, "classifier");
  return SaveParams(file, classifier.params(), metadata);
}

Result<TeacherBundle> LoadTeacherBundle(const std::filesystem::path& folder, bool bf16) {
  TeacherBundle bundle;
  std::error_code ignored;
  if (std::filesystem::exists(folder / kTeacherFile, ignored)) {
    DD2_TRY_ASSIGN(bundle.tokenizer, LoadReleasedTokenizer(folder));
    DD2_TRY_ASSIGN(bundle.teacher, LoadReleasedTeacher(folder, bundle.tokenizer->path(), bf16));
  } else {
    DD2_TRY_ASSIGN(bundle.tokenizer, LoadTokenizer(folder / "tokenizer.safetensors"));
    DD2_TRY_ASSIGN(bundle.teacher,
                   LoadTeacher(folder / "teacher.safetensors", bundle.tokenizer->path(), bf16));
    DD2_TRY_ASSIGN(bundle.classifier, LoadClassifier(folder / "classifier.safetensors"));
    DD2_TRY_ASSIGN(bundle.card_json, RealFileSystem().Read(folder / "card.json"));
  }
  DD2_TRY(CheckFit(folder, bundle));
  Hasher128 hasher;
  HashParams(bundle.teacher->params(), hasher);
  HashParams(bundle.tokenizer->params(), hasher);
  HashScales(bundle.tokenizer->spec(), hasher);
  bundle.teacher_digest = hasher.Finish();
  return bundle;
}

}  // namespace dd2
