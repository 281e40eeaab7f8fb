#!/usr/bin/env python3
"""A rank is killed: how long until the survivors' next finished update, and what is done again.

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

WARM_UPDATES = 24     # finished before the first kill, and after each recovery
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
    """Steps of one update of `dd2 run` on `domains` x 1 rank."""

    def __init__(self, work, name, domains, config, overrides=()):
        self.run, self.domains = work / name, domains
        super().__init__([sides.BIN / "dd2", "run", config, "--run", self.run, "--domains", domains,
                          "--ranks", 1, "--set", f"cache.path={work / 'cache'}",
                          *sides.set_options(overrides)], work / f"{name}.log")

    def updates(self):
        return [{"update": line["step"], "time": line["time"]}
                for line in lines(self.run / "metrics.jsonl") if line["kind"] == "align"]

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
    """The same updates under torchrun with 2 processes, restarted from its last checkpoint."""

    def __init__(self, work, name, settings, checkpoint_every):
        self.folder = work / name
        self.folder.mkdir()
        job = self.folder / "job.json"
        job.write_text(json.dumps({"settings": settings, "threads": 1, "checkpoint_every": checkpoint_every}))
        super().__init__([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2,
                          "--max-restarts", 1000, "--monitor-interval", "0.1",
                          sides.HERE / "recovery_rival.py", job, self.folder], work / f"{name}.log",
                         {**sides.RIVAL_ENVIRONMENT, "OMP_NUM_THREADS": "1"})

    def updates(self):
        return lines(self.folder / "updates.jsonl")

    def workers(self):
        return [int((self.folder / f"pid-{rank}").read_text()) for rank in range(2)]

    def whole(self):
        return True


def recover(side, rng):
    """Kills one worker at a random moment of an update: seconds until the next finished one of whoever goes on,
    and finished updates that are done again."""
    begin = len(side.updates())
    wait_for("warm updates", lambda: len(side.updates()) >= begin + WARM_UPDATES and side.whole())
    time.sleep(rng.uniform(0, 1))
    before = side.updates()[-1]["update"]
    known = len(side.updates())
    lost = side.steps_lost() if isinstance(side, Ours) else 0
    killed = time.time()
    os.kill(side.workers()[-1], signal.SIGKILL)

    def resumed():
        # A line that was under way when the rank died is not what was recovered.
        later = [line for line in side.updates()[known:] if line["time"] > killed]
        if isinstance(side, Ours):
            ends = [incident["unix_ms"] / 1000 + incident["resumed_seconds"] for incident in side.incidents()
                    if incident["kind"] == "lost" and incident["unix_ms"] / 1000 >= killed - 0.01
                    and incident["resumed_seconds"] is not None]
            return ends and (ends[0], side.steps_lost() - lost)
        again = [line for line in later if line["update"] <= before]
        if again:
            return again[0]["time"], before - again[0]["update"] + 1
        # The kill came right behind a checkpoint: nothing is done again, or it still has to come back.
        late = [line for line in later if line["time"] > killed + 1]
        return late and (late[0]["time"], 0)

    end, again = wait_for("the next update", resumed)
    return {"seconds": end - killed, "again": again}


def recoveries(batch, options, config, work, rng):
    """Both sides, with updates of that batch; the smaller, the less of it is the update itself."""
    overrides = [f"phases.3.batch={batch}"]
    settings = sides.settings_of(config, "align", overrides)
    found = {"batch": batch, "ours": [], "rival": [], "gave_up": None}
    with Ours(work, f"ours-{batch}", 2, config, overrides) as ours:
        for _ in range(options.kills):
            found["ours"].append(recover(ours, rng))
            print(f"batch {batch}, dd2: {found['ours'][-1]}", file=sys.stderr, flush=True)
    with Rival(work, f"rival-{batch}", settings, settings["checkpoint_every"]) as rival:
        for _ in range(options.kills):
            try:
                found["rival"].append(recover(rival, rng))
            except RuntimeError as error:
                found["gave_up"] = f"{error}, {WAIT_SECONDS} s after a kill"
                break
            print(f"batch {batch}, torchrun: {found['rival'][-1]}", file=sys.stderr, flush=True)
    return found


def rate(side, seconds, fault_every, rng):
    """Updates per second over a time, with a worker killed every so often."""
    wait_for("warm updates", lambda: len(side.updates()) >= WARM_UPDATES and side.whole())
    begin, first = time.time(), side.updates()[-1]["update"]
    faults = 0
    while time.time() - begin < seconds:
        time.sleep(0.05)
        if fault_every and time.time() - begin > (faults + 0.5) * fault_every:
            faults += 1
            os.kill(rng.choice(side.workers()), signal.SIGKILL)
    done = side.updates()[-1]
    return {"rate": (done["update"] - first) / (done["time"] - begin), "faults": faults,
            "lost": side.steps_lost()}


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench recovery", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=5, help="of each side (5)")
    parser.add_argument("--pairs", type=int, default=3, help="of throughput with and without faults (3)")
    parser.add_argument("--seconds", type=int, default=120, help="of each throughput measurement (120)")
    parser.add_argument("--domains", type=int, default=4, help="of the throughput measurement (4)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all values there")
    options = parser.parse_args()
    for sign in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, lambda number, _: sys.exit(128 + number))
    rng = random.Random(1)
    config = sides.HERE / "recovery.yaml"
    head = machine()
    work = pathlib.Path(tempfile.mkdtemp(prefix="dd2-bench-")).resolve()
    document = {"machine": head, "recoveries": [], "rates": []}
    try:
        for batch in (32, 8):
            document["recoveries"].append(recoveries(batch, options, config, work, rng))
        for fault_every in (0, FAULT_EVERY) * options.pairs:
            name = f"rate-{len(document['rates'])}"
            with Ours(work, name, options.domains, config) as ours:
                found = rate(ours, options.seconds, fault_every, rng)
            document["rates"].append({"fault_every": fault_every, **found})
            print(f"dd2, {options.domains} domains: {document['rates'][-1]}", file=sys.stderr, flush=True)
            shutil.rmtree(work / name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report(document)
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


def report(document):
    print(f"{document['machine']}\n\n| a rank is killed | next finished update, s: median | min | max | updates done again |")
    print("|---|---|---|---|---|")
    ratios = []
    for found in document["recoveries"]:
        medians = {}
        for name, label in (("ours", "dd2, 2 domains x 1 rank"), ("rival", "torchrun, 2 processes")):
            seconds = [one["seconds"] for one in found[name]]
            medians[name] = statistics.median(seconds) if seconds else float("nan")
            print(f"| batch {found['batch']}: {label} | **{medians[name]:.2f}** | {min(seconds, default=0):.2f} | "
                  f"{max(seconds, default=0):.2f} | {sum(one['again'] for one in found[name])} in {len(seconds)} kills |")
        ratios.append(f"batch {found['batch']}: ratio {medians['rival'] / medians['ours']:.1f}")
        if found["gave_up"]:
            ratios.append(f"torchrun was ended: {found['gave_up']}")
    print("\n" + "\n".join(ratios))
    # Each against the one before it: the machine's own pace changes over minutes.
    kept = []
    for calm, hit in zip(document["rates"][::2], document["rates"][1::2]):
        kept.append(hit["rate"] / calm["rate"])
        print(f"A worker killed every {hit['fault_every']} s ({hit['faults']} kills): {hit['rate']:.3f} updates/s, "
              f"{kept[-1]:.1%} of the undisturbed {calm['rate']:.3f}; {hit['lost']} finished updates done again")
    if kept:
        print(f"Throughput kept: {statistics.median(kept):.1%}")


if __name__ == "__main__":
    main()
