#include "worker/engine/worker_loop.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <unistd.h>

#include <chrono>
#include <memory>
#include <optional>
#include <utility>

#include "common/config.h"
#include "common/file.h"
#include "common/log.h"
#include "common/process.h"
#include "common/timeouts.h"
#include "common/version.h"
#include "proto/position.h"
#include "storage/checkpoint_store.h"
#include "storage/score_cache.h"
#include "worker/engine/checkpoint_saver.h"
#include "worker/engine/control_client.h"
#include "worker/engine/phase_steps.h"
#include "worker/engine/state_snapshots.h"
#include "worker/engine/state_sync.h"
#include "worker/engine/trainer.h"
#include "worker/engine/training_state.h"
#include "worker/kernels/nccl_group.h"
#include "worker/kernels/torch_device.h"
#include "worker/parallel/generation_collectives.h"
#include "worker/parallel/gloo_collectives.h"
#include "worker/parallel/joined_collectives.h"
#include "worker/parallel/rank_layout.h"

namespace dd2 {
namespace {

using Seconds = std::chrono::duration<double>;

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return Seconds(std::chrono::steady_clock::now() - start).count();
}

// Products of bf16 are made of other instructions where a CPU has them: TorchBuild's capability
// does not tell them apart.
std::string Bf16Instructions() {
#if defined(__x86_64__)
  constexpr unsigned kAmxBf16 = 1U << 22U, kAvx512Bf16 = 1U << 5U;  // of leaf 7
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & kAmxBf16) != 0) {
    return "amx";
  }
  if (__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & kAvx512Bf16) != 0) {
    return "avx512";
  }
#endif
  return "none";
}

// Threads, precision and libraries decide bits; ranks that differ in them must not train together.
// `word`: what is computed in which precision.
std::string NumericMode(const RunConfig& config, const std::string& word, bool bf16,
                        const std::optional<Device>& device) {
  if (device) {
    // 2: it draws noise and the teacher's tokens itself.
    return "cuda2-" + word + " " + device->Kind() +
           " shards=" + std::to_string(config.batch.shards) + " " + TorchBuild();
  }
  return "cpu-" + word + " threads=" + std::to_string(config.threads_per_rank) +
         " shards=" + std::to_string(config.batch.shards) + " " + TorchBuild() +
         (bf16 ? " bf16=" + Bf16Instructions() : "");
}

std::string TrainingMode(const RunConfig& config, const std::optional<Device>& device) {
  const bool trained = config.model.precision == kPrecisionBf16;
  const bool teacher = config.teacher.precision == kPrecisionBf16;
  // In bf16 the head is computed too: it was not in the first checkpoints.
  const std::string word =
      std::string(trained ? "bf16+head" : "fp32") + (teacher ? "+teacher" : "");
  return NumericMode(config, word, trained || teacher, device);
}

// What the teacher draws, and says of it meanwhile, is fp32.
std::string SamplingMode(const RunConfig& config, const std::optional<Device>& device) {
  return NumericMode(config, std::string(kPrecisionFp32), false, device);
}

// The GPU of this worker's place on its machine; nothing: the CPU is wanted.
Result<std::optional<Device>> TakeDevice(const RunConfig& config, const WorkerOptions& options) {
  if (config.device == kDeviceCpu) return std::optional<Device>();
  const int number = options.first_device + options.local_rank;
  const Result<Device> device = LoadDevice(DeviceLibrary(), number);
  if (!device) {
    return device.error().Wrap("rank " + std::to_string(options.local_rank) + " of domain '" +
                               options.domain + "', whose GPUs are those from " +
                               std::to_string(options.first_device) + " on");
  }
  DD2_TRY(UseTorchDevice(*device));
  LogInfo("computes on GPU " + std::to_string(number) + ": " + device->Describe());
  return std::optional(*device);
}

