// dd2 teacher import|inspect. Neither needs LibTorch or Python.

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <memory>
#include <system_error>
#include <utility>

#include "cli/commands.h"
#include "cli/format.h"
#include "common/json.h"
#include "storage/teacher_import.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

struct TeacherArguments {
  std::vector<std::string> files;
  std::string out;
  std::string path;
  std::string weights;
  std::int64_t heads = 0;
  std::int64_t image_size = 0;
  bool force = false;
  bool json = false;
};

void Print(const json::object& document) { std::printf("%s\n", json::serialize(document).c_str()); }

// Says on standard error how far a long import is: on a terminal one line that is written over,
// else a line every few seconds.
class ImportProgress {
 public:
  void Show(std::uint64_t done, std::uint64_t all) {
    const auto now = std::chrono::steady_clock::now();
    if (now - shown_ < (terminal_ ? kTerminalPause : kPlainPause)) return;
    shown_ = now;
    any_ = true;
    std::fprintf(stderr, "%simport: %3.0f %% of %s%s", terminal_ ? "\r" : "",
                 100.0 * static_cast<double>(done) / static_cast<double>(all),
                 FormatBytes(static_cast<std::int64_t>(all)).c_str(), terminal_ ? "" : "\n");
  }
  ~ImportProgress() {
    if (any_ && terminal_) std::fprintf(stderr, "\r\x1b[K");
  }

 private:
  static constexpr std::chrono::milliseconds kTerminalPause{200};
  static constexpr std::chrono::milliseconds kPlainPause{5000};
  const bool terminal_ = ::isatty(STDERR_FILENO) == 1;
  bool any_ = false;
  std::chrono::steady_clock::time_point shown_ = std::chrono::steady_clock::now();
};

std::string Join(const std::vector<std::int64_t>& numbers) {
  std::string text;
  for (const std::int64_t number : numbers)
    text += (text.empty() ? "" : " ") + std::to_string(number);
  return text;
}

// What tells a network from others of its family, in one line.
std::string SizesText(const TeacherSizes& s) {
  const auto text = [](std::int64_t number) { return std::to_string(number); };
  if (!IsTransformer(s.part)) {
    return text(s.vocabulary) + " codes of " + text(s.code_channels) + " channels; " +
           text(s.channels) + " channels x " + Join(s.multipliers) + ", latent " +
           text(s.latent_channels);
  }
  std::string out = text(s.depth) + " blocks of width " + text(s.width) + ", " +
                    (s.heads > 0 ? text(s.heads) : "? ") + " heads, hidden " + text(s.ffn_hidden) +
                    "; " + text(s.classes) + " classes, " + text(s.vocabulary) + " codes";
  if (!s.patch_numbers.empty()) out += "; sides " + Join(s.patch_numbers);
  if (s.grid > 0) out += "; grid " + text(s.grid) + "x" + text(s.grid);
  return out;
}

void PrintNetwork(const char* role, const TeacherNetwork& network) {
  std::printf("%-11s  %s: %lld parameters, digest %s\n", role, network.name.c_str(),
              static_cast<long long>(network.parameters), network.digest.Hex().c_str());
  std::printf("%-11s  %s\n", "", SizesText(network.sizes).c_str());
}

void PrintTeacher(const fs::path& folder, const TeacherDescription& teacher) {
  std::printf("%-11s  %s, digest %s\n", "teacher", folder.c_str(), teacher.digest().Hex().c_str());
  if (teacher.transformer) PrintNetwork("transformer", *teacher.transformer);
  if (teacher.tokenizer) PrintNetwork("tokenizer", *teacher.tokenizer);
  for (const TeacherSource& source : teacher.sources) {
    std::printf("%-11s  %s%s, %s: %s\n", "from", source.file.c_str(),
                source.group.empty() ? "" : (" (" + source.group + ")").c_str(),
                FormatBytes(static_cast<std::int64_t>(source.bytes)).c_str(),
                source.network.c_str());
  }
}

