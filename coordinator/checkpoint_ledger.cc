#include "coordinator/checkpoint_ledger.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "common/check.h"

namespace dd2 {

namespace {

constexpr std::int32_t kManifestFormat = 1;

// An id becomes a folder's name.
bool IsSafeName(const std::string& id) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-';
  };
  return !id.empty() && id.size() <= 64 && std::all_of(id.begin(), id.end(), allowed);
}

// The first thing in which two headers differ; empty when they are equal.
std::string Difference(const proto::CheckpointHeader& a, const proto::CheckpointHeader& b) {
  const auto differ = [](const char* what, const std::string& x, const std::string& y) {
    return std::string(what) + " (" + x + " and " + y + ")";
  };
  if (a.SerializeAsString() == b.SerializeAsString()) return "";
  if (a.phase() != b.phase() || a.step() != b.step()) {
    return differ("the position", std::to_string(a.phase()) + "/" + std::to_string(a.step()),
                  std::to_string(b.phase()) + "/" + std::to_string(b.step()));
  }
  if (a.counters().SerializeAsString() != b.counters().SerializeAsString()) {
    return differ("the counters", a.counters().ShortDebugString(), b.counters().ShortDebugString());
  }
  if (a.config_digest() != b.config_digest()) {
    return differ("the configuration", a.config_digest(), b.config_digest());
  }
  if (a.teacher_digest() != b.teacher_digest()) {
    return differ("the teacher", a.teacher_digest(), b.teacher_digest());
  }
  if (a.numeric_mode() != b.numeric_mode()) {
    return differ("the numeric mode", a.numeric_mode(), b.numeric_mode());
  }
  if (a.code_version() != b.code_version()) {
    return differ("the code version", a.code_version(), b.code_version());
  }
  if (a.seed() != b.seed()) {
    return differ("the seed", std::to_string(a.seed()), std::to_string(b.seed()));
  }
  if (a.extra_json() != b.extra_json()) return "the extra state";
  return "the list of tensors";
}

}  // namespace

CheckpointLedger::CheckpointLedger(std::string run_id, CheckpointConfig rule,
                                   std::int64_t ever_committed)
    : run_id_(std::move(run_id)), rule_(std::move(rule)), ever_committed_(ever_committed) {}

void CheckpointLedger::Restore(const proto::CheckpointManifest& manifest) {
  const Position at{manifest.header().phase(), manifest.header().step()};
  committed_[at] = CandidateOf(manifest);
}

void CheckpointLedger::OnEvaluation(const proto::Evaluation& evaluation) {
  evaluations_[Position{evaluation.phase(), evaluation.step()}] = evaluation;
}

void CheckpointLedger::GoBack(std::int32_t phase, std::int64_t step) {
  evaluations_.erase(evaluations_.upper_bound(Position{phase, step}), evaluations_.end());
}

void CheckpointLedger::StartGeneration(std::int32_t world_size) {
  DD2_CHECK(world_size >= 1);
  world_size_ = world_size;
  pending_.clear();
  failed_.clear();
}

Status CheckpointLedger::CheckSender(const std::string& id, std::int32_t rank) const {
  const std::string who = "rank " + std::to_string(rank) + ", checkpoint '" + id + "': ";
  if (!IsSafeName(id)) {
    return Error(Code::kInvalidArgument, who + "the id may only hold a-z, 0-9 and '-'");
  }
  if (rank < 0 || rank >= world_size_) {
    return Error(Code::kInvalidArgument,
                 who + "there are " + std::to_string(world_size_) + " ranks");
  }
  return Status();
}

CheckpointLedger::Pending* CheckpointLedger::Find(const std::string& id, std::int32_t attempt,
                                                  Outcome& outcome) {
  if (IsCommitted(id)) {
    outcome.already_committed = true;
    return nullptr;
  }
  const auto failed = failed_.find(id);
  if (failed != failed_.end() && failed->second.attempt() >= attempt) {
    outcome.failed = failed->second;
    outcome.already_failed = true;
    return nullptr;
  }
  Pending& pending = pending_[id];
  // Nobody tries again before it was told that the try before failed: by a coordinator that died.
  if (attempt > pending.attempt) {
    pending = Pending();
    pending.attempt = attempt;
  }
  return attempt == pending.attempt ? &pending : nullptr;
}

