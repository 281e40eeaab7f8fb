#include "worker/engine/control_client.h"

#include <algorithm>
#include <utility>

#include "common/timeouts.h"

namespace dd2 {

ControlClient::ControlClient(BlockingChannel channel) : channel_(std::move(channel)) {}

Result<std::unique_ptr<ControlClient>> ControlClient::Join(const ControlOptions& options) {
  DD2_TRY_ASSIGN(BlockingChannel channel,
                 BlockingChannel::Connect(options.host, options.port, timeouts::kHello));
  std::unique_ptr<ControlClient> client(new ControlClient(std::move(channel)));
  proto::Envelope hello;
  *hello.mutable_worker_hello() = options.hello;
  DD2_TRY(client->SendEnvelope(std::move(hello)));
  DD2_TRY(client->AwaitAssignment(timeouts::kWorkersJoin));
  client->receiver_ = std::thread([raw = client.get()] { raw->ReceiveLoop(); });
  return client;
}

ControlClient::~ControlClient() {
  stopping_ = true;
  channel_.Shutdown();
  if (receiver_.joinable()) receiver_.join();
}

Status ControlClient::AwaitAssignment(std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) {
      return Error(Code::kDeadlineExceeded,
                   "no assignment from the coordinator: not all workers of the run have joined");
    }
    Result<std::string> frame = channel_.Receive(std::min(left, timeouts::kHeartbeatInterval));
    if (!frame && frame.error().code() == Code::kDeadlineExceeded) {
      proto::Envelope beat;
      beat.mutable_heartbeat()->set_phase(-1);
      DD2_TRY(SendEnvelope(std::move(beat)));
      continue;
    }
    if (!frame) return frame.error().Wrap("waiting for an assignment");
    proto::Envelope envelope;
    if (!envelope.ParseFromString(*frame)) {
      return Error(Code::kCorruption, "the coordinator sent a message that does not parse");
    }
    if (envelope.has_refused()) {
      return Error(Code::kFailedPrecondition,
                   "the coordinator refused this worker: " + envelope.refused().message());
    }
    if (envelope.has_assignment()) {
      assignment_ = envelope.assignment();
      run_id_ = envelope.run_id();
      generation_ = envelope.generation();
      return {};
    }
    Handle(std::move(envelope));
  }
}

void ControlClient::ReceiveLoop() {
  while (!stopping_) {
    Result<std::string> frame = channel_.Receive(timeouts::kHeartbeatInterval);
    if (!frame && frame.error().code() == Code::kDeadlineExceeded) {
      proto::Envelope beat;
      {
        const std::lock_guard lock(mutex_);
        beat.mutable_heartbeat()->set_phase(phase_);
        beat.mutable_heartbeat()->set_step(step_);
      }
      // A failure shows in the next Receive.
      (void)SendEnvelope(std::move(beat));
      continue;
    }
    if (!frame) {
      const std::lock_guard lock(mutex_);
      lost_ = frame.error().Wrap("the coordinator is lost");
      changed_.notify_all();
      return;
    }
    proto::Envelope envelope;
    if (envelope.ParseFromString(*frame)) Handle(std::move(envelope));
  }
}

void ControlClient::Handle(proto::Envelope envelope) {
  const std::lock_guard lock(mutex_);
  // The fence: what an older generation still had under way does not concern us.
  if (generation_ != 0 && envelope.generation() < generation_) return;
  if (envelope.has_lease()) {
    leases_.push_back(envelope.lease());
  } else if (envelope.has_desired() && envelope.desired().version() > desired_.version()) {
    desired_ = envelope.desired();
  } else if (envelope.has_checkpoint_committed()) {
    committed_ = std::max(committed_, envelope.checkpoint_committed().checkpoint_id());
  } else if (envelope.has_refused()) {
    lost_ = Error(Code::kFailedPrecondition, envelope.refused().message());
  } else if (envelope.has_run_finished()) {
    finished_ = true;
  }
  changed_.notify_all();
}

Status ControlClient::SendEnvelope(proto::Envelope envelope) {
  envelope.set_run_id(run_id_);
  envelope.set_generation(generation_);
  const std::string bytes = envelope.SerializeAsString();
  const std::lock_guard lock(send_mutex_);
  return channel_.Send(bytes, timeouts::kWrite);
}

Status ControlClient::WaitUntil(const std::function<bool()>& ready,
                                std::optional<std::chrono::milliseconds> timeout) {
  std::unique_lock lock(mutex_);
  const auto done = [&] { return lost_.has_value() || ready(); };
  if (!timeout) {
    changed_.wait(lock, done);
  } else if (!changed_.wait_for(lock, *timeout, done)) {
    return Error(Code::kDeadlineExceeded, "no answer from the coordinator in time");
  }
  if (lost_ && !ready()) return *lost_;
  return {};
}

Result<std::optional<proto::Lease>> ControlClient::NextLease() {
  DD2_TRY(WaitUntil([this] { return !leases_.empty() || finished_; }, std::nullopt));
  const std::lock_guard lock(mutex_);
  if (leases_.empty()) return std::optional<proto::Lease>();
  std::optional<proto::Lease> lease = leases_.front();
  leases_.pop_front();
  return lease;
}

proto::Desired ControlClient::desired() {
  const std::lock_guard lock(mutex_);
  return desired_;
}

Status ControlClient::WaitForDesiredAfter(std::uint64_t version) {
  return WaitUntil([this, version] { return desired_.version() > version; }, std::nullopt);
}

Status ControlClient::WaitForCommit(const std::string& checkpoint_id,
                                    std::chrono::milliseconds timeout) {
  const Status status =
      WaitUntil([this, &checkpoint_id] { return committed_ >= checkpoint_id; }, timeout);
  if (!status) return status.error().Wrap("checkpoint " + checkpoint_id + " was not committed");
  return {};
}

Status ControlClient::Send(proto::Progress progress) {
  proto::Envelope envelope;
  *envelope.mutable_progress() = std::move(progress);
  return SendEnvelope(std::move(envelope));
}

Status ControlClient::Send(proto::PartReport report) {
  proto::Envelope envelope;
  *envelope.mutable_part_report() = std::move(report);
  return SendEnvelope(std::move(envelope));
}

Status ControlClient::Send(proto::CheckpointHeld held) {
  proto::Envelope envelope;
  *envelope.mutable_checkpoint_held() = std::move(held);
  return SendEnvelope(std::move(envelope));
}

Status ControlClient::Send(proto::WorkerFailed failed) {
  proto::Envelope envelope;
  *envelope.mutable_worker_failed() = std::move(failed);
  return SendEnvelope(std::move(envelope));
}

Status ControlClient::Send(proto::WorkerDone done) {
  proto::Envelope envelope;
  *envelope.mutable_worker_done() = std::move(done);
  return SendEnvelope(std::move(envelope));
}

void ControlClient::SetPosition(std::int32_t phase, std::int64_t step) {
  const std::lock_guard lock(mutex_);
  phase_ = phase;
  step_ = step;
}

}  // namespace dd2
