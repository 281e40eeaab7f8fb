// What a rank allocates. Names in comments are those of worker/.

#include <algorithm>
#include <bit>

#include "cli/format.h"
#include "cli/plan.h"
#include "cli/run_files.h"

namespace dd2 {
namespace {

constexpr std::int64_t kMiB = std::int64_t{1} << 20;
// A worker besides what is listed here: pages of programs and libraries, which the ranks of a
// domain share, and what the libraries and the allocator hold. Measured: what workers had at their
// peak, less the other parts (functional.plan).
constexpr std::int64_t kWorkerBytes = 190 * kMiB;
constexpr std::int64_t kSharedPages = 100 * kMiB;  // of these
// With a device, what its libraries usually take.
constexpr std::int64_t kDeviceWorkerBytes = 3072 * kMiB;
constexpr std::int64_t kDeviceLibraryBytes = 1536 * kMiB;
// Of a checkpoint besides values: a line in the head of a part, one in the manifest.
constexpr std::int64_t kPartLineBytes = 119;
constexpr std::int64_t kTensorLineBytes = 390;
constexpr std::int64_t kStagingMargin = std::int64_t{64} << 10;
constexpr std::int64_t kPlaces = 2;  // of snapshots in memory
constexpr std::int64_t kNoteBytes = kMiB;
// Of the score cache: two buffers of values that are written, and blocks that were read.
constexpr std::int64_t kCacheBufferBytes = 40 * kMiB;
// The evaluation that the Fashion-MNIST runs have: all test images, in chunks.
constexpr std::int64_t kTestImages = 10'000;
constexpr std::int64_t kPixels = 28 * 28;
constexpr std::int64_t kCheckImages = 1000;
constexpr std::int64_t kEvalChunk = 250;
constexpr std::int64_t kGridColumns = 10;
// By FID: weights and feature maps of 25 images; of an image three maps of 160 channels.
constexpr double kInceptionBytes = 350e6;
constexpr double kInceptionBatch = 25;
constexpr double kDecodedBytes = 3.0 * 160 * 256 * 256 * kFloatBytes;
constexpr std::int64_t kInceptionFeatures = 2048;
constexpr std::int64_t kAdmBlock = 250;       // images of a block of statistics (adm_metrics.h)
constexpr std::int64_t kFrechetMatrices = 8;  // two sets' covariances and roots
constexpr std::int64_t kReferenceImages = 10'000;  // ADM's

double D(std::int64_t value) { return static_cast<double>(value); }

// Bytes of what passes allocate. Rows are tokens of a micro-batch.
class Activations {
 public:
  Activations(const ModelSizes& model, const RunConfig& config)
      : m_(model),
        config_(config.model),
        element_(ElementBytes(config.model.precision)),
        teacher_element_(ElementBytes(config.teacher.precision)),
        recompute_(BlocksRunAgain(model, config.model)) {}

  // What a backward pass through the backbone reads, and its own tensors.
  double Trained(double rows) const {
    const double d = D(m_.width), layers = D(m_.layers);
    const double ends = kFloatBytes * (5 * d + D(m_.channels) + 2 * d);
    const double inside = element_ * ((recompute_ ? 2 : layers) * Block() + D(m_.ffn_hidden));
    return rows * (ends + inside + (recompute_ ? kFloatBytes * layers * d : 0));
  }
  // A pass without one holds a block at a time. A worker's heap keeps what was freed (mallopt in
  // worker/engine/main.cc) and cuts large holes for small tensors: measured, our raster pass takes
  // two more of its widest tensors than it holds, VAR's what a pass with gradients would hold.
  double Plain(double rows) const { return Plain(rows, element_); }
  // The teacher's: over whole sequences, and a step of sampling, which is fp32.
  double TeacherPlain(double rows) const { return Plain(rows, teacher_element_); }
  double TeacherStep(double rows) const { return Plain(rows, kFloatBytes); }
  // The same of the head, for `rows` rows of x.
  double HeadTrained(double rows) const {
    const double w = D(config_.head_width);
    return kFloatBytes * rows *
           (D(config_.time_features) + 3 * D(m_.channels) + 8 * w + D(config_.head_depth) * 8 * w +
            8 * w);
  }
  double HeadPlain(double rows) const {
    return kFloatBytes * rows * (D(config_.time_features) + 16 * D(config_.head_width));
  }
  // Logits in fp32 and what the filters make of them.
  double Logits(double rows, const TeacherConfig& teacher) const {
    const double codes = D(m_.codes);
    const bool filtered = (teacher.top_k > 0 && teacher.top_k < m_.codes) || teacher.top_p < 1;
    // Tempered, sorted with positions of 8 bytes, two sums of probabilities; a mask and the result.
    return rows * codes * kFloatBytes * (filtered ? 7 : 1);
  }
  // Keys and values of the teacher, of `sequences`.
  double Keys(double sequences, double layers) const {
    return kFloatBytes * sequences * D(m_.tokens) * 2 * D(m_.width) * layers;
  }

