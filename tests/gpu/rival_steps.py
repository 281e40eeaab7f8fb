"""Times PyTorch eager and torch.compile on the updates that dd2-gpu-steps has timed, at the same sizes on the same
device, in fp32 and with bf16 by autocast (of the teacher the blocks alone, as there). Before that: whether losses and
gradients of small networks are those of dd2, on the CPU.

usage: rival_steps.py CASE STEPS.json RIVAL.json [--device cpu] [--eager]
CASE and STEPS.json are of dd2-gpu-steps. Losses and optimiser are those of the rival of scripts/bench (tests/bench/steps.py).
Times are medians of whole updates, from the draws to the new parameters.
"""
import argparse
import gc
import json
import pathlib
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "bench"))

import networks
import steps

WARM_UPS, REPEATS = 3, 11
TOLERANCE = 1e-3  # of a loss or the norm of a gradient: sums in another order
MODES = {"eager": False, "compiled": True}


class CodePath(nn.Module):
    """Codes [B, n, C] -> what enters the transformer behind the first scale (worker/models/code_path.h)."""

    def __init__(self, size):
        super().__init__()
        self.sides, self.phi_of_scale, channels = size["sides"], size["phi_of_scale"], size["channels"]
        for i in range(max(self.phi_of_scale) + 1):
            # Frozen, so no parameters of the networks that read it.
            self.register_buffer(f"weight{i}", torch.randn(channels, channels, 3, 3) * 0.05, persistent=False)
            self.register_buffer(f"bias{i}", torch.zeros(channels), persistent=False)

    def load(self, tensors):
        for name, tensor in tensors.items():
            if name.startswith("quantize.quant_resi.qresi_ls."):
                _, _, _, i, part = name.split(".")
                getattr(self, part + i).copy_(tensor)

    def forward(self, q):
        batch, _, channels = q.shape
        full, total, rows, begin = self.sides[-1], 0, [], 0
        for side, following, phi in zip(self.sides, self.sides[1:], self.phi_of_scale):
            grid = q[:, begin:begin + side * side].transpose(1, 2).reshape(batch, channels, side, side)
            begin += side * side
            grid = F.interpolate(grid, (full, full), mode="bicubic")
            smooth = F.conv2d(grid, getattr(self, f"weight{phi}"), getattr(self, f"bias{phi}"), padding=1)
            total = total + torch.lerp(grid, smooth, 0.5)
            resized = total if following == full else F.adaptive_avg_pool2d(total, following)
            rows.append(resized.flatten(2).transpose(1, 2))
        return torch.cat(rows, 1)


class Attention(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), 4.0).log())
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(d)), nn.Parameter(torch.zeros(d))
        self.mat_qkv, self.proj = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d)

    def forward(self, x, mask):
        batch, length, d = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.mat_qkv.weight, bias).view(batch, length, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        temperature = self.scale_mul_1H11.clamp_max(4.605170).exp()  # ln 100
        query, key = F.normalize(query, dim=-1) * temperature, F.normalize(key, dim=-1)
        mixed = F.scaled_dot_product_attention(query.to(value.dtype), key.to(value.dtype), value,
                                               mask.to(value.dtype), scale=1.0)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, d))


