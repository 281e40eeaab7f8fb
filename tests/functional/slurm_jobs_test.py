"""A Slurm job for the coordinator and one for each node (`dd2 submit --shape job-per-node`) on a real Slurm
(slurm_cluster.py). Each run ends with the state and the record of an undisturbed `dd2 run` on one rank.

usage: slurm_jobs_test.py [CHECK...]; without a name all of them."""

import time

from dd2 import expect, wait_until
from slurm_run import Submitted, run_checks


def submit(work, cluster, name, nodes, *options):
    return Submitted(work, cluster, name, "--shape", "job-per-node", "--nodes", nodes, *options)


def running(submitted):
    return {job for job, state in submitted.node_jobs().items() if state == "RUNNING"}


def coordinator_node(submitted):
    return submitted.cluster.nodes(submitted.job)[0]


def pause(submitted, wish):
    done = submitted.dd2(wish, submitted.run.folder)
    expect(done.returncode == 0, f"dd2 {wish}", done)


def check_grows_and_shrinks(work, cluster, calm):
    """2 -> 1 -> 3 nodes: one is lost with all that works there; then there is room for more, and it comes back."""
    submitted = submit(work, cluster, "elastic", "1-3")
    wait_until(lambda: submitted.state() == "RUNNING", "the coordinator's job", 30)
    home = coordinator_node(submitted)
    blocked = next(name for name in cluster.names if name != home)
    blocker = cluster.call("sbatch", "--parsable", f"--nodelist={blocked}", "--partition=urgent", "--exclusive",
                           "--output=/dev/null", "--wrap", "sleep 600").strip()
    submitted.works_on(2)
    submitted.run.wait_for(phase="csd", step=2)
    lost_job = sorted(running(submitted))[0]
    lost = cluster.nodes(lost_job)[0]
    begun = time.monotonic()
    cluster.lose(lost)
    submitted.works_on(1)
    print(f"node {lost} lost: the other one went on after {time.monotonic() - begun:.1f} s", flush=True)
    pause(submitted, "pause")  # the run is shorter than what follows
    wait_until(lambda: lost_job not in submitted.node_jobs() and len(submitted.node_jobs()) == 3,
               f"another job in the place of {lost_job}\n{submitted.log()}", 60)
    print(f"another job was queued after {time.monotonic() - begun:.1f} s", flush=True)
    cluster.call("scancel", blocker)
    cluster.start(lost)
    submitted.works_on(3, 90)
    print(f"three nodes at work {time.monotonic() - begun:.1f} s after the loss", flush=True)
    words = submitted.dd2("status", submitted.run.folder).stdout
    expect(words.count("(a node) runs on") == 3, words)
    pause(submitted, "resume")
    submitted.ends()
    submitted.is_like(calm)
    wait_until(lambda: not submitted.node_jobs() or set(submitted.node_jobs().values()) <= {"COMPLETED", "CANCELLED"},
               f"the nodes' jobs to end: {submitted.node_jobs()}", 60)


def check_coordinator_job_lost(work, cluster, calm):
    """The node with the coordinator: Slurm queues its job again, the nodes' jobs wait and join again."""
    submitted = submit(work, cluster, "coordinator-lost", "2")
    submitted.works_on(2)
    submitted.run.wait_for(phase="csd", step=3)
    nodes = running(submitted)
    home = coordinator_node(submitted)
    expect(home not in {cluster.nodes(job)[0] for job in nodes}, "a node of its own")
    begun = time.monotonic()
    cluster.lose(home)
    submitted.starts_again(timeout=180)
    submitted.works_on(2, 90)
    print(f"coordinator's node {home} lost: at work again after {time.monotonic() - begun:.1f} s", flush=True)
    expect(running(submitted) == nodes, f"the same jobs: {nodes}, {running(submitted)}")
    submitted.ends()
    submitted.is_like(calm)
    cluster.start(home)


