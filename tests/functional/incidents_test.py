"""What went wrong is told: a stopped worker is noticed by its silence, the same end three times at one step ends the
run with exit code 10 and a post-mortem. `dd2 incidents` tells both of the live and of the dead run, and the final
bits are those of the undisturbed run."""

import json
import signal
import time

from dd2 import Workspace, dd2, expect, expect_fails, expect_same, wait_until

TINY = "tests/configs/tiny.yaml"
EXPIRY = 5  # timeouts.heartbeat_expiry of tiny.yaml


def incidents(run):
    process = dd2("incidents", run.folder, "--json")
    expect(process.returncode == 0, "dd2 incidents --json", process)
    return json.loads(process.stdout)["incidents"]


def check_stopped(work, calm):
    run = work.start(TINY, "stopped", ranks=1, domains=2)
    run.wait_for(phase="gts", step=1)
    stopped = time.time()
    run.signal(run.workers("local-2")[:1], signal.SIGSTOP)
    lost = wait_until(lambda: [i for i in incidents(run) if i["kind"] in ("lost", "hang")], "the incident", 60)[0]
    expect(lost["domain"] == "local-2" and "no sign of life for 5 s" in lost["reason"], str(lost))
    took = lost["unix_ms"] / 1000 - stopped
    expect(EXPIRY - 2 < took < EXPIRY + 5, f"noticed after {took:.1f} s")
    run.finish().wait_gone()
    lost = [i for i in incidents(run) if i["kind"] == "lost"][0]
    expect(not lost["open"] and lost["steps_lost"] == 0, str(lost))
    expect("killed by signal 9" in lost["evidence"], str(lost))
    expect(0 <= lost["formed_seconds"] <= lost["resumed_seconds"], str(lost))
    text = dd2("incidents", run.folder)
    for word in ("lost, domain local-2, phase", "no sign of life", "ms mpirun ended", "ms next step", "steps lost: 0"):
        expect(word in text.stdout, f"'{word}' in the text", text)
    page = (run.folder / "report.html").read_text()
    expect("<h2>Incidents</h2>" in page and "no sign of life" in page, "the report tells it")
    expect_same(calm.digest(), run.digest())
    expect(calm.record() == run.record(), "metrics.jsonl of the two runs differ")
    print(f"a stopped worker: noticed after {took:.1f} s, next step {lost['resumed_seconds']:.2f} s later")


def check_hopeless(work, calm):
    run = work.start(TINY, "hopeless", ranks=1)
    run.wait_for(phase="gts", step=3)
    seen = set()
    for _ in range(3):
        # The first one trains; those that follow it are killed before they have done anything.
        fresh = wait_until(lambda: set(run.workers()) - seen, "a worker", 60)
        run.signal(fresh)
        seen |= fresh
    run.finish(10).wait_gone()
    text = run.output.read_text()
    for word in ("would fail again: the same failure 3 times at phase", "What happened:", "killed by signal 9",
                 "What to do:", "--resume"):
        expect(word in text, f"'{word}' in the post-mortem:\n{text}")
    told = [i for i in incidents(run) if i["resumed_seconds"] is None]
    expect(len(told) == 3 and all("killed by signal 9" in i["evidence"] for i in told), json.dumps(told, indent=1))
    run.resume()
    expect_same(calm.digest(), run.digest())
    expect(calm.record() == run.record(), "metrics.jsonl of the two runs differ")


with Workspace() as workspace:
    quiet = workspace.run(TINY, "calm", ranks=1)
    expect(incidents(quiet) == [], "a quiet run has none")
    expect("Incidents</h2>" not in (quiet.folder / "report.html").read_text(), "its report has no such section")
    expect_fails(dd2("incidents", workspace.path / "nothing"), 7, "no such file|there is no|no such")
    check_stopped(workspace, quiet)
    check_hopeless(workspace, quiet)
