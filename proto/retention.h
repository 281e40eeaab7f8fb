#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/run_config.h"
#include "proto/control.pb.h"

namespace dd2 {

// Which committed checkpoints of a run are kept: one rule for the coordinator and for
// `dd2 checkpoint prune`. Pure.

// What the rule looks at.
struct RetentionCandidate {
  std::string id;
  std::int64_t ordinal = 0;  // 0: of a build that did not count them
  std::optional<proto::Evaluation> evaluation;
};
RetentionCandidate CandidateOf(const proto::CheckpointManifest& manifest);

// FDr or FID, whichever it has.
double DistanceOf(const proto::Evaluation& evaluation);

// The ids that go, oldest first; `committed` is in the order of positions. Kept are the last
// keep_last (at least one), those whose ordinal is a multiple of keep_every, and the keep_best ones
// with the lowest FDr or FID. Of the checkpoints behind one evaluation the nearest stands for it:
// the others are states that have trained on since.
std::vector<std::string> ExpiredCheckpoints(const CheckpointConfig& rule,
                                            std::span<const RetentionCandidate> committed);

// "keep_last = 3, keep_best = 1".
std::string RetentionText(const CheckpointConfig& rule);

}  // namespace dd2