Result<std::unique_ptr<ControlClient>> JoinRun(
    const WorkerOptions& options, const Timeouts& timeouts, const CheckpointIdentity& identity,
    std::int64_t checkpoint_bytes, const std::optional<Device>& device, StateSnapshots& snapshots,
    GenerationCollectives& collectives) {
  DD2_TRY_ASSIGN(std::string secret, RealFileSystem().Read(options.run / "secret"));
  ControlOptions control;
  control.host = options.coordinator_host;
  control.port = options.coordinator_port;
  control.beat = timeouts.heartbeat_interval;
  control.away = timeouts.coordinator_away;
  control.abort_before = [&](std::uint64_t generation) { collectives.AbortBefore(generation); };
  control.collectives = [&] { return std::pair(collectives.entered(), collectives.waiting()); };
  control.hello.set_secret(std::move(secret));
  control.hello.set_domain(options.domain);
  control.hello.set_local_rank(options.local_rank);
  control.hello.set_local_size(options.local_size);
  control.hello.set_pid(getpid());
  control.hello.set_host(HostName());
  control.hello.set_numeric_mode(identity.numeric_mode);
  control.hello.set_teacher_digest(identity.teacher_digest);
  control.hello.set_code_version(identity.code_version);
  control.hello.set_checkpoint_bytes(checkpoint_bytes);
  if (device) control.hello.set_device_id(device->Id());
  for (proto::MemorySnapshot& one : snapshots.held()) {
    *control.hello.mutable_held()->add_snapshots() = std::move(one);
  }
  return ControlClient::Join(control);
}

Result<std::unique_ptr<Collectives>> ConnectRanks(const WorkerOptions& options,
                                                  const RunConfig& config, ControlClient& control,
                                                  const proto::Assignment& assignment,
                                                  FormingTries& tries, ConnectAbort& abort) {
  if (assignment.world_size() == 1) {
    DD2_TRY(tries.After({}, 1));
    return NewLocalCollectives();
  }
  DD2_TRY_ASSIGN(std::string secret, RealFileSystem().Read(options.run / "secret"));
  GlooOptions gloo;
  gloo.store = StoreAddress{.host = options.coordinator_host,
                            .port = options.coordinator_port,
                            .run_id = control.run_id(),
                            .generation = control.generation(),
                            .secret = std::move(secret)};
  gloo.prefix = assignment.store_prefix();
  gloo.rank = assignment.rank();
  gloo.world_size = assignment.world_size();
  if (!assignment.host().empty()) gloo.interface_host = assignment.host();
  gloo.timeout = config.timeouts.collective;
  DD2_TRY_ASSIGN(std::unique_ptr<Collectives> host, ConnectGloo(gloo, abort));
  if (ComputeDevice().is_cpu() || DeviceKernels().begin_group == nullptr) return host;
  auto joined = JoinDevices(std::move(host), DeviceKernels(), gloo.timeout, abort);
  if (abort.aborted()) return joined;
  DD2_TRY(tries.After(joined ? Status() : joined.error(), assignment.world_size()));
  return joined;
}

// One rank of a run, through all its generations: takes leases, runs their steps, checkpoints, and
// obeys the coordinator's wish at the step on which all ranks agree.
class WorkerLoop {
 public:
  WorkerLoop(const WorkerOptions& options, const RunConfig& config, ControlClient& control,
             GenerationCollectives& collectives, PhaseSteps& steps, TrainingState& state,
             CheckpointIdentity identity, CheckpointSaver& saver, StateSnapshots& snapshots)
      : options_(options),
        checkpoints_(options.run / "checkpoints"),
        config_(config),
        control_(control),
        collectives_(collectives),
        steps_(steps),
        state_(state),
        identity_(std::move(identity)),
        saver_(saver),
        snapshots_(snapshots) {
    steps_.trainer().OnFrozen([this](NetworkRole frozen) {
      if (IsBorder(state_.step + 1)) saver_.StageAhead(frozen, state_.step + 1);
    });
    steps_.trainer().OnChange([this] {
      saver_.BeforeChange();
      // Whoever passes the exchange of a step that takes one knows that all have the one before.
      if (SnapshotIsDue(state_.step + 1)) {
        snapshots_.Finish();
      } else {
        snapshots_.BeforeChange();
      }
    });
  }

