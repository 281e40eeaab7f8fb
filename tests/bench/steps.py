"""The training steps of worker/engine/trainer.cc in PyTorch eager: the rival of `scripts/bench`.

Written to be fast: fused attention and Adam, one flat buffer each for parameters, gradients and EMA
(one all-reduce, one norm, one optimiser call per update), nothing computed twice.
"""
import math

import torch
import torch.distributed as dist
import torch.nn.functional as F

SID_WEIGHT_FLOOR = 1e-3


def noised(q, t, noise):
    return torch.addcmul(q * (1 - t), t, noise)


def posterior_mean(x, t, logp, codebook):
    """mu [..., C]: the closed-form score of the teacher (worker/distill/score.h).

    |x - (1-t) c|^2 expanded; the |c|^2 term is one more column of the product with the codebook.
    """
    keys = torch.cat([codebook, codebook.square().sum(1, keepdim=True) * -0.5], 1)
    u = 1 - t
    logits = F.linear(torch.cat([x, u.expand_as(x[..., :1])], -1) * (u / t.square()), keys)
    return (logits + logp).softmax(-1) @ codebook


def gts_loss(network, q, labels, logp, codebook, t, noise):
    with torch.no_grad():
        x = noised(q, t, noise)
        target = (x - posterior_mean(x, t, logp, codebook)) / t
    return F.mse_loss(network.velocity(x, t, network.backbone(q, labels)), target)


def fcs_loss(guidance, q, labels, t, noise):
    with torch.no_grad():
        x, target = noised(q, t, noise), noise - q
    return F.mse_loss(guidance.velocity(x, t, guidance.backbone(q, labels)), target)


def sid_loss(guidance, q, features, logp, codebook, t, noise, alpha):
    """The CSD loss (worker/distill/losses.h) with autograd through x_t, and mean |mu_T - mu_G|^2."""
    x = noised(q, t, noise)
    mu_teacher = posterior_mean(x, t, logp, codebook)
    delta = mu_teacher - (x - t * guidance.velocity(x, t, features))
    error = mu_teacher - q
    with torch.no_grad():
        weight = error.abs().mean((2, 3), keepdim=True).clamp_min_(SID_WEIGHT_FLOOR).reciprocal_()
        weight /= delta.numel() // delta.shape[-1]
        difference = delta.square().mean()
    return (weight * delta * (error - alpha * delta)).sum(), difference


def scheduled(peak, final_ratio, warmup, step, total):
    rate = peak
    if final_ratio < 1:
        rate *= final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * step / total))
    return rate * (step + 1) / warmup if step < warmup else rate


class Trained:
    """A network with its flat buffers, Adam and, when wanted, an EMA."""

    def __init__(self, network, settings, ema):
        self.network, self.clip, self.updates = network, settings["clip_norm"], 0
        params = list(network.parameters())
        self.flat = torch.cat([p.detach().flatten() for p in params])
        self.gradient = torch.zeros_like(self.flat)
        begin = 0
        for p in params:
            end = begin + p.numel()
            p.data = self.flat[begin:end].view_as(p)
            p.grad = self.gradient[begin:end].view_as(p)
            begin = end
        head = sum(p.numel() for p in network.backbone.parameters())  # the head comes last
        groups = []
        for piece, slope in ((slice(0, head), 1.0), (slice(head, None),
                                                     settings.get("head_lr_ratio", 1.0))):
            whole = torch.nn.Parameter(self.flat[piece])
            whole.grad = self.gradient[piece]
            groups.append({"params": [whole], "slope": slope})
        self.adam = torch.optim.Adam(groups, lr=0.0, betas=(settings["beta1"], settings["beta2"]),
                                     fused=True)
        self.ema_max = settings.get("ema_max")
        self.ema = self.flat.clone() if ema else None

    def begin(self):
        self.gradient.zero_()

    @torch.no_grad()
    def apply(self, rate):
        """Ends an update: sums gradients over the processes, clips, Adam, EMA."""
        share = 1.0
        if dist.is_initialized():
            dist.all_reduce(self.gradient)
            share = 1.0 / dist.get_world_size()
        norm = torch.linalg.vector_norm(self.gradient) * share
        self.gradient.mul_(torch.clamp(self.clip / (norm + 1e-6), max=1.0) * share)
        for group in self.adam.param_groups:
            group["lr"] = rate * group["slope"]
        self.adam.step()
        if self.ema is not None:
            k = self.updates
            self.ema.lerp_(self.flat, 1 - min(self.ema_max, (k + 1) / (k + 10)))
        self.updates += 1


