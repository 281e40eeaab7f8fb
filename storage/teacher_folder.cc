#include "storage/teacher_folder.h"

#include <string_view>
#include <utility>

#include "storage/teacher_catalog.h"

namespace dd2 {
namespace {

constexpr std::int64_t kSizeMax = 1 << 20;

namespace json = boost::json;

constexpr std::string_view kFormat = "dd2-teacher 1";
constexpr std::int64_t kRopeBase = 10'000;  // LlamaGen's

json::array ToArray(const std::vector<std::int64_t>& numbers) {
  json::array out;
  for (const std::int64_t number : numbers) out.emplace_back(number);
  return out;
}

json::object ToJson(const TeacherNetwork& network, std::string_view file) {
  const TeacherSizes& s = network.sizes;
  json::object out{{"file", file},
                   {"name", network.name},
                   {"parameters", network.parameters},
                   {"digest", network.digest.Hex()},
                   {"vocabulary", s.vocabulary}};
  if (s.code_channels > 0) out["code_channels"] = s.code_channels;
  if (!IsTransformer(s.part)) {
    out["channels"] = s.channels;
    out["multipliers"] = ToArray(s.multipliers);
    out["latent_channels"] = s.latent_channels;
    if (IsVar(s.part)) out["residual_convs"] = s.residual_convs;
    return out;
  }
  out["depth"] = s.depth;
  out["width"] = s.width;
  out["heads"] = s.heads;
  out["ffn_hidden"] = s.ffn_hidden;
  out["classes"] = s.classes;
  if (IsVar(s.part)) {
    out["patch_numbers"] = ToArray(s.patch_numbers);
    out["scaled_attention"] = s.scaled_attention;
    out["cfg"] = "ramp";
    out["rope"] = nullptr;
  } else {
    out["input"] = s.code_channels > 0 ? "mlp" : "table";
    out["grid"] = s.grid;
    out["cfg"] = "constant";
    out["rope"] = {{"kind", "2d"}, {"base", kRopeBase}};
  }
  return out;
}

// Reads members of an object; what is missing or of another type is remembered.
class Members {
 public:
  explicit Members(const json::object& object) : object_(object) {}
  std::int64_t Number(std::string_view name) {
    const json::value* value = object_.if_contains(name);
    return value == nullptr ? Bad(name) : AsNumber(*value, name);
  }
  // A size that something is made of.
  std::int64_t Size(std::string_view name, std::int64_t most = kSizeMax) {
    const std::int64_t number = Number(name);
    return number >= 1 && number <= most ? number : Bad(name);
  }
  std::int64_t NumberOr0(std::string_view name) {
    return object_.contains(name) ? Number(name) : 0;
  }
  std::string Text(std::string_view name) {
    const json::value* value = object_.if_contains(name);
    if (value != nullptr && value->is_string()) return std::string(value->get_string());
    Bad(name);
    return {};
  }
  Digest128 Digest(std::string_view name) {
    const auto digest = Digest128::FromHex(Text(name));
    if (!digest) Bad(name);
    return digest.value_or(Digest128{});
  }
  std::vector<std::int64_t> Numbers(std::string_view name) {
    std::vector<std::int64_t> numbers;
    const json::value* value = object_.if_contains(name);
    if (value == nullptr || !value->is_array()) {
      Bad(name);
      return numbers;
    }
    for (const json::value& one : value->get_array()) numbers.push_back(AsNumber(one, name));
    return numbers;
  }
  Status status() const {
    if (bad_.empty()) return {};
    return Error(Code::kCorruption, "no usable member " + bad_);
  }

