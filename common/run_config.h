#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/timeouts.h"

namespace dd2 {

// The settings of a run, immutable once loaded. common/config.h reads it from YAML, where each
// setting is declared once with unit, default, bounds and one sentence; this file is only the
// shape.

// The phases a run is made of, in the order of design 4. Stored in journals: never renumber.
enum class PhaseKind : std::uint8_t {
  kTeacherCheck = 1,  // load the teacher, compare digest and quality with its card
  kSample = 2,        // teacher sequences in fixed blocks, score cache filled
  kGts = 3,           // AR-diffusion tuning with the ground truth score (method 4)
  kCsd = 4,           // K guidance updates + 1 generator update, repeated (method 5)
  kAlign = 5,         // EMA into generator, generator frozen, guidance only (method 3)
  kEval = 6,          // FDr and class accuracy, or FID and its relatives; speed
  kExport = 7,        // one safetensors file + JSON that `dd2 sample` and `dd2 eval` take
  kRegress = 8,       // optional warm start of the generator on ODE trajectories, as in DD1
};

// All of them, in the order that documents list them.
inline constexpr PhaseKind kPhaseKinds[] = {
    PhaseKind::kTeacherCheck, PhaseKind::kSample, PhaseKind::kGts,  PhaseKind::kRegress,
    PhaseKind::kCsd,          PhaseKind::kAlign,  PhaseKind::kEval, PhaseKind::kExport};

// Words of TeacherConfig::precision and ModelConfig::precision.
inline constexpr std::string_view kPrecisionFp32 = "fp32";
inline constexpr std::string_view kPrecisionBf16 = "bf16";

struct TeacherConfig {
  std::string path;        // folder: tokenizer, teacher, classifier, card; required
  double cfg_scale = 1.5;  // w of logits = u + w (c - u); by scales VAR's cfg (Teacher::Strength)
  int top_k = 0;           // 0: no top-k filter
  double top_p = 1.0;      // 1: no top-p filter
  double temperature = 1.0;
  // Of the blocks of VAR's and LlamaGen's, in passes over whole sequences.
  std::string precision{kPrecisionFp32};
};

struct DatasetConfig {
  std::string path = "/usr/share/datasets/fashion-mnist";  // the four *-ubyte.gz files
};

// Words of RunConfig::device.
inline constexpr std::string_view kDeviceCpu = "cpu";
inline constexpr std::string_view kDeviceCuda = "cuda";

struct ModelConfig {
  int head_width = 128;    // MAR head: width of the residual stream
  int head_depth = 3;      // residual blocks
  int time_features = 64;  // sinusoid features of 1000 t
  // Of VAR's and LlamaGen's transformers; ours in raster order has neither.
  std::string precision{kPrecisionFp32};  // of the blocks
  bool recompute = false;                 // blocks run again in the backward pass
};

struct BatchConfig {
  int shards = 4;  // G: virtual shards (micro-batches) of every global batch; power of two
};

struct CacheConfig {
  std::string path;     // empty: $XDG_CACHE_HOME/dd2/scores
  bool enabled = true;  // false: GTS recomputes the teacher at every step
};

struct CheckpointConfig {
  int keep_last = 3;              // the newest ones are kept
  int keep_every = 0;             // and every k-th that was ever committed, for good; 0: none
  int keep_best = 0;              // and the n with the best FDr or FID; 0: none. Others are deleted
  std::string interval = "auto";  // ParseCheckpointInterval
  int memory_every = 10;          // steps of training between snapshots in memory; 0: none
};
// When checkpoints are made besides those at the borders that phases set.
struct CheckpointInterval {
  enum class Kind : std::uint8_t { kOff, kAuto, kFixed };
  Kind kind = Kind::kAuto;
  double seconds = 0;  // kFixed
};
// "auto", "off" or seconds, from 1 to 1e9. Nothing when it is none of them.
std::optional<CheckpointInterval> ParseCheckpointInterval(std::string_view text);

struct EvalConfig {
  // Both or neither. With them images are judged as ADM's suite does it (FID and the rest), without
  // by the teacher's evaluation network (FDr), which an imported teacher lacks.
  std::string inception;  // weights of FID's network, .pth or .safetensors
  std::string reference;  // .npz with images or their statistics
  bool by_inception() const { return !inception.empty(); }