  Result<WorkerOutcome> Run() {
    for (;;) {
      DD2_TRY_ASSIGN(const std::optional<proto::Assignment> assignment,
                     control_.NextAssignment(Held()));
      if (!assignment) return WorkerOutcome::kFinished;
      ranks_ = LayoutOf(*assignment);
      Result<WorkerOutcome> outcome = RunGeneration(*assignment);
      if (outcome || !IsBreak(outcome.error().code())) return outcome;
      if (!control_.regrouping()) TellFailure(outcome.error());
      snapshots_.Finish();
      control_.SetHeld(Held());
      collectives_.Leave();
      // The reason says more than that nobody called us.
      if (!control_.WaitForRegroup(config_.timeouts.regroup)) return outcome;
    }
  }

  void TellFailure(const Error& error) {
    proto::WorkerFailed failed;
    failed.set_rank(ranks_.rank);
    failed.set_phase(state_.phase);
    failed.set_step(state_.step);
    failed.set_code(std::string(CodeName(error.code())));
    failed.set_message(error.message());
    control_.Send(std::move(failed));
  }

  int rank() const { return ranks_.rank; }

 private:
  const PhaseConfig& phase() const {
    return config_.phases.at(static_cast<std::size_t>(state_.phase));
  }

  // The end of a generation, not of this worker: a peer is lost, or the coordinator said so.
  bool IsBreak(Code code) {
    const bool of_collective =
        code == Code::kAborted || code == Code::kUnavailable || code == Code::kDeadlineExceeded;
    return of_collective && (collectives_.failed() || control_.regrouping());
  }

  Result<WorkerOutcome> RunGeneration(const proto::Assignment& assignment) {
    DD2_TRY(collectives_.Enter(control_.generation(), [&](ConnectAbort& abort) {
      return ConnectRanks(options_, config_, control_, assignment, tries_, abort);
    }));
    steps_.trainer().Regroup(ranks_);
    saver_.StartGeneration(control_.generation(), ranks_,
                           assignment.has_start() ? assignment.committed_checkpoint()
                                                  : assignment.restore_checkpoint());
    checkpoint_owed_ = false;
    if (assignment.has_start()) {
      DD2_TRY(Sync(assignment));
    } else {
      DD2_TRY(Restore(assignment.restore_checkpoint()));
    }
    control_.SetHeld(Held());
    DD2_TRY(steps_.Regroup(ranks_));
    DD2_TRY_ASSIGN(const bool stop, ObeyAtStart(assignment.has_start()));
    if (stop) return WorkerOutcome::kStopped;
    for (;;) {
      DD2_TRY_ASSIGN(const std::optional<proto::Lease> lease, control_.NextLease());
      if (!lease) return WorkerOutcome::kFinished;
      DD2_TRY_ASSIGN(const bool stopped, RunLease(*lease));
      if (stopped) return WorkerOutcome::kStopped;
    }
  }

  // What this rank brings into the next generation.
  proto::HeldState Held() const {
    proto::HeldState held = steps_.trainer().Held();
    for (proto::MemorySnapshot& one : snapshots_.held()) *held.add_snapshots() = std::move(one);
    return held;
  }

  // With what the loop knows.
  proto::RankState SmallState() const {
    proto::RankState small = SmallStateOf(state_);
    small.set_checkpoint_requests(requests_served_);
    small.set_checkpoint_begun(begun_);
    for (proto::Progress& step : control_.Unrecorded()) *small.add_unrecorded() = std::move(step);
    return small;
  }

