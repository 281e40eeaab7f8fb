#include "worker/engine/control_client.h"

#include <algorithm>
#include <utility>

#include "proto/position.h"

namespace dd2 {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// Not behind `recorded`.
bool IsRecorded(const proto::Progress& progress, const proto::Position& recorded) {
  return std::pair(progress.phase(), progress.step()) <=
         std::pair(recorded.phase(), recorded.step());
}

Error Over() { return Error(Code::kAborted, "the generation is over"); }

}  // namespace

ControlClient::ControlClient(ControlOptions options)
    : options_(std::move(options)), held_(options_.hello.held()) {}

Result<std::unique_ptr<ControlClient>> ControlClient::Join(const ControlOptions& options) {
  std::unique_ptr<ControlClient> client(new ControlClient(options));
  // The coordinator may be away just now, as it may be at any later moment.
  const auto deadline = steady_clock::now() + options.away;
  for (Status connected = client->Connect(false); !connected; connected = client->Connect(false)) {
    if (steady_clock::now() >= deadline) return connected.error();
    std::this_thread::sleep_for(options.reconnect);
  }
  client->connected_ = true;
  client->receiver_ = std::thread([raw = client.get()] { raw->ReceiveLoop(); });
  return client;
}

ControlClient::~ControlClient() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    if (channel_) channel_->Shutdown();
  }
  changed_.notify_all();
  if (receiver_.joinable()) receiver_.join();
}

Status ControlClient::Connect(bool resumes) {
  DD2_TRY_ASSIGN(BlockingChannel connected,
                 BlockingChannel::Connect(options_.host, options_.port, timeouts::kHello));
  auto channel = std::make_shared<BlockingChannel>(std::move(connected));
  proto::Envelope hello;
  {
    const std::lock_guard lock(mutex_);
    *hello.mutable_worker_hello() = options_.hello;
    hello.mutable_worker_hello()->set_resumes(resumes);
    hello.mutable_worker_hello()->set_rank(working_ == 0 || over() ? -1 : rank_.load());
    *hello.mutable_worker_hello()->mutable_held() = WithRecorded(held_);
    hello.set_run_id(run_id_);
    hello.set_generation(generation_);
    if (stopping_) return Error(Code::kUnavailable, "this worker is at its end");
    channel_ = channel;
  }
  return channel->Send(hello.SerializeAsString(), timeouts::kWrite);
}

// The first answer to a hello is Resumed, Regroup or Refused; Handle() acts on it.
bool ControlClient::Reconnect() {
  const auto deadline = steady_clock::now() + options_.away;
  while (steady_clock::now() < deadline) {
    bool fresh = false;
    {
      std::unique_lock lock(mutex_);
      connected_ = false;
      changed_.wait_for(lock, options_.reconnect, [this] { return stopping_.load(); });
      if (stopping_ || finished_ || lost_) return false;
      fresh = generation_ == 0;
    }
    if (!Connect(!fresh)) continue;
    if (!fresh) {
      const Result<std::string> frame = channel_->Receive(timeouts::kHello);
      proto::Envelope envelope;
      if (!frame || !envelope.ParseFromString(*frame)) continue;
      Handle(envelope);
    }
    const std::lock_guard sending(send_mutex_);
    CatchUp();
    return true;
  }
  return false;
}

void ControlClient::CatchUp() {
  std::vector<proto::Envelope> kept;
  std::deque<proto::Progress> progress;
  {
    const std::lock_guard lock(mutex_);
    connected_ = true;
    if (!over()) kept = kept_;
    if (!over() && rank_ == 0) progress = unrecorded_;
    // A Regroup that was answered to a coordinator which is gone.
    to_answer_ = to_answer_ || (over() && !assignment_ && generation_ != 0);
  }
  changed_.notify_all();
  for (const proto::Progress& step : progress) SendProgress(step);
  for (const proto::Envelope& envelope : kept) (void)SendNow(envelope, working_);
}

