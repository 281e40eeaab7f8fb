#include "storage/teacher_import.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <system_error>
#include <utility>

namespace dd2 {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kPieceBytes = std::size_t{8} << 20;
constexpr std::int64_t kPixelsPerToken = 16;  // LlamaGen: side of an image over side of its grid

// One network in one of the files.
struct Candidate {
  std::size_t file = 0;
  std::string group;
  bool is_ema = false;
  TeacherMatch match;
};

struct OpenedFile {
  fs::path path;
  TorchFile content;
};

// "ema", "trainer/var_ema", "ema_parameters": trainers name their moving averages like that.
bool IsEma(const std::string& group) {
  const std::string_view last = std::string_view(group).substr(group.rfind('/') + 1);
  return last == "ema" || last.starts_with("ema_") || last.ends_with("_ema");
}

std::string Where(const OpenedFile& file, const std::string& group) {
  return file.path.string() + (group.empty() ? "" : " (" + group + ")");
}

std::string FirstOf(const std::vector<std::string>& names) {
  constexpr std::size_t kShown = 3;
  std::string text;
  for (std::size_t i = 0; i < std::min(names.size(), kShown); ++i) {
    text += (i > 0 ? ", " : "") + names[i];
  }
  return text + (names.size() > kShown ? ", ..." : "");
}

// Candidates of a file. None is an error that says what is nearest.
Result<std::vector<Candidate>> CandidatesOf(const OpenedFile& file, std::size_t index) {
  DD2_TRY_ASSIGN(const std::vector<StateDict> groups, StateDictsOf(file.content));
  std::vector<Candidate> found;
  const StateDict* nearest = nullptr;
  for (const StateDict& group : groups) {
    if (!group.match) continue;
    if (group.match->complete()) {
      found.push_back({index, group.path, IsEma(group.path), *group.match});
    } else if (nearest == nullptr || group.match->parameters > nearest->match->parameters) {
      nearest = &group;
    }
  }
  if (!found.empty()) return found;
  if (nearest == nullptr) {
    return Error(Code::kCorruption, file.path.string() +
                                        " holds no VAR or LlamaGen network (`dd2 teacher inspect` "
                                        "lists its tensors)");
  }
  return Error(Code::kCorruption, Where(file, nearest->path) + " is nearly " +
                                      nearest->match->name +
                                      ", but not quite: " + ProblemsOf(*nearest->match));
}

// The one to take, of a role (transformer or tokenizer); nothing when there is none.
Result<std::optional<Candidate>> Choose(const std::vector<Candidate>& all, bool transformer,
                                        const std::vector<OpenedFile>& opened,
                                        const ImportRequest& request) {
  std::vector<const Candidate*> fitting;
  for (const Candidate& one : all) {
    if (IsTransformer(one.match.sizes.part) == transformer) fitting.push_back(&one);
  }
  const bool want_ema = request.weights != "model";
  const auto wanted = [want_ema](const Candidate* one) { return one->is_ema == want_ema; };
  if (std::any_of(fitting.begin(), fitting.end(), wanted)) {
    std::erase_if(fitting, [&wanted](const Candidate* one) { return !wanted(one); });
  }
  if (fitting.empty()) return std::optional<Candidate>();
  if (fitting.size() > 1) {
    return Error(Code::kInvalidArgument,
                 std::string("which ") + (transformer ? "transformer" : "tokenizer") + "? " +
                     Where(opened[fitting[0]->file], fitting[0]->group) + " holds one and " +
                     Where(opened[fitting[1]->file], fitting[1]->group) +
                     " another; import them into two folders");
  }
  return std::optional<Candidate>(*fitting[0]);
}

struct Chosen {
  std::optional<Candidate> transformer;
  std::optional<Candidate> tokenizer;
};

Status CheckPair(const TeacherSizes& transformer, const TeacherSizes& tokenizer) {
  if (IsVar(transformer.part) != IsVar(tokenizer.part)) {
    return Error(Code::kInvalidArgument,
                 "one file is VAR's, the other LlamaGen's: a teacher needs transformer and "
                 "tokenizer of one family");
  }
  const bool same_channels =
      transformer.code_channels == 0 || transformer.code_channels == tokenizer.code_channels;
  if (transformer.vocabulary == tokenizer.vocabulary && same_channels) return {};
  return Error(Code::kInvalidArgument,
               "transformer and tokenizer do not fit: " + std::to_string(transformer.vocabulary) +
                   " codes of " + std::to_string(transformer.code_channels) + " channels against " +
                   std::to_string(tokenizer.vocabulary) + " of " +
                   std::to_string(tokenizer.code_channels));
}

Result<Chosen> ChooseAll(const std::vector<OpenedFile>& opened, const ImportRequest& request) {
  std::vector<Candidate> all;
  for (std::size_t i = 0; i < opened.size(); ++i) {
    DD2_TRY_ASSIGN(auto found, CandidatesOf(opened[i], i));
    std::move(found.begin(), found.end(), std::back_inserter(all));
  }
  Chosen chosen;
  DD2_TRY_ASSIGN(chosen.transformer, Choose(all, true, opened, request));
  DD2_TRY_ASSIGN(chosen.tokenizer, Choose(all, false, opened, request));
  if (chosen.transformer && chosen.tokenizer) {
    DD2_TRY(CheckPair(chosen.transformer->match.sizes, chosen.tokenizer->match.sizes));
  }
  const auto is_wanted = [&request](const std::optional<Candidate>& one) {
    return one && one->is_ema == (request.weights == "ema");
  };
  if (!request.weights.empty() && !is_wanted(chosen.transformer) && !is_wanted(chosen.tokenizer)) {
    return Error(Code::kInvalidArgument,
                 "there are no " + request.weights + " weights: leave --weights out");
  }
  return chosen;
}

// Fills in what the tensors of a transformer do not tell.
Status Complete(const fs::path& file, const ImportRequest& request, Candidate& transformer) {
  TeacherSizes& sizes = transformer.match.sizes;
  if (request.heads > 0) sizes.heads = request.heads;
  const std::int64_t unit = IsVar(sizes.part) ? 1 : 4;  // LlamaGen's rotations take four channels
  if (sizes.heads == 0 || sizes.width % (unit * sizes.heads) != 0) {
    return Error(Code::kInvalidArgument,
                 "the number of heads of " + transformer.match.name +
                     " is not known from its tensors: give --heads, a divisor of " +
                     std::to_string(sizes.width / unit));
  }
  if (IsVar(sizes.part)) {
    if (!sizes.patch_numbers.empty()) return {};
    return Error(Code::kCorruption, "the sides of the " + std::to_string(sizes.scales) +
                                        " scales of " + transformer.match.name +
                                        " are not known: the file has no usable " +
                                        std::string(kVarLevels));
  }
  if (request.image_size > 0) {
    sizes.grid = request.image_size / kPixelsPerToken;
  } else if (sizes.grid == 0) {
    sizes.grid = file.filename().string().find("384") == std::string::npos ? 16 : 24;
  }
  transformer.match.name += " (" + std::to_string(sizes.grid * kPixelsPerToken) + " px)";
  return {};
}

class Importer {
 public:
  Importer(FileSystem& files, const ImportRequest& request) : files_(files), request_(request) {}

