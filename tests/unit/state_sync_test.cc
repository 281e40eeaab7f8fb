// A training that is interrupted at each of its exchanges goes on in a new generation, with or
// without the domains it had, and ends with the bits of the undisturbed one. Tiny networks, real
// updates, ranks as threads; the coordinator's own plan says who keeps, rolls forward, receives.

#include "worker/engine/state_sync.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "coordinator/regroup_plan.h"
#include "tests/support/thread_collectives.h"
#include "tests/support/tiny_teacher.h"
#include "worker/engine/phase_steps.h"
#include "worker/engine/state_snapshots.h"
#include "worker/engine/trainer.h"
#include "worker/engine/training_state.h"
#include "worker/parallel/generation_collectives.h"

namespace dd2 {
namespace {

constexpr std::int32_t kGts = 0;
constexpr std::int32_t kCsd = 1;
constexpr int kDomains = 2;
constexpr int kLocalSize = 2;
constexpr int kWorld = kDomains * kLocalSize;
constexpr int kNone = -1;

RunConfig TinyConfig() {
  RunConfig config;
  config.seed = 5;
  config.batch.shards = 4;
  config.model.head_width = 16;
  config.model.head_depth = 1;
  config.model.time_features = 8;
  config.phases.resize(2);
  config.phases[kGts] = DefaultPhase(PhaseKind::kGts);
  PhaseConfig& csd = config.phases[kCsd];
  csd = DefaultPhase(PhaseKind::kCsd);
  csd.steps = 2;
  csd.batch = 4;
  csd.draws = csd.generator_draws = 1;
  csd.guidance_updates = 2;
  csd.generator.peak = csd.guidance.peak = 1e-3;
  return config;
}

std::vector<float> Values(const at::Tensor& tensor) {
  const float* data = tensor.const_data_ptr<float>();
  return {data, data + tensor.numel()};
}

// One process that may be lost: its state, and the exchanges of whatever generation it is in.
struct Process {
  Process(const RunConfig& config, const TeacherBundle& teacher, int local_rank, int local_size,
          const std::filesystem::path& memory)
      : state(MakeTrainingState(Network::Layout(SpecFor(config.model, *teacher.teacher)),
                                local_rank, local_size)),
        trainer(config, teacher, collectives, state),
        snapshots(memory, "run", local_rank, local_size, CheckpointIdentity(), state) {
    trainer.OnChange([this] { snapshots.BeforeChange(); });
  }

  TrainingState state;
  GenerationCollectives collectives;
  Trainer trainer;
  StateSnapshots snapshots;
};

using Domain = std::vector<std::unique_ptr<Process>>;
using StepMetrics = std::map<std::int64_t, Metrics>;

class StateSyncTest : public testing::Test {
 protected:
  StateSyncTest() {
    SetComputeThreads(1);
    calm_ = NewDomain(1);
    Generation(calm_, ThreadWorldOf(1), [&](Process& process) {
      ASSERT_TRUE(EnterCsd(process));
      ASSERT_TRUE(Work(process, calm_metrics_));
    });
    for (auto* network : {&calm_[0]->state.generator, &calm_[0]->state.guidance}) {
      expected_.push_back(network->params.flat().detach().clone());
      for (const at::Tensor& slice : {network->adam_m, network->adam_v, network->ema}) {
        expected_.push_back(slice.clone());
      }
    }
  }

  ~StateSyncTest() override { std::filesystem::remove_all(memory_); }

  // `number`: of the domain whose memory it has; kNone: it has none.
  Domain NewDomain(int size, int number = kNone) const {
    std::filesystem::path memory;
    if (number != kNone) {
      memory = memory_ / std::to_string(number);
      std::filesystem::create_directories(memory);
    }
    Domain domain;
    for (int rank = 0; rank < size; ++rank) {
      domain.push_back(std::make_unique<Process>(config_, teacher_, rank, size, memory));
    }
    return domain;
  }

  static std::unique_ptr<ThreadWorld> ThreadWorldOf(int size) {
    return std::make_unique<ThreadWorld>(size);
  }