void ControlClient::ReceiveLoop() {
  while (!stopping_) {
    Result<std::string> frame = channel_->Receive(options_.beat);
    proto::Envelope envelope;
    if (frame) {
      if (envelope.ParseFromString(*frame)) Handle(envelope);
      continue;
    }
    if (frame.error().code() == Code::kDeadlineExceeded) {
      SendHeartbeat();
      continue;
    }
    if (Reconnect()) continue;
    const std::lock_guard lock(mutex_);
    if (!lost_) lost_ = frame.error().Wrap("the coordinator is lost");
    changed_.notify_all();
    return;
  }
}

void ControlClient::SendHeartbeat() {
  proto::Envelope beat;
  std::uint64_t generation = 0;
  {
    const std::lock_guard lock(mutex_);
    const bool works = working_ != 0 && !over();
    beat.mutable_heartbeat()->set_phase(works ? held_.position().phase() : -1);
    beat.mutable_heartbeat()->set_step(held_.position().step());
    generation = generation_;
  }
  beat.mutable_heartbeat()->set_on_disk(waits_for_disk_);
  if (options_.collectives) {
    const auto [entered, waiting] = options_.collectives();
    beat.mutable_heartbeat()->set_collectives(entered);
    beat.mutable_heartbeat()->set_waiting(waiting);
  }
  // A failure shows in the next Receive.
  const std::lock_guard sending(send_mutex_);
  (void)SendNow(std::move(beat), generation);
}

void ControlClient::Handle(const proto::Envelope& envelope) {
  {
    const std::lock_guard lock(mutex_);
    // The fence: what an older generation still had under way does not concern us.
    if (envelope.generation() < generation_) return;
    run_id_ = envelope.run_id();
    HandleGeneration(envelope);
    if (envelope.has_lease()) {
      if (envelope.lease().has_recorded()) SetRecorded(envelope.lease().recorded());
      AddLease(envelope.lease());
    } else if (envelope.has_desired() && envelope.desired().version() > desired_.version()) {
      desired_ = envelope.desired();
    } else if (envelope.has_checkpoint_committed()) {
      committed_ = std::max(committed_, envelope.checkpoint_committed().checkpoint_id());
    } else if (envelope.has_checkpoint_failed()) {
      failed_ = envelope.checkpoint_failed();
    } else if (envelope.has_refused()) {
      lost_ = Error(Code::kFailedPrecondition,
                    "the coordinator refused this worker: " + envelope.refused().message());
    } else if (envelope.has_run_finished()) {
      finished_ = true;
    } else if (envelope.has_resumed()) {
      SetRecorded(envelope.resumed().recorded());
      committed_ = std::max(committed_, envelope.resumed().committed_checkpoint());
    }
    ForgetDecided(false);
  }
  changed_.notify_all();
  if (envelope.has_regroup() && options_.abort_before) {
    options_.abort_before(envelope.generation());
  }
}

// What every rank said of a save that failed is kept until a checkpoint is committed or the next
// save is reported: a coordinator that was restarted may not know of it, and some ranks may not
// have heard.
void ControlClient::ForgetDecided(bool failures) {
  std::erase_if(kept_, [this, failures](const proto::Envelope& kept) {
    if (!kept.has_part_failed() && !kept.has_part_report()) return false;
    const auto [id, attempt] =
        kept.has_part_failed()
            ? std::pair(kept.part_failed().checkpoint_id(), kept.part_failed().attempt())
            : std::pair(kept.part_report().checkpoint_id(), kept.part_report().attempt());
    return id <= committed_ ||
           (failures && failed_ &&
            std::pair(id, attempt) <= std::pair(failed_->checkpoint_id(), failed_->attempt()));
  });
}

