"""From files of torch.save to tokens, logits and images: `dd2 teacher import | encode | logits | decode` against PyTorch.

Small models of the released layouts (released_models.py), random weights, images of 256 pixels. Then an imported VAR and
a LlamaGen that `dd2 teacher adapt` made continuous are distilled, two steps of each phase."""

import importlib.util
import json
import math
import os
import subprocess
import sys

from dd2 import Workspace, binary, expect, expect_fails, expect_same, torch_python
from dd2 import dd2 as run_dd2

if importlib.util.find_spec("torch") is None:
    os.execv(torch_python(), [torch_python(), *sys.argv])

import torch

from released_models import LlamaGen, LlamaGenTokenizer, Var, VarTokenizer
from tensor_files import read_tensors, write_tensors

# Sums of up to 10^6 fp32 products in another order.
TOLERANCE = 1e-4


def dd2(*words):
    done = subprocess.run([str(word) for word in (binary(), "teacher", *words)], capture_output=True, text=True,
                          check=False, timeout=600)
    expect(done.returncode == 0, "dd2 teacher " + " ".join(map(str, words)), done)


def near(name, ours, expected):
    expect(ours.shape == expected.shape, f"{name}: {tuple(ours.shape)} for {tuple(expected.shape)}")
    error = ((ours - expected).abs().max() / expected.abs().max()).item()
    print(f"  {name}: largest error {error:.1e} of the largest value", flush=True)
    expect(error < TOLERANCE and not math.isnan(error), f"{name} is off by {error}")


def check(work, name, tokenizer, transformer, files, latent, latent_name, cfg, options=()):
    """`files`: tokenizer and transformer -> {file name: what torch.save is given}. Returns the transformer."""
    print(name, flush=True)
    folder = work.path / name
    folder.mkdir()
    images = torch.nn.functional.avg_pool2d(torch.rand(2, 3, 256, 256) * 4 - 2, 5, 1, 2).clamp(-1, 1)
    tokens, labels = tokenizer.encode(images), torch.tensor([3, 7])
    expect(tokens.unique().numel() > 20, "the tokens are nearly all the same")
    map_of_codes, scores = latent(tokens), transformer(tokens)
    cond, uncond = (scores.logits(labels) for labels in (labels, torch.full_like(labels, 10)))
    reference = {"cond": cond, "uncond": uncond, "guided": scores.guided(cond, uncond, cfg)}
    image = tokenizer.decode(map_of_codes)
    for file, content in files(tokenizer, scores).items():
        torch.save(content, folder / file)
    write_tensors(folder / "image.st", {"image": images})
    write_tensors(folder / "tokens.st", {"tokens": tokens, "labels": labels})
    teacher = folder / "teacher"
    dd2("import", *(folder / file for file in files(tokenizer, scores)), "--out", teacher, *options)
    dd2("encode", teacher, "--image", folder / "image.st", "--out", folder / "encoded.st")
    dd2("logits", teacher, "--tokens", folder / "tokens.st", "--cfg", cfg, "--out", folder / "logits.st")
    dd2("decode", teacher, "--tokens", folder / "tokens.st", "--out", folder / "decoded.st")
    expect(torch.equal(read_tensors(folder / "encoded.st")["tokens"], tokens), "other tokens")
    written = read_tensors(folder / "logits.st")
    for key, value in reference.items():
        near(key, written[key], value)
    decoded = read_tensors(folder / "decoded.st")
    near("image", decoded["image"], image)
    near(latent_name, decoded[latent_name], map_of_codes)
    return scores


def distil(work, teacher, shape, decode, more=()):
    """Two steps of each phase: the same bits on one and two ranks, and an export that draws images. `shape` of a
    sequence of codes."""
    name, sets = teacher.parent.name, [f"teacher.path={teacher}", *more]
    runs = [work.run("tests/configs/released.yaml", f"{name}-{ranks}", ranks=ranks, seed=1, set=sets) for ranks in (2, 1)]
    expect_same(runs[0].digest(), runs[1].digest())
    expect(runs[0].record() == runs[1].record(), "metrics.jsonl of 1 rank differs")
    print("  distilled on two ranks as on one", flush=True)
    drawn = work.path / f"{name}.safetensors"
    done = subprocess.run([str(binary()), "sample", "--model", str(runs[0].folder / "export"), "--classes", "3", "--count",
                           "2", "--out", str(drawn)], capture_output=True, text=True, check=False, timeout=300)
    expect(done.returncode == 0, "dd2 sample", done)
    tensors = read_tensors(drawn)
    expect(tensors["codes"].shape == (2, *shape) and tensors["images"].shape == (2, 3, 256, 256), str(tensors.keys()))
    near("images of the generator's codes", tensors["images"], decode(tensors["codes"]))


