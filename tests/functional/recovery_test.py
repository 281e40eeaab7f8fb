"""Live recovery on real processes: a worker, an agent, the coordinator, a whole domain are killed while a run
on two domains goes on. The final state and the record are bitwise those of an undisturbed run on one rank;
the incidents are printed with their times and with the steps that were done again."""

import random
import sys
import time

from dd2 import Workspace, expect, expect_same, wait_until

seed = int(sys.argv[1])
rng = random.Random(seed)
TINY = "tests/configs/tiny.yaml"


with Workspace() as work:
    calm = work.run(TINY, "calm", seed=seed, ranks=1)
    victim = work.start(TINY, "victim", seed=seed, ranks=1 + seed % 2, domains=2, cache=work.path / "cache-2")
    faults = [
        ("gts", 1, "a worker", lambda: victim.workers("local-2")[:1]),
        ("regress", 1, "the coordinator", lambda: [victim.coordinator()]),
        ("csd", 1, "an agent with its domain", lambda: victim.agents("local-1")),
        ("align", 1, "a worker of the other domain", lambda: victim.workers("local-2")[:1]),
    ]
    ranks = 2 * victim.options["ranks"]
    for phase, step, what, pids in faults:
        victim.wait_for(phase=phase, step=step)
        # With one domain left the next fault would take all: that costs steps, and is another test's.
        wait_until(lambda: victim.members() == ranks or victim.process.poll() is not None, "both domains")
        time.sleep(rng.random() * 0.3)
        if victim.process.poll() is not None:
            break  # so fast a machine that the run was over before the kill
        print(f"kill {what} in {phase}", flush=True)
        victim.signal([pid for pid in pids() if pid])
        time.sleep(2)  # the domain is back, or about to be
    victim.finish()
    victim.wait_gone()
    for incident in victim.incidents():
        print(incident["kind"], incident["domain"], f"{incident['resumed_seconds']} s,",
              incident["steps_lost"], "steps lost:", incident["reason"].splitlines()[0])
    expect_same(calm.digest(), victim.digest())
    expect(calm.record() == victim.record(), "metrics.jsonl of the two runs differ")
    expect(sum(incident["steps_lost"] for incident in victim.incidents()) == 0, "survivors lose no step")
    kinds = {incident["kind"] for incident in victim.incidents()}
    expect({"lost", "joined", "coordinator"} <= kinds, f"incidents: {kinds}")