void ControlClient::HandleGeneration(const proto::Envelope& envelope) {
  const bool regroup = envelope.has_regroup() && envelope.generation() > working_;
  if (!regroup && !envelope.has_assignment()) return;
  generation_ = envelope.generation();
  leases_.clear();
  leased_phase_ = -1;
  leased_end_ = 0;
  failed_.reset();
  assignment_.reset();
  to_answer_ = regroup;
  if (regroup) return;
  assignment_ = envelope.assignment();
  if (assignment_->has_recorded()) SetRecorded(assignment_->recorded());
  if (assignment_->has_start()) {
    committed_ = assignment_->committed_checkpoint();
  } else {  // the run goes back to a checkpoint
    unrecorded_.clear();
    committed_ = assignment_->restore_checkpoint();
  }
}

// A coordinator that came back says again what it said before.
void ControlClient::AddLease(proto::Lease lease) {
  if (lease.phase() < leased_phase_) return;
  const std::int64_t end = lease.first_step() + lease.count();
  if (lease.phase() == leased_phase_ && lease.first_step() < leased_end_) {
    lease.set_first_step(leased_end_);
    lease.set_count(end - leased_end_);
    if (lease.count() <= 0) return;
  }
  leased_phase_ = lease.phase();
  leased_end_ = end;
  leases_.push_back(std::move(lease));
}

proto::HeldState ControlClient::WithRecorded(proto::HeldState held) const {
  *held.mutable_recorded() =
      RecordedBefore(held.position(), unrecorded_.empty() ? nullptr : &unrecorded_.front());
  return held;
}

void ControlClient::SetRecorded(const proto::Position& recorded) {
  while (!unrecorded_.empty() && IsRecorded(unrecorded_.front(), recorded)) {
    unrecorded_.pop_front();
  }
}

Status ControlClient::SendNow(proto::Envelope envelope, std::uint64_t generation) {
  std::shared_ptr<BlockingChannel> channel;
  {
    const std::lock_guard lock(mutex_);
    if (!connected_) return Error(Code::kUnavailable, "the coordinator is away");
    channel = channel_;
    envelope.set_run_id(run_id_);
  }
  envelope.set_generation(generation);
  return channel->Send(envelope.SerializeAsString(), timeouts::kWrite);
}

Status ControlClient::WaitUntil(const std::function<bool()>& ready,
                                std::optional<milliseconds> timeout) {
  std::unique_lock lock(mutex_);
  const auto done = [&] { return lost_.has_value() || over() || ready(); };
  if (!timeout) {
    changed_.wait(lock, done);
  } else if (!changed_.wait_for(lock, *timeout, done)) {
    return Error(Code::kDeadlineExceeded, "no answer from the coordinator in time");
  }
  if (ready()) return {};
  if (lost_) return *lost_;
  return Over();
}

Result<std::optional<proto::Assignment>> ControlClient::NextAssignment(
    const proto::HeldState& held) {
  for (;;) {
    std::uint64_t generation = 0;
    proto::Envelope answer;
    {
      std::unique_lock lock(mutex_);
      held_ = held;
      changed_.wait(lock, [this] { return lost_ || finished_ || to_answer_ || assignment_; });
      if (finished_) return std::optional<proto::Assignment>();
      if (lost_) return *lost_;
      if (assignment_) {
        working_ = generation_;
        rank_ = assignment_->rank();
        kept_.clear();
        return std::exchange(assignment_, std::nullopt);
      }
      to_answer_ = false;
      generation = generation_;
      *answer.mutable_regrouped()->mutable_held() = WithRecorded(held);
    }
    const std::lock_guard sending(send_mutex_);
    (void)SendNow(std::move(answer), generation);  // when it fails, CatchUp asks for it again
  }
}

Status ControlClient::WaitForRegroup(milliseconds timeout) {
  std::unique_lock lock(mutex_);
  auto deadline = steady_clock::now() + timeout;
  while (!over() && !lost_) {
    if (steady_clock::now() > deadline) {
      return Error(Code::kDeadlineExceeded, "the coordinator did not call the ranks together");
    }
    // A coordinator that is away cannot do it yet.
    if (!connected_) deadline = steady_clock::now() + timeout;
    changed_.wait_for(lock, std::min(timeout, timeouts::kTick));
  }
  if (over()) return {};
  return *lost_;
}

