#include "tests/bench/control/load_scenario.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "cli/http_client.h"
#include "common/config.h"
#include "common/limits.h"
#include "tests/bench/control/load_cluster.h"
#include "tests/bench/control/load_coordinator.h"
#include "tests/bench/control/load_watchers.h"

namespace dd2::load {

namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds kPatience{180};  // for anything that is waited for
constexpr milliseconds kLook{5};   // between two looks at whether it has come
constexpr int kSubscribers = 20;
constexpr milliseconds kRequestInterval{100};

// The shortest run that trains for as long as this takes. Every rank needs a shard.
std::string ConfigFor(std::int32_t agents) {
  const auto ranks = static_cast<unsigned>(agents * kRanksOfDomain);
  const std::string shards = std::to_string(std::bit_ceil(ranks));
  return "name: load\nranks: " + std::to_string(kRanksOfDomain) +
         "\ndomains: " + std::to_string(agents) + "\nbatch:\n  shards: " + shards +
         "\nteacher:\n  path: /nonexistent\ncheckpoint:\n  interval: \"off\"\n" +
         "phases:\n  - kind: sample\n    sequences: " + shards + "\n    block: " + shards +
         "\n  - kind: gts\n    steps: 1000000\n    batch: " + shards + "\n    warmup: 0\n";
}

double Percentile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const auto rank = static_cast<std::size_t>(std::ceil(share * static_cast<double>(values.size())));
  return values[std::max<std::size_t>(rank, 1) - 1];
}

// What a window of the steady state is measured by, at one moment.
struct Reading {
  TimePoint now;
  double coordinator_seconds = 0;
  double generator_seconds = 0;
  Traffic traffic;
};

class Scenario {
 public:
  Scenario(asio::io_context& context, CoordinatorProcess& coordinator, std::int32_t agents,
           const ScenarioOptions& options, ClusterOptions cluster)
      : executor_(context.get_executor()),
        coordinator_(coordinator),
        options_(options),
        agents_(agents),
        signals_(context, SIGINT, SIGTERM),
        cluster_(context, coordinator.control_port(), std::move(cluster)) {}

  // `result` outlives it.
  Task<void> Run(Status& result) {
    // Its coordinator and its folder go with it.
    signals_.async_wait([this](error_code code, int) {
      if (!code) cluster_.Problem("interrupted");
    });
    result = co_await Play();
    watchers_.reset();
    co_await cluster_.Stop();
    error_code ignored;
    signals_.cancel(ignored);
  }
  Measures& measures() { return measures_; }

 private:
  Task<Status> Play() {
    DD2_CO_TRY(co_await Join());
    DD2_CO_TRY(co_await Steady(""));
    Result<HttpClient> client = HttpClient::ForRun(coordinator_.run_folder());
    if (!client) co_return client.error();
    watchers_.emplace(client->target(), kSubscribers, kRequestInterval);
    DD2_CO_TRY(co_await Steady(", watched"));
    AddAnswers();
    if (!options_.check) DD2_CO_TRY(co_await Checkpoint(*client));
    DD2_CO_TRY(co_await Kill());
    if (!options_.check) DD2_CO_TRY(co_await Silence());
    AddLongestAnswer();
    Add("memory of the coordinator, MB", static_cast<double>(coordinator_.ResidentBytes()) / 1e6);
    if (!watchers_->problem().empty()) co_return Error(Code::kInternal, watchers_->problem());
    co_return Status();
  }

  Task<Status> Join() {
    const TimePoint start = clock_.Now();
    cluster_.Start();
    DD2_CO_TRY(co_await WholeGeneration());
    const GenerationTimes& times = cluster_.times(cluster_.generation());
    Add("until the last worker says hello, s", SecondsBetween(start, cluster_.last_hello()));
    Add("until the first generation is formed, s", SecondsBetween(start, times.last_assignment));
    DD2_CO_TRY(co_await Steps(3));
    co_return Status();
  }

