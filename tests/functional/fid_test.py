"""A run from an imported teacher is judged by FID (eval.inception, eval.reference): figures in the record, the result and
the report, the best checkpoint kept by them; the same on one rank that was killed. Inception has
random weights here: its figures mean nothing, but they must be the same."""

import importlib.util
import io
import json
import os
import pathlib
import random
import struct
import sys
import zipfile

from dd2 import ROOT, Workspace, binary, dd2, expect, expect_same, torch_python

if importlib.util.find_spec("torch") is None:
    os.execv(torch_python(), [torch_python(), *sys.argv])

import torch

from inception_weights import write_inception
from released_models import Var, VarTokenizer

SAMPLES, CURVE_SAMPLES, REFERENCES = 14, 10, 20
FIGURES = ("fid", "sfid", "inception_score", "precision", "recall")


def write_images(path, count, side=24):
    shape = (count, side, side, 3)
    head = str({"descr": "|u1", "fortran_order": False, "shape": shape}).encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    array = io.BytesIO()
    array.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head)
    array.write(random.Random(3).randbytes(count * side * side * 3))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", array.getvalue())


def import_teacher(folder):
    """A VAR with few classes: there are ten pictures of each."""
    Var.CLASSES = 2
    torch.manual_seed(7)
    tokenizer = VarTokenizer()
    with torch.no_grad():
        tokens = tokenizer.encode(torch.zeros(1, 3, 256, 256))
        tokenizer.decode(tokenizer.sums(tokens)[-1])
        transformer = Var(tokenizer.CODES)
        transformer.logits(tokenizer.rows(tokens), torch.tensor([0]))
    torch.save(dict(tokenizer.w), folder / "vae.pth")
    torch.save(transformer.state_dict(), folder / "var.pth")
    imported = dd2("teacher", "import", folder / "vae.pth", folder / "var.pth", "--out", folder / "teacher")
    expect(imported.returncode == 0, "dd2 teacher import", imported)
    return folder / "teacher"


def write_config(path, eval_every=1):
    """released.yaml, judged."""
    text = (ROOT / "tests/configs/released.yaml").read_text()
    text = text.replace("  - kind: export", "  - kind: eval\n  - kind: export")
    text = text.replace("    cycles: 2\n", f"    cycles: 2\n    eval_every: {eval_every}\n")
    path.write_text(text + f"\neval:\n  samples: {SAMPLES}\n  curve_samples: {CURVE_SAMPLES}\ncheckpoint:\n  keep_last: 1\n  keep_best: 1\n")


def check_figures(run):
    result = json.loads((run.folder / "result.json").read_text())
    for name in FIGURES:
        for when in ("start", "end"):
            expect(f"{name}_{when}" in result, f"no {name}_{when} in {sorted(result)}")
    expect(result["samples"] == SAMPLES and result["samples_start"] == CURVE_SAMPLES, str(result))
    expect(result["fid_end"] > 0 and 0 <= result["precision_end"] <= 1, str(result))
    expect("speedup_batch1" in result and "fdr_end" not in result, str(result))
    curve = {record["step"]: record["eval/fid"] for record in run.record() if record["kind"] == "csd"}
    expect(sorted(curve) == [1, 2], f"points of the curve: {curve}")
    expect("FID one step, after training" in run.tail(), run.tail())
    report = (run.folder / "report.html").read_text()
    expect("FID of the one-step generator" in report and "Inception Score" in report, "the report has no FID")
    expect((run.folder / "samples/generator.png").stat().st_size > 10_000, "no pictures")
    # Of the checkpoints of csd the best one is kept besides the last.
    best = min(curve, key=curve.get)
    kept = json.loads(dd2("checkpoint", "ls", run.folder, "--json").stdout)
    shown = [json.loads(dd2("checkpoint", "show", run.folder, "--id", one["id"], "--json").stdout) for one in kept]
    expect(any(one["step"] == best and one["evaluation"]["fid"] == curve[best] for one in shown), f"{curve} but {shown}")


def check_refusals(work, config, sets):
    def refused(name, words, *settings):
        run = work.new_run(config, name, set=[*sets, *settings]).start().finish(exit_code=words[0])
        for word in words[1:]:
            expect(word in run.tail(), f"no '{word}' in {run.tail()}")

    broken = work.path / "broken.npz"
    broken.write_bytes(b"no archive")
    few = work.path / "few.npz"
    write_images(few, 3)
    refused("half", (2, "eval.reference", "both"), "eval.reference=")
    refused("absent", (7, "eval.inception", "pytorch-fid"), "eval.inception=/nonexistent/inception.pth")
    refused("broken", (8, "broken.npz"), f"eval.reference={broken}")
    refused("few", (4, "few.npz has 3 images", "eval.reference"), f"eval.reference={few}")
    refused("none", (2, "no evaluation network", "eval.inception"), "eval.reference=", "eval.inception=")


def check_device(work, sets, calm):
    """On a device whose memory the host cannot touch (docs/BUILDING.md): near the CPU's figures."""
    os.environ["DD2_DEVICE_LIBRARY"] = str(pathlib.Path(binary()).parent / "libfar_device.so")
    config = work.path / "device.yaml"
    write_config(config, eval_every=0)
    far = work.run(config, "device", ranks=1, set=[*sets, "device=cuda"]).result()
    for name in ("fid_start", "fid_end", "inception_score_end"):
        expect(abs(far[name] / calm.result()[name] - 1) < 0.01, f"{name}: {far[name]}, {calm.result()[name]} on the CPU")


with Workspace() as work:
    os.environ["XDG_CACHE_HOME"] = str(work.path / "cache-of-features")
    teacher = import_teacher(work.path)
    write_inception(work.path / "inception.safetensors")
    write_images(work.path / "reference.npz", REFERENCES)
    config = work.path / "judged.yaml"
    write_config(config)
    sets = [f"teacher.path={teacher}", f"eval.inception={work.path / 'inception.safetensors'}",
            f"eval.reference={work.path / 'reference.npz'}"]
    check_refusals(work, config, sets)
    calm = work.run(config, "two-ranks", ranks=2, set=sets)
    check_figures(calm)
    # On one rank, with the features of the reference that the first run kept.
    killed = work.start(config, "one-rank", ranks=1, set=sets)
    killed.wait_for(phase="csd", step=1)
    killed.kill_all()
    killed.resume()
    expect_same(calm.digest(), killed.digest())
    expect(killed.record() == calm.record(), "metrics.jsonl differs")
    check_device(work, sets, calm)
    expect(any((work.path / "cache-of-features/dd2/eval").iterdir()), "features of the reference were not kept")