  Result<TeacherDescription> Run() {
    DD2_TRY(CheckFolder());
    DD2_TRY_ASSIGN(Chosen chosen, Prepare());
    DD2_TRY(CheckRoom(chosen));
    TeacherDescription teacher;
    for (const auto* one : {&chosen.transformer, &chosen.tokenizer}) {
      if (!*one) continue;
      const char* network = one == &chosen.transformer ? "transformer" : "tokenizer";
      DD2_TRY_ASSIGN(TeacherSource source, Examine(**one, network));
      teacher.sources.push_back(std::move(source));
    }
    const Status written = Write(chosen, teacher);
    if (!written) {
      for (const auto file : {kTransformerFile, kTokenizerFile}) {
        static_cast<void>(files_.Remove(Temporary(file)));
      }
      return written.error();
    }
    return teacher;
  }

 private:
  fs::path Temporary(std::string_view file) const {
    return request_.out / (std::string(file) + ".tmp");
  }

  Status CheckFolder() const {
    std::error_code ignored;
    if (request_.overwrite) return {};
    for (const auto file : {kTeacherFile, kTransformerFile, kTokenizerFile}) {
      if (!fs::exists(request_.out / file, ignored)) continue;
      return Error(Code::kFailedPrecondition,
                   (request_.out / file).string() +
                       " is there already: choose another folder, or replace it with --force");
    }
    return {};
  }

