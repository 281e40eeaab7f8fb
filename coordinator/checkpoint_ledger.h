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
  };
  // One rank's part, or an error: kInvalidArgument (rank out of range, a second, different part,
  // headers that differ: the message names the field).
  Result<Outcome> OnPart(const proto::PartReport& report, std::int64_t unix_ms);

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
  struct Pending {
    proto::CheckpointHeader header;
    std::map<std::int32_t, proto::CheckpointPart> parts;
  };
  bool IsCommitted(const std::string& id) const;

  const std::string run_id_;
  const CheckpointConfig rule_;
  std::int64_t ever_committed_;
  std::int32_t world_size_ = 0;
  std::map<std::string, Pending> pending_;
  std::map<Position, RetentionCandidate> committed_;
  std::map<Position, proto::Evaluation> evaluations_;
};

}  // namespace dd2