def refuse(work, teacher):
    """A damaged teacher, and one without an evaluation network."""
    weights = teacher / "transformer.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = subprocess.run([str(binary()), "teacher", "logits", str(teacher), "--tokens", str(teacher.parent / "tokens.st"),
                           "--out", str(work.path / "never.st")], capture_output=True, text=True, check=False, timeout=300)
    expect(done.returncode == 8 and "import the teacher again" in done.stderr, "a damaged teacher", done)
    weights.write_bytes(content)
    sets = [f"teacher.path={teacher}"]
    refused = work.new_run("tests/configs/tiny.yaml", "refused", set=sets).start().finish(exit_code=2)
    expect("no evaluation network" in refused.tail(), refused.tail())


def adapt(work, tokenizer, network):
    """A LlamaGen that takes continuous codes: what its card says and what it computes, against PyTorch."""
    folder = work.path / "llamagen"
    teacher, adapted = folder / "teacher", folder / "adapted"
    run = work.new_run("tests/configs/released.yaml", "table", set=[f"teacher.path={teacher}"]).start()
    expect("dd2 teacher adapt" in run.finish(exit_code=2).tail(), "a table is distilled")
    tokens, labels = torch.randint(0, tokenizer.CODES, (12, 256)), torch.randint(0, 10, (12,))
    write_tensors(folder / "train.st", {"tokens": tokens, "labels": labels})
    write_tensors(folder / "from-one.st", {"tokens": tokens, "labels": labels.clamp(0, 8).index_fill(0, torch.tensor([0]), 10)})
    expect_fails(run_dd2("teacher", "adapt", teacher, "--tokens", folder / "from-one.st", "--out", adapted), 2, "labels", "9")
    dd2("adapt", teacher, "--tokens", folder / "train.st", "--out", adapted, "--steps", 3, "--batch", 4,
        "--held-out", 3, "--shards", 2)
    weights = read_tensors(adapted / "transformer.safetensors")
    inner = torch.nn.functional.silu(tokenizer.book() @ weights["input.0.weight"].T + weights["input.0.bias"])
    rows = inner @ weights["input.2.weight"].T + weights["input.2.bias"]
    ours = LlamaGen(tokenizer.CODES)
    ours.w.update(weights, **{"tok_embeddings.weight": rows})
    dd2("logits", adapted, "--tokens", folder / "tokens.st", "--out", folder / "adapted.st")
    given = read_tensors(folder / "tokens.st")
    near("adapted cond", read_tensors(folder / "adapted.st")["cond"], ours.logits(given["tokens"], given["labels"]))
    measured = json.loads((adapted / "card.json").read_text())["measured"]
    for name, one in (("nats_per_token_table", network), ("nats_per_token_adapted", ours)):
        logits = one.logits(tokens[9:], labels[9:])
        nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[9:].flatten()).item()
        print(f"  {name}: {measured[name]:.4f} nats", flush=True)
        expect(abs(nats - measured[name]) < 1e-3, f"{name} is {nats}")
    return adapted


class OfVar:
    def __init__(self, tokenizer, tokens):
        self.network, self.rows = Var(tokenizer.CODES), tokenizer.rows(tokens)
        self.guided = self.network.guided

    def logits(self, labels):
        return self.network.logits(self.rows, labels)


class OfLlamaGen:
    def __init__(self, tokenizer, tokens):
        self.network, self.tokens = LlamaGen(tokenizer.CODES), tokens
        self.guided = self.network.guided

    def logits(self, labels):
        return self.network.logits(self.tokens, labels)


torch.manual_seed(5)
with Workspace() as work, torch.no_grad():
    var = VarTokenizer()
    check(work, "var", var, lambda tokens: OfVar(var, tokens),
          lambda tokenizer, scores: {"vae.pth": dict(tokenizer.w), "var.pth": scores.network.state_dict()},
          lambda tokens: var.sums(tokens)[-1], "f_hat", 1.5)
    distil(work, work.path / "var" / "teacher", (680, 32), lambda codes: var.decode(var.sums_of(codes)[-1]))
    refuse(work, work.path / "var" / "teacher")
    gen = LlamaGenTokenizer()
    scores = check(work, "llamagen", gen, lambda tokens: OfLlamaGen(gen, tokens),
                   lambda tokenizer, scores: {"vq.pt": {"model": dict(tokenizer.w)},
                                              "c2i.pt": {"model": dict(scores.network.w)}},
                   gen.codes, "z_q", 2.0, ("--heads", 2))
    distil(work, adapt(work, gen, scores.network), (256, 8),
           lambda codes: gen.decode(codes.transpose(1, 2).reshape(len(codes), 8, 16, 16)), ["teacher.cfg_scale=2"])
