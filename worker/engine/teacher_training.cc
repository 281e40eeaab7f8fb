#include "worker/engine/teacher_training.h"

#include <torch/version.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <exception>
#include <optional>

#include "common/file.h"
#include "common/json.h"
#include "worker/engine/dataset.h"
#include "worker/engine/teacher_stages.h"

namespace dd2 {
namespace {

namespace json = boost::json;
using Path = std::filesystem::path;
using Seconds = std::chrono::duration<double>;

constexpr std::int64_t kTestBlock = 500;

json::object ClassifierSettings(const ClassifierTraining& c) {
  return {{"epochs", c.epochs},
          {"batch", c.batch},
          {"learning_rate", c.learning_rate},
          {"dropout", c.dropout}};
}

json::object TokenizerSettings(const TokenizerTraining& c) {
  return {{"codes", c.codes},
          {"channels", c.channels},
          {"steps", c.steps},
          {"batch", c.batch},
          {"learning_rate", c.learning_rate},
          {"scales", c.scales},
          {"phis", c.phis},
          {"commitment", c.commitment},
          {"decoder_noise", c.decoder_noise},
          {"codebook_decay", c.codebook_decay},
          {"dead_code_ratio", c.dead_code_ratio}};
}

json::object PriorSettings(const PriorTraining& c) {
  return {{"width", c.width},
          {"layers", c.layers},
          {"heads", c.heads},
          {"steps", c.steps},
          {"batch", c.batch},
          {"learning_rate", c.learning_rate},
          {"warmup", c.warmup},
          {"final_ratio", c.final_ratio},
          {"beta1", c.beta1},
          {"beta2", c.beta2},
          {"weight_decay", c.weight_decay},
          {"clip_norm", c.clip_norm},
          {"input_noise", c.input_noise},
          {"label_drop", c.label_drop}};
}

Status Require(bool condition, const std::string& message) {
  if (condition) return {};
  return Error(Code::kInvalidArgument, message);
}

Status CheckConfig(const TeacherTrainConfig& config) {
  DD2_TRY(
      Require(config.threads >= 1 && config.shards >= 1, "threads and shards must be 1 or more"));
  DD2_TRY(Require(config.save_every >= 1 && config.report_every >= 1,
                  "save_every and report_every must be 1 or more"));
  const std::pair<const char*, int> batches[] = {{"classifier.batch", config.classifier.batch},
                                                 {"tokenizer.batch", config.tokenizer.batch},
                                                 {"teacher.batch", config.teacher.batch}};
  for (const auto& [key, batch] : batches) {
    DD2_TRY(Require(batch >= config.shards && batch % config.shards == 0,
                    std::string(key) + " is " + std::to_string(batch) +
                        ", expected a multiple of shards = " + std::to_string(config.shards)));
  }
  DD2_TRY(Require(
      config.classifier.epochs >= 1 && config.tokenizer.steps >= 1 && config.teacher.steps >= 1,
      "epochs and steps must be 1 or more"));
  DD2_TRY(Require(config.tokenizer.codes >= 2 && config.tokenizer.codes <= 16384 &&
                      config.tokenizer.channels >= 1 && config.tokenizer.channels <= 64,
                  "tokenizer.codes must be 2 to 16384 and tokenizer.channels 1 to 64"));
  const std::vector<std::int64_t> sides = ParseScales(config.tokenizer.scales);
  DD2_TRY(Require(sides.empty() || VarScales::WithPhis(sides, config.tokenizer.phis).fits(),
                  "tokenizer.phis is " + std::to_string(config.tokenizer.phis) +
                      ", more than the " + std::to_string(sides.size()) +
                      " scales of tokenizer.scales can all use"));
  const PriorTraining& teacher = config.teacher;
  return Require(teacher.heads >= 1 && teacher.layers >= 1 && teacher.width >= teacher.heads &&
                     teacher.width % teacher.heads == 0,
                 "teacher.width must be a multiple of teacher.heads");
}

double Accuracy(const Classifier& classifier, const LabelledImages& test) {
  const at::NoGradGuard no_grad;
  std::int64_t right = 0;
  for (std::int64_t begin = 0; begin < test.count(); begin += kTestBlock) {
    const std::int64_t rows = std::min(kTestBlock, test.count() - begin);
    const at::Tensor features = classifier.Features(test.images.narrow(0, begin, rows));
    const at::Tensor guess = classifier.Logits(features).argmax(-1);
    right += guess.eq(test.labels.narrow(0, begin, rows)).sum().item<std::int64_t>();
  }
  return static_cast<double>(right) / static_cast<double>(test.count());
}

// Mean squared error of reconstructions on the [-1, 1] scale.
double ReconstructionError(const Tokenizer& tokenizer, const LabelledImages& test) {
  const at::NoGradGuard no_grad;
  double sum = 0;
  for (std::int64_t begin = 0; begin < test.count(); begin += kTestBlock) {
    const std::int64_t rows = std::min(kTestBlock, test.count() - begin);
    const at::Tensor images = test.images.narrow(0, begin, rows);
    const at::Tensor ids = tokenizer.Encode(images);
    const at::Tensor codes = tokenizer.codebook().index_select(0, ids.flatten());
    const at::Tensor decoded = tokenizer.Decode(codes.view({rows, ids.size(1), -1}));
    sum += (decoded - images).square().mean().item<double>() * static_cast<double>(rows);
  }
  return sum / static_cast<double>(test.count());
}

struct CodeUse {
  std::int64_t used = 0;
  double perplexity = 0;
};

CodeUse MeasureCodeUse(const at::Tensor& ids, std::int64_t codes) {
  const at::Tensor counts = at::bincount(ids.flatten(), {}, codes).contiguous();
  const std::int64_t* count = counts.data_ptr<std::int64_t>();
  CodeUse use;
  double entropy = 0;
  for (std::int64_t j = 0; j < codes; ++j) {
    if (count[j] == 0) continue;
    const double share = static_cast<double>(count[j]) / static_cast<double>(ids.numel());
    entropy -= share * std::log(share);
    ++use.used;
  }
  use.perplexity = std::exp(entropy);
  return use;
}

// One run of the command.
class TeacherTrainer {
 public:
  TeacherTrainer(const TeacherTrainConfig& config, const TeacherTrainOptions& options)
      : config_(config),
        output_(config.output),
        command_(options.command),
        report_(options.report),
        pool_(std::min(config.threads, config.shards)) {
    if (command_.empty()) command_ = "dd2 teacher train configs/teachers/" + config.name + ".yaml";
    if (!report_) {
      report_ = [](std::string_view line) {
        std::printf("%.*s\n", static_cast<int>(line.size()), line.data());
        std::fflush(stdout);
      };
    }
  }

