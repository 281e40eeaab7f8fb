// How long a step takes: a roofline. Work is that of the rank that has most shards; nothing is
// taken to happen at the same time as something else.

#include <algorithm>
#include <cmath>

#include "cli/plan.h"
#include "cli/run_files.h"

namespace dd2 {
namespace {

// Passes over the logits of a token: written, read by the filters' sort and sums, masked.
constexpr double kFilteredPasses = 12;
constexpr double kPlainPasses = 2;
// Arithmetic of the score for a code, besides distance and mean: the exponential and its sums.
constexpr double kScoreFlops = 12;

double D(std::int64_t value) { return static_cast<double>(value); }

// Of one rank.
struct Work {
  double matrix = 0;   // flops of matrix products in fp32, which GPUs do without their matrix units
  double rounded = 0;  // in bf16
  double vector = 0;   // other flops
  double memory = 0;   // bytes to and from memory
  Work& operator+=(const Work& other) {
    matrix += other.matrix;
    rounded += other.rounded;
    vector += other.vector;
    memory += other.memory;
    return *this;
  }
  Work operator*(double factor) const {
    return {matrix * factor, rounded * factor, vector * factor, memory * factor};
  }
};

class Roofline {
 public:
  explicit Roofline(const PlanInput& in)
      : in_(in),
        cost_(CostOf(in.model, in.config.model)),
        // Threads of a CPU rank add up; a device is one.
        units_(in.hardware.device ? 1 : in.config.threads_per_rank),
        bf16_(BlocksInBf16(in.model, in.config.model.precision)),
        teacher_bf16_(BlocksInBf16(in.model, in.config.teacher.precision)),
        backbone_parameters_(D(Sum(NetworkBackboneTensors(in.model)))),
        head_parameters_(D(Sum(HeadTensors(in.model, in.config.model)))) {}

  double Seconds(const Work& work) const {
    const Hardware& h = in_.hardware;
    const double single = h.device ? h.vector_flops : h.matrix_flops;
    const double compute = work.matrix / (units_ * single * kMatrixShare) +
                           work.rounded / (units_ * h.matrix_flops * kMatrixShare) +
                           work.vector / (units_ * h.vector_flops * kVectorShare);
    return std::max(compute, MemorySeconds(work.memory));
  }
  double MemorySeconds(double bytes) const {
    return bytes / (units_ * in_.hardware.memory_rate * kMemoryShare);
  }

  // Of `b` sequences. A backward pass costs twice the forward pass, and once more where blocks are
  // run again.
  Work Forward(double b) const { return Pass(b, bf16_); }
  Work Trained(double b) const {
    return Forward(b) * (BlocksRunAgain(in_.model, in_.config.model) ? 4 : 3);
  }
  Work Head(double b, double draws) const {
    const ModelConfig& head = in_.config.model;
    const double rows = b * D(in_.model.tokens) * draws;
    const double flops = b * (cost_.head_token + draws * cost_.head_draw);
    return {bf16_ ? 0 : flops, bf16_ ? flops : 0, 0,
            head_parameters_ * kFloatBytes +
                rows * head.head_width * (16 + 8.0 * head.head_depth) * kFloatBytes};
  }
  Work Vocabulary(double b) const {
    const ModelSizes& m = in_.model;
    return {cost_.vocabulary * b, 0, 0,
            D(m.codes * m.width) * kFloatBytes + b * D(m.tokens * m.codes) * kFloatBytes};
  }
  Work Filter(double b, bool sorts) const {
    const TeacherConfig& teacher = in_.config.teacher;
    const bool filtered =
        sorts && ((teacher.top_k > 0 && teacher.top_k < in_.model.codes) || teacher.top_p < 1);
    return {0, 0, 0,
            b * D(in_.model.tokens * in_.model.codes) * kFloatBytes *
                (filtered ? kFilteredPasses : kPlainPasses)};
  }
  // The closed form of one draw of all tokens, and its product with the Jacobian.
  Work Score(double b, double draws, bool jacobian) const {
    const ModelSizes& m = in_.model;
    const double codes = b * draws * D(m.tokens * m.codes);
    const double flops = (jacobian ? 2 : 1) * (5 * D(m.channels) + kScoreFlops);
    return {0, 0, codes * flops, codes * kFloatBytes * (jacobian ? 2 : 1)};
  }
  Work TeacherScores(double b) const {
    Work work = Pass(GuidedPasses(in_) * b, teacher_bf16_);
    work += Vocabulary(b);
    work += Filter(b, true);
    return work;
  }

