"""A run that grows and shrinks: a second domain joins a run on one, then the first is drained, then Ctrl-C at the
second is refused while it is the last one, and lets it go once a third has joined. Final state and record are
bitwise those of an undisturbed run, and no step is done twice."""

import json
import signal
import subprocess

from dd2 import ROOT, Workspace, binary, dd2, expect, expect_fails, expect_same, wait_until

TINY = "tests/configs/tiny.yaml"


class Joined:
    """A `dd2 agent join` in the background."""

    def __init__(self, run, domain):
        self.path = run.work.path / f"join-{domain}.out"
        with open(self.path, "w", encoding="utf-8") as sink:
            self.process = subprocess.Popen([binary(), "agent", "join", str(run.folder), "--domain", domain],
                                            stdout=sink, stderr=subprocess.STDOUT, cwd=ROOT)

    def says(self, text, timeout=60):
        def said():
            expect(self.process.poll() is None or text in self.path.read_text(),
                   f"it ended without '{text}':\n{self.path.read_text()}")
            return text in self.path.read_text()
        wait_until(said, f"'{text}' in {self.path.read_text()}", timeout)

    def ends(self, exit_code, timeout=60):
        wait_until(lambda: self.process.poll() is not None, "the end of dd2 agent join", timeout)
        expect(self.process.returncode == exit_code,
               f"exit code {self.process.returncode}, expected {exit_code}:\n{self.path.read_text()}")


def drained(run):
    return [i for i in run.incidents() if i["kind"] == "drained"]


def check(work):
    calm = work.run(TINY, "calm", ranks=1)
    # Paused where something has to be reached before the run is over: it is a short one.
    run = work.start(TINY, "elastic", ranks=1, cache=work.path / "cache-2")
    run.wait_for(phase="gts", step=1)
    expect_fails(dd2("drain", run.folder, "local"), 4, "it is the last one of the run", "dd2 agent join")
    expect_fails(dd2("drain", run.folder, "nobody"), 7, "no domain 'nobody'; it has local")
    expect_fails(dd2("drain", run.folder, "a/b"), 2, "no domain's name")
    expect_fails(dd2("agent", "join", run.folder, "--domain", "local"), 2, "has a domain 'local' already")
    expect(dd2("pause", run.folder).returncode == 0, "pause")

    second = Joined(run, "second")
    second.says("domain second: working")
    expect(len(run.workers()) == 2, f"workers {run.workers()}")
    expect(dd2("resume", run.folder).returncode == 0, "resume")
    run.wait_for(phase="regress", step=1)

    answer = dd2("drain", run.folder, "local")
    expect(answer.returncode == 0, "drain", answer)
    wait_until(lambda: not run.agents("local"), "the first agent to end", 60)
    expect(not run.workers("local"), "its workers end with it")
    run.wait_for(phase="csd", step=1)
    expect(dd2("pause", run.folder).returncode == 0, "pause")

    second.process.send_signal(signal.SIGINT)
    second.says("it stays: cannot drain domain 'second': it is the last one")
    third = Joined(run, "third")
    third.says("domain third: working")
    expect(dd2("resume", run.folder).returncode == 0, "resume")
    answer = dd2("drain", run.folder, "second", "--json")
    expect(json.loads(answer.stdout)["state"] in ("running", "recovering"), "the run's document", answer)
    second.says("domain second has left the run")
    second.ends(0)

    run.finish().wait_gone()
    third.ends(0)
    expect([i["domain"] for i in drained(run)] == ["local", "second"], str(drained(run)))
    for incident in run.incidents():
        expect(incident["kind"] in ("joined", "drained"), str(incident))
        expect(incident["steps_lost"] == 0, str(incident))
        print(incident["kind"], incident["domain"], f"next step after {incident['resumed_seconds']} s")
    expect_same(calm.digest(), run.digest())
    expect(calm.record() == run.record(), "metrics.jsonl of the two runs differ")
    expect_fails(dd2("agent", "join", run.folder), 9, "no coordinator works on")


def check_end_unheard(work):
    """The run ends while the agent of a domain that joined can hear nothing: it leaves by itself."""
    run = work.start("tests/configs/tiny.yaml", "unheard", ranks=1, domains=1, seed=1)
    run.wait_for(phase="gts", step=1)
    joined = Joined(run, "far")
    run.signal(wait_until(lambda: run.agents("far"), "the agent"), signal.SIGSTOP)
    run.finish()
    joined.says("the run has ended, or moved, while domain far could not reach it")
    joined.ends(0)
    run.wait_gone()


with Workspace() as workspace:
    check(workspace)
    check_end_unheard(workspace)
