#include "proto/retention.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <tuple>
#include <utility>

namespace dd2 {

double DistanceOf(const proto::Evaluation& evaluation) {
  return evaluation.has_fid() ? evaluation.fid() : evaluation.fdr();
}

RetentionCandidate CandidateOf(const proto::CheckpointManifest& manifest) {
  RetentionCandidate candidate;
  candidate.id = manifest.checkpoint_id();
  candidate.ordinal = manifest.ordinal();
  if (manifest.has_evaluation()) candidate.evaluation = manifest.evaluation();
  return candidate;
}

std::vector<std::string> ExpiredCheckpoints(const CheckpointConfig& rule,
                                            std::span<const RetentionCandidate> committed) {
  const std::size_t size = committed.size();
  const auto last = static_cast<std::size_t>(std::max(rule.keep_last, 1));
  std::vector<bool> kept(size);
  for (std::size_t i = 0; i < size; ++i) {
    const std::int64_t ordinal = committed[i].ordinal;
    kept[i] =
        size - i <= last || (rule.keep_every > 0 && ordinal > 0 && ordinal % rule.keep_every == 0);
  }
  std::set<std::pair<std::int32_t, std::int64_t>> evaluations;
  std::vector<std::size_t> best;
  for (std::size_t i = 0; i < size; ++i) {
    const auto& evaluation = committed[i].evaluation;
    if (!evaluation || !std::isfinite(DistanceOf(*evaluation))) continue;
    if (evaluations.emplace(evaluation->phase(), evaluation->step()).second) best.push_back(i);
  }
  // Among equals the newer one.
  std::sort(best.begin(), best.end(), [&](std::size_t a, std::size_t b) {
    return std::make_tuple(DistanceOf(*committed[a].evaluation), b) <
           std::make_tuple(DistanceOf(*committed[b].evaluation), a);
  });
  const auto count = static_cast<std::size_t>(std::max(rule.keep_best, 0));
  for (std::size_t i = 0; i < std::min(best.size(), count); ++i) kept[best[i]] = true;
  std::vector<std::string> expired;
  for (std::size_t i = 0; i < size; ++i) {
    if (!kept[i]) expired.push_back(committed[i].id);
  }
  return expired;
}

std::string RetentionText(const CheckpointConfig& rule) {
  std::string text = "keep_last = " + std::to_string(rule.keep_last);
  if (rule.keep_every > 0) text += ", keep_every = " + std::to_string(rule.keep_every);
  if (rule.keep_best > 0) text += ", keep_best = " + std::to_string(rule.keep_best);
  return text;
}

}  // namespace dd2