Status Import(const TeacherArguments& arguments) {
  ImportRequest request;
  request.files.assign(arguments.files.begin(), arguments.files.end());
  request.out = arguments.out;
  request.weights = arguments.weights;
  request.heads = arguments.heads;
  request.image_size = arguments.image_size;
  request.overwrite = arguments.force;
  TeacherDescription teacher;
  {
    ImportProgress progress;
    request.progress = [&progress](std::uint64_t done, std::uint64_t all) {
      progress.Show(done, all);
    };
    DD2_TRY_ASSIGN(teacher, ImportTeacher(RealFileSystem(), request));
  }
  if (arguments.json) {
    json::object document = ToJson(teacher);
    document["folder"] = arguments.out;
    Print(document);
  } else {
    PrintTeacher(arguments.out, teacher);
  }
  return {};
}

// What `inspect` says of one file.
struct Inspected {
  fs::path path;
  std::string container;
  std::vector<StateDict> dicts;
};

Result<Inspected> InspectSafetensors(const fs::path& path) {
  DD2_TRY_ASSIGN(const SafetensorsFile file, SafetensorsFile::Open(path));
  StateDict dict;
  for (const auto& [name, info] : file.tensors()) {
    dict.tensors.push_back({name, info.shape, info.dtype});
  }
  // The header is sorted by name; in the file they have an order.
  std::sort(dict.tensors.begin(), dict.tensors.end(), [&file](const auto& a, const auto& b) {
    return file.tensors().at(a.name).offset < file.tensors().at(b.name).offset;
  });
  dict.match = MatchTeacher(dict.tensors, {});
  Inspected inspected{path, "safetensors", {}};
  inspected.dicts.push_back(std::move(dict));
  return inspected;
}

Result<Inspected> InspectFile(const fs::path& path) {
  bool is_torch = false;
  {
    DD2_TRY_ASSIGN(const MappedFile mapped, MappedFile::Open(path));
    is_torch = TorchFile::Recognises(mapped.bytes());
  }
  if (!is_torch) return InspectSafetensors(path);
  DD2_TRY_ASSIGN(const TorchFile file, TorchFile::Open(path));
  DD2_TRY_ASSIGN(auto dicts, StateDictsOf(file));
  return Inspected{path, file.is_zip() ? "torch.save, zip" : "torch.save, before PyTorch 1.6",
                   std::move(dicts)};
}

json::array Texts(const std::vector<std::string>& lines) {
  json::array texts;
  for (const std::string& line : lines) texts.emplace_back(line);
  return texts;
}

json::object ToJson(const TeacherMatch& match) {
  return {{"name", match.name},
          {"complete", match.complete()},
          {"parameters", match.parameters},
          {"role", IsTransformer(match.sizes.part) ? "transformer" : "tokenizer"},
          {"kind", IsVar(match.sizes.part) ? "var" : "llamagen"},
          {"missing", Texts(match.missing)},
          {"extra", Texts(match.extra)},
          {"wrong", Texts(match.wrong)},
          {"ignored", Texts(match.ignored)}};
}

json::object ToJson(const Inspected& file) {
  json::array dicts;
  for (const StateDict& dict : file.dicts) {
    json::array tensors;
    for (const StoredTensor& tensor : dict.tensors) {
      json::array shape;
      for (const std::int64_t size : tensor.shape) shape.emplace_back(size);
      tensors.push_back(
          {{"name", tensor.name}, {"shape", std::move(shape)}, {"dtype", DtypeText(tensor.dtype)}});
    }
    json::object one{{"group", dict.path}, {"network", nullptr}};
    if (dict.match) one["network"] = ToJson(*dict.match);
    one["tensors"] = std::move(tensors);
    dicts.push_back(std::move(one));
  }
  std::error_code ignored;
  return {{"file", file.path.string()},
          {"bytes", fs::file_size(file.path, ignored)},
          {"container", file.container},
          {"groups", std::move(dicts)}};
}

void PrintProblems(const char* what, const std::vector<std::string>& names) {
  for (const std::string& name : names) std::printf("  %-9s  %s\n", what, name.c_str());
}

