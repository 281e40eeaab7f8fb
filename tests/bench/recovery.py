#!/usr/bin/env python3
"""A rank is killed: how long until the survivors' next finished step, and what is done again.

`scripts/bench recovery` calls it; docs/PERFORMANCE.md says what is measured and how.
"""
import argparse
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import sides
from bench import machine

sys.path.insert(0, str(sides.ROOT / "tests" / "functional"))
from dd2 import Run  # noqa: E402

WARM_CYCLES = 6       # finished before the first kill, and after each recovery
WAIT_SECONDS = 180
FAULT_EVERY = 30      # seconds, as the rival figure in docs/PERFORMANCE.md


def lines(path):
    """Objects of a file with one in a line; what is being written does not count."""
    found = []
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found


def wait_for(what, ready):
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        value = ready()
        if value:
            return value
        time.sleep(0.02)
    raise RuntimeError(f"gave up waiting for {what}")


def children(pid):
    """All processes below `pid`: {pid: command line}."""
    parents = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                parents[int(entry.name)] = int(fields[1])
    found, frontier = {}, {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier}
        for child in frontier:
            with contextlib.suppress(OSError):
                found[child] = (pathlib.Path("/proc") / str(child) / "cmdline").read_bytes().split(b"\0")
    return found


class Started:
    """A process that ends with us, and all that it started: torchrun's workers are in sessions of their own."""

    def __init__(self, command, log, environment=None):
        self.sink = open(log, "ab")
        self.process = subprocess.Popen([str(word) for word in command], stdout=self.sink, stderr=self.sink,
                                        env={**os.environ, **(environment or {})}, start_new_session=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        below = children(self.process.pid)
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(sides.END_SECONDS_MAX)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pid, words in below.items():
            with contextlib.suppress(OSError):
                # Unless somebody else has the number by now.
                if (pathlib.Path("/proc") / str(pid) / "cmdline").read_bytes().split(b"\0") == words:
                    os.kill(pid, signal.SIGKILL)
        self.sink.close()


class Ours(Started):
    """csd cycles of `dd2 run` on `domains` x 1 rank."""

    def __init__(self, work, name, domains, config):
        self.run, self.domains = work / name, domains
        super().__init__([sides.BIN / "dd2", "run", config, "--run", self.run, "--domains", domains,
                          "--ranks", 1, "--set", f"cache.path={work / 'cache'}"], work / f"{name}.log")

    def cycles(self):
        return [{"cycle": line["step"], "time": line["time"]}
                for line in lines(self.run / "metrics.jsonl") if line["kind"] == "csd"]

    def workers(self):
        return [pid for pid, words in children(self.process.pid).items()
                if words[0].endswith(b"dd2-worker")]

    def whole(self):
        """All ranks are in the generation."""
        return Run(None, None, self.run, {}).members() == self.domains

    def incidents(self):
        return lines(self.run / "incidents.jsonl")

    def steps_lost(self):
        return sum(incident["steps_lost"] for incident in self.incidents())


class Rival(Started):
    """The same cycles under torchrun with 2 processes, restarted from its last checkpoint."""

    def __init__(self, work, name, settings, checkpoint_every):
        self.folder = work / name
        self.folder.mkdir()
        job = self.folder / "job.json"
        job.write_text(json.dumps({"settings": settings, "threads": 1, "checkpoint_every": checkpoint_every}))
        super().__init__([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2,
                          "--max-restarts", 1000, "--monitor-interval", "0.1",
                          sides.HERE / "recovery_rival.py", job, self.folder], work / f"{name}.log",
                         {**sides.RIVAL_ENVIRONMENT, "OMP_NUM_THREADS": "1"})

    def cycles(self):
        return lines(self.folder / "cycles.jsonl")

    def workers(self):
        return [int((self.folder / f"pid-{rank}").read_text()) for rank in range(2)]

    def whole(self):
        return True


def recover(side, rng):
    """Kills one worker at a random moment of a cycle: seconds until the next finished cycle of whoever goes on,
    and finished cycles that are done again."""
    begin = len(side.cycles())
    wait_for("warm cycles", lambda: len(side.cycles()) >= begin + WARM_CYCLES and side.whole())
    time.sleep(rng.uniform(0, 1))
    before = side.cycles()[-1]["cycle"]
    known = len(side.cycles())
    lost = side.steps_lost() if isinstance(side, Ours) else 0
    killed = time.time()
    os.kill(side.workers()[-1], signal.SIGKILL)

    def resumed():
        # A line that was under way when the rank died is not what was recovered.
        later = [line for line in side.cycles()[known:] if line["time"] > killed]
        if isinstance(side, Ours):
            ends = [incident["unix_ms"] / 1000 + incident["resumed_seconds"] for incident in side.incidents()
                    if incident["kind"] == "lost" and incident["unix_ms"] / 1000 >= killed - 0.01
                    and incident["resumed_seconds"] is not None]
            return ends and (ends[0], side.steps_lost() - lost)
        again = [line for line in later if line["cycle"] <= before]
        if again:
            return again[0]["time"], before - again[0]["cycle"] + 1
        # The kill came right behind a checkpoint: nothing is done again, or it still has to come back.
        late = [line for line in later if line["time"] > killed + 1]
        return late and (late[0]["time"], 0)

    end, again = wait_for("the next cycle", resumed)
    return {"seconds": end - killed, "again": again}


def rate(side, seconds, fault_every, rng):
    """Cycles per second over a time, with a worker killed every so often."""
    wait_for("warm cycles", lambda: len(side.cycles()) >= WARM_CYCLES and side.whole())
    begin, first = time.time(), side.cycles()[-1]["cycle"]
    faults = 0
    while time.time() - begin < seconds:
        time.sleep(0.05)
        if fault_every and time.time() - begin > (faults + 0.5) * fault_every:
            faults += 1
            os.kill(rng.choice(side.workers()), signal.SIGKILL)
    done = side.cycles()[-1]
    return {"rate": (done["cycle"] - first) / (done["time"] - begin), "faults": faults,
            "lost": side.steps_lost()}


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench recovery", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=5, help="of each side (5)")
    parser.add_argument("--seconds", type=int, default=180, help="of each throughput measurement (180)")
    parser.add_argument("--domains", type=int, default=4, help="of the throughput measurement (4)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all values there")
    options = parser.parse_args()
    for sign in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, lambda number, _: sys.exit(128 + number))
    rng = random.Random(1)
    config = sides.HERE / "recovery.yaml"
    settings = sides.settings_of(config, "csd", [])
    every = settings["checkpoint_every"]
    head = machine()
    work = pathlib.Path(tempfile.mkdtemp(prefix="dd2-bench-")).resolve()
    document = {"machine": head, "ours": [], "rival": [], "rates": []}
    try:
        with Ours(work, "ours", 2, config) as ours:
            for _ in range(options.kills):
                document["ours"].append(recover(ours, rng))
                print(f"dd2: {document['ours'][-1]}", file=sys.stderr, flush=True)
        with Rival(work, "rival", settings, every) as rival:
            for _ in range(options.kills):
                document["rival"].append(recover(rival, rng))
                print(f"torchrun: {document['rival'][-1]}", file=sys.stderr, flush=True)
        for fault_every in (0, FAULT_EVERY, 0, FAULT_EVERY):
            name = f"rate-{len(document['rates'])}"
            with Ours(work, name, options.domains, config) as ours:
                found = rate(ours, options.seconds, fault_every, rng)
            document["rates"].append({"fault_every": fault_every, **found})
            print(f"dd2, {options.domains} domains: {document['rates'][-1]}", file=sys.stderr, flush=True)
            shutil.rmtree(work / name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report(document, every)
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


def report(document, every):
    print(f"{document['machine']}\n\n| a rank is killed | next finished cycle, s: median | min | max | cycles done again |")
    print("|---|---|---|---|---|")
    medians = {}
    for name, label in (("ours", "dd2, 2 domains x 1 rank"),
                        ("rival", f"torchrun, 2 processes, checkpoint every {every} cycles")):
        seconds = [one["seconds"] for one in document[name]]
        medians[name] = statistics.median(seconds)
        print(f"| {label} | **{medians[name]:.2f}** | {min(seconds):.2f} | {max(seconds):.2f} | "
              f"{sum(one['again'] for one in document[name])} in {len(seconds)} kills |")
    print(f"\nRatio {medians['rival'] / medians['ours']:.1f}")
    calm = [one["rate"] for one in document["rates"] if not one["fault_every"]]
    hit = [one for one in document["rates"] if one["fault_every"]]
    for one in hit:
        print(f"A worker killed every {one['fault_every']} s ({one['faults']} kills): {one['rate']:.3f} cycles/s, "
              f"{one['rate'] / statistics.mean(calm):.1%} of the undisturbed {statistics.mean(calm):.3f}; "
              f"{one['lost']} finished cycles done again")


if __name__ == "__main__":
    main()
