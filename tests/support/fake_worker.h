#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/blocking_channel.h"
#include "common/file.h"
#include "common/run_config.h"
#include "proto/control.pb.h"
#include "storage/checkpoint_store.h"
#include "tests/support/fake_collective.h"

namespace dd2 {

// Agent and workers of one domain as threads of a test: they speak the real protocol over real
// sockets and write real checkpoint parts, but compute nothing.

struct FakeSettings {
  RunConfig config;
  std::filesystem::path run_folder;
  std::uint16_t port = 0;
  std::string secret;
  std::uint64_t hello_generation = 0;
  // Called by each rank after each step it finished; false: this rank drops dead.
  std::function<bool(std::int32_t rank, std::int32_t phase, std::int64_t step)> after_step;
};

// One rank, from hello to its end.
class FakeWorker {
 public:
  FakeWorker(const FakeSettings& settings, FakeCollective& collective, std::int32_t local_rank)
      : settings_(settings), collective_(collective), local_rank_(local_rank) {}

  void Run() {
    Result<BlockingChannel> channel =
        BlockingChannel::Connect("127.0.0.1", settings_.port, kFakePatience);
    if (!channel) return;
    channel_.emplace(std::move(*channel));
    SayHello();
    while (!over_) {
      const std::optional<proto::Envelope> envelope = Receive(kFakePatience);
      if (!envelope) break;
      Handle(*envelope);
      while (!over_ && !leases_.empty()) {
        const proto::Lease lease = leases_.front();
        leases_.erase(leases_.begin());
        Work(lease);
      }
    }
    if (died_) collective_.Break();
    channel_.reset();
  }

  // For the test's thread after Run().
  proto::Assignment assignment;
  std::vector<std::pair<std::int32_t, std::int64_t>> steps;  // (phase, step) that were run
  std::string refused;
  std::string outcome;

 private:
  void SayHello() {
    proto::Envelope envelope;
    envelope.set_generation(settings_.hello_generation);
    proto::WorkerHello& hello = *envelope.mutable_worker_hello();
    hello.set_secret(settings_.secret);
    hello.set_domain("fake");
    hello.set_local_rank(local_rank_);
    hello.set_local_size(settings_.config.ranks);
    hello.set_numeric_mode("fake");
    Send(envelope);
    // As a real one does when it has to wait for the others.
    envelope.Clear();
    envelope.mutable_heartbeat()->set_phase(-1);
    Send(envelope);
  }
  void Send(proto::Envelope envelope) {
    envelope.set_run_id(run_id_);
    if (generation_ != 0) envelope.set_generation(generation_);
    if (!channel_->Send(envelope.SerializeAsString(), kFakePatience)) over_ = true;
  }
  std::optional<proto::Envelope> Receive(std::chrono::milliseconds limit) {
    const Result<std::string> frame = channel_->Receive(limit);
    proto::Envelope envelope;
    if (!frame || !envelope.ParseFromString(*frame)) return std::nullopt;
    return envelope;
  }
  void Handle(const proto::Envelope& envelope) {
    if (envelope.has_assignment()) {
      assignment = envelope.assignment();
      run_id_ = envelope.run_id();
      generation_ = envelope.generation();
    } else if (envelope.has_lease()) {
      leases_.push_back(envelope.lease());
    } else if (envelope.has_desired()) {
      desired_ = envelope.desired();
    } else if (envelope.has_checkpoint_committed()) {
      committed_ = envelope.checkpoint_committed().checkpoint_id();
    } else if (envelope.has_refused()) {
      refused = envelope.refused().message();
      over_ = true;
    } else if (envelope.has_run_finished()) {
      outcome = envelope.run_finished().outcome();
      over_ = true;
    }
  }
  // Takes what has arrived without waiting for more.
  void Poll() {
    while (const std::optional<proto::Envelope> envelope = Receive(std::chrono::milliseconds(1))) {
      Handle(*envelope);
    }
  }

