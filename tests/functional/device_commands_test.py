"""Commands with `--device cuda`, on the test library whose tensors lie where the host cannot touch them
(tests/support/far_device): what they write is what the CPU writes, but for rounding. An adaptation that was
interrupted there goes on with the same bits, and not on the CPU. And the real library where there is no GPU.

usage: device_commands_test.py
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import zipfile

from dd2 import ROOT, Workspace, binary, expect, expect_fails, torch_python, wait_until
from dd2 import dd2 as run_dd2

if importlib.util.find_spec("torch") is None:
    os.execv(torch_python(), [torch_python(), *sys.argv])

import torch

from released_models import LlamaGen, LlamaGenTokenizer
from tensor_files import read_tensors, write_tensors

FAR = {**os.environ, "DD2_DEVICE_LIBRARY": binary("libfar_device.so")}
CUDA = ("--device", "cuda")
ADAPT = ("--steps", 16, "--batch", 4, "--held-out", 2, "--shards", 2)


def dd2(*words):
    done = run_dd2(*words, env=FAR, timeout=300)
    expect(done.returncode == 0, "dd2 " + " ".join(map(str, words)), done)
    if CUDA[1] in words:
        expect("computes on far device" in done.stderr, "it took no device", done)
    return done


def expect_near(name, here, there, tolerance=1e-4):
    """Tensors of the CPU and of the device."""
    expect(here.keys() == there.keys(), f"{name}: {list(there)} for {list(here)}")
    for key, value in here.items():
        error = ((there[key] - value).abs().max() / value.abs().max()).item()
        print(f"{name} {key}: {error:.1e} of the largest value", flush=True)
        expect(error <= tolerance, f"{name}: {key} is off by {error}")


def both(work, name, *words):
    """The file that `dd2 WORDS --out FILE` writes on the CPU and on the device, near each other; the latter."""
    files = [work.path / f"{where}-{name}" for where in ("cpu", "far")]
    for file, device in zip(files, ((), CUDA)):
        dd2(*words, "--out", file, *device)
    expect_near(name, *map(read_tensors, files))
    return files[1]


def check_a_teacher(work):
    """What an imported LlamaGen computes. Returns its folder and sequences to train it on."""
    tokenizer = LlamaGenTokenizer()
    images = torch.nn.functional.avg_pool2d(torch.rand(1, 3, 256, 256) * 4 - 2, 5, 1, 2).clamp(-1, 1)
    network = LlamaGen(tokenizer.CODES)
    network.logits(tokenizer.encode(images), torch.tensor([3]))
    tokenizer.decode(tokenizer.codes(tokenizer.encode(images)))
    torch.save({"model": dict(tokenizer.w)}, work.path / "vq.pt")
    torch.save({"model": dict(network.w)}, work.path / "c2i.pt")
    teacher, train = work.path / "teacher", work.path / "train.st"
    dd2("teacher", "import", work.path / "vq.pt", work.path / "c2i.pt", "--out", teacher, "--heads", 2)
    write_tensors(work.path / "image.st", {"image": images})
    encoded = both(work, "tokens.st", "teacher", "encode", teacher, "--image", work.path / "image.st")
    both(work, "decoded.st", "teacher", "decode", teacher, "--tokens", encoded)
    write_tensors(train, {"tokens": torch.randint(0, tokenizer.CODES, (10, 256)), "labels": torch.randint(0, 10, (10,))})
    write_tensors(work.path / "one.st", {**read_tensors(encoded), "labels": torch.tensor([7])})
    both(work, "logits.st", "teacher", "logits", teacher, "--tokens", work.path / "one.st")
    return teacher, train


def check_an_adaptation(work, teacher, train):
    words = ("teacher", "adapt", teacher, "--tokens", train, *ADAPT)
    out = {name: work.path / name for name in ("cpu", "far", "parts")}
    dd2(*words, "--out", out["cpu"])
    dd2(*words, "--out", out["far"], *CUDA)
    cards = {name: json.loads((out[name] / "card.json").read_text()) for name in ("cpu", "far")}
    expect("device" not in cards["cpu"]["settings"] and "far device" in cards["far"]["settings"]["device"], str(cards))
    for name, value in cards["cpu"]["measured"].items():
        there = cards["far"]["measured"][name]
        expect(name == "seconds" or abs(there / value - 1) < 1e-4, f"{name} is {there} on the device, {value} on the CPU")
    weights = [read_tensors(out[name] / "transformer.safetensors") for name in ("cpu", "far")]
    expect_near("adapted", *weights, tolerance=1e-3)
    released = read_tensors(teacher / "transformer.safetensors")["output.weight"]
    expect((weights[1]["output.weight"] - released).abs().max() > 1e-5, "nothing was trained")
    interrupted = (binary(), *words, "--out", out["parts"], "--save-every", 1, *CUDA)
    with subprocess.Popen([str(word) for word in interrupted], env=FAR, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL) as process:
        wait_until((out["parts"] / ".adapting" / "adapt.safetensors").exists, "a state of the adaptation")
        process.send_signal(signal.SIGKILL)
    expect_fails(run_dd2(*words, "--out", out["parts"], env=FAR), 4, "other settings")
    done = dd2(*words, "--out", out["parts"], "--save-every", 1, *CUDA)
    expect("resumed after step" in done.stdout, "it was not interrupted", done)
    same = [(out[name] / "transformer.safetensors").read_bytes() for name in ("far", "parts")]
    expect(same[0] == same[1], "an interrupted adaptation ends with other weights")


def check_a_generator(work):
    run = work.run("tests/configs/tiny.yaml", "run", ranks=1)
    model = run.folder / "export"
    both(work, "sample.safetensors", "sample", "--model", model, "--count", 2)
    pixels = []
    for device in ((), CUDA):
        for file in (work.path / "sample.png", work.path / "sample.npz"):
            dd2("sample", "--model", model, "--count", 2, "--out", file, *device)
        with zipfile.ZipFile(file) as arrays:
            pixels.append(torch.frombuffer(bytearray(arrays.read("arr_0.npy")), dtype=torch.uint8).float())
    expect((pixels[0] - pixels[1]).abs().max() <= 1 and pixels[0].std() > 10, "other pixels")
    figures = [json.loads(dd2("eval", *words, "--samples", 40, "--json", *device).stdout)
               for words in (("--model", model), ("--teacher", ROOT / "configs/teachers/fashion-mnist"))
               for device in ((), CUDA)]
    for here, there in (figures[:2], figures[2:]):
        print(f"FDr {there['fdr']:.6g} on the device, {here['fdr']:.6g} on the CPU", flush=True)
        expect(abs(there["fdr"] / here["fdr"] - 1) < 1e-3 and there["accuracy"] == here["accuracy"], f"{there} for {here}")


def check_without_a_gpu(work):
    none = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    none.pop("DD2_DEVICE_LIBRARY", None)
    done = run_dd2("sample", "--model", work.path, "--out", work.path / "never.png", *CUDA, env=none)
    expect_fails(done, 4, "no NVIDIA driver here|no GPU that this process may use|no CUDA part", "--device cpu")
    expect_fails(run_dd2("sample", "--model", work.path, "--out", work.path / "never.png", "--device", "gpu"), 2, "cpu or cuda")


torch.manual_seed(5)
with Workspace() as work, torch.no_grad():
    check_an_adaptation(work, *check_a_teacher(work))
    check_a_generator(work)
    check_without_a_gpu(work)