  Status Run() {
    const auto begin = std::chrono::steady_clock::now();
    DD2_TRY(CheckConfig(config_));
    DD2_TRY_ASSIGN(train_, LoadFashionMnist(config_.dataset, Split::kTrain, config_.train_images));
    DD2_TRY_ASSIGN(test_, LoadFashionMnist(config_.dataset, Split::kTest));
    DD2_TRY(Require(train_.count() >= kTestBlock && train_.count() >= config_.classifier.batch,
                    "train_images leaves " + std::to_string(train_.count()) +
                        " images, expected at least 500 and one batch"));
    DD2_TRY(RealFileSystem().MakeDirectories(StateFolder()));
    DD2_TRY_ASSIGN(const FileLock lock,
                   FileLock::Acquire(StateFolder() / "lock", "dd2 teacher train"));
    DD2_TRY(MakeClassifier());
    DD2_TRY(MakeTokenizer());
    DD2_TRY(MakeTeacher());
    const Seconds spent = std::chrono::steady_clock::now() - begin;
    measured_["seconds"] = std::round(spent.count());
    DD2_TRY(WriteCard());
    DD2_TRY_ASSIGN(const TeacherBundle bundle, LoadTeacherBundle(output_));
    report_("wrote " + config_.output + " (digest " + bundle.teacher_digest.Hex() +
            "): " + json::serialize(measured_));
    return RealFileSystem().RemoveTree(StateFolder());
  }

 private:
  Path StateFolder() const { return output_ / ".training"; }

  // What determines the bits of a stage.
  json::object Settings(std::initializer_list<std::pair<const char*, json::object>> parts) const {
    json::object all{
        {"seed", config_.seed}, {"shards", config_.shards}, {"train_images", train_.count()}};
    for (const auto& [key, value] : parts) all[key] = value;
    return all;
  }

