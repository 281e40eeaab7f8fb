"""The faults of chaos.py and the moments at which they strike.

Each fault is a function of (run, rng) that does its harm and says in a few words what it did; None: there
was nothing to hit. Processes are hit by their own pid."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time

TOO_LATE = 3.0      # seconds to wait for a moment before any other will do
NOT_POSSIBLE = []   # kinds that this machine does not allow, with the reason


def lines(run):
    """The record so far: one object a line."""
    try:
        text = (run.folder / "metrics.jsonl").read_text()
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break  # being written
    return found


def position(run):
    """[phase, step] of the newest line of the record; [-1, 0] before the first."""
    newest = lines(run)[-1:]
    return [newest[0]["phase"], newest[0]["step"]] if newest else [-1, 0]


def lengths(run):
    """Steps of each phase, by index."""
    if not hasattr(run, "phase_lengths"):
        document = run.status()
        if document is None:
            return None
        run.phase_lengths = [phase["steps"] for phase in document["phases"]]
    return run.phase_lengths


def unfinished_checkpoint(run):
    """A checkpoint's folder without a manifest; None: no save is under way."""
    try:
        folders = list((run.folder / "checkpoints").iterdir())
    except OSError:
        return None
    for folder in folders:
        if folder.name.startswith("p") and folder.is_dir() and not (folder / "manifest.json").exists():
            return folder
    return None


def over(run):
    return run.process.poll() is not None


def wait_for_moment(run, moment, rng):
    """any: after a random time; border: around the last step of a phase; commit: while a checkpoint is being
    written. False: the run ended meanwhile."""
    if moment == "any":
        time.sleep(rng.uniform(0.05, 1.2))
        return not over(run)
    deadline = time.monotonic() + TOO_LATE
    while time.monotonic() < deadline and not over(run):
        if moment == "commit" and unfinished_checkpoint(run):
            break
        if moment == "border" and lengths(run):
            phase, step = position(run)
            if phase >= 0 and step >= lengths(run)[phase] - 1:
                time.sleep(rng.uniform(0, 0.1))
                break
        time.sleep(0.002 if moment == "commit" else 0.01)
    return not over(run)


def wait_for_progress(run, since, rng):
    """Until the record has gone past `since` and a moment longer; or the run ends; or ten seconds."""
    deadline = time.monotonic() + 10
    time.sleep(0.3)
    while time.monotonic() < deadline and not over(run) and position(run) <= since:
        time.sleep(0.05)
    time.sleep(rng.uniform(0, 1.5))


def heal(run):
    """Takes back what lasts, before the run is resumed. A domain that joined waits for its coordinator as long
    as it may; the operator of this run does not."""
    (run.folder / FILLER).unlink(missing_ok=True)
    for domain in getattr(run, "far", []):
        domain.link("up")
        run.signal(run.agents(domain.name) + run.workers(domain.name))


def pick(rng, values):
    values = sorted(values)
    return rng.choice(values) if values else None


def kill_worker(run, rng):
    pid = pick(rng, run.workers())
    return run.signal([pid]) and f"pid {pid}" if pid else None


def later(seconds, action):
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()


def stop_for(run, pid, seconds):
    run.signal([pid], signal.SIGSTOP)
    later(seconds, lambda: run.signal([pid], signal.SIGCONT))
    return f"pid {pid} for {seconds:.1f} s"


def pause_worker(run, rng):
    """Shorter than anybody may be silent."""
    pid = pick(rng, run.workers())
    return stop_for(run, pid, rng.uniform(0.2, 1.5)) if pid else None


def hang_worker(run, rng):
    """For ever, unless somebody ends it."""
    pid = pick(rng, run.workers())
    return run.signal([pid], signal.SIGSTOP) and f"pid {pid}" if pid else None


def kill_agent(run, rng):
    pid = pick(rng, run.agents())
    return run.signal([pid]) and f"pid {pid}" if pid else None


def kill_domain(run, rng):
    """An agent and all that it started, at once."""
    from dd2 import domain_of
    pid = pick(rng, run.agents())
    if not pid:
        return None
    name = domain_of(pid)
    pids = [pid, *run.workers(name)]
    run.signal(pids)
    return f"{name}, {len(pids)} processes"


def kill_coordinator(run, rng):
    pid = run.coordinator()
    return run.signal([pid]) and f"pid {pid}" if pid else None


def pause_coordinator(run, rng):
    pid = run.coordinator()
    return stop_for(run, pid, rng.uniform(0.5, 4)) if pid else None


def kill_everything(run, rng):
    pids = run.processes()
    run.signal(pids)
    return f"{len(pids)} processes" if pids else None


def kill_workers(run, rng):
    """All of them: only what lies in memory or on the disk is left of the state."""
    pids = run.workers()
    run.signal(pids)
    return f"{len(pids)} workers" if pids else None


def flip_snapshot(run, rng):
    """All workers die, and bytes of the snapshots that they have left are wrong."""
    from dd2 import flip, snapshots_of
    files = snapshots_of(run.workers())
    killed = kill_workers(run, rng)
    places = [flip(path, rng, 3) for path in files if path.exists() and path.stat().st_size]
    return killed and f"{killed}, then bytes {places}"