std::string ControlClient::run_id() {
  const std::lock_guard lock(mutex_);
  return run_id_;
}

bool ControlClient::regrouping() {
  const std::lock_guard lock(mutex_);
  return over();
}

Result<std::optional<proto::Lease>> ControlClient::NextLease() {
  DD2_TRY(WaitUntil([this] { return !over() && (!leases_.empty() || finished_); }, std::nullopt));
  const std::lock_guard lock(mutex_);
  if (over()) return Over();
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

Result<bool> ControlClient::WaitForCheckpoint(const std::string& id, std::int32_t attempt,
                                              milliseconds timeout) {
  const auto committed = [this, &id] { return committed_ >= id; };
  const auto failed = [this, &id, attempt] {
    return failed_ && failed_->checkpoint_id() == id && failed_->attempt() >= attempt;
  };
  const Status status = WaitUntil([&] { return committed() || failed(); }, timeout);
  if (!status) return status.error().Wrap("checkpoint " + id + " was not committed");
  const std::lock_guard lock(mutex_);
  return committed();
}

void ControlClient::SendProgress(const proto::Progress& progress) {
  proto::Envelope envelope;
  *envelope.mutable_progress() = progress;
  if (rank_ != 0) envelope.mutable_progress()->clear_metrics();
  (void)SendNow(std::move(envelope), working_);
}

void ControlClient::Send(const proto::Progress& progress) {
  const std::lock_guard sending(send_mutex_);
  {
    const std::lock_guard lock(mutex_);
    unrecorded_.push_back(progress);
  }
  SendProgress(progress);
}

std::vector<proto::Progress> ControlClient::Unrecorded() {
  const std::lock_guard lock(mutex_);
  return {unrecorded_.begin(), unrecorded_.end()};
}

void ControlClient::TakeOverUnrecorded(std::vector<proto::Progress> progress) {
  const std::lock_guard sending(send_mutex_);
  {
    const std::lock_guard lock(mutex_);
    unrecorded_.assign(progress.begin(), progress.end());
  }
  if (rank_ != 0) return;
  for (const proto::Progress& step : progress) SendProgress(step);
}

void ControlClient::SendKept(std::uint64_t generation, proto::Envelope envelope) {
  const std::lock_guard sending(send_mutex_);
  {
    const std::lock_guard lock(mutex_);
    if (working_ != generation) return;
    kept_.push_back(envelope);
  }
  (void)SendNow(std::move(envelope), generation);
}

void ControlClient::SendPart(std::uint64_t generation, proto::Envelope envelope) {
  {
    const std::lock_guard lock(mutex_);
    ForgetDecided(true);
  }
  SendKept(generation, std::move(envelope));
}

void ControlClient::Send(proto::CheckpointHeld held) {
  proto::Envelope envelope;
  *envelope.mutable_checkpoint_held() = std::move(held);
  const std::lock_guard sending(send_mutex_);
  (void)SendNow(std::move(envelope), working_);
}

void ControlClient::Send(proto::WorkerFailed failed) {
  proto::Envelope envelope;
  *envelope.mutable_worker_failed() = std::move(failed);
  SendKept(working_, std::move(envelope));
}

Status ControlClient::Send(proto::WorkerDone done) {
  proto::Envelope envelope;
  *envelope.mutable_worker_done() = std::move(done);
  for (;;) {
    DD2_TRY(WaitUntil([this] { return connected_ || finished_; }, std::nullopt));
    const std::lock_guard sending(send_mutex_);
    if (SendNow(envelope, working_)) return {};
    const std::lock_guard lock(mutex_);
    if (finished_) return {};
    connected_ = false;  // until the control thread has seen it, too
  }
}

void ControlClient::SetHeld(const proto::HeldState& held) {
  const std::lock_guard lock(mutex_);
  held_ = held;
}

}  // namespace dd2
