// dd2 teacher logits | decode | encode: a released teacher on given tokens, to be held against its
// Python original. dd2 teacher adapt: a LlamaGen that takes continuous codes.

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "common/file.h"
#include "common/json.h"
#include "storage/safetensors.h"
#include "worker/engine/command_frame.h"
#include "worker/engine/commands.h"
#include "worker/engine/options.h"
#include "worker/engine/teacher_adapt.h"
#include "worker/kernels/torch_device.h"
#include "worker/models/released_teacher.h"
#include "worker/models/vqgan.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;

constexpr const char* kLogitsUsage =
    "usage: dd2 teacher logits DIR --tokens FILE --out FILE [--cfg X] [--device D]\n"
    "  DIR            a teacher that `dd2 teacher import` wrote\n"
    "  --tokens FILE  safetensors: tokens [B, L] int64, labels [B] int64 (one above the last "
    "class:\n"
    "                 no class)\n"
    "  --out FILE     safetensors: cond, uncond, guided [B, L, V] fp32, teacher-forced, no label\n"
    "                 dropped\n"
    "  --cfg X        guidance by the teacher's own convention: VAR (1 + X k / (K - 1)) cond - "
    "...\n"
    "                 uncond at scale k (1.5); LlamaGen uncond + X (cond - uncond) (2)\n"
    "  --device D     cpu, or cuda: the first GPU that CUDA_VISIBLE_DEVICES shows (cpu)\n";
constexpr const char* kDecodeUsage =
    "usage: dd2 teacher decode DIR --tokens FILE --out FILE [--device D]\n"
    "  --tokens FILE  safetensors: tokens [B, L] int64\n"
    "  --out FILE     safetensors: f_hat (VAR) or z_q (LlamaGen) [B, C, S, S], image [B, 3, H, H]\n"
    "                 in about [-1, 1]\n"
    "  --device D     cpu, or cuda: the first GPU that CUDA_VISIBLE_DEVICES shows (cpu)\n";
constexpr const char* kAdaptUsage =
    "usage: dd2 teacher adapt DIR [--tokens FILE] --out DIR [options]\n"
    "  DIR              a LlamaGen that `dd2 teacher import` wrote, with its tokenizer\n"
    "  --tokens FILE    safetensors: tokens [N, L] int64 of training images, labels [N] int64;\n"
    "                   without it the MLP is fitted to the table and nothing else is trained\n"
    "  --out DIR        the teacher to write; interrupted, the same command goes on\n"
    "  --steps N        of training (200000, as in the paper), --batch N sequences (256),\n"
    "                   --lr X (1e-4)\n"
    "  --held-out N     sequences at the end of FILE that measure (a tenth, at most 256)\n"
    "  --seed N         (1)\n"
    "  --shards N       parts of a batch (4); each takes memory for the gradients\n"
    "  --threads N      that compute shards side by side on the CPU (2); a GPU computes them one\n"
    "                   behind the other, so that --shards 1 serves it as well\n"
    "  --save-every N   steps between two states to go on from (200)\n"
    "  --device D       cpu, or cuda: the first GPU that CUDA_VISIBLE_DEVICES shows (cpu)\n";
constexpr const char* kEncodeUsage =
    "usage: dd2 teacher encode DIR --image FILE --out FILE [--device D]\n"
    "  --image FILE   safetensors: image [B, 3, H, H] fp32 in [-1, 1]\n"
    "  --out FILE     safetensors: tokens [B, L] int64\n"
    "  --device D     cpu, or cuda: the first GPU that CUDA_VISIBLE_DEVICES shows (cpu)\n";

