"""Pause, resume, checkpoint and cancel through the command line reach all ranks; Ctrl-C checkpoints;
no process is left behind, whoever is killed; and the final bits stay the same."""

import signal
import time

from dd2 import Workspace, dd2, expect, expect_same

CONFIG = "tests/configs/tiny.yaml"
LONG = ["phases.4.cycles=40", "phases.4.checkpoint_every=0", "phases.4.eval_every=0"]  # csd


def cycles(status):
    return next(phase["done"] for phase in status["phases"] if phase["name"] == "csd")


def checkpoints(run):
    return [c["id"] for c in run.status()["checkpoints"]]


with Workspace() as work:
    calm = work.run(CONFIG, "calm", set=LONG)
    run = work.start(CONFIG, "controlled", set=LONG)
    run.wait_for(phase="csd", step=2)
    expect(dd2("pause", run.folder).returncode == 0, "pause failed")
    run.wait_for(state="paused")
    # The cycle under way ends first, on a busy machine late.
    deadline = time.monotonic() + 30
    at, before = cycles(run.status()), None
    while at != before:
        expect(time.monotonic() < deadline, "a paused run went on")
        before = at
        time.sleep(2.0)
        at = cycles(run.status())
    expect(dd2("resume", run.folder).returncode == 0, "resume failed")
    run.wait_for(phase="csd", step=at + 2)
    before = len(checkpoints(run))
    expect(dd2("checkpoint", run.folder).returncode == 0, "checkpoint failed")
    deadline = time.monotonic() + 30
    while len(checkpoints(run)) == before:
        expect(time.monotonic() < deadline, "no checkpoint within 30 s of the request")
        time.sleep(0.1)
    expect(dd2("cancel", run.folder).returncode == 0, "cancel failed")
    run.finish(exit_code=6)
    run.wait_gone()

    # Ctrl-C: checkpoint, clean stop, a hint how to go on.
    run.start(resume=True)
    run.wait_for(phase="csd", step=20)
    run.process.send_signal(signal.SIGINT)
    run.finish(exit_code=6)
    expect("--resume" in run.tail(), f"no hint how to resume:\n{run.tail()}")
    run.wait_gone()

    # kill -9 of each program in turn, and of dd2 a moment later if it is still there: nothing is left
    # behind, whatever was about to be started again.
    for program in ("dd2", "dd2-agent", "dd2-coordinator", "dd2-worker"):
        done = cycles(run.start(resume=True).wait_for(phase="gts", step=0))
        if done < 40:
            run.wait_for(phase="csd", step=min(done + 1, 40))
        expect(run.kill(program), f"no {program} to kill")
        if program != "dd2":
            time.sleep(0.7)
            run.kill("dd2")
        run.process.wait(60)
        run.wait_gone()
    run.resume()
    run.wait_gone()
    expect_same(calm.digest(), run.digest())
