#include "worker/engine/teacher_data.h"

#include <cstring>
#include <map>
#include <numeric>
#include <utility>

#include "common/check.h"
#include "common/rng.h"
#include "worker/distill/flow.h"
#include "worker/kernels/torch_device.h"
#include "worker/models/filters.h"

namespace dd2 {
namespace {

Digest128 SettingsDigest(const TeacherDataSpec& spec, const Digest128& teacher) {
  Hasher128 hash;
  hash.UpdateField("dd2 teacher data 1");
  hash.UpdateField(teacher.Hex());
  hash.UpdateField(std::to_string(spec.sampling.cfg_scale));
  hash.UpdateField(std::to_string(spec.sampling.top_p));
  hash.UpdateField(std::to_string(spec.sampling.temperature));
  hash.UpdateInt(static_cast<std::uint64_t>(spec.sampling.top_k));
  hash.UpdateField(spec.numeric_mode);
  hash.UpdateInt(spec.seed);
  hash.UpdateInt(spec.phase);
  hash.UpdateInt(static_cast<std::uint64_t>(spec.block));
  // Draws keep the key that they had before there were flows.
  if (spec.ode_steps > 0) hash.UpdateInt(static_cast<std::uint64_t>(spec.ode_steps));
  return hash.Finish();
}

}  // namespace

TeacherData::TeacherData(TeacherDataSpec spec, const TeacherBundle& teacher, ScoreCache* cache)
    : spec_(std::move(spec)),
      teacher_(teacher),
      cache_(spec_.use_cache ? cache : nullptr),
      settings_(SettingsDigest(spec_, teacher.teacher_digest)),
      sequences_(static_cast<std::size_t>(spec_.sequences)) {
  DD2_CHECK(spec_.block > 0 && spec_.sequences % spec_.block == 0);
  DD2_CHECK(!spec_.use_cache || cache_ != nullptr);
}

RngKey TeacherData::Key(RngUse use, std::uint64_t sample) const {
  return {.seed = spec_.seed, .phase = spec_.phase, .use = use, .update = 0, .sample = sample};
}

at::Tensor TeacherData::TrajectoryNoise(const std::vector<std::uint64_t>& samples) const {
  const BackboneSpec& shape = teacher_.teacher->backbone().spec();
  at::Tensor noise = at::empty(
      {static_cast<std::int64_t>(samples.size()), shape.tokens, shape.channels}, at::kFloat);
  const auto size = static_cast<std::size_t>(shape.tokens * shape.channels);
  float* row = noise.data_ptr<float>();
  for (const std::uint64_t sample : samples) {
    FillNormal(Key(RngUse::kTrajectoryNoise, sample), {row, size});
    row += size;
  }
  return ToDevice(noise);
}

SampledBlock TeacherData::Draw(std::uint64_t first, const at::Tensor& labels) const {
  const Teacher& teacher = *teacher_.teacher;
  const at::Tensor& codebook = teacher_.tokenizer->codebook();
  const BackboneSpec& shape = teacher.backbone().spec();
  const auto size = static_cast<std::size_t>(labels.size(0));
  if (spec_.ode_steps > 0) {
    std::vector<std::uint64_t> samples(size);
    std::iota(samples.begin(), samples.end(), first);
    const at::Tensor noise = TrajectoryNoise(samples);
    const TokenDraw follow = [&](const at::Tensor& logits, std::int64_t position) {
      return FlowTokens(noise.select(1, position), logits, codebook, spec_.ode_steps);
    };
    return SampleTeacher(teacher, codebook, labels, follow, spec_.sampling);
  }
  at::Tensor uniforms = at::empty({labels.size(0), shape.tokens}, at::kFloat);
  const auto width = static_cast<std::size_t>(shape.tokens);
  for (std::size_t i = 0; i < size; ++i) {
    FillUniform(Key(RngUse::kTeacherToken, first + i),
                {uniforms.data_ptr<float>() + i * width, width});
  }
  return SampleTeacher(teacher, codebook, labels, uniforms, spec_.sampling);
}

TeacherData::Block TeacherData::Compute(int block) const {
  const at::NoGradGuard no_grad;
  const BackboneSpec& shape = teacher_.teacher->backbone().spec();
  const std::int64_t size = spec_.block;
  const auto first = static_cast<std::uint64_t>(block * size);
  at::Tensor labels = at::empty({size}, at::kLong);
  for (std::int64_t i = 0; i < size; ++i) {
    labels.data_ptr<std::int64_t>()[i] = static_cast<std::int64_t>(
        UniformInt(Key(RngUse::kLabel, first + static_cast<std::uint64_t>(i)),
                   static_cast<std::uint64_t>(shape.classes)));
  }
  const SampledBlock sampled = Draw(first, ToDevice(labels));
  const at::Tensor rounded = sampled.hidden.to(at::kHalf).contiguous();
  // The threshold comes from the rounded vectors, so that who reads them keeps the same codes.
  const at::Tensor threshold =
      FilterThreshold(teacher_.teacher->Logits(rounded.to(at::kFloat)), spec_.sampling)
          .cpu()
          .contiguous();
  const at::Tensor half = rounded.cpu();
  const at::Tensor tokens = sampled.tokens.cpu().contiguous();
  Block result;
  for (std::int64_t i = 0; i < size; ++i) {
    TeacherSequence sequence;
    sequence.label = static_cast<std::int32_t>(labels.const_data_ptr<std::int64_t>()[i]);
    for (std::int64_t j = 0; j < shape.tokens; ++j) {
      sequence.tokens.push_back(
          static_cast<std::uint16_t>(tokens.const_data_ptr<std::int64_t>()[i * shape.tokens + j]));
    }
    TeacherScore score;
    score.tokens = static_cast<std::int32_t>(shape.tokens);
    score.width = static_cast<std::int32_t>(shape.width);
    score.hidden.resize(static_cast<std::size_t>(shape.tokens * shape.width));
    std::memcpy(score.hidden.data(),
                half.const_data_ptr<at::Half>() + i * shape.tokens * shape.width,
                score.hidden.size() * sizeof(std::uint16_t));
    const float* kept = threshold.const_data_ptr<float>() + i * shape.tokens;
    score.threshold.assign(kept, kept + shape.tokens);
    result.sequences.push_back(std::move(sequence));
    result.scores.push_back(std::move(score));
  }
  return result;
}

Result<std::vector<TeacherScore>> TeacherData::Recompute(int block) {
  Block computed = Compute(block);
  const std::size_t first = static_cast<std::size_t>(block) * static_cast<std::size_t>(spec_.block);
  if (cache_ != nullptr) {
    DD2_TRY(Cache().StoreBlock(settings_, first, computed.sequences, computed.scores));
  }
  for (std::size_t i = 0; i < computed.sequences.size(); ++i) {
    sequences_[first + i] = std::move(computed.sequences[i]);
  }
  return std::move(computed.scores);
}

Status TeacherData::EnsureBlock(int block) {
  const std::size_t first = static_cast<std::size_t>(block) * static_cast<std::size_t>(spec_.block);
  bool complete = cache_ != nullptr || !sequences_[first].tokens.empty();
  // All of them, also behind a missing one: each is a look-up that the figures count.
  for (int i = 0; cache_ != nullptr && i < spec_.block; ++i) {
    const std::size_t sample = first + static_cast<std::size_t>(i);
    Result<TeacherEntry> entry = Cache().FindEntry(settings_, sample);
    if (entry) {
      sequences_[sample] = std::move(entry->sequence);
    } else if (entry.error().code() == Code::kNotFound) {
      complete = false;
    } else {
      return entry.error();
    }
  }
  if (!complete) DD2_TRY(Recompute(block));
  return {};
}

Status TeacherData::LoadSequences() {
  if (cache_ != nullptr) DD2_TRY(Cache().Refresh());
  const auto block_size = static_cast<std::size_t>(spec_.block);
  for (int block = 0; block < blocks(); ++block) {
    const std::size_t first = static_cast<std::size_t>(block) * block_size;
    bool complete = true;
    for (std::size_t i = first; i < first + block_size; ++i) {
      if (!sequences_[i].tokens.empty()) continue;
      if (cache_ == nullptr) {
        complete = false;
        break;
      }
      Result<TeacherSequence> sequence = Cache().FindSequence(settings_, i);
      if (sequence) {
        sequences_[i] = std::move(*sequence);
      } else if (sequence.error().code() == Code::kNotFound) {
        complete = false;
      } else {
        return sequence.error();
      }
    }
    if (!complete) DD2_TRY(Recompute(block));
  }
  return {};
}

ScoreCache& TeacherData::Cache() {
  if (ahead_.valid()) ahead_.wait();
  return *cache_;
}

void TeacherData::Expect(std::vector<std::uint64_t> samples) {
  if (cache_ == nullptr) return;
  ScoreCache& cache = Cache();
  std::vector<Digest128> keys;
  for (const std::uint64_t sample : samples) {
    keys.push_back(ScoreKey(settings_, sequences_.at(sample)));
  }
  expected_ = std::move(samples);
  ahead_ = std::async(std::launch::async | std::launch::deferred, [&cache, keys = std::move(keys)] {
    std::vector<Result<TeacherScore>> found;
    for (const Digest128& key : keys) found.push_back(cache.FindScore(key));
    return found;
  });
}

Result<std::vector<TeacherScore>> TeacherData::Scores(const std::vector<std::uint64_t>& samples) {
  if (!ahead_.valid() || expected_ != samples) Expect(samples);
  std::vector<Result<TeacherScore>> found = ahead_.get();
  const BackboneSpec& shape = teacher_.teacher->backbone().spec();
  std::vector<TeacherScore> scores(samples.size());
  std::map<std::uint64_t, std::vector<std::size_t>> missing;  // by block
  for (std::size_t i = 0; i < samples.size(); ++i) {
    if (found[i]) {
      scores[i] = *std::move(found[i]);
    } else if (found[i].error().code() == Code::kNotFound) {
      missing[samples[i] / static_cast<std::uint64_t>(spec_.block)].push_back(i);
    } else {
      return found[i].error();
    }
  }
  for (const auto& [block, places] : missing) {
    DD2_TRY_ASSIGN(const std::vector<TeacherScore> computed, Recompute(static_cast<int>(block)));
    for (const std::size_t i : places) {
      scores[i] = computed[samples[i] % static_cast<std::uint64_t>(spec_.block)];
    }
  }
  for (const TeacherScore& score : scores) {
    if (score.tokens != shape.tokens || score.width != shape.width) {
      return Error(Code::kCorruption, "a stored score has another shape than the teacher");
    }
  }
  return scores;
}

Result<std::pair<at::Tensor, at::Tensor>> TeacherData::Tokens(
    const std::vector<std::uint64_t>& samples) {
  const std::int64_t length = teacher_.teacher->backbone().spec().tokens;
  const auto count = static_cast<std::int64_t>(samples.size());
  at::Tensor tokens = at::empty({count, length}, at::kLong);
  at::Tensor labels = at::empty({count}, at::kLong);
  for (std::int64_t i = 0; i < count; ++i) {
    const TeacherSequence& sequence = sequences_.at(samples[static_cast<std::size_t>(i)]);
    DD2_CHECK_MSG(!sequence.tokens.empty(), "LoadSequences() was not called");
    labels.data_ptr<std::int64_t>()[i] = sequence.label;
    for (std::int64_t j = 0; j < length; ++j) {
      const std::uint16_t token = sequence.tokens[static_cast<std::size_t>(j)];
      if (token >= teacher_.teacher->codes()) {
        return Error(Code::kCorruption, "a stored sequence names code " + std::to_string(token) +
                                            " of a teacher with " +
                                            std::to_string(teacher_.teacher->codes()));
      }
      tokens.data_ptr<std::int64_t>()[i * length + j] = token;
    }
  }
  return std::pair(ToDevice(tokens), ToDevice(labels));
}

at::Tensor TeacherData::LogitsOf(const std::vector<TeacherScore>& scores) const {
  const BackboneSpec& shape = teacher_.teacher->backbone().spec();
  const auto count = static_cast<std::int64_t>(scores.size());
  at::Tensor half = at::empty({count, shape.tokens, shape.width}, at::kHalf);
  at::Tensor threshold = at::empty({count, shape.tokens, 1}, at::kFloat);
  for (std::int64_t i = 0; i < count; ++i) {
    const TeacherScore& score = scores[static_cast<std::size_t>(i)];
    std::memcpy(half.data_ptr<at::Half>() + i * shape.tokens * shape.width, score.hidden.data(),
                score.hidden.size() * sizeof(std::uint16_t));
    std::memcpy(threshold.data_ptr<float>() + i * shape.tokens, score.threshold.data(),
                score.threshold.size() * sizeof(float));
  }
  at::Tensor logits =
      teacher_.teacher->Logits(ToDevice(half).to(at::kFloat)) / spec_.sampling.temperature;
  if (spec_.sampling.top_k > 0 || spec_.sampling.top_p < 1) {
    logits.masked_fill_(logits < ToDevice(threshold), -std::numeric_limits<float>::infinity());
  }
  return logits;
}

Result<TeacherData::Batch> TeacherData::Load(const std::vector<std::uint64_t>& samples) {
  const at::NoGradGuard no_grad;
  DD2_TRY_ASSIGN(const auto tokens_labels, Tokens(samples));
  const auto& [tokens, labels] = tokens_labels;
  Batch batch;
  batch.labels = labels;
  batch.codes = CodesOf(teacher_.tokenizer->codebook(), tokens);
  if (cache_ == nullptr) {
    const at::Tensor hidden =
        teacher_.teacher->GuidedHidden(batch.codes, labels, spec_.sampling.cfg_scale);
    batch.logp = FilterLogits(teacher_.teacher->Logits(hidden), spec_.sampling);
    return batch;
  }
  DD2_TRY_ASSIGN(const std::vector<TeacherScore> scores, Scores(samples));
  batch.logp = LogitsOf(scores);
  return batch;
}

CacheStats TeacherData::stats() const { return cache_ == nullptr ? CacheStats() : cache_->stats(); }

}  // namespace dd2
