#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/fake_worker.h"

namespace dd2 {

// The agent: starts the workers when it is told to, reports their end, leaves when it is told to.
class FakeDomain {
 public:
  explicit FakeDomain(FakeSettings settings)
      : settings_(std::move(settings)), collective_(settings_.config.ranks) {
    for (int rank = 0; rank < settings_.config.ranks; ++rank) {
      workers_.push_back(std::make_unique<FakeWorker>(settings_, collective_, rank));
    }
    agent_ = std::thread([this] { RunAgent(); });
  }
  ~FakeDomain() { Join(); }
  void Join() {
    if (agent_.joinable()) agent_.join();
  }
  const FakeWorker& worker(int local_rank) const {
    return *workers_.at(static_cast<std::size_t>(local_rank));
  }
  bool told_to_stop() const { return told_to_stop_; }

 private:
  void RunAgent() {
    Result<BlockingChannel> channel =
        BlockingChannel::Connect("127.0.0.1", settings_.port, kFakePatience);
    if (!channel) return;
    proto::Envelope hello;
    hello.mutable_agent_hello()->set_secret(settings_.secret);
    hello.mutable_agent_hello()->set_domain("fake");
    if (!channel->Send(hello.SerializeAsString(), kFakePatience)) return;
    const Result<std::string> frame = channel->Receive(kFakePatience);
    proto::Envelope start;
    if (!frame || !start.ParseFromString(*frame) || !start.has_start_domain()) return;
    std::vector<std::thread> threads;
    for (const auto& worker : workers_) {
      threads.emplace_back([raw = worker.get()] { raw->Run(); });
    }
    for (std::thread& thread : threads) thread.join();
    proto::Envelope exited;
    exited.set_run_id(start.run_id());
    exited.set_generation(start.start_domain().attempt());
    exited.mutable_domain_exited()->set_domain("fake");
    if (!channel->Send(exited.SerializeAsString(), kFakePatience)) return;
    while (const Result<std::string> last = channel->Receive(kFakePatience)) {
      proto::Envelope envelope;
      if (envelope.ParseFromString(*last) && envelope.has_stop_domain()) told_to_stop_ = true;
    }
  }

  const FakeSettings settings_;
  FakeCollective collective_;
  std::vector<std::unique_ptr<FakeWorker>> workers_;
  std::thread agent_;
  bool told_to_stop_ = false;  // valid after Join()
};

}  // namespace dd2