  // body(process) on a thread per process of the ranks in this order, in one new generation.
  template <class Body>
  void Generation(const Domain& ranks, const std::unique_ptr<ThreadWorld>& world,
                  const Body& body) {
    ++generation_;
    const int size = static_cast<int>(ranks.size());
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < size; ++rank) {
      threads.emplace_back([&, rank] {
        SetComputeThreads(1);
        Process& process = *ranks[static_cast<std::size_t>(rank)];
        ASSERT_TRUE(process.collectives.Enter(
            generation_, [&](ConnectAbort&) -> Result<std::unique_ptr<Collectives>> {
              return world->Join(rank);
            }));
        const int local_size = std::min(size, kLocalSize);
        process.trainer.Regroup({.rank = rank,
                                 .world_size = size,
                                 .local_rank = rank % local_size,
                                 .local_size = local_size});
        body(process);
      });
    }
  }

  // A run that begins anew.
  static Status EnterCsd(Process& process) {
    process.state.whole = true;
    DD2_TRY(process.trainer.EnterPhase(kGts));
    DD2_TRY(process.trainer.EnterPhase(kCsd));
    return {};
  }

  // What is left of the phase, as the worker's loop does it.
  Status Work(Process& process, StepMetrics& metrics) const {
    TrainingState& state = process.state;
    if (state.step == 0 && state.updates == 0) DD2_TRY(process.trainer.EnterPhase(kCsd));
    while (state.step < config_.phases[kCsd].steps) {
      DD2_TRY_ASSIGN(const StepOutcome outcome, process.trainer.CsdCycle(Wish()));
      metrics[state.step] = outcome.metrics;
      AdvanceSteps(state, 1);
      process.snapshots.Take(generation_, SmallStateOf(state));
    }
    return {};
  }

  // The processes of `domains` in the order of the plan that the coordinator makes for what they
  // hold, with the assignment of each.
  struct Gathered {
    Domain ranks;
    std::vector<proto::Assignment> assignments;
  };
  Gathered Gather(std::vector<Domain> domains) const {
    std::vector<CandidateDomain> candidates;
    for (std::size_t i = 0; i < domains.size(); ++i) {
      candidates.push_back({.name = std::to_string(i), .held = {}});
      for (const auto& process : domains[i]) {
        proto::HeldState held = process->trainer.Held();
        process->snapshots.Finish();
        for (auto& one : process->snapshots.held()) *held.add_snapshots() = std::move(one);
        candidates.back().held.push_back(std::move(held));
      }
    }
    const RegroupPlan plan = PlanRegroup(candidates, config_.phases);
    Gathered gathered;
    EXPECT_TRUE(plan.start);
    if (!plan.start) return gathered;
    for (const std::string& name : plan.domains) {
      for (auto& process : domains[std::stoul(name)]) gathered.ranks.push_back(std::move(process));
    }
    for (int rank = 0; rank < static_cast<int>(gathered.ranks.size()); ++rank) {
      proto::Assignment assignment;
      assignment.set_rank(rank);
      assignment.set_world_size(static_cast<std::int32_t>(gathered.ranks.size()));
      *assignment.mutable_start() = *plan.start;
      assignment.set_source(plan.source);
      *assignment.mutable_member() = plan.members[static_cast<std::size_t>(rank)];
      assignment.set_first_receiver(plan.first_receiver);
      gathered.assignments.push_back(std::move(assignment));
    }
    return gathered;
  }

  // The ranks again as the domains that they are.
  static std::vector<Domain> Domains(Domain ranks) {
    std::vector<Domain> domains;
    for (std::size_t i = 0; i < ranks.size(); ++i) {
      if (i % kLocalSize == 0) domains.emplace_back();
      domains.back().push_back(std::move(ranks[i]));
    }
    return domains;
  }