 private:
  double ElementBytes(std::string_view precision) const {
    return BlocksInBf16(m_, precision) ? 2 : D(kFloatBytes);
  }
  double Plain(double rows, double element) const {
    const double holes = m_.kind == ModelKind::kRaster ? 2 * D(m_.ffn_hidden) : 0;
    return rows * (element * (Block() + holes) + kFloatBytes * 4 * D(m_.width));
  }
  // Widths of the tensors inside a block, of one row.
  double Block() const {
    const double d = D(m_.width), inner = D(m_.ffn_hidden);
    switch (m_.kind) {
      case ModelKind::kRaster: return 8 * d + 2 * inner;
      case ModelKind::kVar: return 17 * d + 2 * inner;  // modulated, gated; q, k of length 1
      case ModelKind::kLlamaGen: return 13 * d + 4 * inner;
    }
    return 0;
  }
  const ModelSizes& m_;
  const ModelConfig& config_;
  // Bytes of a number inside a block: of one that is trained, of the teacher.
  const double element_, teacher_element_;
  const bool recompute_;  // blocks are run again in the backward pass
};

// While the generator is judged, of which there is a copy: `samples` to measure, in chunks, and
// rank 0's grid of them; by FID a few at a time, with what decoders of 256 pixels hold of each and
// Inception beside it.
double EvaluationBytes(const PlanInput& in, std::int64_t samples) {
  if (in.config.eval.by_inception()) return kInceptionBytes + kInceptionBatch * kDecodedBytes;
  if (!in.model.measured) return 0;
  const Activations a(in.model, in.config);
  const std::int64_t images =
      std::max(std::min(kEvalChunk, samples), kGridColumns * in.model.classes);
  const double rows = D(images * in.model.tokens);
  return std::max(a.Plain(rows), a.HeadPlain(rows) + rows * D(in.model.width) * kFloatBytes);
}

// Tokens that a pass of sampling computes of each sequence: one, or the largest scale.
double WidestPass(const ModelSizes& m) {
  const std::int64_t side = m.sides.empty() ? 1 : *std::ranges::max_element(m.sides);
  return D(side * side);
}

// What a phase holds while it works and gives back afterwards; the largest of its parts.
double WorkingBytes(const PlanInput& in, const PhaseConfig& phase) {
  const ModelSizes& m = in.model;
  const RunConfig& config = in.config;
  const Activations a(m, config);
  const double n = D(m.tokens);
  const double rows = D(phase.batch) / config.batch.shards * n;
  const double passes = GuidedPasses(in);
  const double draws = phase.draws * rows, generator_draws = phase.generator_draws * rows;
  const double guidance = a.Trained(rows) + a.HeadTrained(draws);
  switch (phase.kind) {
    case PhaseKind::kTeacherCheck:
      if (!m.measured) return 0;
      return a.TeacherPlain(D(std::min<std::int64_t>(kCheckImages, config.eval.reference_images)) *
                            n);
    case PhaseKind::kSample: {
      const double block = phase.block, widest = block * WidestPass(m);
      // In raster order a step copies the keys of a layer, then its values (StepBlock).
      const double keys = a.Keys(passes * block, D(m.layers) + (m.sides.empty() ? 0.5 : 0));
      const double hidden = block * n * D(m.width) * kFloatBytes;
      const double drawing =
          keys + hidden +
          std::max(a.TeacherStep(passes * widest), a.Logits(widest, config.teacher));
      // As they were drawn, in fp16, and rounded.
      const double thresholds = 2.5 * hidden + a.Logits(block * n, config.teacher);
      return std::max(drawing, thresholds);
    }
    case PhaseKind::kGts: {
      const double backbone = phase.trains == kTrainsHead ? a.Plain(rows) : a.Trained(rows);
      const double logits = a.Logits(rows, TeacherConfig());
      const double hidden = rows * D(m.width) * kFloatBytes;
      // Stored vectors: as they were read, side by side in fp16, in fp32; logits before and after
      // the temperature.
      const double loading =
          config.cache.enabled
              ? 2 * hidden + 2 * logits
              : std::max(a.TeacherPlain(passes * rows), hidden + a.Logits(rows, config.teacher));
      return std::max(loading, logits + backbone + a.HeadTrained(draws));
    }
    case PhaseKind::kRegress: return a.Trained(rows) + a.HeadTrained(rows);
    case PhaseKind::kCsd: {
      const double generator = a.Trained(rows) + a.HeadTrained(rows);
      const double logits = a.Logits(rows, config.teacher);
      const double teacher = std::max(a.TeacherPlain(passes * rows), logits);
      return std::max(guidance,
                      generator + std::max(teacher, logits + a.HeadTrained(generator_draws)));
    }
    case PhaseKind::kAlign: return guidance;
    case PhaseKind::kEval:
    case PhaseKind::kExport: return 0;
  }
  return 0;
}

// Sizes of the flat buffers, in elements.
struct Flat {
  std::int64_t teacher = 0;
  std::int64_t network = 0;         // padded to whole slices of the ranks of a domain
  std::int64_t slice = 0;           // NetworkState::slice
  std::int64_t gradient_slice = 0;  // GradientCut::slice of the whole network
  std::int64_t gradient = 0;
  std::int64_t shard_gradient = 0;  // of GradientSums::shards
  std::int64_t tensors = 0;
};

std::int64_t ChunksOf(std::int64_t elements, std::int64_t parts) {
  const std::int64_t chunks = elements / kFlatChunk;
  return (chunks + parts - 1) / parts * kFlatChunk;
}

TensorSizes NetworkTensors(const PlanInput& in) {
  TensorSizes tensors = NetworkBackboneTensors(in.model);
  const TensorSizes head = HeadTensors(in.model, in.config.model);
  tensors.insert(tensors.end(), head.begin(), head.end());
  return tensors;
}

Flat FlatOf(const PlanInput& in) {
  const TensorSizes tensors = NetworkTensors(in);
  const std::int64_t world = in.world_size();
  Flat flat;
  flat.teacher = FlatElements(TeacherTensors(in.model));
  flat.slice = ChunksOf(FlatElements(tensors), in.ranks);
  flat.network = flat.slice * in.ranks;
  flat.gradient_slice = ChunksOf(flat.network, world);
  flat.gradient = flat.gradient_slice * world;
  flat.shard_gradient = flat.network + (world - 1) * kFlatChunk;
  flat.tensors = static_cast<std::int64_t>(tensors.size());
  return flat;
}

// Made at the first update and kept: GradientSums, and the whole gradient. A device sums in place,
// sends the sum of one node as it lies, and alone needs no exchange.
void AddUpdateBuffers(const PlanInput& in, const Flat& flat, Place place, MemoryPlan& plan) {
  const ShardShare share = ShareOfShards(in.config.batch.shards, in.world_size());
  plan.parts.push_back({"gradients of shards, " + std::to_string(share.shards) + " x " +
                            FormatBytes(flat.shard_gradient * kFloatBytes),
                        place, share.shards * flat.shard_gradient * kFloatBytes});
  const bool device = in.hardware.device;
  const std::int64_t sent = device && share.sums == 1 ? 0 : share.sums;
  std::int64_t arrived = share.all_sums + 1;  // one slice more: of the mean
  if (device) arrived = in.world_size() == 1 ? 0 : share.all_sums;
  plan.parts.push_back(
      {"exchange of gradients", place,
       ((sent + 1) * flat.gradient + arrived * flat.gradient_slice) * kFloatBytes});
}

void AddState(const PlanInput& in, const Flat& flat, MemoryPlan& plan) {
  const bool device = in.hardware.device;
  const Place place = device ? Place::kDevice : Place::kHost;
  plan.parts.push_back({"teacher, fp32", place, flat.teacher * kFloatBytes});
  plan.parts.push_back(
      {"generator and guidance network, fp32", place, 2 * flat.network * kFloatBytes});
  if (BlocksInBf16(in.model, in.config.model.precision)) {
    // Rounded for each pass; the backward pass wants those of its blocks.
    const bool again = BlocksRunAgain(in.model, in.config.model);
    const std::int64_t blocks =
        again ? std::min<std::int64_t>(2, in.model.layers) : in.model.layers;
    plan.parts.push_back(
        {"weights of blocks in bf16", place, 2 * flat.network / in.model.layers * blocks});
  }
  plan.parts.push_back({"moments and averages, fp32", place, 6 * flat.slice * kFloatBytes});
}

void AddHostParts(const PlanInput& in, const Flat& flat, MemoryPlan& plan) {
  const RunConfig& config = in.config;
  plan.parts.push_back({"program and libraries", Place::kHost,
                        in.hardware.device ? kDeviceWorkerBytes : kWorkerBytes});
  plan.parts.push_back({"tokenizer", Place::kHost, in.model.tokenizer_bytes});
  if (in.model.measured) {
    plan.parts.push_back({"test images", Place::kHost, kTestImages * kPixels * kFloatBytes});
  }
  if (config.eval.by_inception()) {
    // Features of the reference and of the images, all on every rank: as they are gathered, and put
    // in order.
    plan.parts.push_back({"features of Inception", Place::kHost,
                          (kReferenceImages + 3 * std::int64_t{config.eval.samples}) *
                              kInceptionFeatures * kFloatBytes});
    // Covariances in double precision: a level of the tree over blocks each, of two kinds of
    // features; one of each rank while they are exchanged; those of the distance.
    const std::int64_t levels =
        std::bit_width(static_cast<std::uint64_t>(config.eval.samples / kAdmBlock));
    plan.parts.push_back({"covariances of Inception", Place::kHost,
                          (2 * levels + in.world_size() + kFrechetMatrices) * kInceptionFeatures *
                              kInceptionFeatures * std::int64_t{sizeof(double)}});
  }
  std::int64_t sequences = 0;
  for (const PhaseConfig& phase : config.phases) {
    if (phase.kind == PhaseKind::kSample) sequences = phase.sequences;
  }
  plan.parts.push_back(
      {"teacher's sequences", Place::kHost, sequences * (2 * in.model.tokens + 48)});
  if (config.cache.enabled && sequences > 0) {
    const std::int64_t written = sequences * (2 * in.model.tokens * in.model.width);
    plan.parts.push_back({"score cache", Place::kHost, std::min(kCacheBufferBytes, written)});
  }
  const std::int64_t part = kTensorKinds * flat.slice * kFloatBytes;
  plan.parts.push_back({"staging of checkpoints", Place::kHost,
                        part + kTensorKinds * flat.tensors * kPartLineBytes + kStagingMargin});
  if (config.checkpoint.memory_every > 0) {
    plan.parts.push_back({"snapshots in memory", Place::kShared, kPlaces * (part + kNoteBytes)});
  }
}

// The phase that needs most, with its parts.
void AddWork(const PlanInput& in, const Flat& flat, MemoryPlan& plan) {
  const Place place = in.hardware.device ? Place::kDevice : Place::kHost;
  const std::vector<PhaseConfig>& phases = in.config.phases;
  const std::vector<std::string> names = PhaseNames(phases);
  MemoryPlan updates;
  AddUpdateBuffers(in, flat, place, updates);
  std::int64_t of_updates = 0;
  for (const MemoryPart& part : updates.parts) of_updates += part.bytes;
  // Of an update itself: new values of the slice, then a copy for every rank of the domain; where
  // phases begin and networks are evaluated, a whole average and a network of it.
  const std::int64_t of_update = (in.ranks > 1 ? flat.network : flat.slice) * kFloatBytes;
  std::int64_t most = -1, working = 0;
  bool with_updates = false, trained = false;
  for (std::size_t i = 0; i < phases.size(); ++i) {
    using enum PhaseKind;
    trained = trained || Trains(phases[i]);
    auto bytes = static_cast<std::int64_t>(WorkingBytes(in, phases[i]));
    if (trained) bytes = std::max(bytes, of_update);
    const PhaseKind kind = phases[i].kind;
    if (kind == kRegress || kind == kCsd || kind == kEval) {
      const EvalConfig& eval = in.config.eval;
      const double evaluated =
          EvaluationBytes(in, kind == kEval ? eval.samples : eval.curve_samples);
      bytes = std::max(bytes, flat.network * kFloatBytes +
                                  std::max(of_update, static_cast<std::int64_t>(evaluated)));
    }
    const std::int64_t total = bytes + (trained ? of_updates : 0);
    plan.phases.push_back({names[i], total});
    if (total <= most) continue;
    most = total;
    working = bytes;
    with_updates = trained;
    plan.phase = names[i];
  }
  if (with_updates) plan.parts.insert(plan.parts.end(), updates.parts.begin(), updates.parts.end());
  plan.parts.push_back({"activations, logits and copies", place, working});
  if (in.hardware.device) {
    plan.parts.push_back({"libraries of the device", place, kDeviceLibraryBytes});
  }
}

// Maximal aligned runs that cover shards [begin, end).
std::int64_t AlignedRuns(int begin, int end, int shards) {
  std::int64_t runs = 0;
  for (int at = begin; at < end; ++runs) {
    const int aligned = at == 0 ? shards : at & -at;
    at += std::min(aligned, static_cast<int>(std::bit_floor(static_cast<unsigned>(end - at))));
  }
  return runs;
}

}  // namespace

ShardShare ShareOfShards(int shards, int world_size) {
  ShardShare share;
  int begin = 0;
  for (int rank = 0; rank < world_size; ++rank) {
    const int end = begin + shards / world_size + (rank < shards % world_size ? 1 : 0);
    const std::int64_t runs = AlignedRuns(begin, end, shards);
    share.shards = std::max<std::int64_t>(share.shards, end - begin);
    share.sums = std::max(share.sums, runs);
    share.all_sums += runs;
    begin = end;
  }
  return share;
}

std::int64_t SliceElements(const PlanInput& input) { return FlatOf(input).slice; }

std::int64_t CheckpointBytesOf(const PlanInput& input) {
  const TensorSizes tensors = NetworkTensors(input);
  return kTensorKinds * (Sum(tensors) * kFloatBytes +
                         static_cast<std::int64_t>(tensors.size()) * kTensorLineBytes);
}

MemoryPlan PlanMemory(const PlanInput& input) {
  const Flat flat = FlatOf(input);
  const int on_node = input.ranks * input.domains_per_node;
  MemoryPlan plan;
  AddState(input, flat, plan);
  AddWork(input, flat, plan);
  AddHostParts(input, flat, plan);
  std::erase_if(plan.parts, [](const MemoryPart& part) { return part.bytes == 0; });
  for (const MemoryPart& part : plan.parts) {
    if (part.place == Place::kDevice) plan.device_bytes += part.bytes;
    if (part.place != Place::kDevice) plan.rank_bytes += part.bytes;
    if (part.place == Place::kShared) plan.shared_bytes += part.bytes * on_node;
  }
  // What a phase needs besides its work is the same everywhere.
  const std::int64_t whole = input.hardware.device ? plan.device_bytes : plan.rank_bytes;
  const std::int64_t most = std::ranges::max(plan.phases, {}, &PhaseMemory::bytes).bytes;
  for (PhaseMemory& phase : plan.phases) phase.bytes += whole - most;
  plan.node_bytes = plan.rank_bytes * on_node;
  if (!input.hardware.device) plan.node_bytes -= kSharedPages * (on_node - 1);
  return plan;
}

}  // namespace dd2
