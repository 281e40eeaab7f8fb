// dd2-gpu-steps [--tiny] [--json FILE] [--case FOLDER]: the trainer itself on this machine's GPU,
// with random weights of VAR's shape. Whether losses are the CPU's, whether bits depend on the
// number of ranks, and how long an update of either network takes at VAR-d16's size in bf16 (not
// with --tiny, which times small networks: to try this program out). FOLDER gets what
// rival_steps.py needs to tell whether it computes the same. Without a GPU it says why and ends
// with exit code 4. scripts/gpu-check runs it; it needs LibTorch's CUDA part.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <utility>

#include "common/exit_codes.h"
#include "common/json.h"
#include "tests/gpu/random_networks.h"
#include "tests/gpu/rival_case.h"
#include "tests/support/thread_collectives.h"
#include "worker/engine/trainer.h"
#include "worker/kernels/torch_device.h"

namespace dd2 {
namespace {

constexpr std::int32_t kCsd = 1, kAlign = 2;

struct Trained {
  Metrics metrics;                    // of the last cycle
  std::vector<float> before, params;  // of both networks
  bool operator==(const Trained&) const = default;
};

std::vector<float> ParamsOf(const TrainingState& state) {
  std::vector<float> params;
  for (const NetworkState* network : {&state.generator, &state.guidance}) {
    const at::Tensor host = network->params.HostFlat();
    const float* values = host.const_data_ptr<float>();
    params.insert(params.end(), values, values + network->params.layout().size());
  }
  return params;
}

// Says what went wrong, where it did.
Result<Trained> Train(const TeacherBundle& teacher, const RunConfig& config, int ranks) {
  const ParamLayout layout = Network::Layout(SpecFor(config.model, *teacher.teacher));
  Trained trained;
  Status status;
  ThreadWorld(ranks).Run([&](Collectives& collectives) {
    TrainingState state = MakeTrainingState(layout, collectives.rank(), ranks);
    Trainer trainer(config, teacher, collectives, state);
    const auto run = [&]() -> Status {
      DD2_TRY(trainer.EnterPhase(0));
      DD2_TRY(trainer.EnterPhase(kCsd));
      if (collectives.rank() == 0) trained.before = ParamsOf(state);
      for (; state.step < 3; AdvanceSteps(state, 1)) {
        DD2_TRY_ASSIGN(const StepOutcome step, trainer.CsdCycle(Wish()));
        if (collectives.rank() == 0) trained.metrics = step.metrics;
      }
      return {};
    };
    const Status done = run();
    if (collectives.rank() != 0) return;
    status = done;
    trained.params = ParamsOf(state);
  });
  if (status) return trained;
  std::printf("BAD  training on %d ranks: %s\n", ranks, status.error().message().c_str());
  return status.error();
}

constexpr double kFailed = 1e30;

// How far `a` is from `b`, as a share of the way that `b` has gone.
double ShareOfTheWay(const Result<Trained>& a, const Result<Trained>& b) {
  if (!a || !b || a->params.size() != b->params.size()) return kFailed;
  double apart = 0, way = 0;
  for (std::size_t i = 0; i < a->params.size(); ++i) {
    const double there = b->params[i];
    apart += std::abs(static_cast<double>(a->params[i]) - there);
    way += std::abs(there - static_cast<double>(b->before[i]));
  }
  return apart / way;
}

double Differs(const Result<Trained>& a, const Result<Trained>& b) {
  if (!a || !b) return kFailed;
  return *a == *b ? 0 : 1;
}

struct Check {
  std::string name;
  double error = 0, limit = 0;
};

// Small networks: three cycles on the CPU before the device is taken, then there.
class Checks {
 public:
  Checks() {
    for (const std::string_view precision : {kPrecisionFp32, kPrecisionBf16}) {
      cpu_.emplace_back(precision,
                        Train(RandomTeacher(kTiny, precision), ConfigOf(kTiny, 4, precision), 1));
    }
  }

