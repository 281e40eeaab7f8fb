#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "cli/http_client.h"
#include "common/clock.h"
#include "common/result.h"

namespace dd2::load {

// One request of the API, from the connection to the last byte of the answer.
struct ApiSample {
  std::string path;
  double seconds = 0;
  std::size_t bytes = 0;
};

// People and programs that look at a run: subscribers of the event stream, and one that asks for
// documents in turn. Threads of their own, so that the generator's work is not in what they measure
// (other than by the cores that both use).
class Watchers {
 public:
  Watchers(HttpTarget target, int subscribers, std::chrono::milliseconds request_interval);
  ~Watchers();
  Watchers(const Watchers&) = delete;
  Watchers& operator=(const Watchers&) = delete;

  // What was asked since the last call.
  std::vector<ApiSample> TakeSamples();
  std::uint64_t events() const { return events_; }  // that all subscribers got
  // The first thing that went wrong; empty: nothing.
  std::string problem();

 private:
  void Subscribe();
  void Ask();
  void Problem(const Error& error);

  const HttpTarget target_;
  const std::chrono::milliseconds request_interval_;
  std::atomic<bool> stop_{false};
  std::atomic<std::uint64_t> events_{0};
  std::mutex mutex_;  // guards what follows
  std::vector<ApiSample> samples_;
  std::string problem_;
  std::vector<std::thread> threads_;
};

}  // namespace dd2::load
