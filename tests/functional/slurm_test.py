"""`dd2 submit` on a real Slurm: slurmctld and four slurmd on this machine (slurm_cluster.py). Each run ends with the
state and the record of an undisturbed `dd2 run` on one rank.

usage: slurm_test.py [CHECK...]; without a name all of them."""

import os
import re
import subprocess
import sys
import time

import slurm_cluster
from dd2 import ROOT, Workspace, binary, expect, expect_same, wait_until

CONFIG = "tests/configs/chaos.yaml"
SEED = 3
SKIPPED = 77  # CTest's SKIP_RETURN_CODE


class Submitted:
    """A run that was submitted: the folder as in dd2.Run, and its job."""

    def __init__(self, work, cluster, name, *options):
        self.cluster = cluster
        self.run = work.new_run(CONFIG, name, seed=SEED)
        words = [binary(), "submit", ROOT / CONFIG, "--run", self.run.folder, "--seed", SEED, "--ranks", 1,
                 "--set", f"cache.path={work.path / f'cache-{name}'}", "--host", "127.0.0.1", *options]
        done = subprocess.run([str(word) for word in words], env=cluster.env, cwd=ROOT, capture_output=True, text=True,
                              check=False, timeout=90)
        expect(done.returncode == 0, f"dd2 submit: {done.returncode}\n{done.stdout}{done.stderr}")
        self.job = re.search(r"submitted job (\d+)", done.stdout)[1]

    def state(self):
        return self.cluster.state(self.job)

    def log(self):
        path = self.run.folder / "logs" / f"slurm-{self.job}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def ends(self, state="COMPLETED", timeout=240):
        wait_until(lambda: self.state() in (state, "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"),
                   f"job {self.job} to end", timeout)
        expect(self.state() == state, f"job {self.job} is {self.state()}\n{self.log()}")
        self.run.wait_gone()

    def is_like(self, calm):
        expect_same(calm.digest(), self.run.digest())
        expect(calm.record() == self.run.record(), "metrics.jsonl differs")

    def starts(self):
        return self.log().count(f"job {self.job}, start ")


def check_two_nodes(work, cluster, calm):
    submitted = Submitted(work, cluster, "two-nodes", "--nodes", "2")
    submitted.run.wait_for(phase="csd", step=1)
    expect(submitted.run.members() == 2, f"{submitted.run.members()} ranks on two nodes")
    nodes = cluster.nodes(submitted.job)
    expect(all(submitted.run.workers(node) for node in nodes), f"a worker on each of {nodes}")
    submitted.ends()
    submitted.is_like(calm)


def check_time_limit(work, cluster, calm):
    """Slurm's signal before the end of the time: a checkpoint, a requeue, and the run goes on by itself."""
    submitted = Submitted(work, cluster, "time-limit", "--nodes", "2")
    submitted.run.wait_for(phase="csd", step=3)
    cluster.call("scancel", "--batch", "--signal=USR2", submitted.job)
    wait_until(lambda: submitted.starts() == 2, "the second start of the job", 120)
    submitted.ends()
    expect(submitted.starts() == 2, f"{submitted.starts()} starts\n{submitted.log()}")
    submitted.is_like(calm)


def check_preemption(work, cluster, calm):
    """A job of a partition that goes first takes the nodes; the run comes back after it."""
    submitted = Submitted(work, cluster, "preemption", "--nodes", "2")
    submitted.run.wait_for(phase="csd", step=3)
    urgent = cluster.call("sbatch", "--parsable", "--partition=urgent", "--nodes=4", "--exclusive",
                          f"--output={work.path}/urgent.out", "--wrap", "sleep 3").strip()
    wait_until(lambda: cluster.state(urgent) == "COMPLETED", "the urgent job", 90)
    wait_until(lambda: submitted.starts() == 2, f"the second start of the job\n{submitted.log()}", 120)
    submitted.ends()
    submitted.is_like(calm)


def check_lost_node(work, cluster, calm):
    """slurmd and everything on a node at once: its domain is lost, the job and the others go on."""
    submitted = Submitted(work, cluster, "lost-node", "--nodes", "2")
    submitted.run.wait_for(phase="csd", step=3)
    expect(submitted.run.members() == 2, "both nodes work")
    lost = cluster.nodes(submitted.job)[1]
    begun = time.monotonic()
    cluster.lose(lost)
    wait_until(lambda: submitted.run.members() == 1, "the node that is left to go on alone", 60)
    print(f"node {lost} lost: the other one went on after {time.monotonic() - begun:.1f} s", flush=True)
    submitted.ends()
    submitted.is_like(calm)
    cluster.start(lost)


def check_lost_batch_host(work, cluster, calm):
    """The node with script and coordinator is lost. Slurm would leave the job running without them."""
    submitted = Submitted(work, cluster, "lost-batch-host", "--nodes", "2", "--set", "timeouts.coordinator_away=46")
    submitted.run.wait_for(phase="csd", step=3)
    expect(submitted.run.members() == 2, "both nodes work")
    lost = cluster.nodes(submitted.job)[0]
    cluster.lose(lost)
    expect(submitted.run.coordinator() is None, "the coordinator lives")
    begun = time.monotonic()
    wait_until(lambda: submitted.starts() == 2, f"the second start of the job\n{submitted.log()}", 180)
    print(f"batch host {lost} lost: the job started again after {time.monotonic() - begun:.1f} s", flush=True)
    expect(lost not in cluster.nodes(submitted.job), f"the job is on {cluster.nodes(submitted.job)}")
    submitted.ends()
    submitted.is_like(calm)
    cluster.start(lost)


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}


def main():
    reason = slurm_cluster.missing()
    if reason:
        print(f"SKIPPED: no Slurm can be started here: {reason}")
        sys.exit(SKIPPED)
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    with Workspace() as work:
        calm = work.run(CONFIG, "calm", seed=SEED, ranks=1, domains=1)
        with slurm_cluster.Cluster(work.path / "slurm") as cluster:
            for name in sys.argv[1:] or CHECKS:
                begun = time.monotonic()
                CHECKS[name](work, cluster, calm)
                print(f"{name}: {time.monotonic() - begun:.1f} s", flush=True)


main()