 private:
  std::int64_t AsNumber(const json::value& value, std::string_view name) {
    boost::system::error_code code;
    const auto number = value.to_number<std::int64_t>(code);
    return code || number < 0 ? Bad(name) : number;
  }
  std::int64_t Bad(std::string_view name) {
    if (bad_.empty()) bad_ = name;
    return 0;
  }
  const json::object& object_;
  std::string bad_;
};

constexpr std::int64_t kDepthMax = 1 << 10;
constexpr std::size_t kLevelsMax = 16;

// What the sizes are used for without another look: divisions, shifts, tables.
Status CheckSizes(const TeacherSizes& s) {
  // LlamaGen turns pairs of channels by row and by column.
  const std::int64_t unit = s.part == TeacherPart::kLlamaGenTransformer ? 4 : 1;
  const bool heads = s.heads == 0 || s.width % (unit * s.heads) == 0;
  bool grow = true;
  for (std::size_t k = 0; k < s.patch_numbers.size(); ++k) {
    grow = grow && s.patch_numbers[k] > (k == 0 ? 0 : s.patch_numbers[k - 1]) &&
           s.patch_numbers[k] <= kSizeMax / 256;
  }
  const bool scales = s.part != TeacherPart::kVarTransformer ||
                      (s.patch_numbers.size() >= 2 && s.patch_numbers.size() <= 4 * kLevelsMax);
  const bool levels =
      IsTransformer(s.part) || (!s.multipliers.empty() && s.multipliers.size() <= kLevelsMax);
  if (heads && grow && scales && levels) return {};
  return Error(Code::kCorruption, "its sizes do not describe a network");
}

Result<TeacherNetwork> NetworkFromJson(const json::object& object, TeacherPart part) {
  Members in(object);
  TeacherNetwork network;
  TeacherSizes& s = network.sizes;
  s.part = part;
  network.name = in.Text("name");
  network.parameters = in.Number("parameters");
  network.digest = in.Digest("digest");
  s.vocabulary = in.Size("vocabulary");
  s.code_channels = in.NumberOr0("code_channels");
  if (!IsTransformer(part)) {
    s.channels = in.Size("channels");
    s.multipliers = in.Numbers("multipliers");
    s.latent_channels = in.Size("latent_channels");
    s.residual_convs = in.NumberOr0("residual_convs");
  } else {
    s.depth = in.Size("depth", kDepthMax);
    s.width = in.Size("width");
    s.heads = in.Size("heads");
    s.ffn_hidden = in.Size("ffn_hidden");
    s.classes = in.Size("classes");
    if (IsVar(part)) {
      s.patch_numbers = in.Numbers("patch_numbers");
      s.scales = static_cast<std::int64_t>(s.patch_numbers.size());
      for (const std::int64_t side : s.patch_numbers) s.positions += side * side;
      const json::value* scaled = object.if_contains("scaled_attention");
      s.scaled_attention = scaled != nullptr && scaled->is_bool() && scaled->get_bool();
    } else {
      s.grid = in.Size("grid");
    }
  }
  DD2_TRY(in.status());
  DD2_TRY(CheckSizes(s));
  return network;
}

Result<TeacherSource> SourceFromJson(const json::value& value) {
  if (!value.is_object()) return Error(Code::kCorruption, "a source is no object");
  Members in(value.get_object());
  TeacherSource source;
  source.file = in.Text("file");
  source.bytes = static_cast<std::uint64_t>(in.Number("bytes"));
  source.hash = in.Digest("xxh3_128");
  source.network = in.Text("network");
  source.group = in.Text("group");
  DD2_TRY(in.status());
  return source;
}

}  // namespace

bool TeacherDescription::is_var() const {
  return IsVar((transformer ? transformer : tokenizer)->sizes.part);
}

Digest128 TeacherDescription::digest() const {
  Hasher128 hasher;
  if (transformer) hasher.UpdateField("transformer/" + transformer->digest.Hex());
  if (tokenizer) hasher.UpdateField("tokenizer/" + tokenizer->digest.Hex());
  return hasher.Finish();
}

json::object ToJson(const TeacherDescription& teacher) {
  json::object out{{"format", kFormat},
                   {"kind", teacher.is_var() ? "var" : "llamagen"},
                   {"digest", teacher.digest().Hex()}};
  if (teacher.transformer) out["transformer"] = ToJson(*teacher.transformer, kTransformerFile);
  if (teacher.tokenizer) out["tokenizer"] = ToJson(*teacher.tokenizer, kTokenizerFile);
  json::array& sources = out["sources"].emplace_array();
  for (const TeacherSource& source : teacher.sources) {
    sources.push_back({{"file", source.file},
                       {"bytes", source.bytes},
                       {"xxh3_128", source.hash.Hex()},
                       {"network", source.network},
                       {"group", source.group}});
  }
  return out;
}

Result<TeacherDescription> TeacherFromJson(const json::value& document) {
  const json::object* object = document.if_object();
  if (object == nullptr) return Error(Code::kCorruption, "it is no JSON object");
  Members in(*object);
  const std::string format = in.Text("format");
  const std::string kind = in.Text("kind");
  DD2_TRY(in.status());
  if (format != kFormat || (kind != "var" && kind != "llamagen")) {
    return Error(Code::kCorruption, "it is of format '" + format + "', kind '" + kind +
                                        "', expected '" + std::string(kFormat) +
                                        "'; import the teacher again with this dd2");
  }
  const bool is_var = kind == "var";
  TeacherDescription teacher;
  if (const json::value* one = object->if_contains("transformer"); one && one->is_object()) {
    DD2_TRY_ASSIGN(teacher.transformer,
                   NetworkFromJson(one->get_object(), is_var ? TeacherPart::kVarTransformer
                                                             : TeacherPart::kLlamaGenTransformer));
  }
  if (const json::value* one = object->if_contains("tokenizer"); one && one->is_object()) {
    DD2_TRY_ASSIGN(teacher.tokenizer,
                   NetworkFromJson(one->get_object(), is_var ? TeacherPart::kVarTokenizer
                                                             : TeacherPart::kLlamaGenTokenizer));
  }
  if (!teacher.transformer && !teacher.tokenizer) {
    return Error(Code::kCorruption, "it has neither transformer nor tokenizer");
  }
  if (const json::value* sources = object->if_contains("sources"); sources && sources->is_array()) {
    for (const json::value& value : sources->get_array()) {
      DD2_TRY_ASSIGN(TeacherSource source, SourceFromJson(value));
      teacher.sources.push_back(std::move(source));
    }
  }
  if (in.Digest("digest") != teacher.digest()) {
    return Error(Code::kCorruption, "its digest does not fit the digests of its networks");
  }
  return teacher;
}

Result<TeacherNetwork> WriteTeacherNetwork(FileSystem& files, const std::filesystem::path& path,
                                           const TeacherSizes& sizes, const std::string& name,
                                           std::span<const TensorShape> layout,
                                           const ReadElements& read) {
  TeacherNetwork network;
  network.sizes = sizes;
  network.name = name;
  std::vector<TensorToWrite> tensors;
  for (const TensorShape& tensor : layout) tensors.push_back({tensor.name, tensor.shape, {}});
  Hasher128 hasher;
  const auto hashed = [&](std::size_t index, std::int64_t begin, std::span<float> out) -> Status {
    if (begin == 0) {
      hasher.UpdateField(layout[index].name);
      hasher.UpdateInt(layout[index].shape.size());
      for (const std::int64_t size : layout[index].shape) {
        hasher.UpdateInt(static_cast<std::uint64_t>(size));
      }
    }
    DD2_TRY(read(index, begin, out));
    hasher.Update(std::as_bytes(out));
    network.parameters += static_cast<std::int64_t>(out.size());
    return {};
  };
  DD2_TRY(
      WriteSafetensorsFrom(files, path, tensors, {{"format", "pt"}, {"dd2.name", name}}, hashed));
  network.digest = hasher.Finish();
  return network;
}

Result<TeacherDescription> ReadTeacherDescription(FileSystem& files,
                                                  const std::filesystem::path& folder) {
  const auto path = folder / kTeacherFile;
  DD2_TRY_ASSIGN(const std::string text, files.Read(path));
  boost::system::error_code code;
  const json::value document = json::parse(text, code);
  if (code) return Error(Code::kCorruption, path.string() + " is no JSON: " + code.message());
  auto teacher = TeacherFromJson(document);
  if (!teacher) return teacher.error().Wrap(path.string());
  return teacher;
}

}  // namespace dd2
