"""One Slurm job for all nodes (`dd2 submit`) on a real Slurm: slurmctld and four slurmd on this machine
(slurm_cluster.py). Each run ends with the state and the record of an undisturbed `dd2 run` on one rank.

usage: slurm_test.py [CHECK...]; without a name all of them."""

import json
import re
import signal
import subprocess
import time

from dd2 import ROOT, binary, expect, expect_fails, wait_until
from slurm_run import CONFIG, Submitted, run_checks


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
    submitted.starts_again()
    expect("without a new checkpoint" not in submitted.log(), submitted.log())
    submitted.ends()
    expect(submitted.starts() == 2, f"{submitted.starts()} starts\n{submitted.log()}")
    submitted.is_like(calm)


def check_true_time_limit(work, cluster, calm):
    """The time of the job is over while the run is held: Slurm itself gives the signal, the run ends and goes on."""
    submitted = Submitted(work, cluster, "true-time-limit", "--nodes", "2", "--time", "2", "--grace", "60")
    submitted.run.wait_for(phase="csd", step=3)
    submitted.dd2("pause", submitted.run.folder)
    submitted.starts_again(timeout=240)
    expect("Slurm ends this job soon (time)" in submitted.log(), submitted.log())
    expect("without a new checkpoint" not in submitted.log(), submitted.log())
    wait_until(lambda: submitted.dd2("resume", submitted.run.folder).returncode == 0, "the run to be there again", 60)
    submitted.ends()
    submitted.is_like(calm)


def check_preemption(work, cluster, calm):
    """A job of a partition that goes first takes the nodes; the run comes back after it."""
    submitted = Submitted(work, cluster, "preemption", "--nodes", "2")
    submitted.run.wait_for(phase="csd", step=3)
    urgent = cluster.call("sbatch", "--parsable", "--partition=urgent", "--nodes=4", "--exclusive",
                          f"--output={work.path}/urgent.out", "--wrap", "sleep 20").strip()
    wait_until(lambda: submitted.is_in_state("preempted"), "the word 'preempted' in dd2 status", 60)
    wait_until(lambda: cluster.state(urgent) == "COMPLETED", "the urgent job", 90)
    submitted.starts_again()
    expect("without a new checkpoint" not in submitted.log(), submitted.log())
    submitted.ends()
    submitted.is_like(calm)


def check_requeued_by_hand(work, cluster, calm):
    """`scontrol requeue`: no warning at all, the run goes on from its newest checkpoint."""
    submitted = Submitted(work, cluster, "requeued", "--nodes", "2")
    submitted.run.wait_for(phase="csd", step=6)
    cluster.call("scontrol", "requeue", submitted.job)
    document = wait_until(lambda: submitted.is_in_state("requeued"), "the word 'requeued' in dd2 status", 30)
    job, = document["slurm_jobs"]
    expect(job["restarts"] == 1 and job["state"] == "PENDING", str(job))
    submitted.starts_again()
    submitted.ends()
    submitted.is_like(calm)


def check_controller_away(work, cluster, calm):
    """slurmctld is down while the run trains and loses an agent: nobody in the run needs it."""
    submitted = Submitted(work, cluster, "controller-away", "--nodes", "2")
    submitted.run.wait_for(phase="gts", step=3)
    # In good order: one that is killed forgets the jobs of its last seconds, and ends them when it is back.
    cluster.kill("slurmctld", signal.SIGTERM)
    begun = time.monotonic()
    submitted.run.wait_for(phase="csd", step=3)
    away = submitted.status()
    expect(away["state"] == "running" and "slurm_jobs" not in away, str(away)[:300])
    submitted.run.wait_for(phase="align", step=3)
    cluster.start("slurmctld")
    print(f"slurmctld away for {time.monotonic() - begun:.1f} s", flush=True)
    submitted.ends()
    submitted.is_like(calm)