  Task<Status> Steady(std::string suffix) {
    const Reading begin = Read();
    const std::int64_t steps = cluster_.steps();
    const milliseconds window = options_.check ? milliseconds(500) : options_.window;
    const TimePoint end = begin.now + window;
    const std::function<bool()> over = [this, end] { return clock_.Now() >= end; };
    DD2_CO_TRY(co_await Until("the end of the window", over));
    const Reading after = Read();
    const double length = SecondsBetween(begin.now, after.now);
    Add("coordinator, cores" + suffix,
        (after.coordinator_seconds - begin.coordinator_seconds) / length);
    Add("generator, cores" + suffix, (after.generator_seconds - begin.generator_seconds) / length);
    Add("steps/s" + suffix, static_cast<double>(cluster_.steps() - steps) / length);
    if (!suffix.empty()) co_return Status();
    const auto rate = [&](std::uint64_t Traffic::*counter) {
      return static_cast<double>(after.traffic.*counter - begin.traffic.*counter) / length;
    };
    Add("messages in, 1/s", rate(&Traffic::messages_in));
    Add("control connections in, kB/s", rate(&Traffic::bytes_in) / 1e3);
    Add("control connections out, kB/s", rate(&Traffic::bytes_out) / 1e3);
    co_return Status();
  }

  void AddAnswers() {
    std::vector<double> all;
    std::vector<double> members;
    std::vector<double> others;
    std::size_t bytes = 0;
    for (const ApiSample& sample : watchers_->TakeSamples()) {
      const bool lists = sample.path == "/api/v1/members";
      all.push_back(sample.seconds * 1e3);
      (lists ? members : others).push_back(all.back());
      if (lists) bytes = sample.bytes;
    }
    Add("API p50, ms", Percentile(all, 0.5));
    Add("API p99, ms", Percentile(all, 0.99));
    Add("without /members: p99, ms", Percentile(others, 0.99));
    Add("/members alone: p50, ms", Percentile(members, 0.5));
    Add("/members alone: p99, ms", Percentile(members, 0.99));
    Add("size of /members, kB", static_cast<double>(bytes) / 1e3);
  }

  void AddLongestAnswer() {
    double longest = 0;
    for (const ApiSample& sample : watchers_->TakeSamples()) {
      longest = std::max(longest, sample.seconds * 1e3);
    }
    Add("longest API answer during all that, ms", longest);
  }

  Task<Status> Checkpoint(HttpClient client) {
    const Result<HttpResponse> asked = client.Post("/api/v1/run:checkpoint");
    if (!asked) co_return asked.error();
    if (asked->status != 202) co_return ErrorOf(*asked);
    const std::function<bool()> done = [this] {
      return cluster_.checkpoint().committed == agents_ * kRanksOfDomain;
    };
    DD2_CO_TRY(co_await Until("the commit of a checkpoint", done));
    const CheckpointTimes& times = cluster_.checkpoint();
    Add("checkpoint: last part reported to last rank told, s",
        SecondsBetween(times.last_part, times.last_committed));
    DD2_CO_TRY(co_await Steps(2));
    co_return Status();
  }

  Task<Status> Kill() {
    const std::int32_t victim = agents_ - 1;
    const std::uint64_t before = cluster_.generation();
    const TimePoint killed = clock_.Now();
    cluster_.Crash(victim);
    DD2_CO_TRY(co_await GenerationAfter(before));
    const GenerationTimes& shrunk = cluster_.times(cluster_.generation());
    Add("domain killed: to the first Regroup, ms",
        SecondsBetween(killed, shrunk.first_regroup) * 1e3);
    Add("domain killed: first Regroup to last Assignment, s",
        SecondsBetween(shrunk.first_regroup, shrunk.last_assignment));
    DD2_CO_TRY(co_await Steps(2));
    cluster_.domain(victim).Start();
    DD2_CO_TRY(co_await WholeGeneration());
    const GenerationTimes& grown = cluster_.times(cluster_.generation());
    Add("domain joins: first Regroup to last Assignment, s",
        SecondsBetween(grown.first_regroup, grown.last_assignment));
    DD2_CO_TRY(co_await Steps(2));
    co_return Status();
  }