  Status Sync(const proto::Assignment& assignment) {
    proto::RankState mine = SmallState();
    const proto::GenerationMember& me = assignment.member();
    if (me.means() == proto::GenerationMember::RECALL) {
      steps_.trainer().DropPending();
      DD2_TRY_ASSIGN(mine, snapshots_.Recall(me.snapshot()));
    }
    return SyncState(
        assignment, mine, steps_.trainer(), state_, collectives_,
        [this, &assignment](const proto::RankState& small) {
          requests_served_ = small.checkpoint_requests();
          begun_ = small.checkpoint_begun();
          checkpoint_owed_ = begun_ > assignment.committed_checkpoint();
          control_.TakeOverUnrecorded({small.unrecorded().begin(), small.unrecorded().end()});
        });
  }

  Status Restore(const std::string& id) {
    steps_.trainer().DropPending();
    requests_served_ = 0;
    begun_ = id;
    if (!id.empty()) {
      return RestoreState(RealFileSystem(), checkpoints_, id, identity_, state_);
    }
    // Anew: the first lease enters phase 0, which sets the networks.
    state_.phase = 0;
    state_.step = 0;
    AdvanceSteps(state_, 0);
    state_.counters.Clear();
    state_.start.reset();
    state_.whole = true;
    return {};
  }

  // What the last generation left undone between two steps: its checkpoint, and the wish that it
  // had agreed on. A phase that is at its step 0 may be half entered: its first step comes first.
  Result<bool> ObeyAtStart(bool continues) {
    if (!continues || state_.updates != 0 || state_.step == 0) return false;
    DD2_TRY_ASSIGN(const StepOutcome agreed, steps_.Agree(CurrentWish()));
    return Obey(agreed.wish);
  }

  // After a step; true: stop.
  Result<bool> Obey(const Wish& wish) {
    DD2_TRY(CheckpointIfDue(wish));
    if (wish.stop) return true;
    if (!wish.paused) return false;
    return WaitWhilePaused(wish);
  }

  // True when the run is to stop.
  Result<bool> RunLease(const proto::Lease& lease) {
    const std::int64_t end = lease.first_step() + lease.count();
    const bool at_start = state_.step == 0 && state_.updates == 0;
    if (lease.first_step() == 0 &&
        (lease.phase() > state_.phase || (lease.phase() == state_.phase && at_start))) {
      DD2_TRY(steps_.EnterPhase(lease.phase()));
    } else if (lease.phase() != state_.phase || lease.first_step() > state_.step) {
      return Error(Code::kInternal,
                   "lease for step " + std::to_string(lease.first_step()) + " of phase " +
                       std::to_string(lease.phase()) + ", but this rank is at step " +
                       std::to_string(state_.step) + " of phase " + std::to_string(state_.phase));
    }
    while (state_.step < end) {
      const auto start = std::chrono::steady_clock::now();
      control_.SetHeld(Held());
      DD2_TRY_ASSIGN(PhaseStepResult result, steps_.Run(end, CurrentWish()));
      AdvanceSteps(state_, result.steps_done);
      Report(result, SecondsSince(start));
      SnapshotIfDue();
      DD2_TRY_ASSIGN(const bool stop, Obey(result.outcome.wish));
      if (stop) return true;
    }
    control_.SetHeld(Held());
    return false;
  }

  Wish CurrentWish() {
    const proto::Desired desired = control_.desired();
    return Wish{.version = desired.version(),
                .checkpoint_requests = desired.checkpoint_requests(),
                .paused = desired.paused(),
                .stop = desired.stop()};
  }

  void Report(PhaseStepResult& result, double seconds) {
    const bool finished = state_.step == phase().steps;
    proto::Progress progress;
    progress.set_phase(state_.phase);
    progress.set_step(state_.step);
    progress.set_step_seconds(seconds / static_cast<double>(result.steps_done));
    progress.set_phase_finished(finished);
    progress.set_result_json(std::move(result.result_json));
    const CacheStats cache = steps_.cache_stats();
    state_.counters.set_cache_hits(cache.hits);
    state_.counters.set_cache_misses(cache.misses);
    *progress.mutable_counters() = state_.counters;
    // Every rank keeps them: it may be the one that sends them later.
    for (const auto& [name, value] : result.outcome.metrics) {
      proto::Metric* metric = progress.add_metrics();
      metric->set_name(name);
      metric->set_value(value);
    }
    control_.Send(progress);
  }