  Status Train(TrainingStage& stage, const json::object& settings) {
    StageRun run;
    run.state_file = StateFolder() / (std::string(stage.name()) + ".safetensors");
    run.settings = json::serialize(settings);
    run.save_every = config_.save_every;
    run.report_every = config_.report_every;
    return RunStage(stage, run, pool_, report_);
  }

  FileMetadata Origin() const {
    return {{"name", config_.name}, {"seed", std::to_string(config_.seed)}};
  }

  Status MakeClassifier() {
    ClassifierStage stage(config_, train_);
    DD2_TRY(Train(stage, Settings({{"classifier", ClassifierSettings(config_.classifier)}})));
    const Classifier classifier = stage.Finish();
    const double accuracy = Accuracy(classifier, test_);
    measured_["classifier_test_accuracy"] = accuracy;
    report_("classifier  test accuracy " + std::to_string(accuracy));
    return SaveClassifier(output_ / "classifier.safetensors", classifier, Origin());
  }

  Status MakeTokenizer() {
    const std::unique_ptr<TokenizerStage> stage = MakeTokenizerStage(config_, train_);
    DD2_TRY(Train(*stage, Settings({{"tokenizer", TokenizerSettings(config_.tokenizer)}})));
    train_ids_ = EncodeAll(stage->Current(), train_.images, pool_);
    tokenizer_ = stage->Finish(train_ids_);
    const SmallTokenizer& tokenizer = *tokenizer_;
    const CodeUse use = MeasureCodeUse(train_ids_, tokenizer.spec().codes);
    const double error = ReconstructionError(tokenizer, test_);
    measured_["tokenizer_test_mse"] = error;
    measured_["codes_used"] = use.used;
    measured_["code_perplexity"] = use.perplexity;
    report_("tokenizer  test MSE " + std::to_string(error) + "  codes used " +
            std::to_string(use.used) + "  perplexity " + std::to_string(use.perplexity));
    test_ids_ = EncodeAll(tokenizer, test_.images, pool_);
    return SaveTokenizer(output_ / "tokenizer.safetensors", tokenizer, Origin());
  }

  Status MakeTeacher() {
    PriorStage stage(config_, train_ids_, train_.labels, *tokenizer_);
    DD2_TRY(Train(stage, Settings({{"tokenizer", TokenizerSettings(config_.tokenizer)},
                                   {"teacher", PriorSettings(config_.teacher)}})));
    const Teacher teacher = stage.Finish();
    const double nats =
        TeacherNats(teacher, tokenizer_->codebook(), test_ids_, test_.labels, pool_);
    measured_["teacher_test_nats_per_token"] = nats;
    report_("teacher  test nats per token " + std::to_string(nats));
    return SaveTeacher(output_ / "teacher.safetensors", teacher, Origin());
  }

  Status WriteCard() const {
    json::object card;
    card["name"] = config_.name;
    card["command"] = command_;
    card["dataset"] = "Fashion-MNIST";
    card["versions"] = json::object{{"dd2", DD2_VERSION}, {"libtorch", TORCH_VERSION}};
    card["settings"] = Settings({{"classifier", ClassifierSettings(config_.classifier)},
                                 {"tokenizer", TokenizerSettings(config_.tokenizer)},
                                 {"teacher", PriorSettings(config_.teacher)}});
    card["measured"] = measured_;
    return WriteFileAtomically(RealFileSystem(), output_ / "card.json",
                               json::serialize(card) + "\n");
  }

  const TeacherTrainConfig& config_;
  const Path output_;
  std::string command_;
  ReportLine report_;
  ShardPool pool_;
  LabelledImages train_, test_;
  at::Tensor train_ids_, test_ids_;
  std::optional<SmallTokenizer> tokenizer_;
  json::object measured_;
};

}  // namespace

Status TrainTeacher(const TeacherTrainConfig& config, const TeacherTrainOptions& options) {
  try {
    return TeacherTrainer(config, options).Run();
  } catch (const c10::Error& problem) {
    return Error(Code::kInternal,
                 std::string("teacher training stopped: ") + problem.what_without_backtrace());
  } catch (const std::exception& problem) {
    return Error(Code::kInternal, std::string("teacher training stopped: ") + problem.what());
  }
}

}  // namespace dd2
