#include "common/config_settings.h"

#include <algorithm>
#include <charconv>
#include <cmath>

namespace dd2 {
namespace {

constexpr unsigned kGts = KindBit(PhaseKind::kGts);
constexpr unsigned kRegress = KindBit(PhaseKind::kRegress);
constexpr unsigned kCsd = KindBit(PhaseKind::kCsd);
constexpr unsigned kAlign = KindBit(PhaseKind::kAlign);
constexpr unsigned kSample = KindBit(PhaseKind::kSample);
constexpr double kUpdatesMax = 1e8;  // attempted updates of a phase must fit 32 bits

// clang-format off
constexpr Setting<RunConfig> kRunSettings[] = {
    {{"name", "", 0, 0, kPlain, "Name of the run; its default folder is runs/NAME (default: the file's name)."},
     [](RunConfig& c) -> SettingField { return &c.name; }},
    {{"seed", "", 0, kUnbounded, kBits, "Every random number of the run follows from it."},
     [](RunConfig& c) -> SettingField { return &c.seed; }},
    {{"domains", "domains", 1, 4096, kPlain, "Failure domains (agent and mpirun) on this machine; one may die and the others train on."},
     [](RunConfig& c) -> SettingField { return &c.domains; }},
    {{"ranks", "processes", 1, 1024, kPlain, "Worker processes of each domain; the result does not depend on it."},
     [](RunConfig& c) -> SettingField { return &c.ranks; }},
    {{"threads_per_rank", "threads", 1, 256, kBits, "Compute threads of each worker; part of the numeric mode."},
     [](RunConfig& c) -> SettingField { return &c.threads_per_rank; }},
    {{"device", "", 0, 0, kBits | kLater, "cpu, or cuda: each worker computes on the GPU of its place on the machine."},
     [](RunConfig& c) -> SettingField { return &c.device; }},
    {{"teacher.path", "", 0, 0, kPath | kRequired, "Folder with the tokenizer, teacher, classifier and their card."},
     [](RunConfig& c) -> SettingField { return &c.teacher.path; }},
    {{"teacher.cfg_scale", "", 0, 100, kBits, "Guidance w of logits = u + w (c - u), 1 is none; of a multi-scale teacher VAR's cfg, w = 1 + cfg k / (K - 1) at scale k, 0 is none."},
     [](RunConfig& c) -> SettingField { return &c.teacher.cfg_scale; }},
    {{"teacher.top_k", "codes", 0, 1e6, kBits, "Keep only the k likeliest codes; 0 keeps all."},
     [](RunConfig& c) -> SettingField { return &c.teacher.top_k; }},
    {{"teacher.top_p", "", 0, 1, kBits | kAboveMin, "Keep the likeliest codes up to this probability; 1 keeps all."},
     [](RunConfig& c) -> SettingField { return &c.teacher.top_p; }},
    {{"teacher.temperature", "", 0, 100, kBits | kAboveMin, "Divides the guided logits."},
     [](RunConfig& c) -> SettingField { return &c.teacher.temperature; }},
    {{"teacher.precision", "", 0, 0, kBits | kLater, "fp32, or bf16: the blocks of a VAR or LlamaGen teacher compute matrix products and attention in bf16 in passes over whole sequences (teacher_check, csd, gts without the score cache). What it draws, its output layer and the score stay fp32."},
     [](RunConfig& c) -> SettingField { return &c.teacher.precision; }},
    {{"dataset.path", "", 0, 0, kPath, "Folder with the real images (IDX, gzip) that evaluation compares with."},
     [](RunConfig& c) -> SettingField { return &c.dataset.path; }},
    {{"model.head_width", "", 8, 8192, kBits, "Width of the head's residual stream."},
     [](RunConfig& c) -> SettingField { return &c.model.head_width; }},
    {{"model.head_depth", "blocks", 1, 64, kBits, "Residual blocks of the head."},
     [](RunConfig& c) -> SettingField { return &c.model.head_depth; }},
    {{"model.time_features", "", 2, 4096, kBits, "Sinusoid features of the time (an even number)."},
     [](RunConfig& c) -> SettingField { return &c.model.time_features; }},
    {{"model.precision", "", 0, 0, kBits | kLater, "fp32, or bf16: the trained transformers of VAR and LlamaGen and their MLP heads compute matrix products in bf16. Weights, sums of gradients, optimiser, averages and score stay fp32."},
     [](RunConfig& c) -> SettingField { return &c.model.precision; }},
    {{"model.recompute", "", 0, 0, kPlain, "The trained transformers of VAR and LlamaGen keep only the input of each block for the backward pass, which runs the block again: less memory, about a third more work, the same bits."},
     [](RunConfig& c) -> SettingField { return &c.model.recompute; }},
    {{"batch.shards", "", 1, 16384, kBits, "Virtual shards of every batch (a power of two); fixes the order of sums."},
     [](RunConfig& c) -> SettingField { return &c.batch.shards; }},
    {{"cache.path", "", 0, 0, kPath, "Folder of the teacher score cache; empty: dd2/scores in the user's cache folder."},
     [](RunConfig& c) -> SettingField { return &c.cache.path; }},
    {{"cache.enabled", "", 0, 0, kBits, "false: GTS asks the teacher again for every batch (other shapes, so other last bits)."},
     [](RunConfig& c) -> SettingField { return &c.cache.enabled; }},
    {{"checkpoint.keep_last", "checkpoints", 1, 1e9, kPlain, "The newest committed checkpoints that are kept; older ones are deleted, apart from those below."},
     [](RunConfig& c) -> SettingField { return &c.checkpoint.keep_last; }},
    {{"checkpoint.keep_every", "checkpoints", 0, 1e9, kPlain, "Every k-th committed checkpoint is kept for good; 0: none."},
     [](RunConfig& c) -> SettingField { return &c.checkpoint.keep_every; }},
    {{"checkpoint.keep_best", "checkpoints", 0, 1e9, kPlain, "The n checkpoints with the lowest FDr or FID, evaluated at their position or nearest before it, are kept; 0: none."},
     [](RunConfig& c) -> SettingField { return &c.checkpoint.keep_best; }},
    {{"checkpoint.interval", "seconds", 0, 0, kPlain, "Time between checkpoints, besides those of the phases: seconds, off, or auto: from what a checkpoint costs and how often the run was hit (Young/Daly)."},
     [](RunConfig& c) -> SettingField { return &c.checkpoint.interval; }},
    {{"checkpoint.memory_every", "steps", 0, kUpdatesMax, kPlain, "Steps of training between snapshots in shared memory, from which workers that are started again go on; 0: none."},
     [](RunConfig& c) -> SettingField { return &c.checkpoint.memory_every; }},
    {{"eval.inception", "", 0, 0, kPath, "Weights of FID's network (pt_inception-2015-12-05, .pth or .safetensors): with eval.reference, images are judged by FID and the rest of ADM's suite; empty: by the teacher's own evaluation network (FDr), which an imported teacher lacks."},
     [](RunConfig& c) -> SettingField { return &c.eval.inception; }},
    {{"eval.reference", "", 0, 0, kPath, "What FID compares with: .npz with images (arr_0), their statistics (mu, sigma, mu_s, sigma_s), or both."},
     [](RunConfig& c) -> SettingField { return &c.eval.reference; }},
    {{"eval.samples", "images", 10, 1e6, kPlain, "Images of the final evaluation, equally many of each class."},
     [](RunConfig& c) -> SettingField { return &c.eval.samples; }},
    {{"eval.curve_samples", "images", 10, 1e6, kPlain, "Images of each point of the curve of FDr or FID."},
     [](RunConfig& c) -> SettingField { return &c.eval.curve_samples; }},
    {{"eval.reference_images", "images", 100, 1e6, kPlain, "Test images that FDr is measured to (all, when there are fewer)."},
     [](RunConfig& c) -> SettingField { return &c.eval.reference_images; }},
    {{"api.host", "", 0, 0, kPlain, "Where the coordinator listens: an address, an interface (ib0), a network (10.1.0.0/16), or auto: the address that other machines reach this one under, by rule. Other than loopback opens it to the network."},
     [](RunConfig& c) -> SettingField { return &c.api.host; }},
    {{"api.port", "", 0, 65535, kPlain, "Port of the HTTP API; 0 takes a free one."},
     [](RunConfig& c) -> SettingField { return &c.api.port; }},
    {{"timeouts.heartbeat_interval", "s", 0.2, 60, kPlain, "Workers and agents say that they live this often."},
     [](RunConfig& c) -> SettingField { return &c.timeouts.heartbeat_interval; }},
    {{"timeouts.heartbeat_expiry", "s", 1, 3600, kPlain, "Silence after which a worker or agent counts as lost (a closed connection is noticed at once)."},
     [](RunConfig& c) -> SettingField { return &c.timeouts.heartbeat_expiry; }},
    {{"timeouts.agent_join", "s", 1, 86400, kPlain, "From the start of the coordinator to the first agent."},
     [](RunConfig& c) -> SettingField { return &c.timeouts.agent_join; }},
    {{"timeouts.workers_join", "s", 1, 86400, kPlain, "From the start of a domain to its last worker (programs and teacher are loaded in between)."},
     [](RunConfig& c) -> SettingField { return &c.timeouts.workers_join; }},
    {{"timeouts.collective", "s", 1, 86400, kPlain, "One exchange among the ranks; the slowest rank's work before it lies inside."},
     [](RunConfig& c) -> SettingField { return &c.timeouts.collective; }},
    {{"timeouts.stall", "s", 1, 86400, kPlain, "A rank that the others wait for counts as hanging after this, or after 20 average steps if that is longer."},
     [](RunConfig& c) -> SettingField { return &c.timeouts.stall; }},
    {{"timeouts.regroup", "s", 1, 86400, kPlain, "A rank whose exchange failed waits this long to be called to the next generation."},
     [](RunConfig& c) -> SettingField { return &c.timeouts.regroup; }},
    {{"timeouts.unwind", "s", 1, 86400, kPlain, "The members of a broken generation must end what they compute within this (an evaluation may take long)."},
     [](RunConfig& c) -> SettingField { return &c.timeouts.unwind; }},
    {{"timeouts.coordinator_away", "s", 1, 604800, kPlain, "Workers and agents go on for this long without their coordinator."},
     [](RunConfig& c) -> SettingField { return &c.timeouts.coordinator_away; }},
    {{"timeouts.reattach", "s", 1, 86400, kPlain, "A restarted coordinator waits this long for the workers it had."},
     [](RunConfig& c) -> SettingField { return &c.timeouts.reattach; }},
    {{"timeouts.restart_first", "s", 0, 3600, kPlain, "A domain that ended is started again after this; doubled with each end in a row."},
     [](RunConfig& c) -> SettingField { return &c.timeouts.restart_first; }},
    {{"timeouts.restart_last", "s", 0, 86400, kPlain, "The longest of these waits."},
     [](RunConfig& c) -> SettingField { return &c.timeouts.restart_last; }},
    {{"timeouts.restart_forgotten", "s", 1, 86400, kPlain, "Work without a loss after which the earlier ends of a domain are forgotten."},
     [](RunConfig& c) -> SettingField { return &c.timeouts.restart_forgotten; }},
    {{"timeouts.checkpoint_parts", "s", 1, 86400, kPlain, "From the first part of a checkpoint to its commit."},
     [](RunConfig& c) -> SettingField { return &c.timeouts.checkpoint_parts; }},
    {{"timeouts.stop", "s", 1, 604800, kPlain, "A stop that was asked for: the current step must end and the checkpoint be committed."},
     [](RunConfig& c) -> SettingField { return &c.timeouts.stop; }},
};

constexpr Setting<PhaseConfig> kPhaseSettings[] = {
    {{"sequences", "sequences", 1, 1e8, kBits, "Teacher sequences in all (a multiple of block)."},
     [](PhaseConfig& p) -> SettingField { return &p.sequences; }, kSample},
    {{"block", "sequences", 1, 65536, kBits, "Sequences computed together, always with the same shapes."},
     [](PhaseConfig& p) -> SettingField { return &p.block; }, kSample},
    {{"ode_steps", "steps", 0, 1000, kBits, "Heun steps of the flow that takes each token from noise to a code (regress needs them); 0: multinomial draws."},
     [](PhaseConfig& p) -> SettingField { return &p.ode_steps; }, kSample},
    {{"steps", "updates", 1, kUpdatesMax, kBits, "Updates of the phase."},
     [](PhaseConfig& p) -> SettingField { return &p.steps; }, kGts | kRegress | kAlign},
    {{"cycles", "cycles", 1, kUpdatesMax, kBits, "Outer cycles: guidance_updates of the guidance network, then one of the generator."},
     [](PhaseConfig& p) -> SettingField { return &p.steps; }, kCsd},
    {{"batch", "sequences", 1, 1e6, kBits, "Global batch of one update (a multiple of batch.shards)."},
     [](PhaseConfig& p) -> SettingField { return &p.batch; }, kGts | kRegress | kCsd | kAlign},
    {{"guidance_updates", "updates", 1, 1000, kBits, "K: guidance updates of each cycle; fewer than 3 tends to collapse at small batches."},
     [](PhaseConfig& p) -> SettingField { return &p.guidance_updates; }, kCsd},
    {{"draws", "draws", 1, 64, kBits, "Draws of (t, noise) for each token that share one pass of the backbone."},
     [](PhaseConfig& p) -> SettingField { return &p.draws; }, kGts | kCsd | kAlign},
    {{"generator_draws", "draws", 1, 64, kBits, "The same in the generator's loss."},
     [](PhaseConfig& p) -> SettingField { return &p.generator_draws; }, kCsd},
    {{"lr", "", 0, 1, kBits | kAboveMin, "Peak learning rate of the backbone."},
     [](PhaseConfig& p) -> SettingField { return &p.guidance.peak; }, kGts},
    {{"head_lr_ratio", "", 0, 1000, kBits | kAboveMin, "Learning rate of the head over that of the backbone."},
     [](PhaseConfig& p) -> SettingField { return &p.head_lr_ratio; }, kGts | kRegress},
    {{"generator_lr", "", 0, 1, kBits | kAboveMin, "Peak learning rate of the generator."},
     [](PhaseConfig& p) -> SettingField { return &p.generator.peak; }, kRegress | kCsd},
    {{"guidance_lr", "", 0, 1, kBits | kAboveMin, "Peak learning rate of the guidance network (3 to 4 times the generator's)."},
     [](PhaseConfig& p) -> SettingField { return &p.guidance.peak; }, kCsd | kAlign},
    {{"warmup", "steps", 0, kUpdatesMax, kBits, "Steps (csd: cycles) over which the learning rates rise from start_lr."},
     [](PhaseConfig& p) -> SettingField { return &p.guidance.warmup; }, kGts | kRegress | kCsd | kAlign},
    {{"start_lr", "", 0, 1, kBits | kLater, "Learning rate that all warm-ups rise from."},
     [](PhaseConfig& p) -> SettingField { return &p.guidance.start; }, kGts | kRegress | kCsd | kAlign},
    {{"final_lr_ratio", "", 0, 1, kBits, "Share of the peak that the cosine ends at; 1: constant."},
     [](PhaseConfig& p) -> SettingField { return &p.guidance.final_ratio; }, kGts},
    {{"generator_final_lr_ratio", "", 0, 1, kBits, "Share of generator_lr that the cosine ends at; 1: constant."},
     [](PhaseConfig& p) -> SettingField { return &p.generator.final_ratio; }, kRegress | kCsd},
    {{"guidance_final_lr_ratio", "", 0, 1, kBits, "Share of guidance_lr that the cosine ends at; 1: constant."},
     [](PhaseConfig& p) -> SettingField { return &p.guidance.final_ratio; }, kCsd | kAlign},
    {{"beta1", "", 0, 0.9999, kBits, "Adam's decay of the mean gradient."},
     [](PhaseConfig& p) -> SettingField { return &p.beta1; }, kGts | kRegress | kCsd | kAlign},
    {{"beta2", "", 0, 0.999999, kBits, "Adam's decay of the mean squared gradient."},
     [](PhaseConfig& p) -> SettingField { return &p.beta2; }, kGts | kRegress | kCsd | kAlign},
    {{"clip_norm", "", 0, 1e6, kBits, "Limit of the gradient's norm; 0: none."},
     [](PhaseConfig& p) -> SettingField { return &p.clip_norm; }, kGts | kRegress | kCsd | kAlign},
    {{"ema_max", "", 0, 0.999999, kBits, "Largest decay of the moving average: min(ema_max, (k+1)/(k+10))."},
     [](PhaseConfig& p) -> SettingField { return &p.ema_max; }, kGts | kRegress | kCsd},
    {{"t_min", "", 0, 1, kBits, "Smallest time of the tuned (gts) or guidance network's loss."},
     [](PhaseConfig& p) -> SettingField { return &p.t_min; }, kGts | kCsd | kAlign},
    {{"t_max", "", 0, 1, kBits, "Largest time of that loss."},
     [](PhaseConfig& p) -> SettingField { return &p.t_max; }, kGts | kCsd | kAlign},
    {{"generator_t_min", "", 0, 1, kBits | kAboveMin, "Smallest time of the generator's loss."},
     [](PhaseConfig& p) -> SettingField { return &p.generator_t_min; }, kCsd},
    {{"generator_t_max", "", 0, 1, kBits, "Largest time of the generator's loss."},
     [](PhaseConfig& p) -> SettingField { return &p.generator_t_max; }, kCsd},
    {{"sid_alpha", "", -10, 10, kBits, "Weight alpha of the score identity loss."},
     [](PhaseConfig& p) -> SettingField { return &p.sid_alpha; }, kCsd},
    {{"trains", "", 0, 0, kBits | kLater, "all, or head: the backbone keeps its weights (VAR's first gts phase). A gts phase after another goes on with what that one made."},
     [](PhaseConfig& p) -> SettingField { return &p.trains; }, kGts},
    {{"validation", "sequences", 0, 1e8, kBits, "The first n sequences are kept out of training; their loss is measured at each checkpoint."},
     [](PhaseConfig& p) -> SettingField { return &p.validation; }, kGts},
    {{"eval_every", "cycles", 0, kUpdatesMax, kPlain, "Cycles between points of the curve of FDr or FID; 0: none."},
     [](PhaseConfig& p) -> SettingField { return &p.eval_every; }, kCsd},
    {{"checkpoint_every", "steps", 0, kUpdatesMax, kPlain, "Steps (csd: cycles) between checkpoints; 0: only at the end of the phase."},
     [](PhaseConfig& p) -> SettingField { return &p.checkpoint_every; }, kSample | kGts | kRegress | kCsd | kAlign},
};
// clang-format on

}  // namespace

std::span<const Setting<RunConfig>> RunSettings() { return kRunSettings; }
std::span<const Setting<PhaseConfig>> PhaseSettings() { return kPhaseSettings; }

std::vector<BoundSetting> BindPhase(PhaseConfig& phase) {
  std::vector<BoundSetting> bound;
  for (const Setting<PhaseConfig>& setting : kPhaseSettings) {
    if ((setting.kinds & KindBit(phase.kind)) != 0) {
      bound.push_back({&setting.info, setting.field(phase)});
    }
  }
  return bound;
}

}  // namespace dd2