class Mlp(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Modulation(nn.Module):
    """Holder of `ada_lin.1`: of the class, vectors for all tokens."""

    def __init__(self, d, count):
        super().__init__()
        self.count, self.ada_lin = count, nn.Sequential(nn.SiLU(), nn.Linear(d, count * d))

    def vectors(self, condition):
        return self.ada_lin[1](condition).view(len(condition), 1, self.count, -1).unbind(2)


def modulated(x, scale, shift):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class Block(Modulation):
    def __init__(self, d, heads):
        super().__init__(d, 6)
        self.attn, self.ffn = Attention(d, heads), Mlp(d)

    def forward(self, x, condition, mask):
        gate1, gate2, scale1, scale2, shift1, shift2 = self.vectors(condition)
        x = x + self.attn(modulated(x, scale1, shift1), mask) * gate1
        return x + self.ffn(modulated(x, scale2, shift2)) * gate2


class Backbone(nn.Module):
    """VAR's transformer on codes (worker/models/var_backbone.h), with the names of its parameters."""

    def __init__(self, size, path, bf16):
        super().__init__()
        d, sides = size["width"], size["sides"]
        self.path, self.bf16 = path, bf16
        self.pos_start = nn.Parameter(torch.randn(1, 1, d) * 0.02)
        self.pos_1LC = nn.Parameter(torch.randn(1, size["tokens"], d) * 0.02)
        self.word_embed = nn.Linear(size["channels"], d)
        self.class_emb, self.lvl_embed = nn.Embedding(size["classes"] + 1, d), nn.Embedding(len(sides), d)
        self.blocks = nn.ModuleList([Block(d, size["heads"]) for _ in range(size["layers"])])
        level = torch.cat([torch.full((side * side,), k) for k, side in enumerate(sides)])
        self.register_buffer("level", level, persistent=False)
        later = level[:, None] < level
        self.register_buffer("mask", torch.zeros(later.shape).masked_fill(later, -torch.inf), persistent=False)

    def forward(self, q, labels):
        rows = self.path(q)
        with torch.autocast(q.device.type, torch.bfloat16, enabled=self.bf16):
            of_class = self.class_emb(labels)
            x = torch.cat([of_class[:, None] + self.pos_start, self.word_embed(rows)], 1)
            x = x + (self.lvl_embed(self.level) + self.pos_1LC)
            condition = F.silu(of_class)
            for block in self.blocks:
                x = block(x, condition, self.mask)
        return x.float()


class TeacherBackbone(Backbone):
    def __init__(self, size, path, bf16):
        super().__init__(size, path, bf16)
        self.head_nm, self.head = Modulation(size["width"], 2), nn.Linear(size["width"], size["codes"])


class Teacher(nn.Module):
    """(q, labels) -> guided logits [B, n, V], those that the filter drops -inf (worker/models/filters.h)."""

    def __init__(self, size, path, bf16):
        super().__init__()
        self.backbone = TeacherBackbone(size, path, bf16)
        self.classes, self.top_k, self.top_p = size["classes"], size["top_k"], size["top_p"]

    def forward(self, q, labels, cfg_scale):
        both = torch.cat([labels, torch.full_like(labels, self.classes)])
        network = self.backbone
        scale, shift = network.head_nm.vectors(F.silu(network.class_emb(both)))
        with_class, without = modulated(network(torch.cat([q, q]), both), scale, shift).chunk(2)
        ramp = 1 + cfg_scale * network.level[:, None] / network.level[-1]
        logits = network.head(without + (with_class - without) * ramp)
        largest = logits.topk(self.top_k).values
        probabilities = largest.softmax(-1)
        kept = (probabilities.cumsum(-1) - probabilities <= self.top_p).sum(-1, keepdim=True)
        return logits.masked_fill(logits < largest.gather(-1, kept - 1), -torch.inf)

    def guided_logits(self, q, labels, cfg_scale):
        return self(q, labels, cfg_scale)


class Network(networks.Network):
    def __init__(self, size, path, bf16):
        head = {"channels": size["channels"], "condition": size["width"], "w": size["head_width"],
                "depth": size["head_depth"], "time_features": size["time_features"]}
        super().__init__({"size": size, "path": path, "bf16": bf16}, head, Backbone)
        self.bf16 = bf16

    def velocity(self, x, t, f):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            return super().velocity(x, t, f).float()


def check(case):
    """{what: relative difference} of one guidance and one generator update on the CPU."""
    document = json.loads((case / "case.json").read_text())
    size, found = document["size"], document["found"]
    read = {path.stem: networks.read_safetensors(path)[0] for path in case.glob("*.safetensors")}
    path = CodePath(size)
    path.load(read["tokenizer"])
    teacher, guidance, generator = Teacher(size, path, False), Network(size, path, False), Network(size, path, False)
    for name, module in {"teacher": teacher, "guidance": guidance, "generator": generator}.items():
        module.load_state_dict(read[name])
    teacher.requires_grad_(False)
    given, codebook = read["inputs"], read["tokenizer"]["quantize.embedding.weight"]
    labels = given["labels"].long()
    q = generator.generate(given["noise"], labels)
    fcs = steps.fcs_loss(guidance, q.detach(), labels, given["guidance.t"], given["guidance.draws"])
    fcs.backward()
    ours = {"fcs": fcs.item(), "guidance_gradient": gradient_norm(guidance)}
    guidance.requires_grad_(False)
    with torch.no_grad():
        logp, features = teacher(q, labels, size["cfg_scale"]), guidance.backbone(q, labels)
    sid, difference = steps.sid_loss(guidance, q, features, logp, codebook, given["generator.t"],
                                     given["generator.draws"], size["sid_alpha"])
    sid.backward()
    ours.update(sid=sid.item(), dmu=difference.item(), generator_gradient=gradient_norm(generator))
    return {name: abs(value / found[name] - 1) for name, value in ours.items()}


def gradient_norm(network):
    return torch.cat([p.grad.flatten() for p in network.parameters()]).double().norm().item()


def median_ms(update, device):
    times = []
    for turn in range(WARM_UPS + REPEATS):
        begin = time.perf_counter()
        update()
        if device == "cuda":
            torch.cuda.synchronize()
        if turn >= WARM_UPS:
            times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times)