  // Two domains in csd, interrupted at this exchange; domain `lost` (or none) is replaced.
  std::vector<Domain> Interrupted(int exchange, const std::vector<int>& failing, int lost,
                                  bool with_memory = false) {
    std::filesystem::remove_all(memory_);
    Domain ranks;
    for (int domain = 0; domain < kDomains; ++domain) {
      Domain fresh = NewDomain(kLocalSize, with_memory ? domain : kNone);
      for (auto& process : fresh) ranks.push_back(std::move(process));
    }
    Generation(ranks, ThreadWorldOf(kWorld),
               [](Process& process) { ASSERT_TRUE(EnterCsd(process)); });
    const auto world = ThreadWorldOf(kWorld);
    world->BreakAt(exchange, failing);
    Generation(ranks, world, [&](Process& process) {
      StepMetrics metrics;
      const Status status = Work(process, metrics);
      EXPECT_FALSE(status) << "the break came too late";
      for (const auto& [step, values] : metrics) EXPECT_EQ(values, calm_metrics_.at(step));
    });
    std::vector<Domain> domains = Domains(std::move(ranks));
    if (lost != kNone) domains[static_cast<std::size_t>(lost)] = NewDomain(kLocalSize);
    return domains;
  }

  Status SyncAndWork(Process& process, const Gathered& gathered, StepMetrics& metrics) const {
    const int rank = process.collectives.rank();
    const proto::Assignment& assignment = gathered.assignments[static_cast<std::size_t>(rank)];
    proto::RankState mine = SmallStateOf(process.state);
    if (assignment.member().means() == proto::GenerationMember::RECALL) {
      DD2_TRY_ASSIGN(mine, process.snapshots.Recall(assignment.member().snapshot()));
    }
    DD2_TRY(SyncState(assignment, mine, process.trainer, process.state, process.collectives,
                      [](const proto::RankState&) {}));
    return Work(process, metrics);
  }

  // The next generation, interrupted at this exchange of its synchronisation or a little later.
  std::vector<Domain> InterruptedAgain(Gathered gathered, int exchange,
                                       const std::vector<int>& failing) {
    const auto world = ThreadWorldOf(kWorld);
    world->BreakAt(exchange, failing);
    Generation(gathered.ranks, world, [&](Process& process) {
      StepMetrics metrics;
      EXPECT_FALSE(SyncAndWork(process, gathered, metrics));
    });
    return Domains(std::move(gathered.ranks));
  }

  // One more generation to the end of the phase; then everybody has the bits of the calm run.
  void ExpectCalmEnd(std::vector<Domain> domains) {
    const Gathered gathered = Gather(std::move(domains));
    if (gathered.ranks.empty()) return;
    Generation(gathered.ranks, ThreadWorldOf(static_cast<int>(gathered.ranks.size())),
               [&](Process& process) {
                 StepMetrics metrics;
                 const Status status = SyncAndWork(process, gathered, metrics);
                 ASSERT_TRUE(status) << status.error().message();
                 for (const auto& [step, values] : metrics) {
                   EXPECT_EQ(values, calm_metrics_.at(step));
                 }
                 EXPECT_EQ(process.state.counters.SerializeAsString(),
                           calm_[0]->state.counters.SerializeAsString());
               });
    for (const auto& process : gathered.ranks) ExpectCalmState(process->state);
  }

  void ExpectCalmState(const TrainingState& state) const {
    std::size_t index = 0;
    for (const auto* network : {&state.generator, &state.guidance}) {
      const std::int64_t size = network->params.layout().size();
      const auto expect = [&](const at::Tensor& ours, std::int64_t begin) {
        const std::int64_t count = std::min(ours.numel(), size - begin);
        const at::Tensor wanted = expected_[index++].narrow(0, begin, count);
        EXPECT_EQ(Values(ours.detach().narrow(0, 0, count)), Values(wanted)) << "tensor " << index;
      };
      expect(network->params.flat(), 0);
      for (const at::Tensor& slice : {network->adam_m, network->adam_v, network->ema}) {
        expect(slice, network->begin);
      }
    }
  }

  // Every process is lost and comes again, with the memory of its machine.
  std::vector<Domain> AllLost(std::vector<Domain> domains) const {
    domains.clear();
    for (int domain = 0; domain < kDomains; ++domain) {
      domains.push_back(NewDomain(kLocalSize, domain));
    }
    return domains;
  }

