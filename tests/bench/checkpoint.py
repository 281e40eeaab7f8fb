#!/usr/bin/env python3
"""Checkpoints side by side on this machine: dd2, PyTorch DCP, memcpy and dd, on one synthetic state.

`scripts/bench checkpoint` calls it; docs/PERFORMANCE.md says what is measured and how.
"""
import argparse
import json
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import bench
import sides

PROGRAM = sides.BIN / "dd2-bench-checkpoint"
RIVAL = [sys.executable, sides.HERE / "checkpoint_rival.py"]
# A stager of the rival, and whether its allocator is set up for large tensors (else: as it comes).
STAGERS = {"DCP default": ("default", False), "DCP default, tuned malloc": ("default", True),
           "DCP async staging, tuned malloc": ("async", True),
           "DCP cached by hand, tuned malloc": ("cached", True)}
BESIDE = "beside a step"
SAVED, LOADED = "p000-s000000001", "dcp-four"
FROM, TO = 4, 2  # ranks
STEP_SECONDS = 2  # of computing, in a step that a save is made beside


class Program:
    """One of our programs, or one process of the rival: a line to it, a line of JSON back."""

    def __init__(self, command, environment=None):
        self.process = subprocess.Popen([str(word) for word in command], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True,
                                        env={**os.environ, **(environment or {})})

    def tell(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args[0]} ended: {self.process.wait()}")
        return json.loads(line)

    def ask(self, line):
        self.tell(line)
        return self.hear()

    def end(self):
        self.process.stdin.close()
        if self.process.wait() != 0:
            raise RuntimeError(f"{self.process.args[0]} ended with {self.process.returncode}")