  // Evaluation and export change nothing that a checkpoint holds.
  bool ChangesState(std::int32_t phase) const {
    const auto index = static_cast<std::size_t>(phase);
    if (index >= config_.phases.size()) return false;
    const PhaseKind kind = config_.phases[index].kind;
    return kind != PhaseKind::kEval && kind != PhaseKind::kExport;
  }

  // The configuration wants a checkpoint of `step` steps of the current phase.
  bool IsBorder(std::int64_t step) const {
    const std::int64_t every = phase().checkpoint_every;
    return ChangesState(state_.phase) &&
           (step == phase().steps || (every > 0 && step % every == 0));
  }

  // No later checkpoint would make up for this one, should it be lost with its generation.
  bool IsLast() const {
    const std::int32_t next = state_.phase + (state_.step == phase().steps ? 1 : 0);
    return !ChangesState(state_.phase) || !ChangesState(next);
  }

  // After the step that is due, and at the end of a phase: what the next one begins with.
  bool SnapshotIsDue(std::int64_t step) const {
    const int every = config_.checkpoint.memory_every;
    if (!snapshots_.works() || every == 0 || UpdatesOfStep(phase()) == 0) return false;
    return step % every == 0 || step == phase().steps;
  }
  void SnapshotIfDue() {
    if (SnapshotIsDue(state_.step)) snapshots_.Take(control_.generation(), SmallState());
  }

  // At borders that the configuration sets, on request, before a stop, and when the one before was
  // lost with its generation. Every rank decides from the same facts.
  Status CheckpointIfDue(const Wish& wish) {
    const bool requested = wish.checkpoint_requests > requests_served_;
    const bool due = IsBorder(state_.step) || requested || checkpoint_owed_ || wish.stop;
    requests_served_ = std::max(requests_served_, wish.checkpoint_requests);
    if (!due) return {};
    checkpoint_owed_ = false;
    begun_ = CheckpointId(state_.phase, state_.step);
    using Until = CheckpointSaver::Until;
    if (wish.stop) return saver_.Save(Until::kDecided);  // a person waits, and is told
    return saver_.Save(IsLast() ? Until::kCommitted : Until::kBegun);
  }

  // Every newer wish is agreed on by all ranks before anybody acts on it; true: stop.
  Result<bool> WaitWhilePaused(Wish wish) {
    while (wish.paused && !wish.stop) {
      saver_.BeforeChange();  // so that what the checkpoint cost is known meanwhile
      DD2_TRY(control_.WaitForDesiredAfter(wish.version));
      DD2_TRY_ASSIGN(const StepOutcome agreed, steps_.Agree(CurrentWish()));
      wish = agreed.wish;
      if (wish.stop || wish.checkpoint_requests > requests_served_) DD2_TRY(CheckpointIfDue(wish));
    }
    return wish.stop;
  }

  const WorkerOptions& options_;
  const std::filesystem::path checkpoints_;
  const RunConfig& config_;
  ControlClient& control_;
  GenerationCollectives& collectives_;
  PhaseSteps& steps_;
  TrainingState& state_;
  const CheckpointIdentity identity_;
  CheckpointSaver& saver_;
  StateSnapshots& snapshots_;
  RankLayout ranks_;  // of this generation
  FormingTries tries_;
  std::uint64_t requests_served_ = 0;
  std::string begun_;  // the newest checkpoint, of any generation; goes back with the state
  bool checkpoint_owed_ = false;
};