  const std::filesystem::path memory_ =
      std::filesystem::path(testing::TempDir()) / ("dd2-state-sync-" + std::to_string(getpid()));
  const RunConfig config_ = TinyConfig();
  const TeacherBundle teacher_ = MakeTinyTeacher(5);
  std::uint64_t generation_ = 0;
  Domain calm_;
  StepMetrics calm_metrics_;
  std::vector<at::Tensor> expected_;
};

const std::vector<std::vector<int>> kFailing = {{0, 1, 2, 3}, {0}, {1, 2}, {2, 3}};

// Entering the phase has exchanges of its own, so the last of these lie in the second cycle.
TEST_F(StateSyncTest, InterruptedAtEveryExchangeOfACycle) {
  for (int exchange = 0; exchange < 16; ++exchange) {
    for (const std::vector<int>& failing : kFailing) {
      for (const int lost : {kNone, 0, 1}) {
        SCOPED_TRACE("exchange " + std::to_string(exchange) + " fails on " +
                     std::to_string(failing.size()) + " ranks from " + std::to_string(failing[0]) +
                     ", lost: domain " + std::to_string(lost));
        ExpectCalmEnd(Interrupted(exchange, failing, lost));
        if (HasFailure()) return;
      }
    }
  }
}

// A second interruption, at every exchange of the synchronisation and a few after it, from states
// that differ by half an update. Then the newcomer goes on, or is lost as well.
TEST_F(StateSyncTest, InterruptedWhileTheStateIsSent) {
  for (int exchange = 0; exchange < 24; ++exchange) {
    for (const std::vector<int>& failing : kFailing) {
      for (const bool newcomer_lost : {false, true}) {
        SCOPED_TRACE("exchange " + std::to_string(exchange) + " fails on " +
                     std::to_string(failing.size()) + " ranks from " + std::to_string(failing[0]) +
                     (newcomer_lost ? ", the newcomer is lost" : ""));
        Gathered gathered = Gather(Interrupted(6, {1, 2}, 0));
        ASSERT_FALSE(gathered.ranks.empty());
        std::vector<Domain> domains = InterruptedAgain(std::move(gathered), exchange, failing);
        // The plan has put the survivors first.
        if (newcomer_lost) domains[1] = NewDomain(kLocalSize);
        ExpectCalmEnd(std::move(domains));
        if (HasFailure()) return;
      }
    }
  }
}

// The first exchange by which every rank has taken a snapshot of the first cycle.
constexpr int kSecondCycle = 15;

// One snapshot of the first cycle, which all take up again.
TEST_F(StateSyncTest, AllAreLostAndGoOnFromMemory) {
  for (int exchange = kSecondCycle; exchange < kSecondCycle + 6; ++exchange) {
    for (const int without : {kNone, 0, 1}) {
      SCOPED_TRACE("exchange " + std::to_string(exchange) +
                   ", machine lost: " + std::to_string(without));
      std::vector<Domain> domains = AllLost(Interrupted(exchange, kFailing[0], kNone, true));
      if (without != kNone) domains[static_cast<std::size_t>(without)] = NewDomain(kLocalSize);
      ExpectCalmEnd(std::move(domains));
      if (HasFailure()) return;
    }
  }
}

// Interrupted again while they synchronise, and lost again or not: a state that was loaded and has
// no position yet is nobody's.
TEST_F(StateSyncTest, InterruptedWhileAllGoOnFromMemory) {
  for (int exchange = 0; exchange < 8; ++exchange) {
    for (const std::vector<int>& failing : kFailing) {
      for (const bool again : {false, true}) {
        SCOPED_TRACE("exchange " + std::to_string(exchange) + " fails on " +
                     std::to_string(failing.size()) + " ranks from " + std::to_string(failing[0]) +
                     (again ? ", all are lost again" : ""));
        Gathered gathered = Gather(AllLost(Interrupted(kSecondCycle, kFailing[0], kNone, true)));
        ASSERT_FALSE(gathered.ranks.empty());
        std::vector<Domain> domains = InterruptedAgain(std::move(gathered), exchange, failing);
        if (again) domains = AllLost(std::move(domains));
        ExpectCalmEnd(std::move(domains));
        if (HasFailure()) return;
      }
    }
  }
}

}  // namespace
}  // namespace dd2
