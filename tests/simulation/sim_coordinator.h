#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/run_core.h"
#include "tests/simulation/sim_worker.h"

namespace dd2::simulation {

// A coordinator process: the real RunCore on a simulated disk. It may die between any two actions.
// Checks, while it works, what must always hold.
class SimCoordinator final : public Server {
 public:
  SimCoordinator(World& world, Network& network, Disk& disk, RunConfig config);

  void Begin();  // first life
  // kill -9, at once or between two actions that it performs next.
  void Kill();
  void KillAtAction(std::uint64_t count) { die_after_ = count; }
  // Does nothing for a time and then finds out that the clock has gone on.
  void Freeze(milliseconds time);

  bool up() const override { return core_ != nullptr; }
  void OnEnvelope(ConnectionId from, const proto::Envelope& envelope) override;
  void OnCut(ConnectionId connection, const std::string& reason) override;
  void Drain(const std::string& domain);
  void Wish(int which);  // pause, resume or checkpoint: people ask for such things

  std::optional<ExitCode> exit_code() const { return exit_code_; }
  bool over() const;
  const std::vector<std::pair<std::int32_t, std::int64_t>>& record() const { return record_; }
  bool formed() const { return newest_generation_ > 0; }
  std::string message() const { return message_; }
  std::int64_t steps_lost() const { return steps_lost_; }

 private:
  void TakeOver();
  void Tick();
  void Perform(Actions actions);
  void Do(const Action& action);
  void OnJournal(const proto::JournalRecord& record);
  void OnFormed(const proto::GenerationFormed& formed);
  void OnCommit(const proto::CheckpointManifest& manifest);
  void Publish(const proto::CheckpointManifest& manifest);
  void CheckNewest() const;
  Moment Now() const;

  World& world_;
  Network& network_;
  Disk& disk_;
  const RunConfig config_;
  std::unique_ptr<RunCore> core_;
  std::uint64_t life_ = 0;
  std::optional<std::uint64_t> die_after_;
  TimePoint frozen_until_;
  bool reading_late_ = false;                  // what came meanwhile is read first, in order
  std::vector<std::function<void()>> unread_;  // of a frozen process

  // What outlives it.
  std::vector<proto::JournalRecord> journal_;
  std::vector<std::pair<std::int32_t, std::int64_t>> record_;
  std::uint64_t newest_generation_ = 0;  // formed
  std::set<std::string> drained_;        // were told to leave
  std::set<std::string> left_;           // and a generation was formed without them
  std::int64_t steps_lost_ = 0;
  std::string message_;
  std::optional<ExitCode> exit_code_;
};

}  // namespace dd2::simulation