// An int64 tensor of `dimensions` dimensions with values in [0, end).
Result<at::Tensor> ReadNumbers(const SafetensorsFile& file, const fs::path& path,
                               const std::string& name, std::size_t dimensions, std::int64_t end) {
  const auto found = file.tensors().find(name);
  if (found == file.tensors().end()) {
    return Error(Code::kInvalidArgument, path.string() + " has no tensor '" + name + "'");
  }
  const TensorInfo& info = found->second;
  if (info.dtype != Dtype::kI64 || info.shape.size() != dimensions || info.bytes == 0) {
    return Error(Code::kInvalidArgument, path.string() + ": '" + name + "' must be int64 with " +
                                             std::to_string(dimensions) + " dimensions, not empty");
  }
  at::Tensor numbers = at::empty(info.shape, at::kLong);
  auto* values = numbers.data_ptr<std::int64_t>();
  const auto bytes =
      std::as_writable_bytes(std::span(values, static_cast<std::size_t>(numbers.numel())));
  DD2_TRY(file.ReadBytes(name, 0, bytes));
  for (std::int64_t i = 0; i < numbers.numel(); ++i) {
    if (values[i] >= 0 && values[i] < end) continue;
    return Error(Code::kInvalidArgument, path.string() + ": '" + name + "' holds " +
                                             std::to_string(values[i]) + " at element " +
                                             std::to_string(i) + ", allowed are 0 to " +
                                             std::to_string(end - 1));
  }
  return numbers;
}

Status CheckLength(const fs::path& path, const at::Tensor& tokens, std::int64_t length) {
  if (tokens.size(1) == length) return {};
  return Error(Code::kInvalidArgument, path.string() + ": sequences of " +
                                           std::to_string(tokens.size(1)) +
                                           " tokens, the teacher's have " + std::to_string(length));
}

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

Status WriteTensors(const fs::path& path, const NamedTensors& tensors) {
  std::vector<TensorToWrite> writes;
  for (const auto& [name, tensor] : tensors) {
    writes.push_back(
        {.name = name,
         .shape = tensor.sizes().vec(),
         .data = {tensor.const_data_ptr<float>(), static_cast<std::size_t>(tensor.numel())}});
  }
  FileSystem& files = RealFileSystem();
  fs::path temporary = path;
  temporary += ".tmp";
  const Result<WrittenFile> written = WriteSafetensors(files, temporary, writes, {});
  if (!written) {
    static_cast<void>(files.Remove(temporary));
    return written.error();
  }
  return files.Rename(temporary, path);
}

// One int64 tensor as a safetensors file.
Status WriteTokens(const fs::path& path, const at::Tensor& tokens) {
  const auto bytes = static_cast<std::size_t>(tokens.numel()) * sizeof(std::int64_t);
  boost::json::object tensor{{"dtype", "I64"},
                             {"shape", boost::json::value_from(tokens.sizes().vec())},
                             {"data_offsets", boost::json::array{0, bytes}}};
  std::string head = boost::json::serialize(boost::json::object{{"tokens", std::move(tensor)}});
  head.append((64 - (head.size() + 8) % 64) % 64, ' ');
  const std::uint64_t length = head.size();
  std::string file(sizeof length + head.size() + bytes, '\0');
  std::memcpy(file.data(), &length, sizeof length);
  std::memcpy(file.data() + sizeof length, head.data(), head.size());
  std::memcpy(file.data() + sizeof length + head.size(), tokens.const_data_ptr<std::int64_t>(),
              bytes);
  return WriteFileAtomically(RealFileSystem(), path, file);
}

// Calls step(b) for every row and says how far it is.
template <class Step>
void ForEachRow(std::int64_t rows, const char* what, const Step& step) {
  for (std::int64_t b = 0; b < rows; ++b) {
    step(b);
    std::fprintf(stderr, "%s %lld of %lld\n", what, static_cast<long long>(b + 1),
                 static_cast<long long>(rows));
  }
}

// Rows of any device, whole in host memory.
class Rows {
 public:
  void Add(const at::Tensor& row) { rows_.push_back(row.cpu()); }
  at::Tensor Joined() const { return at::cat(rows_).contiguous(); }

 private:
  std::vector<at::Tensor> rows_;
};

at::Tensor RowOf(const at::Tensor& tensor, std::int64_t b) {
  return ToDevice(tensor.narrow(0, b, 1));
}

struct LabelledTokens {
  at::Tensor tokens, labels;  // [B, L], [B]
};