  Result<Chosen> Prepare() {
    for (const fs::path& path : request_.files) {
      DD2_TRY_ASSIGN(TorchFile content, TorchFile::Open(path));
      opened_.push_back({path, std::move(content)});
    }
    DD2_TRY_ASSIGN(Chosen chosen, ChooseAll(opened_, request_));
    if (chosen.transformer) {
      DD2_TRY(Complete(opened_[chosen.transformer->file].path, request_, *chosen.transformer));
    }
    return chosen;
  }

  // Also adds up the work. A file whose tensors share storages could name far more than it has.
  Status CheckRoom(const Chosen& chosen) {
    std::uint64_t needed = 0;
    for (const auto* one : {&chosen.transformer, &chosen.tokenizer}) {
      if (!*one) continue;
      const auto values = static_cast<std::uint64_t>((*one)->match.parameters);
      const std::uint64_t size = opened_[(*one)->file].content.bytes().size();
      if (values > size) {
        return Error(Code::kCorruption,
                     opened_[(*one)->file].path.string() +
                         " is smaller than its weights: they share memory, as weights never do");
      }
      needed += values * sizeof(float);
      work_ += 2 * size + values * sizeof(float);
    }
    fs::path existing = fs::absolute(request_.out);
    std::error_code ignored;
    while (!fs::exists(existing, ignored) && existing.has_relative_path()) {
      existing = existing.parent_path();
    }
    DD2_TRY_ASSIGN(const std::uint64_t free, FreeBytes(existing));
    if (needed <= free) return {};
    return Error(Code::kResourceExhausted,
                 request_.out.string() + " needs " + std::to_string(needed >> 20U) +
                     " MiB, the disk has " + std::to_string(free >> 20U) + " MiB left");
  }

  void Advance(std::uint64_t bytes) {
    done_ += bytes;
    request_.progress(std::min(done_, work_), work_);
  }

  // Every byte of the file once for its own checksums and once for our hash.
  Result<TeacherSource> Examine(const Candidate& one, const char* network) {
    const OpenedFile& file = opened_[one.file];
    const auto bytes = file.content.bytes();
    const Status sums = file.content.CheckSums([this](std::uint64_t n) { Advance(n); });
    if (!sums) return sums.error().Wrap(file.path.string());
    Hasher128 hasher;
    for (std::size_t at = 0; at < bytes.size(); at += kPieceBytes) {
      const auto piece = bytes.subspan(at, std::min(kPieceBytes, bytes.size() - at));
      hasher.Update(piece);
      ForgetPages(piece);
      Advance(piece.size());
    }
    return TeacherSource{file.path.filename().string(), bytes.size(), hasher.Finish(), network,
                         one.group};
  }

