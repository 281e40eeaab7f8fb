#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/fake_worker.h"

namespace dd2 {

// The agent: starts the workers whenever it is told to, reports their end, leaves when it is told
// to.
class FakeDomain {
 public:
  explicit FakeDomain(FakeSettings settings) : settings_(std::move(settings)) {
    NewWorkers();
    agent_ = std::thread([this] { RunAgent(); });
  }
  ~FakeDomain() { Join(); }
  void Join() {
    if (agent_.joinable()) agent_.join();
  }
  // Of the last start.
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
    bool started = false;
    while (const Result<std::string> frame = channel->Receive(kFakePatience)) {
      proto::Envelope envelope;
      if (!envelope.ParseFromString(*frame)) return;
      if (envelope.has_stop_domain()) told_to_stop_ = true;
      if (!envelope.has_start_domain()) continue;
      if (started) NewWorkers();
      started = true;
      RunWorkers();
      proto::Envelope exited;
      exited.set_run_id(envelope.run_id());
      exited.mutable_domain_exited()->set_attempt(envelope.start_domain().attempt());
      exited.mutable_domain_exited()->set_domain("fake");
      if (!channel->Send(exited.SerializeAsString(), kFakePatience)) return;
    }
  }
  void NewWorkers() {
    workers_.clear();
    collective_ = std::make_unique<FakeCollective>(settings_.config.ranks);
    for (int rank = 0; rank < settings_.config.ranks; ++rank) {
      workers_.push_back(std::make_unique<FakeWorker>(settings_, *collective_, rank));
    }
  }
  void RunWorkers() {
    std::vector<std::thread> threads;
    for (const auto& worker : workers_) {
      threads.emplace_back([raw = worker.get()] { raw->Run(); });
    }
    for (std::thread& thread : threads) thread.join();
  }

  const FakeSettings settings_;
  std::unique_ptr<FakeCollective> collective_;
  std::vector<std::unique_ptr<FakeWorker>> workers_;
  std::thread agent_;
  bool told_to_stop_ = false;  // valid after Join()
};

}  // namespace dd2