def time_updates(size, bf16, compiled, device):
    """{"guidance_ms", "generator_ms"}."""
    torch._dynamo.reset()
    torch.manual_seed(1)
    settings = {"draws": size["draws"], "t_min": 0.03, "t_max": 1.0, "generator_draws": 1, "generator_t_min": 0.05,
                "generator_t_max": 0.98, "cfg_scale": size["cfg_scale"], "sid_alpha": size["sid_alpha"],
                "clip_norm": 1.0, "beta1": 0.9, "beta2": 0.95, "ema_max": 0.9999}
    path, codebook = CodePath(size), torch.randn(size["codes"], size["channels"])
    teacher = Teacher(size, path, bf16).requires_grad_(False)
    guidance = steps.Trained(Network(size, path, bf16), settings, ema=False)
    generator = steps.Trained(Network(size, path, bf16), settings, ema=True)
    posterior_mean = steps.posterior_mean
    if compiled:
        teacher.compile()
        for network in (guidance.network, generator.network):
            network.backbone.compile()
            network.head.compile()
        steps.posterior_mean = torch.compile(posterior_mean)
    draw, rate = steps.Draws(size["batch"], size), 1e-4
    try:
        return {
            "guidance_ms": median_ms(lambda: steps.guidance_update(guidance, generator, settings, draw, rate), device),
            "generator_ms": median_ms(lambda: steps.generator_update(guidance, generator, teacher, codebook, settings,
                                                                     draw, rate), device)}
    finally:
        steps.posterior_mean = posterior_mean


def measure(size, device, with_compile):
    lines = []
    for precision in ("fp32", "bf16"):
        line = {"precision": precision}
        for mode, compiled in MODES.items():
            if compiled and not with_compile:
                continue
            try:
                line[mode] = time_updates(size, precision == "bf16", compiled, device)
            except Exception as error:  # must not cost the rest of the report
                line[f"{mode}_error"] = (str(error).splitlines() or [repr(error)])[0]
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()
        lines.append(line)
        print(line, file=sys.stderr, flush=True)
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", type=pathlib.Path)
    parser.add_argument("steps", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    options = parser.parse_args()
    apart = check(options.case)
    print("apart from dd2:", {name: f"{value:.1e}" for name, value in apart.items()}, file=sys.stderr, flush=True)
    bad = [name for name, value in apart.items() if not value <= TOLERANCE]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # fp32 as ours
    torch.set_default_device(options.device)
    size = json.loads(options.steps.read_text())["size"]
    # All modules share the compiler's cache of one code object; a frame beyond its limit would run eager in silence.
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    lines = measure(size, options.device, not options.eager)
    options.output.write_text(json.dumps({"torch": torch.__version__, "apart": apart, "lines": lines}))
    if bad:
        sys.exit(f"rival_steps: not the updates of dd2: {', '.join(bad)} differ by more than {TOLERANCE}")
    if any("eager_error" in line for line in lines):
        sys.exit("rival_steps: eager PyTorch did not do all updates")


if __name__ == "__main__":
    main()