  int samples = 5000;            // of the final evaluation, stratified over classes
  int curve_samples = 2000;      // of each point of the curve of quality
  int reference_images = 10000;  // test images that FDr is measured to
};

// Where the coordinator listens, for workers and agents as well as for HTTP.
struct ApiConfig {
  std::string host = "127.0.0.1";  // anything but loopback opens the API to the network
  int port = 0;                    // of HTTP; 0: any free port, written into the run folder
};

// Adam with linear warm-up, then cosine from the peak to final_ratio of it over the phase.
struct ScheduleConfig {
  double start = 0;          // learning rate that the warm-up rises from
  double peak = 0;           // after it
  int warmup = 0;            // steps of the phase
  double final_ratio = 1.0;  // 1: constant after warm-up
};

// Words of PhaseConfig::trains.
inline constexpr std::string_view kTrainsAll = "all";
inline constexpr std::string_view kTrainsHead = "head";

// One phase. Fields that a kind does not use keep their defaults and are refused in YAML.
struct PhaseConfig {
  PhaseKind kind = PhaseKind::kEval;
  std::int64_t steps = 1;  // sample: sequences / block; csd: outer cycles; else updates
  int batch = 32;          // global batch: sequences per update (divisible by shards)
  int draws = 2;           // m: (t, eps) draws per token sharing one backbone pass
  int sequences = 0;       // sample: teacher sequences in all (a multiple of block)
  int block = 250;         // sample: sequences computed together, always with the same shapes
  int ode_steps = 0;       // sample: Heun steps of each token's flow; 0: multinomial draws
  int validation = 0;      // gts: the first n sequences are only measured, not trained on
  // gts: kTrainsHead: the backbone stays as it is (method 4.2). A second gts phase goes on with the
  // average that the first one made.
  std::string trains{kTrainsAll};
  int guidance_updates = 4;  // csd: K
  int generator_draws = 2;   // csd: draws in the generator's loss
  ScheduleConfig generator;  // csd, regress
  // csd, align; gts: the backbone's rate. Its warm-up and start are the generator's too.
  ScheduleConfig guidance;
  double head_lr_ratio = 1.0;  // gts, regress: rate of the head / rate of the backbone
  double beta1 = 0.9;
  double beta2 = 0.95;
  double clip_norm = 1.0;  // gradient norm limit; 0: none
  double ema_max = 0.995;  // decay = min(ema_max, (k+1)/(k+10)), k = updates in this phase
  double t_min = 0.03;     // guidance and gts: t ~ U(t_min, t_max) per token
  double t_max = 1.0;
  double generator_t_min = 0.05;
  double generator_t_max = 0.98;
  double sid_alpha = 1.0;    // alpha of the SiD loss
  int eval_every = 0;        // csd: cycles between points of the curve of quality; 0: none
  int checkpoint_every = 0;  // steps between checkpoints inside the phase; 0: only at its end
};

struct RunConfig {
  std::string name;  // default run folder: runs/<name>
  std::uint64_t seed = 1;
  int domains = 1;           // failure domains on this machine, each with an agent and an mpirun
  int ranks = 2;             // worker processes of a domain
  int threads_per_rank = 1;  // part of the numeric mode
  std::string device{kDeviceCpu};  // what workers compute on
  TeacherConfig teacher;
  DatasetConfig dataset;
  ModelConfig model;
  BatchConfig batch;
  CacheConfig cache;
  CheckpointConfig checkpoint;
  EvalConfig eval;
  ApiConfig api;
  Timeouts timeouts;
  std::vector<PhaseConfig> phases;  // teacher check first (added when absent), export last
};

// "sample", "gts", ...: the words of the YAML files, logs and the API.
const char* PhaseKindName(PhaseKind kind);
// The inverse; nothing when `name` is no phase kind.
std::optional<PhaseKind> ParsePhaseKind(std::string_view name);
// Whether a failure domain may be called so: 1 to 64 letters, digits, '-', '_' and '.', which does
// not come first.
bool IsDomainName(std::string_view name);
// A phase with the defaults of its kind (they differ: gts takes larger batches than csd).
PhaseConfig DefaultPhase(PhaseKind kind);

}  // namespace dd2