def rivals(folder, shapes, world, tuned=True):
    """Its processes; only the first listens and answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    programs = []
    for rank in range(world):
        environment = {**(sides.RIVAL_ENVIRONMENT if tuned else {}), "OMP_NUM_THREADS": str(max(1, 2 // world)),
                       "RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                       "MASTER_PORT": str(port)}
        programs.append(Program([*RIVAL, folder, shapes], environment))
    programs[0].hear()
    return programs


def end(programs):
    for program in programs:
        program.end()


def files_below(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def evict(folder):
    os.sync()
    for path in files_below(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def warm(folder):
    for path in files_below(folder):
        with open(path, "rb") as file:
            while file.read(1 << 24):
                pass


class Bench:
    def __init__(self, options, work):
        self.options, self.work = options, work
        self.ours, self.dcp = work / "ours", work / "dcp"
        self.ours.mkdir()
        self.dcp.mkdir()
        self.values = {}
        self.bytes = 0

    def note(self, name, value):
        self.values.setdefault(name, []).append(value)
        print(f"{name}: {value:.3f} s", file=sys.stderr, flush=True)

    def program(self, rank=0, world=1):
        program = Program([PROGRAM, self.ours, self.options.width, self.options.layers, rank, world])
        program.hear()
        return program

    def saves(self):
        ours = self.program()
        shapes = self.work / "shapes.json"
        shapes.write_text(json.dumps(ours.ask("shapes")))
        dcp = {tuned: rivals(self.dcp, shapes, 1, tuned) for tuned in (False, True)}
        ours.ask("step 10")
        products = round(20 * STEP_SECONDS / ours.ask("step 20")["seconds"])
        sides_of = [self.save_of(ours, "save", "save"), self.save_of(ours, "save-ahead", "save-ahead"),
                    self.save_of(ours, f"beside {products}", BESIDE),
                    lambda: self.note("memcpy", ours.ask("memcpy")["seconds"]),
                    lambda: self.note("dd2, step alone", ours.ask(f"step {products}")["seconds"]),
                    lambda: self.note("DCP, step alone", dcp[True][0].ask(f"step {products}")["seconds"])]
        for name, (kind, tuned) in STAGERS.items():
            sides_of += [self.stager_of(dcp[tuned][0], kind, name, 0),
                         self.stager_of(dcp[tuned][0], kind, f"{name}, {BESIDE}", products)]
        for number in range(self.options.rounds):
            for side in sides_of if number % 2 == 0 else reversed(sides_of):
                os.sync()
                side()
        end([ours, *dcp[False], *dcp[True]])
        return shapes

    def save_of(self, ours, command, name):
        def measure():
            answer = ours.ask(command)
            self.bytes = answer["bytes"]
            self.note(f"dd2 {name}, stall", answer["stall"])
            if name == BESIDE:
                self.note(f"dd2 {name}, step", answer["step"])
            file = pathlib.Path(answer["file"])
            if name == "save":
                self.note("dd2 write", answer["write"])
                self.dd(file)
            shutil.rmtree(file.parent)
        return measure

    def dd(self, file):
        """The same bytes from memory into a new file beside it."""
        with tempfile.NamedTemporaryFile(dir="/dev/shm") as memory:
            shutil.copyfile(file, memory.name)
            os.sync()
            target = file.parent / "dd"
            begin = time.perf_counter()
            subprocess.run(["dd", f"if={memory.name}", f"of={target}", "bs=16M", "conv=fsync"],
                           check=True, stderr=subprocess.DEVNULL)
            self.note("dd", time.perf_counter() - begin)
            target.unlink()

    def stager_of(self, rival, kind, name, products):
        def measure():
            answer = rival.ask(f"save {kind} {products}")
            self.note(f"{name}, stall", answer["stall"])
            if kind == "async":
                self.note(f"{name}, call", answer["call"])
            self.note(f"{name}, step" if products else f"{name}, write", answer["step" if products else "write"])
        return measure

    def loads(self, shapes):
        for rank in range(FROM):
            program = self.program(rank, FROM)
            program.ask(f"part {SAVED}")
            if rank == FROM - 1:
                program.ask(f"publish {SAVED} {FROM}")
            program.end()
        four = rivals(self.dcp, shapes, FROM)
        four[0].ask(f"make {LOADED}")
        end(four)
        ours = [self.program(rank, TO) for rank in range(TO)]
        two = rivals(self.dcp, shapes, TO)
        for number in range(2 * self.options.rounds):
            kind, prepare = (("in the page cache", warm), ("not in the page cache", evict))[number % 2]
            prepare(self.ours)
            prepare(self.dcp)
            turns = [lambda: self.note(f"dd2 load, {kind}", self.load(ours)),
                     lambda: self.note(f"DCP load, {kind}", two[0].ask(f"load {LOADED}")["seconds"])]
            for turn in turns if number % 4 < 2 else reversed(turns):
                turn()
        end([*ours, *two])

    def load(self, programs):
        """Until the last rank has it."""
        begin = time.perf_counter()
        for program in programs:
            program.tell(f"load {SAVED}")
        for program in programs:
            program.hear()
        return time.perf_counter() - begin

    def median(self, name):
        """Without the first save, which is a line of its own; a load has no first one."""
        values = self.values[name]
        return statistics.median(values if len(values) == 1 or "load" in name else values[1:])

    def ratios(self):
        of = self.median
        # What a save adds to a step: the stall, and what the step itself is slower by.
        def added(name, alone):
            return of(f"{name}, stall") + max(0, of(f"{name}, step") - of(alone))

        beside = {name: added(f"{name}, {BESIDE}", "DCP, step alone") for name in STAGERS}
        stalls = {name: of(f"{name}, stall") for name in STAGERS}
        ours, ahead = of("dd2 save, stall"), of("dd2 save-ahead, stall")
        ours_beside = added(f"dd2 {BESIDE}", "dd2, step alone")
        rows = [("stall beside a step: DCP default / dd2",
                 of(f"DCP default, {BESIDE}, stall") / of(f"dd2 {BESIDE}, stall"), 10),
                ("stall beside a step: best DCP / dd2",
                 min(of(f"{name}, {BESIDE}, stall") for name in STAGERS) / of(f"dd2 {BESIDE}, stall"), 10),
                ("stall beside a step: dd2 / memcpy", of(f"dd2 {BESIDE}, stall") / of("memcpy"), -1.2),
                ("added to a step: DCP default / dd2", beside["DCP default"] / ours_beside, 10),
                ("added to a step: best DCP / dd2", min(beside.values()) / ours_beside, 10),
                ("added to a step: dd2 / memcpy", ours_beside / of("memcpy"), -1.2),
                ("at once: DCP default / dd2 with half staged ahead", stalls["DCP default"] / ahead, 10),
                ("at once: DCP default / dd2", stalls["DCP default"] / ours, 10),
                ("at once: best DCP / dd2", min(stalls.values()) / ours, 10),
                ("at once: dd2 / memcpy", ours / of("memcpy"), -1.2),
                ("at once: dd2 with half staged ahead / memcpy", ahead / of("memcpy"), -1.2),
                ("write: dd / dd2", of("dd") / of("dd2 write"), 0.9)]
        rows += [(f"load {FROM} -> {TO}, {kind}: DCP / dd2",
                  of(f"DCP load, {kind}") / of(f"dd2 load, {kind}"), 2)
                 for kind in ("in the page cache", "not in the page cache")]
        return rows


def table(side):
    text = [f"state: {side.bytes / 1e9:.2f} GB", "",
            f"{'seconds':42} {'median':>8} {'first':>8} {'GB/s':>7}  rounds"]
    for name, values in side.values.items():
        median = side.median(name)
        rate = side.bytes / 1e9 / median
        text.append(f"{name:42} {median:8.3f} {values[0]:8.3f} {rate:7.2f}  " +
                    " ".join(f"{value:.3f}" for value in values))
    text.append("")
    for name, value, goal in side.ratios():
        wanted = f"at most {-goal}" if goal < 0 else f"at least {goal}"
        met = value <= -goal if goal < 0 else value >= goal
        text.append(f"{name:52} {value:7.2f}  ({wanted}: {'reached' if met else 'MISSED'})")
    return "\n".join(text)


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench checkpoint",
                                     description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="rounds of all sides (7)")
    parser.add_argument("--width", type=int, default=512, help="of the synthetic networks (512)")
    parser.add_argument("--layers", type=int, default=10, help="of their backbone (10)")
    parser.add_argument("--folder", type=pathlib.Path, default=sides.ROOT / "build",
                        help="on the disk to be measured (build/)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all values there")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("at least 2 rounds: the first is a line of its own")
    for sign in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, lambda number, _: sys.exit(128 + number))
    head = bench.machine()
    work = pathlib.Path(tempfile.mkdtemp(prefix="dd2-bench-", dir=options.folder)).resolve()
    try:
        side = Bench(options, work)
        side.loads(side.saves())
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{head['cpu']}, {head['cores']} cores, load {head['load'][0]:.1f}, {head['commit']}")
    print(table(side))
    if options.json:
        options.json.write_text(json.dumps({"machine": head, "bytes": side.bytes,
                                            "values": side.values, "ratios": side.ratios()},
                                           indent=1) + "\n")


if __name__ == "__main__":
    main()