  Status Write(const Chosen& chosen, TeacherDescription& teacher) {
    DD2_TRY(files_.MakeDirectories(request_.out));
    if (chosen.transformer) {
      DD2_TRY_ASSIGN(teacher.transformer, WriteNetwork(*chosen.transformer, kTransformerFile));
    }
    if (chosen.tokenizer) {
      DD2_TRY_ASSIGN(teacher.tokenizer, WriteNetwork(*chosen.tokenizer, kTokenizerFile));
    }
    // From here on the old teacher is gone, and the new one is there with its teacher.json.
    DD2_TRY(files_.Remove(request_.out / kTeacherFile));
    DD2_TRY(files_.SyncDirectory(request_.out));
    DD2_TRY(Publish(kTransformerFile, chosen.transformer.has_value()));
    DD2_TRY(Publish(kTokenizerFile, chosen.tokenizer.has_value()));
    DD2_TRY(files_.SyncDirectory(request_.out));
    return WriteFileAtomically(files_, request_.out / kTeacherFile,
                               boost::json::serialize(ToJson(teacher)) + "\n");
  }

  Status Publish(std::string_view file, bool is_written) {
    if (!is_written) return files_.Remove(request_.out / file);
    return files_.Rename(Temporary(file), request_.out / file);
  }

  Result<TeacherNetwork> WriteNetwork(const Candidate& one, std::string_view file) {
    const TorchFile& source = opened_[one.file].content;
    std::map<std::string_view, const TorchTensor*> stored;
    for (const TorchTensor& tensor : source.tensors()) {
      if (tensor.group == one.group) stored.emplace(tensor.name, &tensor);
    }
    const auto read = [&](std::size_t index, std::int64_t begin, std::span<float> out) -> Status {
      const TorchTensor& tensor = *stored.at(one.match.layout[index].name);
      DD2_TRY(source.Read(tensor, begin, out));
      const auto bad =
          std::find_if(out.begin(), out.end(), [](float v) { return !std::isfinite(v); });
      if (bad != out.end()) {
        return Error(Code::kCorruption,
                     Where(opened_[one.file], one.group) + ": element " +
                         std::to_string(begin + (bad - out.begin())) + " of " + tensor.name +
                         " is NaN or infinite (or too large for fp32): the file is damaged, or the "
                         "training that wrote it had failed");
      }
      Advance(out.size_bytes());
      return {};
    };
    return WriteTeacherNetwork(files_, Temporary(file), one.match.sizes, one.match.name,
                               one.match.layout, read);
  }

  FileSystem& files_;
  const ImportRequest& request_;
  std::vector<OpenedFile> opened_;
  std::uint64_t work_ = 0;
  std::uint64_t done_ = 0;
};

}  // namespace

std::string ProblemsOf(const TeacherMatch& match) {
  std::string text;
  const auto add = [&text](const std::vector<std::string>& names, const char* what) {
    if (names.empty()) return;
    text += (text.empty() ? "" : "; ") + std::to_string(names.size()) + what + FirstOf(names);
  };
  add(match.missing, " missing: ");
  add(match.extra, " unknown: ");
  add(match.wrong, " of another shape or type: ");
  return text;
}

Result<std::vector<StateDict>> StateDictsOf(const TorchFile& file) {
  std::vector<StateDict> groups;
  std::map<std::string, std::size_t> index;
  std::map<std::string, const TorchTensor*> levels;
  for (const TorchTensor& tensor : file.tensors()) {
    const auto [at, is_new] = index.emplace(tensor.group, groups.size());
    if (is_new) groups.push_back({tensor.group, {}, std::nullopt});
    groups[at->second].tensors.push_back({tensor.name, tensor.shape, tensor.dtype});
    if (tensor.name == kVarLevels) levels[tensor.group] = &tensor;
  }
  for (StateDict& group : groups) {
    std::vector<float> values;
    if (const auto found = levels.find(group.path); found != levels.end()) {
      values.resize(found->second->elements);
      DD2_TRY(file.Read(*found->second, 0, values));
    }
    group.match = MatchTeacher(group.tensors, values);
  }
  return groups;
}

Result<TeacherDescription> ImportTeacher(FileSystem& files, const ImportRequest& request) {
  return Importer(files, request).Run();
}

}  // namespace dd2