  std::vector<Check> OnDevice() const {
    std::vector<Check> checks;
    for (const auto& [precision, cpu] : cpu_) {
      const std::string name(precision);
      const RunConfig config = ConfigOf(kTiny, 4, precision);
      const TeacherBundle teacher = RandomTeacher(kTiny, precision);
      const Result<Trained> one = Train(teacher, config, 1);
      // Adam's first steps have the size of the rate, whatever the gradient: one near zero may
      // point the other way.
      checks.push_back({"csd in " + name + ": GPU and CPU apart, as a share of their way",
                        ShareOfTheWay(one, cpu), precision == kPrecisionFp32 ? 0.02 : 0.3});
      checks.push_back({"csd in " + name + ": again", Differs(one, Train(teacher, config, 1)), 0});
      for (const int ranks : {2, 3}) {
        checks.push_back(
            {"csd in " + name + ": " + std::to_string(ranks) + " ranks have the bits of one",
             Differs(one, Train(teacher, config, ranks)), 0});
      }
    }
    return checks;
  }

 private:
  std::vector<std::pair<std::string_view, Result<Trained>>> cpu_;
};

// Matrix products of a pass forward, an add and a multiply each, of one sequence.
double BackboneFlops(const Size& size, std::int64_t tokens) {
  const auto d = static_cast<double>(size.width), n = static_cast<double>(tokens);
  double pairs = 0, seen = 0;  // of tokens that see each other
  for (const std::int64_t side : size.sides) {
    seen += static_cast<double>(side * side);
    pairs += static_cast<double>(side * side) * seen;
  }
  return static_cast<double>(size.layers) * (24 * n * d * d + 4 * d * pairs + 12 * d * d) +
         2 * n * kChannels * d;
}
double HeadFlops(const Size& size, double rows, double tokens) {
  const auto w = static_cast<double>(size.head_width);
  return 2 * rows *
             (w * w * (5 * static_cast<double>(size.head_depth) + 3) + 2 * w * kChannels +
              kTimeFeatures * w) +
         2 * tokens * static_cast<double>(size.width) * w;
}

struct Flops {
  double guidance = 0, generator = 0;
};
// Backward passes cost twice the forward one, that of the score half of it (input gradients only).
Flops UpdateFlops(const Size& size, std::int64_t tokens) {
  const double b = size.batch, n = static_cast<double>(tokens) * b;
  const double backbone = b * BackboneFlops(size, tokens);
  const double teacher = 2 * backbone + 2 * n * static_cast<double>(size.width * size.codes);
  return {.guidance = backbone + HeadFlops(size, n, n)  // generation
                      + 3 * backbone + 3 * HeadFlops(size, n * size.draws, n),
          .generator = 3 * backbone + 3 * HeadFlops(size, n, n)  // generation, trained
                       + backbone + 2 * HeadFlops(size, n, n) + teacher};
}

using Clock = std::chrono::steady_clock;

template <class Step>
Result<double> MedianMs(TrainingState& state, const Step& step) {
  constexpr int kWarmUps = 3, kRepeats = 11;
  std::vector<double> times;
  for (int i = 0; i < kWarmUps + kRepeats; ++i) {
    const auto start = Clock::now();
    DD2_TRY(step());
    DD2_TRY(WaitForCompute());
    const std::chrono::duration<double, std::milli> passed = Clock::now() - start;
    if (i >= kWarmUps) times.push_back(passed.count());
    AdvanceSteps(state, 1);
  }
  std::ranges::sort(times);
  return times[times.size() / 2];
}

// One rank, one shard: what a device does between two exchanges.
Result<boost::json::object> Measure(const Size& size, std::string_view precision) {
  const TeacherBundle teacher = RandomTeacher(size, precision);
  const RunConfig config = ConfigOf(size, 1, precision);
  const std::unique_ptr<Collectives> alone = NewLocalCollectives();
  const ParamLayout layout = Network::Layout(SpecFor(config.model, *teacher.teacher));
  TrainingState state = MakeTrainingState(layout, 0, 1);
  Trainer trainer(config, teacher, *alone, state);
  DD2_TRY(trainer.EnterPhase(0));
  DD2_TRY(trainer.EnterPhase(kCsd));
  DD2_TRY_ASSIGN(const double cycle, MedianMs(state, [&]() -> Status {
                   const auto step = trainer.CsdCycle(Wish());
                   return step ? Status() : step.error();
                 }));
  DD2_TRY(trainer.EnterPhase(kAlign));
  DD2_TRY_ASSIGN(const double guidance, MedianMs(state, [&]() -> Status {
                   const auto step = trainer.AlignStep(Wish());
                   return step ? Status() : step.error();
                 }));
  const Flops flops = UpdateFlops(size, teacher.teacher->backbone().spec().tokens);
  return boost::json::object{{"precision", precision},
                             {"batch", size.batch},
                             {"parameters", layout.size()},
                             {"guidance_ms", guidance},
                             {"generator_ms", cycle - guidance},
                             {"guidance_tflops", flops.guidance / 1e12},
                             {"generator_tflops", flops.generator / 1e12}};
}

struct Options {
  bool tiny = false;
  const char* json = nullptr;         // or no report
  const char* case_folder = nullptr;  // or no case
};

bool Run(const Device& device, const Options& options, boost::json::object& report) {
  const auto bad = [](const Status& status) {
    if (!status) std::printf("BAD  %s\n", status.error().message().c_str());
    return !status;
  };
  if (bad(LoadTorchPart(device))) return false;
  if (options.case_folder != nullptr && bad(WriteRivalCase(options.case_folder))) return false;
  const Checks checks;
  if (bad(UseTorchDevice(device))) return false;
  bool fine = true;
  boost::json::array list;
  for (const Check& check : checks.OnDevice()) {
    const bool ok = check.error <= check.limit;
    list.push_back(boost::json::object{
        {"name", check.name}, {"error", check.error}, {"limit", check.limit}, {"ok", ok}});
    std::printf("%-4s %s: %.3g (limit %.3g)\n", ok ? "ok" : "BAD", check.name.c_str(), check.error,
                check.limit);
    fine = fine && ok;
  }
  report["checks"] = std::move(list);
  boost::json::array steps;
  for (const std::string_view precision : {kPrecisionFp32, kPrecisionBf16}) {
    auto measured = Measure(options.tiny ? kTiny : kD16, precision);
    if (!measured) {
      std::printf("BAD  steps in %s: %s\n", std::string(precision).c_str(),
                  measured.error().message().c_str());
      fine = false;
      continue;
    }
    std::printf("%s\n", boost::json::serialize(*measured).c_str());
    steps.push_back(std::move(*measured));
  }
  report["size"] = Describe(options.tiny ? kTiny : kD16);
  report["steps"] = std::move(steps);
  return fine;
}

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--tiny") == 0) {
      options.tiny = true;
    } else if (std::strcmp(argv[i], "--json") == 0 && i + 1 < argc) {
      options.json = argv[++i];
    } else if (std::strcmp(argv[i], "--case") == 0 && i + 1 < argc) {
      options.case_folder = argv[++i];
    } else {
      std::fputs("usage: dd2-gpu-steps [--tiny] [--json FILE] [--case FOLDER]\n", stderr);
      return kExitUsage;
    }
  }
  const Result<Device> device = LoadDevice(DeviceLibrary());
  if (!device) {
    std::printf("no GPU here: %s\n", device.error().message().c_str());
    return kExitCannotStart;
  }
  boost::json::object report;
  const bool fine = Run(*device, options, report);
  report["ok"] = fine;
  if (options.json != nullptr)
    std::ofstream(options.json) << boost::json::serialize(report) << '\n';
  return fine ? kExitOk : kExitInternal;
}

}  // namespace
}  // namespace dd2

int main(int argc, char** argv) { return dd2::Main(argc, argv); }
