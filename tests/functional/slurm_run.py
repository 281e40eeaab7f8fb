"""What tests of runs in Slurm have in common: submit one, follow its jobs, compare it with the undisturbed run."""

import json
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
OVER = ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "COMPLETED")


class Submitted:
    """A run that was submitted: the folder as in dd2.Run, and its main job."""

    def __init__(self, work, cluster, name, *options):
        self.cluster = cluster
        self.run = work.new_run(CONFIG, name, seed=SEED)
        done = self.dd2("submit", ROOT / CONFIG, "--run", self.run.folder, "--seed", SEED, "--ranks", 1,
                        "--set", f"cache.path={work.path / f'cache-{name}'}", "--host", "127.0.0.1", *options)
        expect(done.returncode == 0, "dd2 submit", done)
        self.job = re.search(r"submitted job (\d+)", done.stdout)[1]

    def dd2(self, *words):
        """`dd2 WORDS` as somebody on the login node types it."""
        return subprocess.run([str(word) for word in (binary(), *words)], env=self.cluster.env, cwd=ROOT,
                              capture_output=True, text=True, check=False, timeout=90)

    def state(self):
        return self.cluster.state(self.job)

    def status(self):
        """The document of `dd2 status --json`."""
        done = self.dd2("status", self.run.folder, "--json")
        expect(done.returncode == 0, "dd2 status", done)
        return json.loads(done.stdout)

    def is_in_state(self, word):
        document = self.status()
        return document if document["state"] == word else None

    def node_jobs(self):
        """Of job-per-node: {number: state} of those that Slurm has."""
        jobs = json.loads((self.run.folder / "slurm" / "jobs.json").read_text())["nodes"]
        return {job: self.cluster.state(job) for job in jobs}

    def works_on(self, count, timeout=60):
        wait_until(lambda: self.run.members() == count, f"{count} ranks at work\n{self.log()}", timeout)

    def log(self):
        path = self.run.folder / "logs" / f"slurm-{self.job}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def ends(self, state="COMPLETED", timeout=240):
        wait_until(lambda: self.state() in OVER, f"job {self.job} to end\n{self.log()}", timeout)
        expect(self.state() == state, f"job {self.job} is {self.state()}\n{self.log()}")
        self.run.wait_gone()

    def is_like(self, calm):
        expect_same(calm.digest(), self.run.digest())
        expect(calm.record() == self.run.record(), "metrics.jsonl differs")

    def starts(self):
        return self.log().count(f"job {self.job}, start ")

    def starts_again(self, times=2, timeout=120):
        wait_until(lambda: self.starts() == times, f"start {times} of the job\n{self.log()}", timeout)


def run_checks(scope):
    """Runs the functions check_NAME of a module, or those whose names stand on the command line."""
    checks = {name.removeprefix("check_"): check for name, check in scope.items() if name.startswith("check_")}
    reason = slurm_cluster.missing()
    if reason:
        print(f"SKIPPED: no Slurm can be started here: {reason}")
        sys.exit(SKIPPED)
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    with Workspace() as work:
        calm = work.run(CONFIG, "calm", seed=SEED, ranks=1, domains=1)
        with slurm_cluster.Cluster(work.path / "slurm") as cluster:
            for name in sys.argv[1:] or checks:
                begun = time.monotonic()
                checks[name](work, cluster, calm)
                print(f"{name}: {time.monotonic() - begun:.1f} s", flush=True)
