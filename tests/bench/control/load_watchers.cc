#include "tests/bench/control/load_watchers.h"

#include <utility>

namespace dd2::load {

namespace {

// What the dashboard, `dd2 watch` and a metrics collector ask for.
constexpr const char* kPaths[] = {"/api/v1/run", "/api/v1/members", "/api/v1/phases", "/metrics"};

}  // namespace

Watchers::Watchers(HttpTarget target, int subscribers, std::chrono::milliseconds request_interval)
    : target_(std::move(target)), request_interval_(request_interval) {
  for (int i = 0; i < subscribers; ++i) threads_.emplace_back([this] { Subscribe(); });
  threads_.emplace_back([this] { Ask(); });
}

Watchers::~Watchers() {
  stop_ = true;
  for (std::thread& thread : threads_) thread.join();
}

void Watchers::Subscribe() {
  HttpClient client(target_);
  const Status status = client.StreamEvents([this](const StreamedEvent&) { ++events_; },
                                            [this] { return stop_.load(); });
  if (!status && !stop_) Problem(status.error());
}

void Watchers::Ask() {
  HttpClient client(target_);
  const SystemClock clock;
  TimePoint due = clock.Now();
  for (std::size_t turn = 0; !stop_; ++turn) {
    // A late answer does not make the next questions come at once.
    due = std::max(due + request_interval_, clock.Now());
    std::this_thread::sleep_until(due);
    ApiSample sample;
    sample.path = kPaths[turn % std::size(kPaths)];
    const TimePoint begin = clock.Now();
    const Result<HttpResponse> response = client.Get(sample.path);
    sample.seconds = SecondsBetween(begin, clock.Now());
    if (!response || response->status != 200) {
      Problem(response ? ErrorOf(*response) : response.error());
      continue;
    }
    sample.bytes = response->body.size();
    const std::lock_guard lock(mutex_);
    samples_.push_back(std::move(sample));
  }
}

std::vector<ApiSample> Watchers::TakeSamples() {
  const std::lock_guard lock(mutex_);
  return std::exchange(samples_, {});
}

void Watchers::Problem(const Error& error) {
  const std::lock_guard lock(mutex_);
  if (problem_.empty()) problem_ = error.message();
}

std::string Watchers::problem() {
  const std::lock_guard lock(mutex_);
  return problem_;
}

}  // namespace dd2::load