def check_waits_and_is_cancelled(work, cluster, calm):
    """A job in the queue: what dd2 status says of it, no second one for the run, and dd2 cancel."""
    blocker = cluster.call("sbatch", "--parsable", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap",
                           "sleep 300").strip()
    wait_until(lambda: cluster.state(blocker) == "RUNNING", "the job that takes all nodes", 30)
    submitted = Submitted(work, cluster, "waits", "--nodes", "2")
    document = wait_until(lambda: submitted.is_in_state("queued"), "the word 'queued'", 30)
    job, = document["slurm_jobs"]
    expect(job["id"] == submitted.job and "wait" in job["description"], str(job))
    text = submitted.dd2("status", submitted.run.folder)
    expect(f"slurm job {submitted.job} waits" in text.stdout, "a line for the job", text)
    again = submitted.dd2("submit", submitted.run.folder / "config.yaml", "--run", submitted.run.folder, "--resume")
    expect_fails(again, 3, "has a job already", "dd2 cancel")
    cancelled = submitted.dd2("cancel", submitted.run.folder)
    expect(cancelled.returncode == 0 and f"queue: {submitted.job}" in cancelled.stdout, "dd2 cancel", cancelled)
    wait_until(lambda: submitted.state() == "CANCELLED", "the job to be cancelled", 30)
    expect_fails(submitted.dd2("cancel", submitted.run.folder), 9, "no coordinator works")
    cluster.call("scancel", blocker)
    # It goes on where somebody submits it again.
    again = submitted.dd2("submit", submitted.run.folder / "config.yaml", "--run", submitted.run.folder, "--resume",
                          "--host", "127.0.0.1")
    expect(again.returncode == 0, "dd2 submit --resume", again)
    submitted.job = re.search(r"submitted job (\d+)", again.stdout)[1]
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
    submitted.starts_again(timeout=180)
    print(f"batch host {lost} lost: the job started again after {time.monotonic() - begun:.1f} s", flush=True)
    expect(lost not in cluster.nodes(submitted.job), f"the job is on {cluster.nodes(submitted.job)}")
    submitted.ends()
    submitted.is_like(calm)
    cluster.start(lost)


def check_memory(work, cluster, _):
    """Slurm is asked for the memory of the partition's nodes before a job is made."""
    def submit(ranks, *options):
        words = [binary(), "submit", ROOT / CONFIG, "--run", work.path / "memory", "--ranks", ranks, "--dry-run", *options]
        return subprocess.run([str(word) for word in words], env=cluster.env, capture_output=True, text=True,
                              check=False, timeout=60)

    expect_fails(submit(4), 4, "needs about 2.", "at most 1.7 GB", "dd2 plan")
    expect_fails(submit(4, "--", "-p", "urgent"), 4, "at most 1.7 GB")
    for ranks, warned in ((3, True), (1, False)):
        done = submit(ranks)
        expect(done.returncode == 0 and ("may not fit" in done.stderr) == warned, f"{ranks} ranks", done)
    expect(not (work.path / "memory").exists(), "a dry run leaves nothing")


def check_doctor(work, cluster, _):
    """`dd2 doctor --slurm`: all nodes at once, in a step of their own."""
    def doctor(*words):
        words = [binary(), "doctor", "--slurm", "--run", work.path, "--host", "127.0.0.1", *words, "--json"]
        done = subprocess.run([str(word) for word in words], env=cluster.env, capture_output=True, text=True,
                              check=False, timeout=120)
        return done, json.loads(done.stdout)["findings"]

    before = set(work.path.iterdir())
    done, findings = doctor("--nodes", "4")
    expect(done.returncode == 0, "dd2 doctor --slurm", done)
    nodes = {tuple(sorted(one["what"] for one in findings if name in one["node"].split(",")))
             for name in cluster.names}
    expect(len(nodes) == 1, f"the same findings of each node: {nodes}")
    for what in ("mpirun", "network", "shared folder", "disk", "clock"):
        expect(what in next(iter(nodes)), f"{what} of each node: {nodes}")
    skews = {one["finding"] for one in findings if one["what"] == "network"}
    expect(skews == {"reaches the first node, clocks agree within 1 s"}, str(skews))
    requeue, = (one for one in findings if one["what"] == "requeue")
    expect(requeue["grade"] == "ok", str(requeue))
    done, findings = doctor("--partition", "nowhere")
    expect(done.returncode == 4 and any(one["what"] == "slurm" and one["grade"] == "fail" for one in findings),
           "a partition that is not there", done)
    expect(set(work.path.iterdir()) == before, "nothing is left")


run_checks(globals())