void PrintDict(const StateDict& dict) {
  std::printf("%s: %zu tensors", dict.path.empty() ? "(top)" : dict.path.c_str(),
              dict.tensors.size());
  if (!dict.match) {
    std::printf(", no network that dd2 knows\n");
  } else {
    std::printf(", %s%s, %lld parameters\n  %s\n", dict.match->complete() ? "" : "nearly ",
                dict.match->name.c_str(), static_cast<long long>(dict.match->parameters),
                SizesText(dict.match->sizes).c_str());
    PrintProblems("missing", dict.match->missing);
    PrintProblems("unknown", dict.match->extra);
    PrintProblems("wrong", dict.match->wrong);
  }
  for (const StoredTensor& tensor : dict.tensors) {
    std::printf("  %-56s %-18s %s%s\n", tensor.name.c_str(), ShapeText(tensor.shape).c_str(),
                std::string(DtypeText(tensor.dtype)).c_str(),
                IsTeacherBuffer(tensor.name) ? "  (not used)" : "");
  }
}

Status Inspect(const TeacherArguments& arguments) {
  const fs::path path = arguments.path;
  std::error_code ignored;
  std::vector<fs::path> paths{path};
  std::optional<TeacherDescription> teacher;
  if (fs::is_directory(path, ignored)) {
    DD2_TRY_ASSIGN(teacher, ReadTeacherDescription(RealFileSystem(), path));
    paths.clear();
    if (teacher->transformer) paths.push_back(path / kTransformerFile);
    if (teacher->tokenizer) paths.push_back(path / kTokenizerFile);
  }
  json::array files;
  if (teacher && !arguments.json) PrintTeacher(path, *teacher);
  for (const fs::path& one : paths) {
    DD2_TRY_ASSIGN(const Inspected inspected, InspectFile(one));
    if (arguments.json) {
      files.push_back(ToJson(inspected));
      continue;
    }
    std::printf("%s: %s, %s\n", one.c_str(), inspected.container.c_str(),
                FormatBytes(static_cast<std::int64_t>(fs::file_size(one, ignored))).c_str());
    for (const StateDict& dict : inspected.dicts) PrintDict(dict);
  }
  if (!arguments.json) return {};
  json::object document{{"files", std::move(files)}};
  if (teacher) document["teacher"] = ToJson(*teacher);
  Print(document);
  return {};
}

void SetAction(CLI::App& command, int& exit_code,
               const std::shared_ptr<TeacherArguments>& arguments,
               Status (*action)(const TeacherArguments&)) {
  command.add_flag("--json", arguments->json, "Print JSON");
  command.callback([arguments, action, &exit_code] {
    const Status status = action(*arguments);
    if (!status) exit_code = Fail(status.error());
  });
}

}  // namespace

void AddTeacherTools(CLI::App& app, int& exit_code) {
  CLI::App* import = app.add_subcommand(
      "import", "Read released checkpoints of VAR or LlamaGen and write a teacher folder");
  const auto imported = std::make_shared<TeacherArguments>();
  import->add_option("files", imported->files, "Files of torch.save: transformer, tokenizer")
      ->required()
      ->type_name("FILE");
  import->add_option("--out", imported->out, "The folder to write")->required()->type_name("DIR");
  import
      ->add_option("--weights", imported->weights,
                   "model (as trained) or ema (moving average, preferred unless given)")
      ->check(CLI::IsMember({"model", "ema"}));
  import->add_option("--heads", imported->heads, "Heads of a LlamaGen transformer of another size")
      ->check(CLI::Range(1, 1024))
      ->type_name("N");
  import
      ->add_option("--image-size", imported->image_size,
                   "Pixels of a side of LlamaGen's images; 256, or 384 if the file's name says so")
      ->check(CLI::IsMember({256, 384, 512}))
      ->type_name("N");
  import->add_flag("--force", imported->force, "Replace a teacher that is in DIR");
  SetAction(*import, exit_code, imported, Import);

  CLI::App* inspect = app.add_subcommand(
      "inspect", "What a checkpoint, a safetensors file or a teacher folder holds");
  const auto inspected = std::make_shared<TeacherArguments>();
  inspect->add_option("path", inspected->path, "A file, or a folder that import wrote")
      ->required()
      ->type_name("FILE|DIR");
  SetAction(*inspect, exit_code, inspected, Inspect);
}

}  // namespace dd2