  Work Sampling(const PhaseConfig& phase) const {
    const double b = GuidedPasses(in_) * phase.block;
    const double passes = D(SamplingPasses(in_.model));
    Work work = Pass(b, false);
    work.memory += (passes - 1) * backbone_parameters_ * kFloatBytes + KeysRead(b);
    work += Vocabulary(phase.block) * 2;  // at the draw, and for the thresholds
    work.memory += (passes - 1) * D(in_.model.codes * in_.model.width) * kFloatBytes;
    work += Filter(2.0 * phase.block, true);
    if (phase.ode_steps > 0) work += Score(phase.block, 2.0 * phase.ode_steps, false);
    return work;
  }
  Work Gts(const PhaseConfig& phase, double b) const {
    Work work = phase.trains == kTrainsHead ? Forward(b) : Trained(b);
    work += Head(b, phase.draws) * 3;
    work += Score(b, phase.draws, false);
    if (in_.config.cache.enabled) {
      work += Vocabulary(b);
      work += Filter(b, false);
    } else {
      work += TeacherScores(b);
    }
    return work;
  }
  Work Regress(double b) const {
    Work work = Trained(b);
    work += Head(b, 1) * 3;
    return work;
  }
  Work Guidance(const PhaseConfig& phase, double b) const {
    Work work = Forward(b);
    work += Head(b, 1);
    work += Trained(b);
    work += Head(b, phase.draws) * 3;
    return work;
  }
  Work Generator(const PhaseConfig& phase, double b) const {
    Work work = Regress(b);
    work += TeacherScores(b);
    work += Forward(b);
    work += Head(b, phase.generator_draws) * 2;
    work += Score(b, phase.generator_draws, true);
    work += Score(b, phase.generator_draws, false);
    return work;
  }

  // Gradients of local shards cleared, added to and summed; Adam and the average on the slice; the
  // network spread.
  double UpdateSeconds(const PhaseConfig& phase, std::int64_t shards) const {
    const double trained = Trained(phase);
    return MemorySeconds(kFloatBytes * (trained * (4 * D(shards) + 4) + LargestPart(phase) * 9));
  }
  // The all-to-all of sums and the all-gather of the gradient among all ranks, then the slices of
  // the parameters among those of a domain: the rank that has most of them gives it to each other.
  double ExchangeSeconds(const PhaseConfig& phase, std::int64_t sums) const {
    const double ranks = in_.ranks, world = in_.world_size();
    const double on_node = std::min(world, ranks * in_.domains_per_node);
    const double among_all = kFloatBytes * (D(sums) + 1) * Trained(phase);
    const double far = among_all * (world - on_node) / world;
    const double near =
        among_all * (on_node - 1) / world + kFloatBytes * LargestPart(phase) * (ranks - 1);
    return far / (in_.hardware.network_rate * kNetworkShare) +
           near / (in_.hardware.node_rate * kNetworkShare);
  }