// Sequences of `length` tokens below `codes`, labels below `labels`.
Result<LabelledTokens> ReadLabelledTokens(const fs::path& path, std::int64_t length,
                                          std::int64_t codes, std::int64_t labels) {
  DD2_TRY_ASSIGN(const SafetensorsFile file, SafetensorsFile::Open(path));
  LabelledTokens read;
  DD2_TRY_ASSIGN(read.tokens, ReadNumbers(file, path, "tokens", 2, codes));
  DD2_TRY_ASSIGN(read.labels, ReadNumbers(file, path, "labels", 1, labels));
  DD2_TRY(CheckLength(path, read.tokens, length));
  if (read.labels.size(0) == read.tokens.size(0)) return read;
  return Error(Code::kInvalidArgument, path.string() + ": " + std::to_string(read.labels.size(0)) +
                                           " labels for " + std::to_string(read.tokens.size(0)) +
                                           " sequences");
}

Status Logits(const Options& options) {
  const at::NoGradGuard no_grad;
  const fs::path folder = options.positionals().front(), path = options.Text("--tokens", "");
  DD2_TRY_ASSIGN(const auto teacher, LoadReleasedTransformer(folder));
  DD2_TRY_ASSIGN(const double cfg, options.Get<double>("--cfg", teacher->usual_cfg(), 0.0, 100.0));
  DD2_TRY_ASSIGN(
      const LabelledTokens given,
      ReadLabelledTokens(path, teacher->tokens(), teacher->vocabulary(), teacher->classes() + 1));
  Rows cond, uncond, guided;
  ForEachRow(given.tokens.size(0), "sequence", [&](std::int64_t b) {
    const ReleasedTransformer::Logits row =
        teacher->Score(RowOf(given.tokens, b), RowOf(given.labels, b), cfg);
    cond.Add(row.cond);
    uncond.Add(row.uncond);
    guided.Add(row.guided);
  });
  return WriteTensors(
      options.Text("--out", ""),
      {{"cond", cond.Joined()}, {"uncond", uncond.Joined()}, {"guided", guided.Joined()}});
}

Status Decode(const Options& options) {
  const at::NoGradGuard no_grad;
  const fs::path folder = options.positionals().front(), path = options.Text("--tokens", "");
  DD2_TRY_ASSIGN(const auto tokenizer, LoadReleasedTokenizer(folder));
  DD2_TRY_ASSIGN(const SafetensorsFile file, SafetensorsFile::Open(path));
  const TokenizerSpec& spec = tokenizer->spec();
  DD2_TRY_ASSIGN(const at::Tensor tokens, ReadNumbers(file, path, "tokens", 2, spec.codes));
  DD2_TRY(CheckLength(path, tokens, spec.tokens()));
  const bool by_scales = tokenizer->path() != nullptr;
  Rows latents, images;
  ForEachRow(tokens.size(0), "image", [&](std::int64_t b) {
    const at::Tensor codes = CodesOf(tokenizer->codebook(), RowOf(tokens, b));
    latents.Add(by_scales ? tokenizer->path()->Features(codes)
                          : RowsToMap(codes, spec.raster_side, spec.raster_side));
    images.Add(tokenizer->Decode(codes));
  });
  return WriteTensors(options.Text("--out", ""), {{by_scales ? "f_hat" : "z_q", latents.Joined()},
                                                  {"image", images.Joined()}});
}

Status Encode(const Options& options) {
  const at::NoGradGuard no_grad;
  const fs::path folder = options.positionals().front(), path = options.Text("--image", "");
  DD2_TRY_ASSIGN(const auto tokenizer, LoadReleasedTokenizer(folder));
  DD2_TRY_ASSIGN(const SafetensorsFile file, SafetensorsFile::Open(path));
  const auto found = file.tensors().find("image");
  const std::int64_t side = tokenizer->image_side();
  if (found == file.tensors().end() || found->second.shape.size() != 4 ||
      found->second.bytes == 0) {
    return Error(Code::kInvalidArgument, path.string() + " has no tensor 'image' [B, 3, " +
                                             std::to_string(side) + ", " + std::to_string(side) +
                                             "]");
  }
  const std::vector<std::int64_t> shape = {found->second.shape[0], 3, side, side};
  DD2_TRY_ASSIGN(std::vector<float> values, file.ReadF32("image", shape));
  const at::Tensor images = at::from_blob(values.data(), shape, at::kFloat);
  Rows tokens;
  ForEachRow(images.size(0), "image",
             [&](std::int64_t b) { tokens.Add(tokenizer->Encode(RowOf(images, b))); });
  return WriteTokens(options.Text("--out", ""), tokens.Joined());
}

