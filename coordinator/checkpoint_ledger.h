#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/result.h"
#include "common/run_config.h"
#include "proto/control.pb.h"
#include "proto/retention.h"

namespace dd2 {

// Decides when a checkpoint exists: every rank of the generation has reported its part, and all say
// the same about the run (design 6). Also which old checkpoints go.
//
// Pure; owned by RunCore; control thread. It writes nothing: who uses it journals the manifest,
// then publishes it, then tells the ranks.
class CheckpointLedger {
 public:
  // `ever_committed`: in the run's earlier lives, deleted ones included.
  CheckpointLedger(std::string run_id, CheckpointConfig rule, std::int64_t ever_committed);

  // A checkpoint of the journal.
  void Restore(const proto::CheckpointManifest& manifest);
  // The generator was evaluated while it is trained. Checkpoints at that position and behind it
  // carry the result, until the next one.
  void OnEvaluation(const proto::Evaluation& evaluation);
  // Evaluations after this position are void.
  void GoBack(std::int32_t phase, std::int64_t step);
  // Ranks of the generation that reports from now on; parts of an older one are void.
  void StartGeneration(std::int32_t world_size);

  struct Outcome {
    std::optional<proto::CheckpointManifest> commit;  // journal it, publish it, tell every rank
    bool already_committed = false;                   // tell the sender again
    // Some rank could not write its part, and every rank has reported (so nobody writes there any
    // more): remove what was written, tell every rank. Or it was so before: tell the sender again.
    std::optional<proto::CheckpointFailed> failed;
    bool already_failed = false;
  };
  // One rank's part, or an error: kInvalidArgument (rank out of range, a second, different part,
  // headers that differ: the message names the field).
  Result<Outcome> OnPart(const proto::PartReport& report, std::int64_t unix_ms);
  // One rank has no part to report.
  Result<Outcome> OnPartFailed(const proto::PartFailed& failed);

  // Committed checkpoints that the rule does not keep (proto/retention.h), oldest first; they are
  // forgotten here. The newest is never among them.
  std::vector<std::string> TakeExpired();

  // A committed checkpoint turned out to be bad, or was taken away.
  void Forget(const std::string& id);

  bool writing() const { return !pending_.empty(); }
  // Ranks that have reported the checkpoint being written.
  std::int32_t PartsOf(const std::string& id) const;
  // By position, oldest first.
  std::vector<std::string> committed() const;
  // Id of the newest by position; empty: none.
  std::string newest() const;

 private:
  struct Position {
    std::int32_t phase = 0;
    std::int64_t step = 0;
    auto operator<=>(const Position&) const = default;
  };
  // One try of one checkpoint.
  struct Pending {
    std::int32_t attempt = 0;
    std::optional<proto::CheckpointHeader> header;  // of the first part
    std::map<std::int32_t, proto::CheckpointPart> parts;
    std::map<std::int32_t, std::string> failures;  // by rank: why
  };
  bool IsCommitted(const std::string& id) const;
  Status CheckSender(const std::string& id, std::int32_t rank) const;
  // The try that a report belongs to; null when it is decided, as `outcome` says.
  Pending* Find(const std::string& id, std::int32_t attempt, Outcome& outcome);
  void DecideFailed(const std::string& id, Outcome& outcome);

  const std::string run_id_;
  const CheckpointConfig rule_;
  std::int64_t ever_committed_;
  std::int32_t world_size_ = 0;
  std::map<std::string, Pending> pending_;
  std::map<Position, RetentionCandidate> committed_;
  std::map<Position, proto::Evaluation> evaluations_;
  std::map<std::string, proto::CheckpointFailed> failed_;  // of this generation: the newest try
};

}  // namespace dd2
