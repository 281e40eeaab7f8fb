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

#include "common/blocking_channel.h"
#include "common/result.h"
#include "proto/control.pb.h"

namespace dd2 {

// Where the coordinator is and who we are to it.
struct ControlOptions {
  std::string host = "127.0.0.1";
  std::uint16_t port = 0;
  proto::WorkerHello hello;  // carries the run secret
};

// The worker's side of the control connection. A thread of its own receives and sends heart-beats;
// the compute thread calls everything below. When the coordinator is lost every call returns
// kUnavailable: this worker cannot go on.
class ControlClient {
 public:
  // Says hello and waits for the assignment. kFailedPrecondition: refused (message of the
  // coordinator).
  static Result<std::unique_ptr<ControlClient>> Join(const ControlOptions& options);
  ~ControlClient();
  ControlClient(const ControlClient&) = delete;
  ControlClient& operator=(const ControlClient&) = delete;

  const proto::Assignment& assignment() const { return assignment_; }
  const std::string& run_id() const { return run_id_; }
  std::uint64_t generation() const { return generation_; }

  // The next lease, or nothing when the run is finished. Blocks.
  Result<std::optional<proto::Lease>> NextLease();
  // The newest wish known to this rank.
  proto::Desired desired();
  // Blocks until a wish newer than `version` is known.
  Status WaitForDesiredAfter(std::uint64_t version);
  // Blocks until the coordinator has committed the checkpoint.
  Status WaitForCommit(const std::string& checkpoint_id, std::chrono::milliseconds timeout);

  Status Send(proto::Progress progress);
  Status Send(proto::PartReport report);
  Status Send(proto::CheckpointHeld held);
  Status Send(proto::WorkerFailed failed);
  Status Send(proto::WorkerDone done);
  // What the heart-beats say about where we are.
  void SetPosition(std::int32_t phase, std::int64_t step);

 private:
  explicit ControlClient(BlockingChannel channel);
  Status AwaitAssignment(std::chrono::milliseconds timeout);
  void ReceiveLoop();
  void Handle(proto::Envelope envelope);
  Status SendEnvelope(proto::Envelope envelope);
  // Waits on changed_ until `ready` (called with mutex_ held) or the connection is lost.
  Status WaitUntil(const std::function<bool()>& ready,
                   std::optional<std::chrono::milliseconds> timeout);

  BlockingChannel channel_;
  // Constant once Join has returned.
  proto::Assignment assignment_;
  std::string run_id_;
  std::uint64_t generation_ = 0;

  std::mutex send_mutex_;
  std::mutex mutex_;  // guards everything below
  std::condition_variable changed_;
  std::deque<proto::Lease> leases_;
  proto::Desired desired_;
  std::string committed_;  // newest committed checkpoint; ids sort by position
  bool finished_ = false;
  std::optional<Error> lost_;
  std::int32_t phase_ = -1;
  std::int64_t step_ = 0;

  std::atomic<bool> stopping_{false};
  std::thread receiver_;
};

}  // namespace dd2
