#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/blocking_channel.h"
#include "common/result.h"
#include "common/timeouts.h"
#include "proto/control.pb.h"
#include "worker/engine/checkpoint_saver.h"

namespace dd2 {

// Where the coordinator is and who we are to it.
struct ControlOptions {
  std::string host = "127.0.0.1";
  std::uint16_t port = 0;
  proto::WorkerHello hello;  // carries the run secret
  // How often to say that we live, how long the coordinator may be away, and the time between two
  // tries to reach it.
  std::chrono::milliseconds beat = Timeouts().heartbeat_interval;
  std::chrono::milliseconds away = Timeouts().coordinator_away;
  std::chrono::milliseconds reconnect = timeouts::kReconnect;
  // Called on the control thread: generations below this number are over.
  std::function<void(std::uint64_t generation)> abort_before;
  // What heart-beats say: collectives of this generation that were entered; whether inside one.
  std::function<std::pair<std::uint64_t, bool>()> collectives;
};

// The worker's side of the control connection, through all generations. A thread of its own
// receives, sends heart-beats, and reconnects while the coordinator is away; the compute thread
// calls everything below. Calls that wait return kAborted as soon as the generation that the
// compute thread works in is over, and kUnavailable when the coordinator is away for too long.
class ControlClient final : public CommitChannel {
 public:
  // Says hello, as often as `away` allows. kUnavailable: nobody is there.
  static Result<std::unique_ptr<ControlClient>> Join(const ControlOptions& options);
  ~ControlClient() override;
  ControlClient(const ControlClient&) = delete;
  ControlClient& operator=(const ControlClient&) = delete;

  // Leaves the current generation, answers every Regroup with `held`, and blocks until this rank
  // has its place in the newest generation; nothing: the run is finished. kFailedPrecondition:
  // refused (message of the coordinator).
  Result<std::optional<proto::Assignment>> NextAssignment(const proto::HeldState& held);
  // Blocks until the current generation is over. kDeadlineExceeded: the coordinator did not say so.
  Status WaitForRegroup(std::chrono::milliseconds timeout);
  bool regrouping();
  std::string run_id();                                  // once there was an assignment
  std::uint64_t generation() const { return working_; }  // that the compute thread is in

  // The next lease of this generation, without steps that were leased before; nothing when the run
  // is finished. Blocks.
  Result<std::optional<proto::Lease>> NextLease();
  // The newest wish known to this rank.
  proto::Desired desired();
  // Blocks until a wish newer than `version` is known.
  Status WaitForDesiredAfter(std::uint64_t version);
  Result<bool> WaitForCheckpoint(const std::string& id, std::int32_t attempt,
                                 std::chrono::milliseconds timeout) override;

  // Keeps the progress until it is recorded, and sends it (without metrics, but for rank 0). While
  // the coordinator is away nothing is sent, and it is no error; it catches up afterwards.
  void Send(const proto::Progress& progress);
  std::vector<proto::Progress> Unrecorded();
  // In place of this rank's own; rank 0 sends all of it.
  void TakeOverUnrecorded(std::vector<proto::Progress> progress);
  void SendPart(std::uint64_t generation, proto::Envelope envelope) override;
  void Send(proto::CheckpointHeld held) override;
  void SetWaitsForDisk(bool waits) override { waits_for_disk_ = waits; }
  // Sent again after the coordinator was away, as long as the generation lasts.
  void Send(proto::WorkerFailed failed);
  // Blocks until it is sent.
  Status Send(proto::WorkerDone done);
  // What heart-beats and a hello after a lost connection say about where we are.
  void SetHeld(const proto::HeldState& held);

 private:
  explicit ControlClient(ControlOptions options);
  Status Connect(bool resumes);
  bool Reconnect();  // false: too long
  void ReceiveLoop();
  void SendHeartbeat();
  void Handle(const proto::Envelope& envelope);
  void HandleGeneration(const proto::Envelope& envelope);  // mutex_ is held, as below
  void AddLease(proto::Lease lease);
  void SetRecorded(const proto::Position& recorded);
  void CatchUp();  // send_mutex_ is held
  // What a hello or Regrouped says; mutex_ is held.
  proto::HeldState WithRecorded(proto::HeldState held) const;
  Status SendNow(proto::Envelope envelope, std::uint64_t generation);
  // And again after a reconnection, while `generation` lasts.
  void SendKept(std::uint64_t generation, proto::Envelope envelope);
  void ForgetDecided(bool failures);
  void SendProgress(const proto::Progress& progress);
  bool over() const { return generation_ > working_; }
  // Waits on changed_ until `ready` (called with mutex_ held), the generation is over, or the
  // coordinator is lost.
  Status WaitUntil(const std::function<bool()>& ready,
                   std::optional<std::chrono::milliseconds> timeout);

  const ControlOptions options_;
  std::mutex send_mutex_;  // before mutex_; one frame at a time, and the order of Progress
  std::mutex mutex_;       // guards everything below
  std::condition_variable changed_;
  std::shared_ptr<BlockingChannel> channel_;
  bool connected_ = false;
  std::string run_id_;
  std::uint64_t generation_ = 0;  // newest that we were told of
  std::atomic<std::uint64_t> working_{0};
  bool to_answer_ = false;                       // Regroup
  std::optional<proto::Assignment> assignment_;  // of generation_, not yet taken
  std::atomic<std::int32_t> rank_{0};            // in working_
  std::deque<proto::Lease> leases_;
  std::int32_t leased_phase_ = -1;
  std::int64_t leased_end_ = 0;  // steps of leased_phase_ that were leased in this generation
  proto::Desired desired_;
  std::string committed_;  // newest committed checkpoint; ids sort by position
  std::optional<proto::CheckpointFailed> failed_;  // the newest of this generation
  bool finished_ = false;
  std::optional<Error> lost_;
  proto::HeldState held_;
  std::deque<proto::Progress> unrecorded_;  // as many as leases allow
  std::vector<proto::Envelope> kept_;       // messages of working_ to be sent again

  std::atomic<bool> waits_for_disk_{false};
  std::atomic<bool> stopping_{false};
  std::thread receiver_;
};

}  // namespace dd2