class Draws:
    """Random labels, noise and times of one process's share of a batch."""

    def __init__(self, batch, shape):
        self.batch, self.tokens = batch, shape["tokens"]
        self.channels, self.classes = shape["channels"], shape["classes"]

    def start(self):
        return (torch.randn(self.batch, self.tokens, self.channels),
                torch.randint(self.classes, (self.batch,)))

    def forward(self, draws, low, high):
        t = torch.rand(draws, self.batch, self.tokens, 1).mul_(high - low).add_(low)
        return t, torch.randn(draws, self.batch, self.tokens, self.channels)


def guidance_update(guidance, generator, settings, draw, rate):
    noise, labels = draw.start()
    with torch.no_grad():
        q = generator.network.generate(noise, labels)
    t, noise = draw.forward(settings["draws"], settings["t_min"], settings["t_max"])
    guidance.begin()
    loss = fcs_loss(guidance.network, q, labels, t, noise)
    loss.backward()
    guidance.apply(rate)
    return loss.item()


def generator_update(guidance, generator, teacher, codebook, settings, draw, rate):
    noise, labels = draw.start()
    guidance.network.requires_grad_(False)
    q = generator.network.generate(noise, labels)
    with torch.no_grad():
        logp = teacher.guided_logits(q, labels, settings["cfg_scale"])
        features = guidance.network.backbone(q, labels)
    t, noise = draw.forward(settings["generator_draws"], settings["generator_t_min"],
                            settings["generator_t_max"])
    generator.begin()
    loss, difference = sid_loss(guidance.network, q, features, logp, codebook, t, noise,
                                settings["sid_alpha"])
    loss.backward()
    guidance.network.requires_grad_(True)
    generator.apply(rate)
    return loss.item(), difference.item()


def csd_cycle(guidance, generator, teacher, codebook, settings, draw, cycle):
    total, warmup = settings["cycles"], settings["warmup"]
    rate = scheduled(settings["guidance_lr"], settings["guidance_final_lr_ratio"], warmup, cycle,
                     total)
    updates = settings["guidance_updates"]
    fcs = sum(guidance_update(guidance, generator, settings, draw, rate)
              for _ in range(updates)) / updates
    rate = scheduled(settings["generator_lr"], settings["generator_final_lr_ratio"], warmup, cycle,
                     total)
    sid, difference = generator_update(guidance, generator, teacher, codebook, settings, draw, rate)
    return {"fcs": fcs, "sid": sid, "dmu": difference}


def gts_step(trained, teacher, codebook, data, settings, draw, step):
    """data: (tokens [N, n], labels [N], table [N, n, V] of teacher logits or None)."""
    tokens, labels, table = data
    index = torch.randint(len(tokens), (draw.batch,))
    labels, q = labels[index], codebook[tokens[index]]
    if table is None:
        with torch.no_grad():
            logp = teacher.guided_logits(q, labels, settings["cfg_scale"])
    else:
        logp = table[index]
    t, noise = draw.forward(settings["draws"], settings["t_min"], settings["t_max"])
    trained.begin()
    loss = gts_loss(trained.network, q, labels, logp, codebook, t, noise)
    loss.backward()
    trained.apply(scheduled(settings["lr"], settings["final_lr_ratio"], settings["warmup"], step,
                            settings["steps"]))
    return {"loss": loss.item()}
