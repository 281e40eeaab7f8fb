"""`scripts/bench score`: the closed-form teacher score of worker/distill/score_kernel.cc against the same in
PyTorch's own operations, unfused, each on one thread. docs/PERFORMANCE.md says what is measured and how."""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy
import torch

import bench
import sides

PROGRAM = sides.BIN / "dd2-bench-score"
DRAWS = 4
# Codes, channels, rows of logits, and of 1000 codes those that a filter leaves: VAR's and LlamaGen's
# sizes, whole and with the top 900 and 8000 of DD2's first stage.
CASES = [(4096, 32, 128, 1000), (4096, 32, 128, 220), (16384, 8, 64, 1000), (16384, 8, 64, 488)]
TOLERANCE = 1e-3  # of PyTorch's expanded square, which loses digits at small t


def eager(x, t, logp, codebook, u=None):
    """method 1.3 and 1.4 as one writes them with tensors: x, u [draws, rows, C], t [draws, rows, 1]."""
    scale = (1 - t) / t.square()
    square = ((1 - t) / t).square() / 2
    logits = (scale * x) @ codebook.t() + logp - square * codebook.square().sum(1)
    posterior = logits.softmax(-1)
    mu = posterior @ codebook
    if u is None:
        return mu, None
    moment = (posterior * (u @ codebook.t())) @ codebook
    return mu, scale * (moment - mu * (mu * u).sum(-1, keepdim=True))


class Case:
    def __init__(self, program, work, codes, channels, rows, kept):
        self.name = f"V={codes}, C={channels}, {kept / 10:.0f} % of the codes"
        self.rows = DRAWS * rows
        file = work / "case"
        program.tell(f"case {codes} {channels} {rows} {kept} {file}")
        values = torch.from_numpy(numpy.fromfile(file, dtype=numpy.float32))
        shapes = [(codes, channels), (rows, codes), (DRAWS, rows, 1)] + [(DRAWS, rows, channels)] * 4
        pieces = values.split([torch.Size(shape).numel() for shape in shapes])
        self.codebook, self.logp, self.t, self.x, self.u, self.mu, self.jtu = (
            piece.view(shape) for piece, shape in zip(pieces, shapes))
        self.check()

    def eager(self, with_vjp):
        begin = time.process_time()
        outputs = eager(self.x, self.t, self.logp, self.codebook, self.u if with_vjp else None)
        return time.process_time() - begin, outputs

    def check(self):
        """Both sides compute the same, in fp64 by the rival."""
        double = [value.double() for value in (self.x, self.t, self.logp, self.codebook, self.u)]
        for ours, exact in zip((self.mu, self.jtu), eager(*double)):
            error = ((ours - exact).abs() / (1 + exact.abs().amax(-1, keepdim=True))).max().item()
            if not error < TOLERANCE:
                raise RuntimeError(f"{self.name}: the sides differ by {error}")


class Program:
    def __init__(self):
        self.process = subprocess.Popen([PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{PROGRAM} ended: {self.process.wait()}")
        return json.loads(answer)["seconds"]


def measure(program, work, rounds):
    lines = []
    for shape in CASES:
        case = Case(program, work, *shape)
        for what in ("mean", "vjp"):
            turns = {"dd2": lambda what=what: program.tell(what),
                     "eager": lambda what=what: case.eager(what == "vjp")[0]}
            seconds = {side: [] for side in turns}
            for turn in range(rounds + 1):
                for side in turns if turn % 2 == 0 else reversed(turns):
                    seconds[side].append(turns[side]())
            ours, theirs = (seconds[side][1:] for side in turns)  # the first one touches memory
            lines.append({"case": case.name, "what": what,
                          "dd2_us": statistics.median(ours) / case.rows * 1e6,
                          "eager_us": statistics.median(theirs) / case.rows * 1e6,
                          "ratio": statistics.median(b / a for a, b in zip(ours, theirs))})
            print("{case}, {what}: {dd2_us:.2f} us a row, eager {eager_us:.2f}, ratio {ratio:.2f}"
                  .format(**lines[-1]), file=sys.stderr, flush=True)
    return lines


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench score", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11, help="pairs of each case (11)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all values there")
    options = parser.parse_args()
    if any(os.environ.get(key) != value for key, value in sides.RIVAL_ENVIRONMENT.items()):
        # malloc reads its settings when a process starts.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **sides.RIVAL_ENVIRONMENT})
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    head = {**bench.machine(), "torch": torch.__version__}
    with tempfile.TemporaryDirectory(prefix="dd2-bench-") as work:
        lines = measure(Program(), pathlib.Path(work), options.rounds)
    print("| a row (one token, one draw) | dd2, us | PyTorch eager, us | ratio |\n|---|---|---|---|")
    for line in lines:
        print("| {case}, {what} | {dd2_us:.1f} | {eager_us:.1f} | {ratio:.2f} |".format(**line))
    if options.json:
        options.json.write_text(json.dumps({**head, "lines": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
