#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/clock.h"
#include "proto/control.pb.h"
#include "tests/bench/control/load_link.h"

namespace dd2::load {

class Cluster;

// One rank: its side of the control protocol without the training. Owned by its Domain.
class Worker final : public LinkOwner {
 public:
  Worker(Cluster& cluster, std::string domain, std::int32_t local_rank);

  // A fresh process.
  void Start();
  // The process is gone.
  void Kill();
  void Beat();

  std::uint64_t generation() const { return generation_; }
  bool assigned() const { return assigned_; }
  std::int32_t rank() const { return rank_; }
  std::int32_t world_size() const { return world_size_; }
  const proto::Position& position() const { return position_; }
  const proto::Desired& desired() const { return desired_; }
  // It may do the step after its position, once it has entered the phase that comes next.
  bool HasLease();
  void FinishStep(std::int64_t steps_of_phase);
  // Its collective failed because somebody else is gone.
  void ReportTrouble();
  void ReportPart(const proto::PartReport& report);
  // It neither reads nor writes, and its connection stays open: a stopped process, a lost network.
  void SetSilent(bool silent) { silent_ = silent; }
  bool silent() const { return silent_; }

  void OnEnvelope(const proto::Envelope& envelope) override;
  void OnClosed() override;

 private:
  void Send(proto::Envelope& envelope);
  void OnRegroup(const proto::Envelope& envelope);
  void OnAssignment(const proto::Envelope& envelope);
  proto::HeldState Held() const;

  Cluster& cluster_;
  const std::string domain_;
  const std::int32_t local_rank_;
  std::shared_ptr<Link> link_;
  bool silent_ = false;
  // Of the process; a fresh one begins with these.
  std::uint64_t generation_ = 0;
  bool assigned_ = false;
  std::int32_t rank_ = -1;
  std::int32_t world_size_ = 0;
  bool has_state_ = false;
  proto::Position position_;
  std::uint64_t collectives_ = 0;
  std::int32_t lease_phase_ = -1;
  std::int64_t lease_end_ = 0;
  proto::Desired desired_;
};

// One failure domain: an agent, and the workers that it starts when it is told to.
class Domain final : public LinkOwner {
 public:
  Domain(Cluster& cluster, std::int32_t index);

  // Its agent connects.
  void Start();
  // Agent and workers are killed; it comes back with Start().
  void Crash();
  // Agent and workers neither read nor write any more. It wakes up, and joins again, when the
  // coordinator has closed their connections.
  void GoSilent();
  bool silent() const { return silent_; }
  void Beat();

  const std::string& name() const { return name_; }
  const std::vector<std::unique_ptr<Worker>>& workers() const { return workers_; }
  TimePoint last_word() const { return last_word_; }  // before it went silent

  void OnEnvelope(const proto::Envelope& envelope) override;
  void OnClosed() override;

 private:
  void Send(proto::Envelope& envelope);
  void SayExited(std::int32_t status);

  Cluster& cluster_;
  const std::string name_;
  std::shared_ptr<Link> link_;
  std::vector<std::unique_ptr<Worker>> workers_;
  bool silent_ = false;
  bool running_ = false;
  std::uint64_t attempt_ = 0;
  TimePoint last_word_;
};

}  // namespace dd2::load
