#include "common/config_teacher.h"

#include <charconv>

#include "common/config_settings.h"

namespace dd2 {
namespace {

using T = TeacherTrainConfig;

// clang-format off
constexpr Setting<T> kTeacherSettings[] = {
    {{"name", "", 0, 0, kPlain, "Name of the teacher (default: the file's name)."},
     [](T& c) -> SettingField { return &c.name; }},
    {{"seed", "", 0, kUnbounded, kBits, "Every random number of the training follows from it."},
     [](T& c) -> SettingField { return &c.seed; }},
    {{"output", "", 0, 0, kPath | kRequired, "Folder that tokenizer, teacher, classifier and card are written to."},
     [](T& c) -> SettingField { return &c.output; }},
    {{"dataset", "", 0, 0, kPath, "Folder with the four *-ubyte.gz files of the data set."},
     [](T& c) -> SettingField { return &c.dataset; }},
    {{"threads", "threads", 1, 1024, kPlain, "Shards computed at once; does not change the result."},
     [](T& c) -> SettingField { return &c.threads; }},
    {{"shards", "", 1, 1024, kBits, "Virtual shards of every batch (a power of two); fixes the order of sums."},
     [](T& c) -> SettingField { return &c.shards; }},
    {{"train_images", "images", 0, 1e9, kBits, "Use the first n images of the train split; 0: all."},
     [](T& c) -> SettingField { return &c.train_images; }},
    {{"save_every", "steps", 1, 1e8, kPlain, "Steps between states that an interrupted training resumes from."},
     [](T& c) -> SettingField { return &c.save_every; }},
    {{"report_every", "steps", 1, 1e8, kPlain, "Steps between lines of progress."},
     [](T& c) -> SettingField { return &c.report_every; }},
    {{"classifier.epochs", "epochs", 1, 1000, kBits, "Passes over the train images."},
     [](T& c) -> SettingField { return &c.classifier.epochs; }},
    {{"classifier.batch", "images", 1, 65536, kBits, "Images of one step (a multiple of shards)."},
     [](T& c) -> SettingField { return &c.classifier.batch; }},
    {{"classifier.learning_rate", "", 0, 1, kBits | kAboveMin, "Adam's rate at the start; falls linearly."},
     [](T& c) -> SettingField { return &c.classifier.learning_rate; }},
    {{"classifier.dropout", "", 0, 0.95, kBits, "Share of the features dropped in training."},
     [](T& c) -> SettingField { return &c.classifier.dropout; }},
    {{"tokenizer.codes", "codes", 2, 65536, kBits, "Size V of the codebook."},
     [](T& c) -> SettingField { return &c.tokenizer.codes; }},
    {{"tokenizer.channels", "", 1, 1024, kBits, "Length C of a code."},
     [](T& c) -> SettingField { return &c.tokenizer.channels; }},
    {{"tokenizer.scales", "", 0, 0, kBits, "Sides of a multi-scale residual tokenizer, as 1,2,3,4,5,7 (the last is 7); empty: raster order."},
     [](T& c) -> SettingField { return &c.tokenizer.scales; }},
    {{"tokenizer.phis", "", 1, 16, kBits, "Convolutions that smooth the scales."},
     [](T& c) -> SettingField { return &c.tokenizer.phis; }},
    {{"tokenizer.steps", "steps", 1, 1e8, kBits, "Updates of the tokenizer."},
     [](T& c) -> SettingField { return &c.tokenizer.steps; }},
    {{"tokenizer.batch", "images", 1, 65536, kBits, "Images of one step (a multiple of shards)."},
     [](T& c) -> SettingField { return &c.tokenizer.batch; }},
    {{"tokenizer.learning_rate", "", 0, 1, kBits | kAboveMin, "Adam's rate; flat for half of the steps, then falls."},
     [](T& c) -> SettingField { return &c.tokenizer.learning_rate; }},
    {{"tokenizer.commitment", "", 0, 1000, kBits, "Weight of the distance between a latent and its code."},
     [](T& c) -> SettingField { return &c.tokenizer.commitment; }},
    {{"tokenizer.decoder_noise", "", 0, 10, kBits, "Noise on the decoder's input, in standard deviations of the codes."},
     [](T& c) -> SettingField { return &c.tokenizer.decoder_noise; }},
    {{"tokenizer.codebook_decay", "", 0, 0.99999, kBits, "Decay of the codebook's moving averages."},
     [](T& c) -> SettingField { return &c.tokenizer.codebook_decay; }},
    {{"tokenizer.dead_code_ratio", "", 0, 1, kBits, "Codes used less than this share of the mean are restarted."},
     [](T& c) -> SettingField { return &c.tokenizer.dead_code_ratio; }},
    {{"teacher.width", "", 8, 16384, kBits, "Hidden size (a multiple of heads)."},
     [](T& c) -> SettingField { return &c.teacher.width; }},
    {{"teacher.layers", "", 1, 256, kBits, "Transformer blocks."},
     [](T& c) -> SettingField { return &c.teacher.layers; }},
    {{"teacher.heads", "", 1, 256, kBits, "Attention heads."},
     [](T& c) -> SettingField { return &c.teacher.heads; }},
    {{"teacher.steps", "steps", 1, 1e8, kBits, "Updates of the teacher."},
     [](T& c) -> SettingField { return &c.teacher.steps; }},
    {{"teacher.batch", "sequences", 1, 65536, kBits, "Sequences of one step (a multiple of shards)."},
     [](T& c) -> SettingField { return &c.teacher.batch; }},
    {{"teacher.learning_rate", "", 0, 1, kBits | kAboveMin, "AdamW's peak rate."},
     [](T& c) -> SettingField { return &c.teacher.learning_rate; }},
    {{"teacher.warmup", "steps", 0, 1e8, kBits, "Steps over which the rate rises from 0."},
     [](T& c) -> SettingField { return &c.teacher.warmup; }},
    {{"teacher.final_ratio", "", 0, 1, kBits, "Share of the peak that the cosine ends at."},
     [](T& c) -> SettingField { return &c.teacher.final_ratio; }},
    {{"teacher.beta1", "", 0, 0.9999, kBits, "Adam's decay of the mean gradient."},
     [](T& c) -> SettingField { return &c.teacher.beta1; }},
    {{"teacher.beta2", "", 0, 0.999999, kBits, "Adam's decay of the mean squared gradient."},
     [](T& c) -> SettingField { return &c.teacher.beta2; }},
    {{"teacher.weight_decay", "", 0, 10, kBits, "Decoupled decay of matrices."},
     [](T& c) -> SettingField { return &c.teacher.weight_decay; }},
    {{"teacher.clip_norm", "", 0, 1e6, kBits, "Limit of the gradient's norm; 0: none."},
     [](T& c) -> SettingField { return &c.teacher.clip_norm; }},
    {{"teacher.input_noise", "", 0, 10, kBits, "Noise on the teacher-forced codes, in standard deviations."},
     [](T& c) -> SettingField { return &c.teacher.input_noise; }},
    {{"teacher.label_drop", "", 0, 0.99, kBits, "Share of labels replaced by the null class."},
     [](T& c) -> SettingField { return &c.teacher.label_drop; }},
};
// clang-format on

std::vector<BoundSetting> BindTeacher(T& config) {
  return Bind(std::span<const Setting<T>>(kTeacherSettings), config);
}

void CheckRules(const T& config, const SettingsReader& reader, ConfigProblems& problems) {
  const auto add = [&](const std::string& key, const std::string& other, const std::string& text) {
    if (reader.Failed(key) || reader.Failed(other)) return;
    problems.Add(reader.Where(key), key, text);
  };
  if ((config.shards & (config.shards - 1)) != 0) {
    add("shards", "", std::to_string(config.shards) + " is not a power of two");
  }
  const auto batch = [&](const std::string& key, int value) {
    if (value % config.shards == 0) return;
    add(key, "shards",
        std::to_string(value) + " is not a multiple of shards (" + std::to_string(config.shards) +
            ")");
  };
  batch("classifier.batch", config.classifier.batch);
  batch("tokenizer.batch", config.tokenizer.batch);
  batch("teacher.batch", config.teacher.batch);
  if (config.teacher.width % config.teacher.heads != 0) {
    add("teacher.width", "teacher.heads",
        std::to_string(config.teacher.width) + " is not a multiple of heads (" +
            std::to_string(config.teacher.heads) + ")");
  }
  const std::string& scales = config.tokenizer.scales;
  if (!scales.empty() && ParseScales(scales).empty()) {
    add("tokenizer.scales", "",
        "'" + scales + "' is not a list of 2 to 16 growing numbers that ends with 7");
  }
  if (config.teacher.warmup > config.teacher.steps) {
    add("teacher.warmup", "teacher.steps",
        std::to_string(config.teacher.warmup) + " is longer than the training (" +
            std::to_string(config.teacher.steps) + " steps)");
  }
}

}  // namespace

std::vector<std::int64_t> ParseScales(const std::string& text) {
  constexpr std::int64_t kLatentSide = 7;
  std::vector<std::int64_t> sides;
  const char* at = text.data();
  const char* const end = text.data() + text.size();
  while (at != end) {
    std::int64_t side = 0;
    const auto [next, problem] = std::from_chars(at, end, side);
    if (problem != std::errc() || side < 1 || (!sides.empty() && side <= sides.back())) return {};
    sides.push_back(side);
    if (next != end && (*next != ',' || next + 1 == end)) return {};
    at = next == end ? end : next + 1;
  }
  if (sides.size() < 2 || sides.size() > 16 || sides.back() != kLatentSide) return {};
  return sides;
}

Result<TeacherTrainConfig> ParseTeacherTrainConfig(std::string_view yaml, const std::string& label,
                                                   const std::filesystem::path& folder,
                                                   const std::vector<std::string>& overrides) {
  DD2_TRY_ASSIGN(ConfigNode root, ParseConfigTree(yaml, label));
  ConfigProblems problems;
  for (const std::string& text : overrides) ApplyOverride(root, text, problems);
  SettingsReader reader(folder, problems);
  reader.Remember("", root.where);
  TeacherTrainConfig config;
  config.name = std::filesystem::path(label).stem().string();
  reader.Read(root, "", BindTeacher(config), {}, "");
  CheckRules(config, reader, problems);
  if (!problems.empty()) return problems.ToError();
  return config;
}

Result<TeacherTrainConfig> LoadTeacherTrainConfig(const std::filesystem::path& path,
                                                  const std::vector<std::string>& overrides) {
  DD2_TRY_ASSIGN(const std::string text, ReadConfigFile(path));
  return ParseTeacherTrainConfig(text, path.string(), path.parent_path(), overrides);
}

std::string DumpTeacherTrainConfig(const TeacherTrainConfig& config) {
  TeacherTrainConfig copy = config;
  return FormatSettings(BindTeacher(copy), 0);
}

std::string DescribeTeacherSettings() {
  TeacherTrainConfig defaults;
  return "## Settings of `dd2 teacher train`\n\n" + DescribeTable(BindTeacher(defaults));
}

}  // namespace dd2