void CheckpointLedger::DecideFailed(const std::string& id, Outcome& outcome) {
  const Pending& pending = pending_.at(id);
  if (static_cast<std::int32_t>(pending.parts.size() + pending.failures.size()) < world_size_) {
    return;
  }
  proto::CheckpointFailed failed;
  failed.set_checkpoint_id(id);
  failed.set_attempt(pending.attempt);
  failed.set_reason("rank " + std::to_string(pending.failures.begin()->first) + ": " +
                    pending.failures.begin()->second);
  pending_.erase(id);
  failed_[id] = failed;
  outcome.failed = std::move(failed);
}

Result<CheckpointLedger::Outcome> CheckpointLedger::OnPartFailed(const proto::PartFailed& failed) {
  const std::string& id = failed.checkpoint_id();
  DD2_TRY(CheckSender(id, failed.rank()));
  Outcome outcome;
  Pending* pending = Find(id, failed.attempt(), outcome);
  if (pending == nullptr) return outcome;
  pending->parts.erase(failed.rank());
  pending->failures.try_emplace(failed.rank(), failed.message());
  DecideFailed(id, outcome);
  return outcome;
}

Result<CheckpointLedger::Outcome> CheckpointLedger::OnPart(const proto::PartReport& report,
                                                           std::int64_t unix_ms) {
  const std::string& id = report.checkpoint_id();
  const std::string who = "rank " + std::to_string(report.rank()) + ", checkpoint '" + id + "': ";
  DD2_TRY(CheckSender(id, report.rank()));
  if (report.header().world_size() != world_size_) {
    return Error(Code::kInvalidArgument, who + "written for " +
                                             std::to_string(report.header().world_size()) +
                                             " ranks, there are " + std::to_string(world_size_));
  }
  Outcome outcome;
  Pending* const pending = Find(id, report.attempt(), outcome);
  if (pending == nullptr) return outcome;
  if (!pending->header) pending->header = report.header();
  const std::string difference = Difference(*pending->header, report.header());
  if (!difference.empty()) {
    return Error(Code::kInvalidArgument, who + "ranks do not agree on " + difference);
  }
  const auto [part, inserted] = pending->parts.try_emplace(report.rank(), report.part());
  if (!inserted && part->second.SerializeAsString() != report.part().SerializeAsString()) {
    return Error(Code::kInvalidArgument, who + "reported twice, with different parts");
  }
  if (!pending->failures.empty()) {
    DecideFailed(id, outcome);
    return outcome;
  }
  if (static_cast<std::int32_t>(pending->parts.size()) < world_size_) return outcome;

  proto::CheckpointManifest manifest;
  manifest.set_format_version(kManifestFormat);
  manifest.set_checkpoint_id(id);
  manifest.set_run_id(run_id_);
  *manifest.mutable_header() = *pending->header;
  for (auto& [rank, reported] : pending->parts) *manifest.add_parts() = std::move(reported);
  manifest.set_committed_unix_ms(unix_ms);
  manifest.set_ordinal(++ever_committed_);
  const Position at{pending->header->phase(), pending->header->step()};
  const auto behind = evaluations_.upper_bound(at);
  if (behind != evaluations_.begin()) *manifest.mutable_evaluation() = std::prev(behind)->second;
  pending_.erase(id);
  Restore(manifest);
  outcome.commit = std::move(manifest);
  return outcome;
}

std::vector<std::string> CheckpointLedger::TakeExpired() {
  std::vector<RetentionCandidate> candidates;
  for (const auto& [position, candidate] : committed_) candidates.push_back(candidate);
  std::vector<std::string> expired = ExpiredCheckpoints(rule_, candidates);
  for (const std::string& id : expired) Forget(id);
  return expired;
}

void CheckpointLedger::Forget(const std::string& id) {
  std::erase_if(committed_, [&id](const auto& entry) { return entry.second.id == id; });
}

std::int32_t CheckpointLedger::PartsOf(const std::string& id) const {
  const auto found = pending_.find(id);
  return found == pending_.end() ? 0 : static_cast<std::int32_t>(found->second.parts.size());
}

std::vector<std::string> CheckpointLedger::committed() const {
  std::vector<std::string> ids;
  for (const auto& [position, candidate] : committed_) ids.push_back(candidate.id);
  return ids;
}

std::string CheckpointLedger::newest() const {
  return committed_.empty() ? std::string() : committed_.rbegin()->second.id;
}

bool CheckpointLedger::IsCommitted(const std::string& id) const {
  return std::any_of(committed_.begin(), committed_.end(),
                     [&id](const auto& entry) { return entry.second.id == id; });
}

}  // namespace dd2
