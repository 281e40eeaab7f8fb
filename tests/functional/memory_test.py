"""Snapshots in memory on real processes: all workers of a run are killed, the agent as well, and bytes of the
snapshots are flipped. The workers that come after them go on from memory, lose no more than the steps since
the newest snapshot, and never load a damaged one; the final state and the record are bitwise those of an
undisturbed run."""

import random

from dd2 import Workspace, expect, expect_same, flip, snapshots_of, wait_until

CONFIG = "tests/configs/chaos.yaml"
SEED = 3
rng = random.Random(SEED)
SETTINGS = ["checkpoint.interval=off", "checkpoint.memory_every=1"]
FROM_MEMORY, FROM_DISK = "from snapshots in memory", "from checkpoint"


def formed(run):
    """What the coordinator said about where its generations go on."""
    log = run.folder / "logs" / "coordinator.log"
    return [line for line in log.read_text().splitlines() if "formed with" in line]


def hit(run, phase, step, pids, how=None):
    """Kills what `pids` gives when the run is there, does `how`, and waits for the next generation; its line."""
    run.wait_for(phase=phase, step=step)
    before = len(formed(run))
    run.signal(pids())
    if how:
        how()  # before they are started again
    wait_until(lambda: len(formed(run)) > before, "the next generation")
    return formed(run)[-1]


with Workspace() as work:
    calm = work.run(CONFIG, "calm", seed=SEED, ranks=1, domains=1)
    run = work.start(CONFIG, "victim", seed=SEED, ranks=2, domains=1, cache=work.path / "cache-2", set=SETTINGS)
    line = hit(run, "gts", 12, lambda: run.workers()[:1])
    expect(FROM_MEMORY in line, line)
    line = hit(run, "csd", 8, lambda: [run.agents()[0], *run.workers()])
    expect(FROM_MEMORY in line, line)
    files = snapshots_of(run.workers())
    expect(len(files) == 2, f"{files}")
    line = hit(run, "csd", 22, lambda: run.workers(), lambda: [flip(path, rng, 4000) for path in files])
    expect(FROM_DISK in line, line)
    run.finish().wait_gone()
    expect(not any(path.exists() for path in files), "snapshots are left behind")
    for incident in run.incidents():
        print(incident["kind"], f"{incident['resumed_seconds']} s,", incident["steps_lost"], "steps lost")
    lost = [incident["steps_lost"] for incident in run.incidents() if incident["kind"] == "lost"]
    expect(len(lost) == 3, f"{lost}")
    expect(all(steps <= 1 for steps in lost[:2]), f"more than the steps since a snapshot are lost: {lost}")
    expect_same(calm.digest(), run.digest())
    expect(calm.record() == run.record(), "metrics.jsonl of the two runs differ")
