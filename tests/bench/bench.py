#!/usr/bin/env python3
"""Side by side on this machine: steps of `dd2 run` and the same mathematics in PyTorch eager.

`scripts/bench` calls it; docs/PERFORMANCE.md says what is measured and how.
"""
import argparse
import dataclasses
import json
import os
import pathlib
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from typing import Callable

import flops
import report
import sides

DROPPED = 5  # first steps of every run: memory and code are touched for the first time
FILL_STEPS = 10
PEAK_LAYOUT = "2 processes x 1 thread"
PROBE_LAYOUT = "1 process x 2 threads, passive"
HOPELESS = 2  # a layout this many times slower than the best one is not measured again


@dataclasses.dataclass
class Side:
    """One line of the table. `measure(round)` gives seconds of each step, the first ones included."""
    name: str
    group: str  # of the sides of one group the fastest counts
    flops: float
    measure: Callable
    rounds: list = dataclasses.field(default_factory=list)

    def seconds(self):
        return [second for values in self.rounds for second in values]

    def median(self):
        return statistics.median(self.seconds())


class Bench:
    def __init__(self, options, work):
        self.options, self.work = options, work
        self.kind = options.benchmark
        self.config = sides.HERE / f"{self.kind}.yaml"
        self.count = options.cycles + DROPPED
        self.overrides = {"csd": [f"phases.2.cycles={self.count}"],
                          "gts": [f"phases.1.steps={self.count}"]}[self.kind]
        self.settings = sides.settings_of(self.config, self.kind, self.overrides)
        self.periods, self.facts, self.peaks = [], {}, []

    def rival(self, job, layout):
        result = sides.rival(job, self.work, layout)
        for key in ("torch", "capability", "shape"):
            self.facts[key] = result.get(key, self.facts.get(key))
        return result

    def ours(self, name, *overrides):
        """Step times of a whole run; the folder goes at once. Also notes the time between reports."""
        overrides = [*self.overrides, *overrides]
        records, result = sides.ours(self.config, self.work, name, overrides)
        records = records[self.kind]
        shutil.rmtree(self.work / name)
        times = [record["time"] for record in records]
        if "cache.enabled=false" not in overrides:
            self.periods += [b - a for a, b in zip(times[DROPPED:], times[DROPPED + 1:])]
        return [record["step_seconds"] for record in records], result.get("cache", {})

    def warm(self, name):
        seconds, cache = self.ours(name)
        if not cache.get("hits") or cache.get("misses"):
            raise RuntimeError(f"the score cache was not warm: {cache}")
        return seconds

    def eager(self, group, work, **more):
        """All layouts of the rival."""
        job = {"what": self.kind, "count": self.count, "settings": {**self.settings, **more}}
        return [Side(f"{group}, {layout}", group, work,
                     lambda _, layout=layout: self.rival(job, layout)["seconds"])
                for layout in sides.LAYOUTS]

    def sides(self, shape):
        if self.kind == "csd":
            work = flops.csd_cycle(self.settings, shape)
            return [Side("dd2, 2 ranks x 1 thread", "dd2", work,
                         lambda r: self.ours(f"run-{r}")[0]), *self.eager("eager", work)]
        alone = flops.gts_step(self.settings, shape, False)
        asked = flops.gts_step(self.settings, shape, True)
        # One short run fills the cache; the log-probs come from cached hidden vectors.
        sides.ours(self.config, self.work, "fill", [f"phases.1.steps={FILL_STEPS}"])
        shutil.rmtree(self.work / "fill")
        cached = alone + 2 * (self.settings["batch"] * shape["tokens"] * shape["d"] * shape["codes"])
        return [Side("dd2, warm score cache", "dd2", cached, lambda r: self.warm(f"warm-{r}")),
                Side("dd2, cache off", "dd2 cache off", asked,
                     lambda r: self.ours(f"off-{r}", "cache.enabled=false")[0]),
                *self.eager("eager", asked, table=False),
                *self.eager("eager table", alone, table=True)]

    def run(self):
        """Rounds of all sides, in turn forwards and backwards, so that drift hits all alike."""
        probe = self.rival({"what": self.kind, "count": 1,
                            "settings": {**self.settings, "table": False}}, PROBE_LAYOUT)
        lines = self.sides(probe["shape"])
        for r in range(self.options.rounds):
            self.peaks.append(self.rival({"what": "peak"}, PEAK_LAYOUT)["gflops"])
            for side in lines if r % 2 == 0 else reversed(lines):
                if r > 0 and side.median() > HOPELESS * best(lines, side.group).median():
                    continue
                side.rounds.append(side.measure(r)[DROPPED:])
                print(f"round {r + 1}: {side.name}: {statistics.median(side.rounds[-1]):.3f} s",
                      file=sys.stderr, flush=True)
        return lines


def best(lines, group):
    return min((side for side in lines if side.group == group), key=Side.median)


RATIOS = {"csd": [("eager", "dd2")],
          "gts": [("eager", "dd2"), ("eager table", "dd2"), ("dd2 cache off", "dd2"),
                  ("eager", "dd2 cache off")]}


def ratio(lines, above, below):
    """Median of group `above` over that of `below`, the faster layout of each; also per round."""
    first, second = best(lines, above), best(lines, below)
    return {"above": first.name, "below": second.name, "ratio": first.median() / second.median(),
            "rounds": [statistics.median(a) / statistics.median(b)
                       for a, b in zip(first.rounds, second.rounds)]}


def machine():
    cpu = next((line.split(":")[1].strip()
                for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.processor())
    commit = subprocess.run(["git", "-C", sides.ROOT, "describe", "--always", "--dirty"],
                            capture_output=True, text=True, check=False).stdout.strip()
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "load": list(os.getloadavg()),
            "commit": commit, "python": platform.python_version(), "kernel": platform.release()}


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    parser.add_argument("benchmark", choices=("csd", "gts"))
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all sides (3)")
    parser.add_argument("--cycles", type=int, default=40,
                        help=f"cycles or steps a round, {DROPPED} more come first (40)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all values there")
    options = parser.parse_args()
    if options.rounds < 1 or options.cycles < 5:
        parser.error("at least 1 round of 5 cycles")
    # An end by signal ends what we started, too.
    for sign in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, lambda number, _: sys.exit(128 + number))
    head = machine()
    work = pathlib.Path(tempfile.mkdtemp(prefix="dd2-bench-")).resolve()
    try:
        bench = Bench(options, work)
        lines = bench.run()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    document = report.document(options, {**head, **bench.facts}, bench, lines,
                               [ratio(lines, *pair) for pair in RATIOS[options.benchmark]])
    print(report.table(document))
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