def flip_checkpoint(run, rng):
    """A byte of the newest committed checkpoint is wrong, and then all processes die: the run has to find
    it out and to go back further."""
    from dd2 import flip
    folder = run.folder / "checkpoints"
    try:
        committed = sorted(entry for entry in folder.iterdir() if (entry / "manifest.json").exists())
    except OSError:
        return None
    if len(committed) < 2:
        return None  # none would be left
    try:
        path = pick(rng, committed[-1].iterdir())
        whole = path.read_bytes()
        places = flip(path, rng)
    except (OSError, ValueError):
        return None  # deleted just now
    kill_everything(run, rng)
    if (run.folder / "result.json").exists():
        path.write_bytes(whole)  # it was faster: nobody will ever look at that checkpoint again
        return None
    return f"byte {places[0]} of {path.parent.name}/{path.name}, then everything killed"


def flip_cache(run, rng):
    from dd2 import flip
    cache = run.options["cache"]
    files = [path for path in cache.rglob("*") if path.suffix in (".sst", ".blob", ".log") and path.stat().st_size]
    path = pick(rng, files)
    if path is None:
        return None
    try:
        places = flip(path, rng, 4)
    except (OSError, ValueError):
        return None
    return f"bytes {places} of {path.parent.name}/{path.name}"


# ---- the disk: the run folder is a small file system of its own -------------------------------

FILLER = "filler"
DISK_BYTES = 500 << 20


def give_disk(run):
    """Before the run starts. Needs a mount namespace of our own: scripts/chaos."""
    run.folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "chaos", str(run.folder)], check=True)


def take_disk(run):
    subprocess.run(["umount", str(run.folder)], check=True)


def disk_full(run, rng):
    """All but a little is taken for some seconds."""
    left = rng.choice((0, 4096, 100_000, 20_000_000))
    seconds = rng.uniform(0.5, 4)
    free = shutil.disk_usage(run.folder).free - left
    path = run.folder / FILLER
    if free <= 0 or path.exists():
        return None
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, free)
        except OSError:
            pass  # somebody was faster: it is full
    later(seconds, lambda: path.unlink(missing_ok=True))
    return f"{left} bytes left for {seconds:.1f} s"


# ---- the network: a domain behind a link of its own -------------------------------------------

BRIDGE, HERE, PREFIX = "chaos0", "10.97.0.1", "10.97.0."


def ip(*words):
    subprocess.run(["ip", *words], check=True)


def make_network():
    """A bridge in the network namespace that scripts/chaos made for us."""
    ip("link", "set", "lo", "up")
    ip("link", "add", BRIDGE, "type", "bridge")
    ip("addr", "add", f"{HERE}/24", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")
    os.makedirs("/run/netns", exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "chaos", "/run/netns"], check=True)


class FarDomain:
    """A domain as on another machine: in a network namespace that sees the coordinator over a link which
    can be cut. `dd2 agent join` starts it; where that ended, it is started again by keep()."""

    def __init__(self, run, number):
        self.run, self.name, self.veth = run, f"far-{number}", f"chaos-far{number}"
        if not os.path.exists(f"/run/netns/{self.name}"):
            ip("netns", "add", self.name)
            ip("link", "add", self.veth, "type", "veth", "peer", "name", "eth0", "netns", self.name)
            ip("link", "set", self.veth, "master", BRIDGE, "up")
            ip("-n", self.name, "link", "set", "lo", "up")
            ip("-n", self.name, "addr", "add", f"{PREFIX}{number + 1}/24", "dev", "eth0")
            ip("-n", self.name, "link", "set", "eth0", "up")
        self.process = None

    def link(self, state):
        ip("link", "set", self.veth, state)

    def keep(self):
        from dd2 import binary
        if self.process is not None and self.process.poll() is None:
            return
        if over(self.run) or self.run.members() is None:
            return
        with open(f"{self.run.folder}.{self.name}.out", "ab") as sink:
            self.process = subprocess.Popen(["ip", "netns", "exec", self.name, binary(), "agent", "join",
                                             str(self.run.folder), "--domain", self.name],
                                            stdout=sink, stderr=subprocess.STDOUT)


def cut_network(run, rng):
    """Shorter or longer than anybody may be silent."""
    far = rng.choice(run.far) if getattr(run, "far", None) else None
    if far is None or not run.workers(far.name):
        return None
    seconds = rng.choice((rng.uniform(0.3, 3), rng.uniform(6, 9)))
    far.link("down")
    later(seconds, lambda: far.link("up"))
    return f"{far.name} for {seconds:.1f} s"


def drop_connections(run, rng):
    """All connections to the coordinator's control port break."""
    try:
        port = json.loads((run.folder / "coordinator.json").read_text())["control_port"]
    except (OSError, ValueError):
        return None
    done = subprocess.run(["ss", "-K", "-t", "-H", f"sport = :{port}"], capture_output=True, text=True, check=False)
    count = len(done.stdout.splitlines())
    return f"{count} connections" if count else None


ALL = {
    "kill worker": kill_worker,
    "hang worker": hang_worker,
    "pause worker": pause_worker,
    "kill all workers": kill_workers,
    "kill agent": kill_agent,
    "kill domain": kill_domain,
    "kill coordinator": kill_coordinator,
    "pause coordinator": pause_coordinator,
    "kill everything": kill_everything,
    "flip checkpoint": flip_checkpoint,
    "flip snapshot": flip_snapshot,
    "flip cache": flip_cache,
    "disk full": disk_full,
    "cut network": cut_network,
    "drop connections": drop_connections,
}
NEED_NAMESPACES = ("disk full", "cut network")