  void Work(const proto::Lease& lease) {
    const PhaseConfig& phase = settings_.config.phases.at(static_cast<std::size_t>(lease.phase()));
    for (std::int64_t done = lease.first_step() + 1;
         !over_ && done <= lease.first_step() + lease.count(); ++done) {
      Poll();
      const std::optional<proto::Desired> wish = collective_.Agree(desired_);
      if (!wish) return Die();
      steps.emplace_back(lease.phase(), done);
      Report(lease.phase(), done, phase);
      const bool border =
          done == phase.steps || (phase.checkpoint_every > 0 && done % phase.checkpoint_every == 0);
      const bool requested = wish->checkpoint_requests() > requests_served_;
      requests_served_ = wish->checkpoint_requests();
      if (border || requested || wish->stop()) Checkpoint(lease.phase(), done);
      if (settings_.after_step && !settings_.after_step(assignment.rank(), lease.phase(), done)) {
        return Die();
      }
      if (wish->stop() && !over_) {
        proto::Envelope envelope;
        envelope.mutable_worker_done()->set_rank(assignment.rank());
        envelope.mutable_worker_done()->set_stopped(true);
        Send(envelope);
        over_ = true;
      }
    }
  }
  void Die() {
    died_ = true;
    over_ = true;
  }
  void Report(std::int32_t phase, std::int64_t step, const PhaseConfig& config) {
    proto::Envelope envelope;
    proto::Progress& progress = *envelope.mutable_progress();
    progress.set_phase(phase);
    progress.set_step(step);
    progress.set_phase_finished(step == config.steps);
    if (config.kind == PhaseKind::kEval) progress.set_result_json(R"({"fdr_end":4.5})");
    if (assignment.rank() == 0) {
      proto::Metric& metric = *progress.add_metrics();
      metric.set_name("fake/step");
      metric.set_value(static_cast<double>(step));
    }
    Send(envelope);
  }
  void Checkpoint(std::int32_t phase, std::int64_t step) {
    const std::string id = CheckpointId(phase, step);
    const std::int32_t world = assignment.world_size();
    // Each rank holds four numbers of one tensor; they tell position and rank.
    std::vector<float> values(4, static_cast<float>(1000 * phase + step));
    PieceToWrite piece;
    piece.tensor = "generator.param/w";
    piece.shape = {4 * world};
    piece.begin = 4 * assignment.rank();
    piece.end = piece.begin + 4;
    piece.data = values;
    const std::vector<PieceToWrite> pieces = {piece};
    const auto part =
        WriteCheckpointPart(RealFileSystem(), settings_.run_folder / "checkpoints" / id,
                            assignment.rank(), world, pieces);
    if (!part) return Die();
    proto::Envelope envelope;
    proto::PartReport& report = *envelope.mutable_part_report();
    report.set_checkpoint_id(id);
    report.set_rank(assignment.rank());
    *report.mutable_part() = *part;
    report.mutable_header()->set_phase(phase);
    report.mutable_header()->set_step(step);
    report.mutable_header()->set_world_size(world);
    proto::LogicalTensor& tensor = *report.mutable_header()->add_tensors();
    tensor.set_name(piece.tensor);
    tensor.add_shape(4 * world);
    Send(envelope);
    while (!over_ && committed_ != id) {
      const std::optional<proto::Envelope> answer = Receive(kFakePatience);
      if (!answer) return Die();
      Handle(*answer);
    }
    if (committed_ != id || assignment.rank() != 0) return;
    envelope.Clear();
    envelope.mutable_checkpoint_held()->set_checkpoint_id(id);
    envelope.mutable_checkpoint_held()->set_seconds(0.5);
    Send(envelope);
  }

  const FakeSettings& settings_;
  FakeCollective& collective_;
  const std::int32_t local_rank_;
  std::optional<BlockingChannel> channel_;
  std::string run_id_;
  std::uint64_t generation_ = 0;
  proto::Desired desired_;
  std::uint64_t requests_served_ = 0;
  std::vector<proto::Lease> leases_;
  std::string committed_;
  bool over_ = false;
  bool died_ = false;
};

}  // namespace dd2
