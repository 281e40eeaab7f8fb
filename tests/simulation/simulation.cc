#include "tests/simulation/simulation.h"

#include <functional>
#include <memory>
#include <utility>

#include "tests/simulation/sim_agent.h"
#include "tests/simulation/sim_coordinator.h"

namespace dd2::simulation {

namespace {

using std::chrono::seconds;

PhaseConfig Phase(PhaseKind kind, std::int64_t steps, int checkpoint_every) {
  PhaseConfig phase;
  phase.kind = kind;
  phase.steps = steps;
  phase.guidance_updates = 2;
  phase.checkpoint_every = checkpoint_every;
  return phase;
}

// One history. Everything in it lives until its end: events name it by reference.
class History {
 public:
  explicit History(std::uint64_t seed)
      : world_(seed),
        network_(world_),
        config_(MakeConfig()),
        coordinator_(world_, network_, disk_, config_) {
    network_.SetServer(coordinator_);
  }

  Report Run() {
    coordinator_.Begin();
    for (std::int32_t i = 0; i < config_.domains; ++i) {
      StartAgent("d" + std::to_string(i), milliseconds(0));
    }
    const auto faults = static_cast<int>(world_.Below(8));
    for (int i = 0; i < faults; ++i) {
      world_.After(world_.Between(0, 60'000), [this] { Fault(); });
    }
    const TimePoint end = world_.now() + seconds(3600);
    while (world_.violation().empty() && !coordinator_.over() && world_.Step(end)) {
      if (world_.now() > fault_free_after_ + seconds(1800)) break;
    }
    Judge();
    report_.violation = world_.violation();
    report_.trace = world_.trace();
    report_.steps_lost = coordinator_.steps_lost();
    report_.virtual_seconds =
        std::chrono::duration<double>(world_.now().time_since_epoch()).count();
    return std::move(report_);
  }

 private:
  RunConfig MakeConfig() {
    RunConfig config;
    config.domains = 1 + static_cast<int>(world_.Below(4));
    config.ranks = 1 + static_cast<int>(world_.Below(3));
    config.batch.shards = 32;  // for the domains that join
    config.checkpoint.keep_last = 1 + static_cast<int>(world_.Below(3));
    // Without a draw, so that histories of a seed stay what they were.
    config.checkpoint.keep_every = config.ranks == 3 ? 4 : 0;
    config.checkpoint.keep_best = config.domains == 2 ? 1 : 0;
    if (config.ranks == 2) config.checkpoint.interval = "5";
    const auto every = [this] { return static_cast<int>(world_.Below(4) * 3); };
    config.phases = {Phase(PhaseKind::kTeacherCheck, 1, 0), Phase(PhaseKind::kSample, 6, 0),
                     Phase(PhaseKind::kGts, 40, every()),   Phase(PhaseKind::kCsd, 60, every()),
                     Phase(PhaseKind::kAlign, 20, every()), Phase(PhaseKind::kCsd, 30, every()),
                     Phase(PhaseKind::kEval, 1, 0)};
    return config;
  }

  // `dd2 run` starts agents, again when they end before the run does.
  void StartAgent(const std::string& domain, milliseconds delay) {
    world_.After(delay, [this, domain] {
      if (coordinator_.over()) return;
      agents_.push_back(std::make_unique<SimAgent>(
          SimAgent::Site{world_, network_, disk_, memory_[domain], groups_, config_.phases,
                         config_.timeouts, next_pid_},
          domain));
      agents_.back()->Begin();
      Watch(agents_.back().get());
    });
  }
  void Watch(SimAgent* agent) {
    world_.After(milliseconds(100), [this, agent] {
      if (agent->alive()) {
        Watch(agent);
      } else if (!agent->sent_away()) {
        StartAgent(agent->domain(), milliseconds(500));
      }
    });
  }

  std::vector<SimAgent*> LivingAgents() {
    std::vector<SimAgent*> living;
    for (const auto& agent : agents_) {
      if (agent->alive()) living.push_back(agent.get());
    }
    return living;
  }
  SimWorker* AnyWorker() {
    std::vector<SimWorker*> workers;
    for (SimAgent* agent : LivingAgents()) {
      for (SimWorker* worker : agent->Workers()) workers.push_back(worker);
    }
    return workers.empty() ? nullptr : workers[world_.Below(workers.size())];
  }

  void Fault();
  void FillDisk(milliseconds time);
  // Until a coordinator that lives has heard it for good.
  void Resume() {
    if (coordinator_.over()) return;
    coordinator_.Wish(1);
    world_.After(milliseconds(10'000), [this] { Resume(); });
  }
  void Count(const std::string& kind, const std::string& what) {
    ++report_.faults[kind];
    world_.Trace("fault: " + kind + " " + what);
    fault_free_after_ = std::max(fault_free_after_, world_.now());
  }
  void Judge();

  World world_;
  Network network_;
  Disk disk_;
  std::map<std::string, MachineMemory> memory_;  // by domain
  Groups groups_;
  std::int64_t next_pid_ = 1000;
  const RunConfig config_;
  SimCoordinator coordinator_;
  std::vector<std::unique_ptr<SimAgent>> agents_;
  int joined_ = 0;
  TimePoint fault_free_after_;
  Report report_;
};

void History::Fault() {
  const std::vector<SimAgent*> agents = LivingAgents();
  SimWorker* worker = AnyWorker();
  if (agents.empty()) return;
  SimAgent* agent = agents[world_.Below(agents.size())];
  switch (world_.Below(13)) {
    case 0:
    case 1:
      if (worker == nullptr) return;
      Count("worker killed", std::to_string(worker->place().pid));
      worker->Kill();
      break;
    case 2: {
      if (worker == nullptr) return;
      Count("worker stopped", std::to_string(worker->place().pid));
      worker->Stop();
      // Some continue, before or after they were given up.
      if (world_.Chance(60)) {
        world_.After(world_.Between(10, 60'000), [worker] { worker->Continue(); });
      }
      break;
    }
    case 3:
      Count("agent killed", agent->domain());
      agent->Kill();
      // Some machines go as a whole.
      if (world_.unix_ms() % 2 == 0) memory_[agent->domain()].clear();
      break;
    case 4:
      Count("coordinator killed", "");
      coordinator_.Kill();
      break;
    case 5:
      Count("coordinator killed between two actions", "");
      coordinator_.KillAtAction(world_.Below(40));
      break;
    case 6:
      Count("connections cut", agent->domain());
      network_.CutDomain(agent->domain());
      break;
    case 7: {
      const milliseconds time = world_.Between(100, 50'000);
      Count("domain isolated", agent->domain() + " for " + std::to_string(time.count()) + " ms");
      network_.Isolate(agent->domain(), time);
      break;
    }
    case 8:
      Count("coordinator frozen", "");
      coordinator_.Freeze(world_.Between(100, 50'000));
      break;
    case 9: {
      const std::string domain = "j" + std::to_string(++joined_);
      Count("domain joins", domain);
      StartAgent(domain, milliseconds(0));
      break;
    }
    case 10:
      // Refused where it is the last one.
      Count("domain drained", agent->domain());
      coordinator_.Drain(agent->domain());
      break;
    case 11: FillDisk(world_.Between(100, 20'000)); break;
    default:
      Count("wish", "");
      coordinator_.Wish(static_cast<int>(world_.Below(3)));
      world_.After(world_.Between(0, 5'000), [this] { Resume(); });
  }
}

void History::FillDisk(milliseconds time) {
  Count("disk full", "for " + std::to_string(time.count()) + " ms");
  disk_.full_until = std::max(disk_.full_until, world_.now() + time);
}

void History::Judge() {
  if (!world_.violation().empty()) return;
  if (!coordinator_.over()) {
    return world_.Violate("the run does not end although there are no faults any more");
  }
  if (coordinator_.exit_code() == kExitDoNotRestart) {
    report_.given_up = 1;
    return;
  }
  // A worker that hangs before it has joined: the run says that it cannot start.
  if (coordinator_.exit_code() == kExitCannotStart && !coordinator_.formed() &&
      report_.faults.contains("worker stopped")) {
    ++report_.faults["(a run that did not begin for that)"];
    return;
  }
  if (coordinator_.exit_code() != kExitOk) {
    return world_.Violate("the run ended with exit code " +
                          std::to_string(*coordinator_.exit_code()) + ": " +
                          coordinator_.message());
  }
  std::vector<std::pair<std::int32_t, std::int64_t>> expected;
  for (std::size_t phase = 0; phase < config_.phases.size(); ++phase) {
    for (std::int64_t step = 1; step <= config_.phases[phase].steps; ++step) {
      expected.emplace_back(static_cast<std::int32_t>(phase), step);
    }
  }
  if (coordinator_.record() != expected) {
    return world_.Violate("the record has " + std::to_string(coordinator_.record().size()) +
                          " steps, not each of " + std::to_string(expected.size()) + " once");
  }
  // Of the last checkpoint, at the end of the last phase that changes the networks.
  const std::uint64_t value = UndisturbedValue(config_.phases);
  const std::string last = "p005-s000000030";
  const auto manifest = disk_.manifests.find(last);
  if (manifest == disk_.manifests.end()) {
    if (!disk_.failed.contains(last)) world_.Violate("there is no last checkpoint");
    return;
  }
  for (const std::string& file : manifest->second) {
    if (disk_.parts.at(last).at(file) != value) {
      return world_.Violate("the final state differs from that of the undisturbed run");
    }
  }
}

}  // namespace

Report Play(std::uint64_t seed) { return History(seed).Run(); }

}  // namespace dd2::simulation
