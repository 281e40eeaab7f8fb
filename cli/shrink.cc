#include "cli/shrink.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
#include <system_error>

#include "cli/model_sizes.h"
#include "cli/run_folder.h"
#include "common/config.h"
#include "storage/random_teacher.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kSeed = 1;
constexpr int kSteps = 2;  // of every phase that trains
constexpr int kBlock = 4;
constexpr int kBlocks = 4;
constexpr int kImages = 100;  // of an evaluation

// The kind of `model` with two blocks of two heads. What makes a pass take another way stays: codes
// (filters choose among them), scales or grid, and the pixels of an image.
SmallTeacher SmallTeacherOf(const ModelSizes& model) {
  const bool var = model.kind == ModelKind::kVar;
  SmallTeacher small;
  TeacherSizes& transformer = small.transformer;
  transformer.part = var ? TeacherPart::kVarTransformer : TeacherPart::kLlamaGenTransformer;
  transformer.vocabulary = model.codes;
  transformer.depth = 2;
  transformer.heads = 2;
  transformer.width = 64;
  transformer.ffn_hidden = 4 * transformer.width;
  transformer.classes = model.classes;
  transformer.code_channels = model.channels;  // of a LlamaGen: adapted
  TeacherSizes& tokenizer = small.tokenizer;
  tokenizer.part = var ? TeacherPart::kVarTokenizer : TeacherPart::kLlamaGenTokenizer;
  tokenizer.vocabulary = model.codes;
  tokenizer.code_channels = model.channels;
  tokenizer.channels = 32;  // one in each group of its norms
  tokenizer.multipliers = {1, 1, 1, 1, 1};
  tokenizer.latent_channels = 32;
  if (!var) {
    transformer.grid = std::llround(std::sqrt(static_cast<double>(model.tokens)));
    return small;
  }
  transformer.positions = model.tokens;
  transformer.scales = static_cast<std::int64_t>(model.sides.size());
  transformer.patch_numbers = model.sides;
  transformer.scaled_attention = true;
  tokenizer.residual_convs = 4;
  return small;
}

// Nothing: it is one of those that dd2 trains, small as it is.
Result<std::optional<SmallTeacher>> TeacherFor(const fs::path& path) {
  const auto there = ReadModelSizes(path);
  if (there && there->measured) return std::optional<SmallTeacher>();
  if (there) return std::optional(SmallTeacherOf(*there));
  if (there.error().code() != Code::kNotFound) return there.error();
  const std::string name = path.filename().string();
  if (const auto model = BuiltInModel(name)) return std::optional(SmallTeacherOf(*model));
  std::string names;
  for (const std::string& one : BuiltInModels()) names += (names.empty() ? "" : ", ") + one;
  return Error(Code::kInvalidArgument,
               "--shrink: teacher.path " + path.string() +
                   " is not there, and its last word is none of " + names +
                   ": set teacher.path to one of them, or to a teacher's folder");
}

void ShrinkPhase(PhaseConfig& phase, int shards) {
  switch (phase.kind) {
    case PhaseKind::kSample:
      phase.block = kBlock;
      phase.sequences = kBlock * kBlocks;
      phase.ode_steps = std::min(phase.ode_steps, kSteps);
      break;
    case PhaseKind::kGts:
    case PhaseKind::kRegress:
    case PhaseKind::kCsd:
    case PhaseKind::kAlign:
      phase.steps = std::min<std::int64_t>(phase.steps, kSteps);
      phase.batch = shards;
      phase.draws = std::min(phase.draws, 2);
      phase.generator_draws = 1;
      phase.guidance_updates = std::min(phase.guidance_updates, 2);
      phase.validation = std::min(phase.validation, kBlock);
      phase.guidance.warmup = std::min(phase.guidance.warmup, 1);
      break;
    case PhaseKind::kTeacherCheck:
    case PhaseKind::kEval:
    case PhaseKind::kExport: break;
  }
  phase.eval_every = std::min(phase.eval_every, 1);
  phase.checkpoint_every = std::min(phase.checkpoint_every, 1);
}

// Features of all reference images are no work of a minute. The files themselves are looked at when
// the large run begins.
void LeaveOutFid(RunConfig& config) {
  config.eval.inception.clear();
  config.eval.reference.clear();
  config.checkpoint.keep_best = 0;
  std::erase_if(config.phases,
                [](const PhaseConfig& phase) { return phase.kind == PhaseKind::kEval; });
  for (PhaseConfig& phase : config.phases) phase.eval_every = 0;
}

}  // namespace

Result<ShrunkRun> Shrink(const RunConfig& config, const fs::path& folder) {
  ShrunkRun out;
  DD2_TRY_ASSIGN(out.teacher, TeacherFor(config.teacher.path));
  RunConfig small = config;
  small.name += "-shrunk";
  if (out.teacher) {
    const fs::path run = folder.empty() ? DefaultRunFolder(small) : folder;
    small.teacher.path = fs::absolute(run / "teacher").lexically_normal().string();
  }
  small.model.head_width = std::min(small.model.head_width, 64);
  small.model.head_depth = std::min(small.model.head_depth, 2);
  small.model.time_features = std::min(small.model.time_features, 32);
  small.ranks = std::min(small.ranks, 2);
  const auto ranks = static_cast<unsigned>(small.domains * small.ranks);
  small.batch.shards =
      std::min(small.batch.shards, static_cast<int>(std::bit_ceil(std::max(2U, ranks))));
  for (int* images :
       {&small.eval.samples, &small.eval.curve_samples, &small.eval.reference_images}) {
    *images = std::min(*images, kImages);
  }
  if (small.eval.by_inception()) LeaveOutFid(small);
  for (PhaseConfig& phase : small.phases) ShrinkPhase(phase, small.batch.shards);
  // Settings that follow from others, and the rules once more.
  DD2_TRY_ASSIGN(out.config, ParseRunConfig(DumpRunConfig(small), config.name + " --shrink",
                                            fs::current_path()));
  return out;
}

Status WriteSmallTeacher(const ShrunkRun& run) {
  std::error_code ignored;
  const fs::path folder = run.config.teacher.path;
  if (!run.teacher || fs::exists(folder / kTeacherFile, ignored)) return {};
  const auto written = WriteRandomTeacher(RealFileSystem(), folder, run.teacher->transformer,
                                          run.teacher->tokenizer, kSeed);
  if (!written) return written.error();
  return {};
}

}  // namespace dd2