// What `work` gives; or, when a GPU had no memory left, what to change: it would happen again.
template <class Work>
Result<WorkerOutcome> WithinMemory(const Work& work) {
  try {
    return work();
  } catch (const c10::OutOfMemoryError& problem) {
    const std::string text = problem.what_without_backtrace();
    std::string where = "a device";
    if (!ComputeDevice().is_cpu()) {
      Dd2DeviceFacts facts{};
      const int number = ComputeDevice().index();
      static_cast<void>(DeviceKernels().facts(number, &facts));
      where = "GPU " + std::to_string(number) + " (" + facts.name + ", " +
              std::to_string(facts.memory_bytes >> 20U) + " MiB)";
    }
    return Error(Code::kFailedPrecondition,
                 where + " has no memory left: " + text.substr(0, text.find('\n')) +
                     ". Set model.recompute: true, cut the batch into more batch.shards, take "
                     "fewer draws or more ranks (`dd2 plan` says what a rank needs), and see that "
                     "nothing else uses the GPU. A run goes on with another model.recompute and "
                     "other ranks (--resume); with other shards or draws it begins anew");
  }
}

Result<WorkerOutcome> Work(const WorkerOptions& options) {
  DD2_TRY_ASSIGN(const RunConfig config, LoadRunConfig(options.run / "config.yaml"));
  SetComputeThreads(config.threads_per_rank);
  DD2_TRY_ASSIGN(const std::optional<Device> device, TakeDevice(config, options));
  const std::string numeric_mode = TrainingMode(config, device);
  // Everything slow comes before the hello: who said it can begin at once.
  DD2_TRY_ASSIGN(
      const TeacherBundle teacher,
      LoadTeacherBundle(config.teacher.path, config.teacher.precision == kPrecisionBf16));
  std::optional<AdmContext> adm;
  if (config.eval.by_inception()) {
    DD2_TRY_ASSIGN(adm, AdmContext::Load(config.eval));
  }
  const ParamLayout layout = Network::Layout(SpecFor(config.model, *teacher.teacher));
  TrainingState state = MakeTrainingState(layout, options.local_rank, options.local_size);
  DD2_TRY_ASSIGN(StagingMemory staging, CheckpointSaver::Allocate(state));
  const CheckpointIdentity identity{.config_digest = ConfigDigest(config).Hex(),
                                    .teacher_digest = teacher.teacher_digest.Hex(),
                                    .numeric_mode = numeric_mode,
                                    .code_version = std::string(CodeVersion()),
                                    .seed = config.seed};
  StateSnapshots snapshots(config.checkpoint.memory_every > 0 ? options.snapshots : "",
                           options.run_id, options.local_rank, options.local_size, identity, state);
  GenerationCollectives collectives;
  PhaseSteps steps(options, config, teacher, collectives, state, SamplingMode(config, device),
                   std::move(adm));
  DD2_TRY_ASSIGN(const std::unique_ptr<ControlClient> control,
                 JoinRun(options, config.timeouts, identity, CheckpointBytes(layout), device,
                         snapshots, collectives));
  // After the control connection, so that it ends first: it still reports what it finishes.
  CheckpointSaver saver(RealFileSystem(), options.run / "checkpoints", std::move(staging), state,
                        identity, *control, config.timeouts.checkpoint_parts);
  WorkerLoop loop(options, config, *control, collectives, steps, state, identity, saver, snapshots);
  Result<WorkerOutcome> outcome = WithinMemory([&loop] { return loop.Run(); });
  if (!outcome) {
    loop.TellFailure(outcome.error());  // in vain when it is the connection that failed
    return outcome;
  }
  if (*outcome == WorkerOutcome::kStopped) {
    proto::WorkerDone done;
    done.set_rank(loop.rank());
    done.set_stopped(true);
    DD2_TRY(control->Send(std::move(done)));
  }
  return outcome;
}

}  // namespace

Result<WorkerOutcome> RunWorker(const WorkerOptions& options) {
  return WithinMemory([&options] { return Work(options); });  // before the run is joined, too
}

}  // namespace dd2