  Task<Status> Silence() {
    Domain& victim = cluster_.domain(agents_ - 2);
    const std::uint64_t before = cluster_.generation();
    victim.GoSilent();
    DD2_CO_TRY(co_await GenerationAfter(before));
    const GenerationTimes& shrunk = cluster_.times(cluster_.generation());
    Add("domain silent: to the first Regroup, s",
        SecondsBetween(victim.last_word(), shrunk.first_regroup));
    Add("domain silent: first Regroup to last Assignment, s",
        SecondsBetween(shrunk.first_regroup, shrunk.last_assignment));
    DD2_CO_TRY(co_await WholeGeneration());
    DD2_CO_TRY(co_await Steps(2));
    co_return Status();
  }

  Task<Status> WholeGeneration() {
    const std::function<bool()> whole = [this] {
      return cluster_.Formed() &&
             cluster_.times(cluster_.generation()).world_size == agents_ * kRanksOfDomain;
    };
    return Until("a generation of everybody", whole);
  }

  Task<Status> GenerationAfter(std::uint64_t before) {
    const std::function<bool()> formed = [this, before] {
      return cluster_.generation() > before && cluster_.Formed();
    };
    return Until("a generation without the lost domain", formed);
  }

  Task<Status> Steps(std::int64_t count) {
    const std::int64_t goal = cluster_.steps() + count;
    const std::function<bool()> done = [this, goal] { return cluster_.steps() >= goal; };
    return Until("finished steps", done);
  }

  Task<Status> Until(std::string what, std::function<bool()> condition) {
    const TimePoint deadline = clock_.Now() + kPatience;
    asio::steady_timer timer(executor_);
    error_code code;
    while (!condition()) {
      if (!cluster_.problem().empty()) co_return Error(Code::kInternal, cluster_.problem());
      if (!coordinator_.running()) {
        co_return Error(Code::kInternal, "the coordinator ended while waiting for " + what);
      }
      if (clock_.Now() >= deadline) {
        co_return Error(Code::kDeadlineExceeded,
                        what + " did not come within " + std::to_string(kPatience.count()) + " s");
      }
      timer.expires_after(kLook);
      co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, code));
    }
    co_return Status();
  }

  Reading Read() const {
    Reading reading;
    reading.now = clock_.Now();
    reading.coordinator_seconds = coordinator_.CpuSeconds();
    reading.generator_seconds = static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
    reading.traffic = cluster_.traffic();
    return reading;
  }

  void Add(std::string name, double value) {
    std::fprintf(stderr, "  %-56s %.4g\n", name.c_str(), value);
    measures_.push_back(Measure{.name = std::move(name), .value = value});
  }

  const asio::any_io_executor executor_;
  CoordinatorProcess& coordinator_;
  const ScenarioOptions options_;
  const std::int32_t agents_;
  const SystemClock clock_;
  asio::signal_set signals_;
  Cluster cluster_;
  std::optional<Watchers> watchers_;
  Measures measures_;
};

}  // namespace

std::string Measure::Text() const {
  char text[32];
  std::snprintf(text, sizeof(text), value >= 100 ? "%.0f" : "%.3g", value);
  return text;
}

Result<Measures> RunScenario(std::int32_t agents, const ScenarioOptions& options) {
  const std::string yaml = ConfigFor(agents);
  ClusterOptions cluster;
  DD2_TRY_ASSIGN(cluster.config, ParseRunConfig(yaml, "load.yaml", options.folder));
  DD2_TRY_ASSIGN(CoordinatorProcess coordinator,
                 CoordinatorProcess::Start(options.folder, DumpRunConfig(cluster.config)));
  cluster.domains = agents;
  cluster.secret = coordinator.secret();
  cluster.run_folder = coordinator.run_folder();
  cluster.pace = options.check ? milliseconds(100) : options.pace;
  asio::io_context context(1);
  Scenario scenario(context, coordinator, agents, options, std::move(cluster));
  Status result;
  const auto rethrow = [](std::exception_ptr thrown) {
    if (thrown) std::rethrow_exception(thrown);
  };
  asio::co_spawn(context, scenario.Run(result), rethrow);
  context.run();
  if (!result) return result.error();
  return std::move(scenario.measures());
}

}  // namespace dd2::load