Result<AdaptSettings> ReadAdaptSettings(const Options& options) {
  constexpr std::int64_t kMost = 1'000'000'000;
  AdaptSettings set;
  const auto count = [&](const char* name, auto& value, std::int64_t least,
                         std::int64_t most) -> Status {
    DD2_TRY_ASSIGN(const std::int64_t given, options.Get<std::int64_t>(name, value, least, most));
    value = static_cast<std::remove_reference_t<decltype(value)>>(given);
    return {};
  };
  DD2_TRY(count("--steps", set.steps, 1, kMost));
  DD2_TRY(count("--batch", set.batch, 1, 1 << 20));
  DD2_TRY(count("--held-out", set.held_out, 1, kMost));
  DD2_TRY(count("--shards", set.shards, 1, 1024));
  DD2_TRY(count("--threads", set.threads, 1, 1024));
  DD2_TRY(count("--save-every", set.save_every, 1, 1'000'000));
  DD2_TRY_ASSIGN(set.seed, options.Get<std::uint64_t>("--seed", set.seed, 0, UINT64_MAX));
  DD2_TRY_ASSIGN(set.learning_rate, options.Get<double>("--lr", set.learning_rate, 1e-9, 1.0));
  return set;
}

Status Adapt(const Options& options) {
  AdaptRequest request;
  request.teacher = options.positionals().front();
  request.out = options.Text("--out", "");
  DD2_TRY_ASSIGN(request.settings, ReadAdaptSettings(options));
  DD2_TRY_ASSIGN(const TeacherDescription teacher,
                 ReadTeacherDescription(RealFileSystem(), request.teacher));
  if (options.Has("--tokens") && teacher.transformer && !teacher.is_var()) {
    const TeacherSizes& sizes = teacher.transformer->sizes;
    DD2_TRY_ASSIGN(LabelledTokens given,
                   ReadLabelledTokens(options.Text("--tokens", ""), sizes.grid * sizes.grid,
                                      sizes.vocabulary, sizes.classes));
    request.tokens = std::move(given.tokens);
    request.labels = std::move(given.labels);
  }
  return AdaptTeacher(request);
}

using Action = Status (*)(const Options&);

int RunAction(const std::vector<std::string>& arguments, const char* usage,
              const std::set<std::string>& valued, const std::set<std::string>& needed,
              Action action) {
  return RunCommand(arguments, usage, [&]() -> Status {
    DD2_TRY_ASSIGN(const Options options, Options::Parse(arguments, valued, {}, 1));
    if (options.positionals().empty()) return Usage("DIR is missing");
    for (const std::string& name : needed) {
      if (!options.Has(name)) return Usage(name + " is missing");
    }
    DD2_TRY(TakeDevice(options));
    return action(options);
  });
}

}  // namespace

int TeacherAdaptCommand(const std::vector<std::string>& arguments) {
  return RunAction(arguments, kAdaptUsage,
                   {"--tokens", "--out", "--steps", "--batch", "--lr", "--held-out", "--seed",
                    "--shards", "--threads", "--save-every", kDeviceOption},
                   {"--out"}, Adapt);
}

int TeacherLogitsCommand(const std::vector<std::string>& arguments) {
  return RunAction(arguments, kLogitsUsage, {"--tokens", "--out", "--cfg", kDeviceOption},
                   {"--tokens", "--out"}, Logits);
}

int TeacherDecodeCommand(const std::vector<std::string>& arguments) {
  return RunAction(arguments, kDecodeUsage, {"--tokens", "--out", kDeviceOption},
                   {"--tokens", "--out"}, Decode);
}

int TeacherEncodeCommand(const std::vector<std::string>& arguments) {
  return RunAction(arguments, kEncodeUsage, {"--image", "--out", kDeviceOption},
                   {"--image", "--out"}, Encode);
}

}  // namespace dd2
