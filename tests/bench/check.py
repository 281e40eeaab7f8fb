#!/usr/bin/env python3
"""Is the rival of `scripts/bench` the mathematics of dd2? Against golden numbers, the teacher's card,
the analytic gradient, and the curves of a real run. usage: scripts/bench check
"""
import gzip
import json
import math
import pathlib
import shutil
import statistics
import tempfile

import torch
import torch.nn.functional as F

import networks
import sides
import steps

GOLDEN = sides.ROOT / "tests" / "golden"
TEACHER = sides.ROOT / "configs" / "teachers" / "fashion-mnist"
IMAGES = pathlib.Path("/usr/share/datasets/fashion-mnist")
SMALL = ["phases.1.steps=60", "phases.1.batch=32", "phases.1.draws=2", "phases.2.cycles=60",
         "phases.2.batch=16"]
# Other random numbers, so the curves agree as well as those of two seeds of dd2.
CURVE_TOLERANCE = 0.08


def expect(name, error, limit):
    print(f"{name:58} {error:9.2e}  (limit {limit:.0e})", flush=True)
    if not error <= limit:
        raise SystemExit(f"check: {name}: {error} is above {limit}")


def largest(ours, wanted):
    return ((ours - wanted).abs().max() / wanted.abs().max()).item()


def sine(count, slope, shift):
    return torch.sin(slope * torch.arange(count, dtype=torch.float64) + shift).float()


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def check_head():
    case = json.loads((GOLDEN / "mar_head_d2_w64.json").read_text())
    head = networks.MlpHead(channels=8, condition=48, w=64, depth=2, time_features=256)
    params = {}
    for j, (name, shape, rule) in enumerate(case["params"]):
        s = sine(math.prod(shape), 0.7, 1.3 * j + 0.5).view(shape)
        params[name] = {"s/sqrt(fan_in)": lambda s: s / math.sqrt(s[0].numel()),
                        "0.1s": lambda s: 0.1 * s, "1+0.1s": lambda s: 1 + 0.1 * s}[rule](s)
    head.load_state_dict(params)
    with torch.no_grad():
        out = head(sine(40, 0.9, 0.2).view(5, 8), torch.tensor([[0.], [1], [250], [999], [1000]]),
                   sine(240, 0.31, 0.7).view(5, 48))
    expect("head against tests/golden/mar_head_d2_w64.json",
           largest(out.flatten(), torch.tensor(case["out"]["values"])), 1e-5)


def check_score():
    case = json.loads((GOLDEN / "score_v37_c5.json").read_text())
    logp = double([[-math.inf if p is None else p for p in row] for row in case["logp"]])
    x, t, u, codebook = (double(case[name]) for name in ("x", "t", "u", "codebook"))
    x.requires_grad_(True)
    mu = steps.posterior_mean(x, t[:, None], logp, codebook)
    (jtu,) = torch.autograd.grad(mu, x, u)
    expect("score against tests/golden/score_v37_c5.json", largest(mu, double(case["mu"])), 1e-9)
    expect("  its vector-Jacobian product", largest(jtu, double(case["jtu"])), 1e-9)


def idx(name, offset):
    with gzip.open(IMAGES / name) as file:
        return torch.frombuffer(bytearray(file.read()[offset:]), dtype=torch.uint8)


def encode(images, weights):
    """Token ids [B, n] of images [B, 1, 28, 28] (worker/models/tokenizer.cc)."""
    def conv(name, x, **options):
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)
    h = F.relu(conv("encoder.conv1", images, stride=2, padding=1))
    h = conv("encoder.conv2", h, stride=2, padding=1)
    for name in ("encoder.residual1", "encoder.residual2"):
        h = h + conv(f"{name}.b", F.relu(conv(f"{name}.a", F.relu(h), padding=1)))
    latents = conv("encoder.out", F.relu(h)).permute(0, 2, 3, 1).reshape(len(images), -1, 4)
    return torch.cdist(latents, weights["codebook"].expand(len(images), -1, -1)).argmin(-1)


@torch.no_grad()
def check_teacher(teacher, codebook):
    """The backbone with the repository's weights: the quality that its card states."""
    card = json.loads((TEACHER / "card.json").read_text())
    weights, _ = networks.read_safetensors(TEACHER / "tokenizer.safetensors")
    images = idx("t10k-images-idx3-ubyte.gz", 16).view(-1, 1, 28, 28).float() / 127.5 - 1
    labels = idx("t10k-labels-idx1-ubyte.gz", 8).long()
    nats = 0.0
    for some, classes in zip(images.split(500), labels.split(500)):
        ids = encode(some, weights)
        logits = teacher.guided_logits(codebook[ids], classes, 1.0)
        nats += F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="sum").item()
    nats /= len(images) * codebook[ids].shape[1]
    stated = card["measured"]["teacher_test_nats_per_token"]
    print(f"teacher: {nats:.6f} nats/token on the test images, the card says {stated:.6f}")
    expect("  difference", abs(nats - stated), 1e-4)


