#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/run_config.h"
#include "tests/simulation/sim_group.h"
#include "tests/simulation/world.h"

namespace dd2::simulation {

// What stands for the weights: every update hashes its place into it, so a lost, doubled or mixed
// update shows.
std::uint64_t Updated(std::uint64_t value, std::int32_t phase, std::int64_t step,
                      std::int32_t update);
// At the end of a run that nothing disturbed.
std::uint64_t UndisturbedValue(const std::vector<PhaseConfig>& phases);

// The shared disk: what lies in checkpoints' folders.
struct Disk {
  std::map<std::string, std::map<std::string, std::uint64_t>> parts;  // id -> file -> state
  std::map<std::string, std::vector<std::string>> manifests;          // id -> its files
  TimePoint full_until;                                               // most writes fail
  std::set<std::string> failed;  // ids that some write failed for
};

// A machine's memory that outlives its workers: two snapshots of each rank, newest first.
struct KeptSnapshot {
  Snapshot state;
  proto::MemorySnapshot said;
};
using MachineMemory = std::map<std::int32_t, std::deque<KeptSnapshot>>;  // by local rank

struct WorkerPlace {
  std::string domain;
  std::int32_t local_rank = 0;
  std::int32_t local_size = 1;
  std::int64_t pid = 0;
};

// A worker process as the protocol sees it: what the real one does, with numbers for networks.
class SimWorker final : public Client {
 public:
  SimWorker(World& world, Network& network, Disk& disk, MachineMemory& memory, Groups& groups,
            const std::vector<PhaseConfig>& phases, const Timeouts& timeouts, WorkerPlace place,
            std::function<void(int status)> on_exit);

  void Begin();  // the program has been loaded
  void Kill();   // it is gone at once
  void Stop() { stopped_ = true; }
  void Continue();

  void OnEnvelope(const proto::Envelope& envelope) override;
  void OnCut() override;
  const std::string& domain() const override { return place_.domain; }
  bool alive() const { return alive_; }
  std::uint64_t value() const { return value_; }
  const proto::Position& position() const { return position_; }
  const WorkerPlace& place() const { return place_; }

 private:
  // Runs `what` unless the process is dead by then; a stopped one runs it when it continues.
  void Always(milliseconds delay, std::function<void()> what);
  // The same, unless it has gone on to something else (a new generation).
  void Later(milliseconds delay, std::function<void()> what);
  void Handle(const proto::Envelope& envelope);
  void Send(proto::Envelope envelope);
  void Flush();
  void Exit(int status);
  void Connect();
  void SayHello(bool resumes);
  void Beat();
  void OnAssignment(const proto::Envelope& envelope);
  void OnRegroup(const proto::Envelope& envelope);
  void OnLease(const proto::Lease& lease);
  void OnRecorded(const proto::Position& recorded);
  void SendKept();
  void JoinGroup();
  void Synchronise();
  void GoOn();
  void Work();
  void Update();
  void FinishStep();
  void TakeSnapshot();
  // What this rank brings into the group: its state, or what it was told to recall.
  Snapshot Brought() const;
  bool IsBorder() const;
  bool IsLast() const;
  void CheckpointIfDue(bool requested, std::function<void()> then);
  void Save(bool for_commit, std::function<void()> then);
  void Begin(bool for_commit, const std::function<void()>& then);
  void OnWritten(const proto::PartReport& report, std::uint64_t generation, std::uint64_t value);
  void WaitForDecision(std::function<void(bool committed)> then);
  void OnDecided();
  void AfterStep();
  void Collective(std::function<void()> then);
  void Trouble();
  proto::HeldState Held() const;
  const PhaseConfig& phase() const {
    return phases_.at(static_cast<std::size_t>(position_.phase()));
  }

  World& world_;
  Network& network_;
  Disk& disk_;
  MachineMemory& memory_;
  Groups& groups_;
  const std::vector<PhaseConfig>& phases_;
  const Timeouts& timeouts_;
  const WorkerPlace place_;
  const std::function<void(int)> on_exit_;

  bool alive_ = true;
  bool stopped_ = false;
  std::deque<std::function<void()>> backlog_;  // of a stopped process
  std::uint64_t epoch_ = 0;                    // what was begun before counts no more

  ConnectionId connection_;
  bool talking_ = false;   // the coordinator has answered on this connection
  bool assigned_ = false;  // has had an Assignment of `generation_`
  TimePoint away_since_;
  std::deque<proto::Envelope> unsent_;
  std::uint64_t generation_ = 0;
  std::optional<proto::Assignment> assignment_;
  std::shared_ptr<SimGroup> group_;
  std::uint64_t collectives_ = 0;
  bool waiting_ = false;

  bool has_state_ = false;
  bool pending_ = false;
  std::uint64_t value_ = 0;
  proto::Position position_;
  std::int32_t lease_phase_ = -1;
  std::int64_t lease_end_ = 0;
  bool hungry_ = false;  // waits for a lease
  proto::Desired desired_;
  std::uint64_t requests_served_ = 0;
  bool paused_ = false;
  std::string committed_;
  std::optional<proto::CheckpointFailed> failed_;  // the newest of this generation
  std::string begun_;                              // the newest, goes back with the state
  bool owed_ = false;
  std::string saving_;  // the newest that was begun in this generation
  std::int32_t attempt_ = 0;
  bool writing_ = false;                      // beside the training
  std::function<void()> after_writing_;       // the training waits for the disk
  std::function<void(bool)> after_decision_;  // it waits for the coordinator
  std::vector<proto::Envelope> reports_;      // to be said again after a reconnection
  proto::Desired step_wish_;
  std::deque<proto::Progress> kept_;
};

}  // namespace dd2::simulation