def check_time_limits(work, cluster, calm):
    """Slurm's signal before the end of the time: first to a node's job, then to the coordinator's."""
    submitted = submit(work, cluster, "time-limits", "2")
    submitted.works_on(2)
    submitted.run.wait_for(phase="gts", step=3)
    ending = sorted(running(submitted))[0]
    cluster.call("scancel", "--batch", "--signal=USR2", ending)
    wait_until(lambda: cluster.state(ending) == "COMPLETED", f"{cluster.state(ending)} job {ending} to end\n{submitted.log()}", 60)
    incident = wait_until(lambda: [i for i in submitted.run.incidents() if i["kind"] == "drained"], "the drain", 30)[0]
    expect(incident["steps_lost"] == 0, str(incident))
    submitted.works_on(2, 90)
    submitted.run.wait_for(phase="csd", step=3)
    nodes = running(submitted)
    expect(ending not in nodes, "another job has its place")
    begun = time.monotonic()
    cluster.call("scancel", "--batch", "--signal=USR2", submitted.job)
    submitted.starts_again()
    submitted.works_on(2, 60)
    print(f"coordinator's time over: at work again after {time.monotonic() - begun:.1f} s", flush=True)
    expect(running(submitted) == nodes, f"the same jobs: {nodes}, {running(submitted)}")
    submitted.ends()
    submitted.is_like(calm)


def check_all_nodes_preempted(work, cluster, calm):
    """A job that goes first takes every node but the coordinator's: the run waits without any and goes on."""
    submitted = submit(work, cluster, "preempted", "1-3")
    submitted.works_on(3)
    submitted.run.wait_for(phase="csd", step=3)
    home = coordinator_node(submitted)
    others = ",".join(name for name in cluster.names if name != home)
    urgent = cluster.call("sbatch", "--parsable", "--partition=urgent", f"--nodelist={others}", "--nodes=3",
                          "--exclusive", "--output=/dev/null", "--wrap", "sleep 20").strip()
    wait_until(lambda: cluster.state(urgent) == "RUNNING", "the urgent job", 90)
    document = wait_until(lambda: submitted.is_in_state("recovering"), "a run that waits for nodes", 30)
    expect(all(job["state"] == "PENDING" for job in document["slurm_jobs"] if job["role"] == "node"),
           str(document["slurm_jobs"]))
    submitted.works_on(3, 120)
    submitted.ends()
    submitted.is_like(calm)


def check_everything_preempted(work, cluster, calm):
    """The coordinator's node too: a checkpoint at once, and all of it comes back by itself."""
    submitted = submit(work, cluster, "all-preempted", "1-3")
    submitted.works_on(3)
    submitted.run.wait_for(phase="csd", step=3)
    urgent = cluster.call("sbatch", "--parsable", "--partition=urgent", "--nodes=4", "--exclusive",
                          "--output=/dev/null", "--wrap", "sleep 3").strip()
    wait_until(lambda: cluster.state(urgent) == "COMPLETED", "the urgent job", 90)
    submitted.starts_again()
    expect("Slurm ends this job soon" in submitted.log(), submitted.log())
    submitted.ends()
    submitted.is_like(calm)


def check_cancelled(work, cluster, _):
    """dd2 cancel: a checkpoint, and no job is left."""
    submitted = submit(work, cluster, "cancelled", "2")
    submitted.works_on(2)
    submitted.run.wait_for(phase="gts", step=3)
    jobs = set(submitted.node_jobs())
    pause(submitted, "cancel")
    submitted.ends("FAILED")  # exit code 6
    expect("exit code 6" in submitted.log(), submitted.log())
    wait_until(lambda: not any(cluster.state(job) in ("RUNNING", "PENDING") for job in jobs), f"jobs {jobs} to end", 60)
    expect(submitted.status()["state"] == "stopped", str(submitted.status())[:200])


run_checks(globals())
