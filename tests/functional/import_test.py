"""dd2 teacher import on checkpoints of full size that PyTorch wrote: the exact tensors of VAR-d16 (1.24 GB) and of
VAR's tokenizer, random weights. Every parameter arrives bit for bit, and memory stays small."""

import json
import pathlib
import random
import subprocess
import sys

from dd2 import ROOT, Workspace, binary, dd2, expect, expect_fails, flip, torch_python

LISTS = ROOT / "tests" / "golden" / "tensors"
MAKER = pathlib.Path(__file__).with_name("make_checkpoint.py")
MEMORY_MAX_MB = 200  # a few pieces of 8 MiB, and the program; the file has 1243 MB


def run(*words):
    process = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    expect(process.returncode == 0, f"{words[1:3]} failed", process)
    return process.stdout


def measured(*words):
    """Of one dd2: (the JSON it prints, seconds, peak memory in MB)."""
    # In a process of its own, whose only child it is.
    program = ("import json, resource, subprocess, sys, time; begin = time.monotonic(); "
               "code = subprocess.run(sys.argv[1:]).returncode; "
               "print(json.dumps([time.monotonic() - begin, "
               "resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000])); sys.exit(code)")
    document, figures = run(sys.executable, "-c", program, binary(), *words).splitlines()
    return json.loads(document), *json.loads(figures)


def main():
    with Workspace() as work:
        python = torch_python()
        var, vae, out = work.path / "var_d16.pth", work.path / "vae_ch160v4096z32.pth", work.path / "teacher"
        run(python, MAKER, "write", LISTS / "var_d16.tsv", var, 1)
        run(python, MAKER, "write", LISTS / "vae_ch160v4096z32.tsv", vae, 2)

        teacher, seconds, peak = measured("teacher", "import", var, vae, "--out", out, "--json")
        size = sum(path.stat().st_size for path in (var, vae)) / 1e6
        print(f"import: {size:.0f} MB in {seconds:.1f} s, peak memory {peak:.0f} MB")
        expect(peak < MEMORY_MAX_MB, f"peak memory {peak:.0f} MB")
        expect(teacher["kind"] == "var" and teacher["transformer"]["name"] == "VAR-d16 (256 px)", f"{teacher}")
        expect(teacher["transformer"]["parameters"] == 310283520, f"{teacher['transformer']}")
        expect(teacher["tokenizer"]["parameters"] == 108948355, f"{teacher['tokenizer']}")
        expect(teacher["transformer"]["patch_numbers"] == [1, 2, 3, 4, 5, 6, 8, 10, 13, 16], f"{teacher['transformer']}")
        written = json.loads((out / "teacher.json").read_text())
        expect({**written, "folder": str(out)} == teacher, f"teacher.json: {written}")

        compared = int(run(python, MAKER, "compare", var, out / "transformer.safetensors"))
        expect(compared == 202, f"{compared} tensors of the transformer")
        compared = int(run(python, MAKER, "compare", vae, out / "vq.safetensors"))
        expect(compared == 323, f"{compared} tensors of the tokenizer")

        # Not twice into one folder; with --force the same again.
        expect_fails(dd2("teacher", "import", var, vae, "--out", out), 4, "--force")
        measured("teacher", "import", var, vae, "--out", out, "--force", "--json")
        expect(json.loads((out / "teacher.json").read_text()) == written, "a second import gave something else")

        inspected = json.loads(dd2("teacher", "inspect", var, "--json").stdout)["files"][0]
        network = inspected["groups"][0]["network"]
        expect(network["complete"] and len(network["ignored"]) == 18, f"{network}")
        folder = json.loads(dd2("teacher", "inspect", out, "--json").stdout)
        expect(folder["teacher"] == written and all(f["groups"][0]["network"]["complete"] for f in folder["files"]),
               f"{folder['teacher']}")

        # One changed byte anywhere among the weights.
        place = flip(var, random.Random(3))
        refused = dd2("teacher", "import", var, "--out", work.path / "other")
        expect_fails(refused, 8, "damaged|NaN|cut off|ends early")
        expect(not (work.path / "other" / "teacher.json").exists(), f"imported all the same, byte {place}")


if __name__ == "__main__":
    main()