 private:
  // Through the blocks.
  Work Pass(double b, bool bf16) const {
    const double parameters = backbone_parameters_ * kFloatBytes;
    if (!bf16) return {cost_.backbone * b, 0, 0, Traffic(b, kFloatBytes) + parameters};
    return {0, cost_.backbone * b, 0, Traffic(b, 2) + parameters + backbone_parameters_ * 2};
  }
  // The head lies behind the backbone: what is trained is the end of the flat buffer.
  double Trained(const PhaseConfig& phase) const {
    return phase.trains == kTrainsHead ? head_parameters_ : backbone_parameters_ + head_parameters_;
  }
  // What the slice of the last rank of a domain has of it.
  double LargestPart(const PhaseConfig& phase) const {
    return std::min(Trained(phase), (backbone_parameters_ + head_parameters_) / in_.ranks);
  }
  // Of activations in a forward pass: each tensor inside a block is written and read.
  double Traffic(double b, double element) const {
    const ModelSizes& m = in_.model;
    const double widths = 16 * D(m.width) + 3 * D(m.ffn_hidden);
    return b * D(m.tokens) * D(m.layers) * widths * 2 * element;
  }
  // Each pass of sampling reads the keys and values of all tokens so far.
  double KeysRead(double b) const {
    const ModelSizes& m = in_.model;
    double tokens = 0, end = 0;
    for (const std::int64_t side : m.sides) tokens += end += D(side * side);
    if (m.sides.empty()) tokens = D(m.tokens) * (D(m.tokens) + 1) / 2;
    return b * tokens * 2 * D(m.layers * m.width) * kFloatBytes;
  }

  const PlanInput& in_;
  const ModelCost cost_;
  const double units_;
  const bool bf16_, teacher_bf16_;
  const double backbone_parameters_, head_parameters_;
};

void AddTraining(const PlanInput& in, const Roofline& roofline, const PhaseConfig& phase,
                 PhaseTime& time) {
  const ShardShare share = ShareOfShards(in.config.batch.shards, in.world_size());
  const double b = static_cast<double>(phase.batch) / in.config.batch.shards;
  const auto seconds = [&](const Work& work) { return D(share.shards) * roofline.Seconds(work); };
  const auto count = [&](const Work& work, double times) {
    time.compute_seconds += times * seconds(work);
    time.flops += times * in.config.batch.shards * (work.matrix + work.rounded + work.vector);
  };
  double updates = 1;
  switch (phase.kind) {
    case PhaseKind::kGts: count(roofline.Gts(phase, b), 1); break;
    case PhaseKind::kRegress: count(roofline.Regress(b), 1); break;
    case PhaseKind::kAlign: count(roofline.Guidance(phase, b), 1); break;
    default:
      count(roofline.Guidance(phase, b), phase.guidance_updates);
      count(roofline.Generator(phase, b), 1);
      updates += phase.guidance_updates;
  }
  time.gradient_seconds =
      phase.kind == PhaseKind::kCsd ? seconds(roofline.Guidance(phase, b)) : time.compute_seconds;
  time.update_seconds = updates * roofline.UpdateSeconds(phase, share.shards);
  time.exchange_seconds = updates * roofline.ExchangeSeconds(phase, share.sums);
  if (phase.kind == PhaseKind::kGts && in.config.cache.enabled) {
    time.cache_read_rate = phase.batch * D(ScoreBytes(in.model)) / time.step_seconds();
  }
}

}  // namespace

std::vector<PhaseTime> PlanTime(const PlanInput& input) {
  const Roofline roofline(input);
  const std::int64_t world = input.world_size();
  const std::vector<std::string> names = PhaseNames(input.config.phases);
  std::vector<PhaseTime> times;
  for (std::size_t i = 0; i < names.size(); ++i) {
    const PhaseConfig& phase = input.config.phases[i];
    PhaseTime time{.name = names[i], .steps = phase.steps};
    switch (phase.kind) {
      case PhaseKind::kSample: {
        const Work work = roofline.Sampling(phase);
        time.steps = (phase.steps + world - 1) / world;
        time.compute_seconds = roofline.Seconds(work);
        time.flops = static_cast<double>(world) * (work.matrix + work.rounded + work.vector);
        break;
      }
      case PhaseKind::kGts:
      case PhaseKind::kRegress:
      case PhaseKind::kCsd:
      case PhaseKind::kAlign: AddTraining(input, roofline, phase, time); break;
      default: continue;
    }
    times.push_back(std::move(time));
  }
  return times;
}

}  // namespace dd2
