"""Helpers for tests on the real programs: run dd2, wait for a step, kill what belongs to a run.

Standard library only. A test looks like this (tests.cmake passes the folder of the binaries):

    from dd2 import Workspace
    with Workspace() as work:
        run = work.run("tests/configs/tiny.yaml")        # waits; raises when the exit code is not 0
        other = work.start("tests/configs/tiny.yaml", ranks=1)
        other.wait_for(phase="csd", step=3)
        other.kill_all()                                 # SIGKILL to every process of that run
        other.resume()
        assert run.digest() == other.digest()

A workspace is a temporary folder with run folders and a private score cache. It is kept when the test
fails, and its path printed. Every wait has a deadline, stretched by DD2_TIMEOUT_FACTOR (default 1).
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
FACTOR = float(os.environ.get("DD2_TIMEOUT_FACTOR", "1"))
PROGRAMS = ("dd2", "dd2-coordinator", "dd2-agent", "dd2-worker", "mpirun", "orterun")


def binary(name="dd2"):
    """Path of one of our programs: in $DD2_BIN_DIR, else in build/release/bin."""
    folder = pathlib.Path(os.environ.get("DD2_BIN_DIR", ROOT / "build" / "release" / "bin"))
    return str(folder / name)


def dd2(*arguments, timeout=120, env=None, cwd=ROOT):
    """Runs `dd2 ARGUMENTS`, returns the CompletedProcess with text in stdout and stderr."""
    return subprocess.run([binary(), *map(str, arguments)], capture_output=True, text=True,
                          timeout=timeout * FACTOR, env=env, cwd=cwd, check=False)


def expect(condition, message, process=None):
    """Fails the test with `message` and, when given, the output of `process`."""
    if condition:
        return
    if process is not None:
        message += f"\nexit code {process.returncode}\nstdout:\n{process.stdout}\nstderr:\n{process.stderr}"
    raise AssertionError(message)


def torch_python():
    """The Python with PyTorch that scripts/bench uses too; made when it is not there."""
    made = subprocess.run(
        ["bash", "-c", "source scripts/env.sh && source scripts/torch_venv.sh && prepare_torch_venv && "
                       "echo $dd2_torch_venv/bin/python"],
        cwd=ROOT, capture_output=True, text=True, check=False)
    expect(made.returncode == 0, "no Python with PyTorch", made)
    return made.stdout.strip()


def expect_fails(process, exit_code, *patterns):
    """`process` ended with `exit_code` and its output holds each of the regular expressions."""
    expect(process.returncode == exit_code, f"expected exit code {exit_code}", process)
    for pattern in patterns:
        expect(re.search(pattern, process.stdout + process.stderr), f"expected /{pattern}/", process)


def wait_until(predicate, what, timeout=60):
    """Calls `predicate` until it gives something true, which is returned."""
    deadline = time.monotonic() + timeout * FACTOR
    while time.monotonic() < deadline:
        value = predicate()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"gave up after {timeout * FACTOR:.0f} s waiting for {what}")


def processes_of(folder):
    """{pid: program} of our processes whose command line or environment names the run folder."""
    needle = os.fsencode(str(pathlib.Path(folder).resolve()))
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            program = os.fsdecode(os.path.basename(words[0]))
            if program not in PROGRAMS:
                continue
            text = b"\0".join(words) + b"\0" + (entry / "environ").read_bytes()
            # The name must end there: RUN must not match RUN-2.
            if re.search(re.escape(needle) + rb"(?![\w.-])", text):
                found[int(entry.name)] = program
        except OSError:
            continue  # it ended while we looked
    return found


def argument_of(pid, name):
    """What follows `name` on the command line of process `pid`; None when there is nothing."""
    try:
        words = (pathlib.Path("/proc") / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    return os.fsdecode(words[words.index(name.encode()) + 1]) if name.encode() in words else None


def domain_of(pid):
    return argument_of(pid, "--domain")


def snapshots_of(pids):
    """Files of the snapshots in memory that these workers have."""
    folders = {argument_of(pid, "--snapshots") for pid in pids} - {None}
    return sorted(path for folder in folders for path in pathlib.Path(folder).glob("rank-*"))


def flip(path, rng, count=1):
    """Changes `count` random bytes of a file; their positions."""
    size = path.stat().st_size
    places = sorted(rng.randrange(size) for _ in range(count))
    with open(path, "r+b") as file:
        for place in places:
            file.seek(place)
            byte = file.read(1)
            file.seek(place)
            file.write(bytes([byte[0] ^ (1 << rng.randrange(8))]))
    return places


class Run:
    """One run folder, and the `dd2 run` that works on it if we started it in the background."""

    def __init__(self, work, config, folder, options):
        self.work, self.config, self.folder, self.options = work, config, folder, options
        self.process = None

    def command(self, resume=False, **more):
        options = {**self.options, **more}
        words = [binary(), "run", str(self.config), "--run", str(self.folder)]
        words += ["--set", f"cache.path={options.get('cache') or self.work.cache}"]
        for name in ("domains", "ranks"):
            if options.get(name):
                words += [f"--{name}", str(options[name])]
        if options.get("seed") is not None:
            words += ["--seed", str(options["seed"])]
        for setting in options.get("set", ()):
            words += ["--set", setting]
        if options.get("shrink"):
            words += ["--shrink"]
        return words + (["--resume"] if resume else [])

    def start(self, resume=False, **more):
        """Starts `dd2 run` in the background; its output goes to FOLDER.out."""
        self.output = pathlib.Path(f"{self.folder}.out")
        with open(self.output, "a", encoding="utf-8") as sink:
            self.process = subprocess.Popen(self.command(resume, **more), stdout=sink,
                                            stderr=subprocess.STDOUT, cwd=ROOT)
        return self

    def finish(self, exit_code=0, timeout=300):
        """Waits for the background `dd2 run` to end with `exit_code`."""
        try:
            code = self.process.wait(timeout * FACTOR)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"dd2 run did not end in {timeout} s\n{self.tail()}") from None
        expect(code == exit_code, f"dd2 run: exit code {code}, expected {exit_code}\n{self.tail()}")
        return self

    def resume(self, exit_code=0, timeout=300, **more):
        return self.start(resume=True, **more).finish(exit_code, timeout)

    def tail(self, lines=40):
        text = self.output.read_text(errors="replace") if self.output.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def status(self):
        """The document of `dd2 status --json`, or None while there is none. Each phase has `done`,
        its finished steps."""
        process = dd2("status", self.folder, "--json")
        if process.returncode != 0:
            return None
        document = json.loads(process.stdout)
        for phase in document["phases"]:
            phase["done"] = phase["step"]
        return document

    def wait_for(self, phase=None, step=0, state=None, timeout=120):
        """Waits until the run is in `phase` (a name as "csd", "csd-2", or an index) with at least
        `step` finished steps, or past it; or has the word `state`."""
        def reached():
            if self.process is not None and self.process.poll() is not None and state is None:
                raise AssertionError(f"the run ended before phase {phase} step {step}\n{self.tail()}")
            document = self.status()
            if document is None:
                return None
            if state is not None:
                return document if document["state"] == state else None
            entry = next(entry for entry in document["phases"] if phase in (entry["name"], entry["index"]))
            begun = entry["state"] == "running" and entry["step"] >= step
            return document if begun or entry["state"] == "done" else None
        return wait_until(reached, f"{self.folder}: phase {phase} step {step} state {state}", timeout)

    def incidents(self):
        """Those that are over, of all lives of the run."""
        path = self.folder / "incidents.jsonl"
        # The last line may be torn, as long as nobody has gone on after it.
        return [json.loads(line) for line in path.read_text().splitlines(True) if line.endswith("\n")] \
            if path.exists() else []

    def members(self):
        """Ranks in the current generation, as the API says; None: nobody answers just now."""
        try:
            address = json.loads((self.folder / "coordinator.json").read_text())["api_url"]
            request = urllib.request.Request(f"{address}/api/v1/members", headers={
                "Authorization": "Bearer " + (self.folder / "token").read_text().strip()})
            with urllib.request.urlopen(request, timeout=2) as answer:
                listed = json.load(answer)["members"]
        except (OSError, ValueError):
            return None
        return sum(1 for member in listed if member["rank"] is not None and member["connected"])

    def processes(self, program=None):
        found = processes_of(self.folder)
        return [pid for pid, name in found.items() if program in (None, name)]

    def workers(self, domain=None):
        """Pids of the workers, of all domains or of the one called `domain` ("local-2")."""
        return [pid for pid in self.processes("dd2-worker") if domain in (None, domain_of(pid))]

    def agents(self, domain=None):
        return [pid for pid in self.processes("dd2-agent") if domain in (None, domain_of(pid))]

    def coordinator(self):
        """Its pid, or None while there is none."""
        return next(iter(self.processes("dd2-coordinator")), None)

    def kill(self, program, sign=signal.SIGKILL):
        """Sends `sign` to every process of this run that runs `program`; returns their pids."""
        return self.signal(self.processes(program), sign)

    def signal(self, pids, sign=signal.SIGKILL):
        """Sends `sign` to processes; one that has ended meanwhile is no error. Returns `pids`."""
        for pid in pids:
            try:
                os.kill(pid, sign)
            except ProcessLookupError:
                pass
        return pids

    def kill_all(self):
        """kill -9 to every process of this run at once, then waits until they are gone."""
        self.kill(None)
        if self.process is not None:
            self.process.wait(30 * FACTOR)
        self.wait_gone()
        return self

    def wait_gone(self, timeout=30):
        """Waits until no process of this run is left (the promise after any end of dd2)."""
        wait_until(lambda: not self.processes(), f"processes of {self.folder} to end", timeout)
        return self

    def digest(self, checkpoint=None):
        """{group: hash} of the newest (or the named) checkpoint."""
        words = ["checkpoint", "digest", self.folder] + (["--id", checkpoint] if checkpoint else [])
        process = dd2(*words)
        expect(process.returncode == 0, "dd2 checkpoint digest failed", process)
        groups = dict(line.split() for line in process.stdout.splitlines() if line)
        expect(groups, "dd2 checkpoint digest printed nothing", process)
        return groups

    def record(self):
        """The lines of metrics.jsonl without what a clock or the cache decides."""
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        skip = ("time", "step_seconds")
        return [{key: value for key, value in json.loads(line).items()
                 if key not in skip and "hits" not in key and "misses" not in key} for line in lines]

    def result(self):
        return json.loads((self.folder / "result.json").read_text())


class Workspace:
    """A temporary folder for runs with its own score cache; see the module's text."""

    def __enter__(self):
        self.path = pathlib.Path(tempfile.mkdtemp(prefix="dd2-test-")).resolve()
        self.cache = self.path / "cache"
        self.runs = []
        return self

    def __exit__(self, kind, value, trace):
        for run in self.runs:
            run.kill(None)
            if run.process is not None:
                run.process.wait(30)
        if kind is None:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            print(f"the workspace is kept: {self.path}", file=sys.stderr)
        return False

    def new_run(self, config, name=None, **options):
        """A run that is not started yet. Options: domains,
        ranks (of each domain), seed, set=[...], cache."""
        folder = self.path / (name or f"run-{len(self.runs) + 1}")
        run = Run(self, ROOT / config, folder, options)
        self.runs.append(run)
        return run

    def start(self, config, name=None, **options):
        return self.new_run(config, name, **options).start()

    def run(self, config, name=None, timeout=300, **options):
        return self.start(config, name, **options).finish(timeout=timeout)


def expect_same(first, second):
    """Two digests are equal; the message names the groups that are not."""
    different = [group for group in sorted({*first, *second}) if first.get(group) != second.get(group)]
    expect(not different, f"these differ: {', '.join(different)}")