def check_gradient(shape, codebook, alpha):
    """dL/dq of the CSD loss by autograd against worker/distill/losses.cc, in fp64."""
    torch.manual_seed(5)
    torch.set_default_dtype(torch.float64)
    guidance = networks.Network(shape, {"channels": shape["channels"], "condition": shape["d"]})
    batch, n, codebook = 3, shape["tokens"], codebook.double()
    q = torch.randn(batch, n, shape["channels"], requires_grad=True)
    features, logp = torch.randn(batch, n, shape["d"]), 2 * torch.randn(batch, n, len(codebook))
    t, noise = torch.rand(2, batch, n, 1) * 0.93 + 0.05, torch.randn(2, *q.shape)
    loss, _ = steps.sid_loss(guidance, q, features, logp, codebook, t, noise, alpha)
    (by_autograd,) = torch.autograd.grad(loss, q)

    clean = q.detach()
    x = ((1 - t) * clean + t * noise).requires_grad_(True)
    velocity = guidance.velocity(x, t, features)
    distance = (x.detach()[..., None, :] - (1 - t[..., None]) * codebook).square().sum(-1)
    r = (logp - distance / (2 * t.square())).softmax(-1)
    mu = r @ codebook
    delta, error = mu - (x.detach() - t * velocity.detach()), mu - clean
    u = error - alpha * delta
    scale = 1 / error.abs().mean((2, 3), keepdim=True) / (delta.numel() / delta.shape[-1])
    teacher, to_guidance = scale * (u + (1 - alpha) * delta), scale * (alpha * delta - u)
    jtu = (1 - t) / t.square() * ((r * (teacher @ codebook.T)) @ codebook -
                                  mu * (mu * teacher).sum(-1, keepdim=True))
    (through_head,) = torch.autograd.grad(velocity, x, -t * to_guidance)
    wanted = ((1 - t) * (jtu + to_guidance + through_head) - scale * delta).sum(0)
    torch.set_default_dtype(torch.float32)
    expect(f"gradient of the CSD loss, alpha {alpha}", largest(by_autograd, wanted), 1e-9)


@torch.no_grad()
def sample(teacher, codebook, count, cfg_scale):
    """Sequences and labels drawn from the guided teacher, token by token."""
    labels = torch.randint(teacher.backbone.null_class, (count,))
    q = torch.zeros(count, 1, codebook.shape[1])
    ids = []
    for _ in range(len(teacher.backbone.positions)):
        logits = teacher.guided_logits(q, labels, cfg_scale)[:, -1]
        ids.append(torch.multinomial(logits.softmax(-1), 1))
        q = torch.cat([q[:, :-1], codebook[ids[-1]], q[:, :1]], 1)
    return torch.cat(ids, 1), labels


def rival_curves(gts, csd, teacher, codebook, shape):
    """The run of dd2 from the teacher on: gts from MAR's initial values, csd from its EMA."""
    torch.manual_seed(11)
    head = {**gts["head"], "channels": shape["channels"], "condition": shape["d"]}
    network = networks.Network(shape, head)
    network.backbone.load_state_dict(teacher.backbone.state_dict())
    network.head.zero_modulation()
    tuned = steps.Trained(network, gts, ema=True)
    draw = steps.Draws(gts["batch"], shape)
    data = (*sample(teacher, codebook, gts["sequences"], gts["cfg_scale"]), None)
    losses = [steps.gts_step(tuned, teacher, codebook, data, gts, draw, i)["loss"]
              for i in range(gts["steps"])]
    pair = []
    for ema in (True, False):
        pair.append(steps.Trained(networks.Network(shape, head), csd, ema))
        for buffer in filter(lambda b: b is not None, (pair[-1].flat, pair[-1].ema)):
            buffer.copy_(tuned.ema)
    draw = steps.Draws(csd["batch"], shape)
    cycles = [steps.csd_cycle(pair[1], pair[0], teacher, codebook, csd, draw, i)
              for i in range(csd["cycles"])]
    return {"gts/loss": losses, "csd/fcs": [c["fcs"] for c in cycles],
            "csd/dmu": [c["dmu"] for c in cycles]}


def check_curves(teacher, codebook, shape):
    """The last halves of the loss curves of both sides, from the same start."""
    config = sides.HERE / "csd.yaml"
    work = pathlib.Path(tempfile.mkdtemp(prefix="dd2-bench-")).resolve()
    try:
        gts, csd = (sides.settings_of(config, kind, SMALL) for kind in ("gts", "csd"))
        records, _ = sides.ours(config, work, "run", SMALL)
        theirs = rival_curves(gts, csd, teacher, codebook, shape)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for name, values in theirs.items():
        ours = [record[name] for record in records[name.split("/")[0]]]
        a, b = (statistics.fmean(curve[len(curve) // 2:]) for curve in (ours, values))
        print(f"{name}: dd2 {ours[0]:.4f} -> {a:.4f}, rival {values[0]:.4f} -> {b:.4f}")
        expect("  relative difference over the last half", abs(b / a - 1), CURVE_TOLERANCE)


def main():
    torch.set_num_threads(1)
    teacher, codebook, shape = networks.load_teacher(TEACHER)
    check_head()
    check_score()
    for alpha in (1.0, 0.7):
        check_gradient(shape, codebook, alpha)
    check_teacher(teacher, codebook)
    check_curves(teacher, codebook, shape)
    print("check: all agree")


if __name__ == "__main__":
    main()
